"""The workflow: its jobs, what a changed field reruns, and what it refuses before anything runs."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from r1track import cli, plan
from r1track.core import config, folders
from r1track.core.cards import present
from r1track.core.files import write_json

ROOT = config.ROOT
MODELS = ("base", "grpo", "static", "template", "oracle")
RESULTS = "results/demo"
FOLDERS = [
    f"{RESULTS}/pairs",
    f"{RESULTS}/adapters/grpo",
    f"{RESULTS}/models/grpo",
    f"{RESULTS}/vqa/base",
    f"{RESULTS}/vqa/grpo",
    *(f"{RESULTS}/tracks/{model}/toy-val" for model in MODELS),
]
FILES = [
    "scratch/demo/toy/train/list.txt",
    "scratch/demo/toy/val/list.txt",
    f"{RESULTS}/vqa/verdict.json",
    f"{RESULTS}/vqa/kept",
    *(f"{RESULTS}/report/{name}" for name in ("index.html", "summary.json", "summary.md")),
    *(f"{RESULTS}/scores/{model}/toy-val.json" for model in MODELS),
]
FROM_TRACK = {"track": 5, "score": 5, "report": 1}
FROM_VQA = {"vqa": 2, "verdict": 1, "report": 1}
# What follows from a new adapter: peers and base stay as they are.
FROM_TRAIN = {"train": 1, "merge": 1, "track": 1, "score": 1, "vqa": 1, "verdict": 1, "report": 1}
FROM_SAMPLE = {"sample": 1, **FROM_TRAIN}
RERUNS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "seed": ({"seed": 1}, FROM_SAMPLE),
    "model": ({"model": {"max_pixels": 9600}}, {**FROM_TRAIN, **FROM_TRACK, **FROM_VQA}),
    "data": ({"data": {"train": "toy/val"}}, FROM_SAMPLE),
    "toy": ({"toy": {"seed": 1}}, {"toy": 1, **FROM_SAMPLE, **FROM_TRACK}),
    "task": ({"task": {"search_factor": 5.0}}, {**FROM_SAMPLE, **FROM_TRACK}),
    "sample": ({"sample": {"shift": 0.5}}, FROM_SAMPLE),
    "train": ({"train": {"learning_rate": 1.0e-6}}, FROM_TRAIN),
    "merge": ({"merge": {"min_agreement": 0.8}}, {k: n for k, n in FROM_TRAIN.items() if k != "train"}),
    "track": ({"track": {"min_side": 5.0}}, FROM_TRACK),
    "score": ({"score": {"draws": 500}}, {"score": 5, "report": 1}),
    "vqa": ({"vqa": {"seed": 1}}, FROM_VQA),
    "verdict": ({"verdict": {"margin": 3.0}}, {"verdict": 1, "report": 1}),
    "report": ({"report": {"strips": 3}}, {"report": 1}),
}


def make_plan(values: dict[str, Any]) -> plan.Plan:
    return plan.make_plan(config.resolve(values))


def snakemake(folder: Path, *words: str, root: Path = ROOT, cores: str = "2") -> subprocess.CompletedProcess[str]:
    """Snakemake in `folder`, with the Snakefile and the package that lie in `root`; cores: "" for the profile's."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), *words]
    command += ["--cores", cores] if cores else []
    place = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True)


