"""The workflow: its jobs, what a changed field reruns, and what stops it before anything runs."""

import os
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dry_runs import RESULTS, ROOT, finish, jobs, make_plan, make_test_split, planned, snakemake
from typer.main import get_command

from r1track import cli
from r1track.core import config, folders
from r1track.core.cards import present

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


def test_a_second_workflow_of_the_same_run_is_refused_before_its_first_job(finished: Path) -> None:
    with folders.locked(finished / RESULTS):
        done = snakemake(finished, "--nolock", "--forceall")
    assert done.returncode == 1
    assert f"error: {RESULTS}: is being written by process {os.getpid()} on " in done.stdout + done.stderr
    assert "rule settings" not in done.stdout + done.stderr


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


def test_an_extra_model_is_tracked_and_scored_as_a_fourth(finished: Path) -> None:
    change = {"run": "extra", "track": {"extra": {"mine": {"model": "someone/model"}}, "peers": ["static", "csrt"]}}
    run = make_plan(change)
    assert run.models == ["base", "grpo", "mine", "static", "csrt"]
    assert (run.model("mine"), run.weights("mine")) == ("extra:mine", [])
    found = planned(finished, change, "extra")
    assert (found["track"], found["score"], found["train"], found["vqa"]) == (5, 5, 1, 2)


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