def planned(folder: Path, change: dict[str, Any], name: str = "none", root: Path = ROOT) -> Counter[str]:
    """The jobs of a dry run, by rule, with `change` over the configuration."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(change))
    done = snakemake(folder, "--dry-run", "--nolock", "--configfile", str(file), root=root)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return Counter() if "Nothing to be done" in output else jobs(output)


def jobs(output: str) -> Counter[str]:
    """The jobs by rule that Snakemake lists."""
    table = output.split("Job stats:")[-1].split("total")[0]
    return Counter({rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)})


def finish(folder: Path, root: Path = ROOT) -> Path:
    """Make `folder` a working directory in which Snakemake believes the demo to be done."""
    (folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for stage in config.NEEDS:
        write_json(folder / RESULTS / "config" / f"{stage}.json", config.stage_values(config.resolve({}), stage))
    done = snakemake(folder, "--touch", "--forceall", root=root)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def reruns(finished: Path) -> dict[str, Counter[str]]:
    with ThreadPoolExecutor(2) as pool:  # each dry run takes seconds to start
        found = pool.map(lambda name: planned(finished, RERUNS[name][0], name), RERUNS)
        return dict(zip(RERUNS, found, strict=True))


def test_every_section_has_a_changed_field_below() -> None:
    assert set(RERUNS) == set(config.Settings.model_fields) - {"preset", "run", "study"}


@pytest.mark.parametrize("section", RERUNS)
def test_one_changed_field_reruns_what_depends_on_it_and_nothing_else(
    section: str, reruns: dict[str, Counter[str]]
) -> None:
    found = {rule: count for rule, count in reruns[section].items() if rule not in ("settings", "gate", "all")}
    assert found == RERUNS[section][1]


def test_only_the_files_of_stages_that_read_a_section_are_written_anew(reruns: dict[str, Counter[str]]) -> None:
    for section, found in reruns.items():
        assert found["settings"] == sum(section in needs for needs in config.NEEDS.values()), section


def test_a_finished_run_has_nothing_to_do(finished: Path) -> None:
    assert planned(finished, {}) == Counter()


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that may be changed, as deep as that: the paths of the sources are relative."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


def reruns_of(folder: Path, *words: str) -> tuple[dict[str, int], str]:
    """The stages that a dry run lists, with their numbers of jobs, and what it prints."""
    done = snakemake(folder, "--dry-run", "--nolock", *words)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    found = Counter() if "Nothing to be done" in output else jobs(output)
    return {rule: count for rule, count in found.items() if rule not in ("settings", "gate", "all")}, output


STEPS = ("--config", "train={steps: 9}")


def test_a_changed_configuration_is_seen_whatever_triggers_are_left_out_and_after_a_touch(copied: Path) -> None:
    reruns, output = reruns_of(copied, "--rerun-triggers", "mtime", *STEPS)
    assert reruns == FROM_TRAIN
    assert output.count("train.steps: 60 -> 9") == 1
    touched = snakemake(copied, "--touch", *STEPS)
    assert touched.returncode == 0, touched.stderr
    assert reruns_of(copied, *STEPS)[0] == FROM_TRAIN
    reruns, output = reruns_of(copied)
    assert (reruns, "->" in output) == ({}, False), "the files of the stages still say what was run"


@pytest.mark.parametrize("text", ['{"seed": 7}', "{", None])
def test_a_stage_file_that_was_altered_by_hand_is_seen_and_restored(text: str | None, copied: Path) -> None:
    file = copied / RESULTS / "config" / "verdict.json"
    before = file.read_text()
    file.write_text(text or before.replace('"margin": 2.0', '"margin": 9.0'))
    reruns, output = reruns_of(copied, "--rerun-triggers", "mtime")
    assert reruns == {"verdict": 1, "report": 1}
    assert ("verdict.margin: 9.0 -> 2.0" if text is None else "verdict.json cannot be read") in output
    done = snakemake(copied, f"{RESULTS}/config/verdict.json")
    assert done.returncode == 0, done.stderr
    assert file.read_text() == before
    assert reruns_of(copied)[0] == {}, "as it was when the stage ran"


def test_a_real_run_makes_a_changed_stage_again_and_restores_its_altered_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("run: real\ntoy: {train_sequences: 1, val_sequences: 1, length: 3}\n")
    settings, boxes = tmp_path / "results/real/config/toy.json", tmp_path / "scratch/real/toy/val/Toy_Val_000001"
    for change in ("seed=0", "toy={length: 4}", "toy={length: 4}"):
        words = ("--rerun-triggers", "mtime", "--configfile", "mine.yaml", "--config", change)
        done = snakemake(tmp_path, "results/real/scores/static/toy-val.json", *words)
        assert done.returncode == 0, done.stderr
        assert config.load(settings).toy.length == len((boxes / "groundtruth.txt").read_text().splitlines())
        settings.write_text(settings.read_text().replace('"length": 4', '"length": 9'))
    assert "toy.length: 9 -> 4" in done.stderr
    assert jobs(done.stdout + done.stderr) == Counter({"settings": 1, "toy": 1, "track": 1, "score": 1})


def test_a_stage_file_from_before_a_field_had_its_default_is_not_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, file = make_plan({}), Path(RESULTS, "config", "train.json")
    values = config.stage_values(run.settings, "train")
    del values["train"]["keep_every"]
    write_json(file, values)
    assert plan.stale(run) == {}
    assert plan.stale(make_plan({"train": {"keep_every": 9}})) == {str(file): ["train.keep_every: 25 -> 9"]}
    assert plan.stale(make_plan({"seed": 1, "model": {"revision": "a"}})) == {
        str(file): ["seed: 0 -> 1", "model.revision: None -> a"]
    }
    del values["task"]
    write_json(file, values)
    assert plan.stale(run) == {str(file): [f"{file} cannot be read"]}, "a section that the stage needs is missing"


def test_sets_of_a_second_file_replace_the_first_ones_and_one_field_is_changed_as_typed(finished: Path) -> None:
    (finished / "one.yaml").write_text("run: sets\ndata: {sets: {one: toy/val}}\nvqa: {sets: {q1: {items: 400}}}\n")
    (finished / "two.yaml").write_text("data: {sets: {two: toy/val}}\nvqa: {sets: {q2: {items: 300}}}\n")
    words = ("--configfile", "one.yaml", "two.yaml", "--config", "train={steps: 9, lora: {rank: 4}}", "seed=3")
    targets = [f"results/sets/config/{stage}.json" for stage in ("vqa", "train")]
    done = snakemake(finished, *targets, "--nolock", *words)
    assert done.returncode == 0, done.stderr
    read = {
        stage: config.load(finished / "results" / "sets" / "config" / f"{stage}.json") for stage in ("vqa", "train")
    }
    assert list(read["vqa"].vqa.sets) == ["q2"]
    assert (read["train"].seed, read["train"].train.steps, read["train"].train.lora.rank) == (3, 9, 4)
    assert read["train"].train.group == 8
    _, output = reruns_of(finished, "--printshellcmds", *words)
    assert "tracks/base/two" in output
    assert "tracks/base/one" not in output


@pytest.mark.parametrize("text", ["seed: 1\n\nseed: 2\n", "toy:\n  seed: 1\n  length: 010\n"])
def test_what_yaml_misreads_stops_the_workflow_with_file_and_line(text: str, copied: Path) -> None:
    (copied / "second.yaml").write_text(text)
    (copied / "config.yaml").write_text(text)
    for words, file in ((("--configfile", "second.yaml"), "config.yaml"), ((), "config.yaml")):
        done = snakemake(copied, "--dry-run", *words)
        assert done.returncode != 0
        assert done.stderr.splitlines()[-1].startswith(f"error: {file}, line 3: "), done.stderr
    (copied / "config.yaml").unlink()
    done = snakemake(copied, "--dry-run", "--configfile", "second.yaml")
    assert done.stderr.splitlines()[-1].startswith("error: second.yaml, line 3: "), done.stderr


def test_plain_snakemake_and_rulegraph_work_and_so_do_another_folder_and_directory(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "mine.yaml").write_text("preset: demo\nrun: mine\n")
    for words in (("--dry-run",), ("--rulegraph",), ("--dry-run", "--directory", "one", "--configfile", "mine.yaml")):
        done = snakemake(tmp_path, "--nolock", *words, cores="")
        assert done.returncode == 0, done.stderr
        assert "report" in done.stdout + done.stderr
    assert "results/mine/report" in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()


def test_a_split_without_a_list_is_planned_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "split" / "clip").mkdir(parents=True)
    assert make_plan({"data": {"train": str(tmp_path / "split")}}).train == str(tmp_path / "split")
    assert plan.listing(str(tmp_path / "split")) == str(tmp_path / "split")
    (tmp_path / "split" / "list.txt").write_text("clip\n")
    assert plan.listing(str(tmp_path / "split")) == f"{tmp_path}/split/list.txt"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_plan({"data": {"sets": {"mine": "~/split"}}}).sets == {"mine": f"{tmp_path}/split"}


def test_another_run_leaves_the_finished_one_alone_and_is_complete(finished: Path) -> None:
    expected = {
        "settings": 9, "toy": 1, "sample": 1, "train": 1, "merge": 1, "track": 5, "score": 5, "vqa": 2, "verdict": 1,
        "report": 1, "gate": 1, "all": 1,
    }  # fmt: skip
    assert planned(finished, {"run": "other"}, "other") == Counter(expected)


def test_commands_of_the_rules_are_ones_that_the_command_line_takes(finished: Path) -> None:
    done = snakemake(finished, "--dry-run", "--nolock", "--printshellcmds", "--config", "run=commands")
    commands = re.findall(r"r1track --log (\S+) ([\w-]+) (.*)", done.stdout + done.stderr)
    assert {stage for _, stage, _ in commands} == {*config.NEEDS, "gate"}
    for log, stage, rest in commands:
        assert log.startswith(f"results/commands/logs/{stage}")
        parameters = get_command(cli.app).commands[stage].params  # type: ignore[attr-defined]
        flags = {parameter.opts[0] for parameter in parameters}
        required = {parameter.opts[0] for parameter in parameters if parameter.required}
        assert required <= set(re.findall(r"--[\w-]+", rest)) <= flags, rest


def test_every_stage_takes_its_own_configuration_and_source_files_as_inputs() -> None:
    text = "\n".join(file.read_text() for file in (ROOT / "workflow" / "rules").glob("*.smk"))
    rules = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(rules) == {"settings", "gate", "submit", "part", "link", "compare", *config.NEEDS}
    assert 'sources=plan.sources("submit")' in rules["submit"]
    for stage in config.NEEDS:
        assert f'sources=plan.sources("{stage}")' in rules[stage]
        file = "{configuration.stage_file('train', w.arm)}" if stage == "train" else stage
        assert f"/config/{file}.json" in rules[stage]


def test_a_stage_has_the_sources_that_it_imports_and_no_others() -> None:
    assert "r1track/core/prompts.py" in relative(plan.sources("track"))
    assert "r1track/core/prompts.py" not in relative(plan.sources("score"))


def relative(files: list[str]) -> set[str]:
    return {Path(file).resolve().relative_to(ROOT).as_posix() for file in files}


@pytest.mark.parametrize("stage", config.NEEDS)
def test_sources_of_a_stage_are_its_modules_without_configuration_and_command_line(stage: str) -> None:
    found = relative(plan.sources(stage))
    assert {path.split("/")[-1] for path in found} >= {f"{stage}.py"}
    assert not found & {"r1track/core/config.py", "r1track/core/files.py", "r1track/cli.py", "r1track/plan.py"}


def test_imports_inside_functions_count_as_sources(tmp_path: Path) -> None:
    file = tmp_path / "stage.py"
    file.write_text("import os\nfrom r1track.core.boxes import iou\ndef f():\n    from r1track.core import crops\n")
    assert plan._imports(file) >= {"r1track.core.boxes", "r1track.core.crops"}
    assert "os" not in plan._imports(file)


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the repository whose modules may be changed, and a folder in which its demo is done."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("r1track", "workflow"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, root)
    return root, finish(tmp_path_factory.mktemp("done"), root)


def after_a_changed_line(module: str, cloned: tuple[Path, Path]) -> Counter[str]:
    """The jobs that are planned after a line was added to a module."""
    root, folder = cloned
    file = root / "r1track" / module
    text = file.read_text()
    file.write_text(f"{text}\nCHANGED = True\n")
    try:
        return planned(folder, {}, root=root)
    finally:
        file.write_text(text)


@pytest.mark.parametrize("module", ["training/progress.py", "data/export.py", "tracking/endpoint.py"])
def test_display_export_and_endpoint_code_reruns_nothing(module: str, cloned: tuple[Path, Path]) -> None:
    assert after_a_changed_line(module, cloned) == Counter()


def test_code_that_results_depend_on_reruns_them(cloned: tuple[Path, Path]) -> None:
    found = after_a_changed_line("core/prompts.py", cloned)
    assert {"train", "merge", "track", "vqa"} <= found.keys()
    assert "toy" not in found


def test_the_lint_finds_nothing() -> None:
    done = snakemake(ROOT, "--lint")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Lints for" not in done.stdout + done.stderr


def test_a_wrong_field_stops_the_workflow_without_a_traceback(finished: Path) -> None:
    (finished / "wrong.yaml").write_text("train: {gruop: 8}\n")
    done = snakemake(finished, "--dry-run", "--nolock", "--configfile", "wrong.yaml")
    assert done.returncode != 0
    assert "train.gruop = 8: unknown field; did you mean 'group'?" in done.stderr
    assert "Traceback" not in done.stderr


def write_split(folder: Path, *names: str) -> Path:
    folder.mkdir()
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def test_a_second_workflow_of_the_same_run_is_refused_before_its_first_job(finished: Path) -> None:
    with folders.locked(finished / RESULTS):
        done = snakemake(finished, "--nolock", "--forceall")
    assert done.returncode == 1
    assert f"error: {RESULTS}: is being written by process {os.getpid()} on " in done.stdout + done.stderr
    assert "rule settings" not in done.stdout + done.stderr


def test_data_that_do_not_exist_are_refused_with_field_path_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        config.ConfigError, match=r"data\.train = 'nowhere': nowhere/list\.txt: no such file; give a split"
    ):
        make_plan({"data": {"train": "nowhere"}})
    with pytest.raises(config.ConfigError, match=r"data\.sets\.mine = 'nowhere'"):
        make_plan({"data": {"sets": {"mine": "nowhere"}}})
    split = write_split(tmp_path / "split", "one", "two", "three")
    (split / "one").mkdir()
    with pytest.raises(
        config.ConfigError, match=r"data\.train = .*list\.txt, line 2: no folder .*/split/two; unpack it or delete"
    ):
        make_plan({"data": {"train": str(split)}})
    with pytest.raises(config.ConfigError, match="take toy/train or toy/val"):
        make_plan({"data": {"train": "toy/test"}})


def test_sequences_may_be_links_out_of_their_split(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "clip").mkdir(parents=True)
    split = write_split(tmp_path / "split", "clip")
    (split / "clip").symlink_to("../elsewhere/clip")
    assert make_plan({"data": {"train": str(split)}}).train == str(split)


def test_names_that_cannot_be_folders_are_refused() -> None:
    with pytest.raises(config.ConfigError, match="run = 'a b': cannot name a folder"):
        make_plan({"run": "a b"})
    with pytest.raises(config.ConfigError, match=r"data\.sets = 'x/y': cannot name a folder"):
        make_plan({"data": {"sets": {"x/y": "toy/val"}}})


def test_the_real_clips_run_through_the_same_jobs_without_the_toy_world() -> None:
    if not (ROOT.parent / "shared" / "realseq").is_dir():
        pytest.skip("shared/realseq is not beside the repository")
    run = make_plan(yaml.safe_load((ROOT / "tests" / "configs" / "real_clips.yaml").read_text()))
    assert run.results == "results/real-clips"
    assert (run.train, run.sets) == ("tests/configs/real_clips/train", {"real": "tests/configs/real_clips/val"})


def test_an_arm_starts_from_the_base_or_from_the_merged_arm_before_it() -> None:
    both = make_plan({"train": {"arms": ["sft", "grpo"]}})
    assert [both.initial_model(arm) for arm in both.arms] == ["base", "base"]
    chained = make_plan({"train": {"arms": ["sft", "grpo"], "start": "sft"}})
    assert [chained.initial_model(arm) for arm in chained.arms] == ["base", "sft"]
    assert chained.model(chained.initial_model("grpo")) == "results/demo/models/sft"


def test_two_arms_are_both_merged_tracked_asked_and_judged(finished: Path) -> None:
    (finished / "arms.yaml").write_text("run: arms\ntrain: {arms: [sft, grpo], start: sft}\n")
    done = snakemake(finished, "--dry-run", "--nolock", "--printshellcmds", "--configfile", "arms.yaml")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    found = jobs(output)
    assert (found["train"], found["merge"], found["track"], found["vqa"], found["verdict"]) == (2, 2, 6, 3, 1)
    folder = "results/arms/vqa"
    assert f"--base {folder}/base --tuned {folder}/sft --tuned {folder}/grpo --out {folder}/verdict.json" in output
    asked = re.findall(r"r1track --log \S+ vqa .*--out results/arms/vqa/(\w+)(.*)", output)
    assert {name: rest.split() for name, rest in asked} == {
        "base": [], "sft": ["--pairs", "results/arms/pairs"], "grpo": ["--pairs", "results/arms/pairs"],
    }  # fmt: skip


def make_test_split(folder: Path) -> Path:
    """A folder as GOT-10k's test split begins."""
    split = write_split(folder, "GOT-10k_Test_000001")
    (split / "GOT-10k_Test_000001").mkdir()
    return split


def test_an_extra_model_is_tracked_and_scored_as_a_fourth(finished: Path) -> None:
    change = {"run": "extra", "track": {"extra": {"mine": {"model": "someone/model"}}, "peers": ["static", "csrt"]}}
    run = make_plan(change)
    assert run.models == ["base", "grpo", "mine", "static", "csrt"]
    assert (run.model("mine"), run.weights("mine")) == ("extra:mine", [])
    found = planned(finished, change, "extra")
    assert (found["track"], found["score"], found["train"], found["vqa"]) == (5, 5, 1, 2)


def test_the_files_of_an_extra_model_are_inputs_of_its_tracks(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").touch()
    run = make_plan({"track": {"extra": {"mine": {"model": str(tmp_path), "adapter": str(tmp_path / "lora")}}}})
    files = [tmp_path / "config.json", tmp_path / "lora" / "adapter_config.json"]
    assert [Path(file).resolve() for file in run.weights("mine")] == files


def test_the_test_split_is_tracked_and_packed_and_neither_scored_nor_tracked_by_peers(finished: Path) -> None:
    split = make_test_split(finished / "test-split")
    change = {"run": "test", "data": {"sets": {"toy-val": "toy/val", "test": str(split)}}}
    run = make_plan(change)
    assert run.submissions == ["results/test/submission/base.zip", "results/test/submission/grpo.zip"]
    found = planned(finished, change, "test")
    assert (found["track"], found["score"], found["submit"]) == (7, 5, 2)
    done = snakemake(finished, "--dry-run", "--nolock", "--printshellcmds", "--configfile", "test.yaml")
    (command,) = set(re.findall(r"r1track --log \S+ submit (.*grpo.*)", done.stdout + done.stderr))
    assert command == f"--tracks results/test/tracks/grpo/test --out results/test/submission/grpo.zip --root {split}"


def test_a_run_has_one_test_split_at_most_and_something_to_score(tmp_path: Path) -> None:
    split = str(make_test_split(tmp_path / "split"))
    for sets in ({"one": split}, {"one": split, "two": split, "val": "toy/val"}):
        with pytest.raises(
            config.ConfigError, match=r"are test splits; keep at most one, and one set that can be scored"
        ):
            make_plan({"data": {"sets": sets}})


def test_a_set_may_be_started_from_text_by_its_name(finished: Path) -> None:
    sets = {"toy-val": "toy/val", "told": "toy/val"}
    run = make_plan({"data": {"sets": sets}, "track": {"starts": {"told": "text"}}})
    assert [run.settings.track.start_of(name) for name in sets] == ["box", "text"]
    with pytest.raises(config.ConfigError, match=r"track\.starts: 'tld' is no set; take one of \['toy-val'\]"):
        make_plan({"track": {"starts": {"tld": "text"}}})


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow without messages, in place of which Snakemake prints everything about a job."""
    root = tmp_path_factory.mktemp("talking")
    for name in ("r1track", "workflow"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", root)
    for file in root.glob("workflow/rules/*.smk"):
        file.write_text(re.sub(r" {4}message:\n.*\n", "", file.read_text()))
    return root


@pytest.mark.parametrize(
    ("base", "cards", "cores", "threads"),
    [("large/base", 1, 4, 4), ("large/base", 2, 4, 2), ("large/base", 3, 2, 1), ("tiny", 1, 4, 1)],
)
def test_jobs_on_several_cards_share_the_cores_and_the_tiny_model_takes_one(
    base: str, cards: int, cores: int, threads: int, talking: Path
) -> None:
    config = ("--config", "run=cards", f"model={{base: {base}}}")
    words = ("results/cards/adapters/grpo", *config, "--resources", f"gpu={cards}")
    done = snakemake(talking, "--dry-run", "--nolock", *words, root=talking, cores=str(cores))
    (block,) = re.findall(r"rule train:\n.*?(?=Shell command|\n\n)", done.stdout + done.stderr, re.DOTALL)
    found = re.search(r"threads: (\d+)", block)
    assert (int(found[1]) if found else 1) == threads, block
    takes_card = re.search(r"resources: .*\bgpu=1\b", block) is not None
    assert takes_card == bool(present()), f"jobs wait for one another where no card is: {block}"


def test_a_set_may_be_tracked_in_parts_that_are_joined_and_peers_are_not(finished: Path) -> None:
    found = planned(finished, {"run": "parts", "track": {"parts": 3}}, "parts")
    assert (found["part"], found["track"], found["score"]) == (6, 5, 5)
    done = snakemake(finished, "--dry-run", "--nolock", "--printshellcmds", "--configfile", "parts.yaml")
    place = "scratch/parts/parts/grpo/toy-val"
    joins = re.findall(
        r"r1track --log \S+ track .*--out results/parts/tracks/grpo/toy-val (.*)", done.stdout + done.stderr
    )
    assert joins[0].split()[2:] == [word for k in (1, 2, 3) for word in ("--join", f"{place}/{k}")]
