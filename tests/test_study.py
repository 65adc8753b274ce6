"""Studies: the runs that a configuration asks for, what they share, and what a changed variant makes again."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from dry_runs import jobs, snakemake
from small_run import record

from r1track import study
from r1track.core import config, folders
from r1track.core.files import hash_file, write_json
from r1track.reporting import verify

SMALL = {"run": "small", "toy": {"train_sequences": 1, "val_sequences": 2, "length": 3}, "score": {"draws": 100}}
VARIANTS: dict[str, Any] = {"iou": {}, "paper": {"train": {"reward": "paper"}}}
TWO_BY_TWO = {**SMALL, "study": {"seeds": [0, 1], "variants": VARIANTS}}
NAMES = ["iou-seed0", "iou-seed1", "paper-seed0", "paper-seed1"]


def make(values: dict[str, Any]) -> study.Study:
    return study.make_study(config.read_layers([], [config.Layer("study.yaml", values)]))


def with_variants(**variants: Any) -> study.Study:
    return make({**SMALL, "study": {"seeds": [0, 1], "variants": variants}})


def differing(one: study.Study, run: str, two: study.Study, other: str) -> set[str]:
    """The results that two runs do not share."""
    a, b = one.runs[run].homes, two.runs[other].homes
    assert a.keys() == b.keys()
    return {result for result in a if a[result] != b[result]}


def test_each_seed_of_each_variant_is_a_run_with_its_own_settings() -> None:
    made = make(TWO_BY_TWO)
    found = [(name, run.settings.seed, run.settings.train.reward) for name, run in made.runs.items()]
    assert found == [(name, int(name[-1]), name.split("-")[0]) for name in NAMES]
    assert made.runs["paper-seed1"].results == "results/paper-seed1"
    assert made.page == "results/small/compare/index.html"


def test_seeds_alone_or_variants_alone_are_a_study_and_neither_is_one_run() -> None:
    assert [*make({**SMALL, "study": {"seeds": [3, 5]}}).runs] == ["small-seed3", "small-seed5"]
    assert [*make({**SMALL, "seed": 4, "study": {"variants": VARIANTS}}).runs] == ["iou-seed4", "paper-seed4"]
    single = make(SMALL)
    assert (single.page, single.linked, single.folders) == (None, [], ["results/small"])
    assert single.runs is single.makers
    assert single.runs["small"].place("pairs") == "results/small/pairs"


TRAINED = {"adapters/grpo", "models/grpo", "tracks/grpo/toy-val", "vqa/grpo"}


def test_variants_share_all_that_does_not_follow_from_what_they_differ_in() -> None:
    made = make(TWO_BY_TWO)
    assert differing(made, "iou-seed0", made, "paper-seed0") == TRAINED
    assert differing(made, "iou-seed0", made, "iou-seed1") == {"pairs"} | TRAINED


def test_another_reward_does_not_train_sft_again_which_grpo_starts_from() -> None:
    both = {"arms": ["sft", "grpo"], "start": "sft"}
    made = with_variants(iou={"train": both}, paper={"train": {**both, "reward": "paper"}})
    assert "adapters/sft" in made.runs["iou-seed0"].homes
    assert differing(made, "iou-seed0", made, "paper-seed0") == TRAINED
    longer = with_variants(iou={"train": {**both, "sft": {"steps": 9}}})
    after = {result.replace("grpo", "sft") for result in TRAINED} | TRAINED
    assert differing(made, "iou-seed0", longer, "iou-seed0") == after


def test_only_grpo_s_fields_are_left_out_of_the_file_of_the_arm_sft() -> None:
    made = config.resolve({"train": {"arms": ["sft"], "reward": "paper", "temperature": 0.5}})
    alone = config.stage_values(made, config.stage_file("train", "sft"))
    assert alone == config.stage_values(config.resolve({"train": {"arms": ["sft"]}}), "train-sft")
    assert alone["train"].keys() == config.SFT_FIELDS
    assert config.stage_values(made, config.stage_file("train", "grpo"))["train"]["reward"] == "paper"


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("sample", "shift", 0.5), ("track", "min_side", 5.0), ("train", "steps", 9), ("vqa", "batch", 3)],
)
@pytest.mark.parametrize("changed", ["iou", "paper"])
def test_a_changed_variant_changes_no_result_of_another_one(changed: str, section: str, field: str, value: Any) -> None:
    other = {"iou": "paper", "paper": "iou"}[changed]
    fields = {**VARIANTS[changed].get(section, {}), field: value}
    before, after = make(TWO_BY_TWO), with_variants(**{**VARIANTS, changed: {**VARIANTS[changed], section: fields}})
    assert differing(before, f"{other}-seed0", after, f"{other}-seed0") == set()
    assert differing(before, f"{changed}-seed0", after, f"{changed}-seed0")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seeds": [0, 0]}, r"study: seeds \[0, 0\] names one twice"),
        ({"seeds": [1]}, r"study: one run, \['small-seed1'\]; give two seeds or variants"),
        ({"variants": {"a/b": {}}}, "cannot name a folder"),
        *(
            ({"variants": {"a": {}, "b": {field: value}}}, f"variant 'b' sets `{field}`, which none can; write it")
            for field, value in {"preset": "best", "run": "x", "seed": 1, "study": {"seeds": [1]}}.items()
        ),
        ({"variants": {"a": {}, "b": {"train": 3}}}, r"study\.variants\.b: .*\n  train = 3: is a group of fields"),
        (
            {"seeds": [0, 1], "variants": {"a": {}, "b": {"score": {"draws": 100}}}},
            r"study\.variants\.b: a-seed0 and b-seed0 have the same settings, .*; change a field, or leave one",
        ),
        (
            {"seeds": [0, 1], "variants": {"a": {"train": {"gruop": 4}}}},
            r"study\.variants\.a: cannot be used\n  train\.gruop = 4: unknown field; did you mean 'group'\?",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused_with_its_field(section: dict[str, Any], message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        make({**SMALL, "study": section})


@pytest.mark.parametrize(
    ("run", "section", "message"),
    [
        ("a-seed0", {"seeds": [0, 1], "variants": {"a": {}}}, "run = 'a-seed0': is one of the study's own runs"),
        ("shared", {"seeds": [0, 1]}, "run = 'shared': is the folder of what the runs of studies share; give another"),
        ("shared", {}, "run = 'shared': is the folder of what the runs of studies share; give another"),
    ],
)
def test_no_run_has_the_folder_of_another_or_of_what_is_shared(run: str, section: dict[str, Any], message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        make({**SMALL, "run": run, "study": section})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    (place / "config.yaml").write_text(yaml.safe_dump(TWO_BY_TWO))
    return place


def test_one_command_plans_every_shared_stage_once_and_ends_with_the_comparison(folder: Path) -> None:
    done = snakemake(folder, "--dry-run")
    assert done.returncode == 0, done.stderr
    found = jobs(done.stdout + done.stderr)
    assert found["settings"] == 24 + 4 * 9, "of 24 shared results, and of each run for its report"
    assert {rule: count for rule, count in found.items() if rule != "settings"} == {
        "toy": 1, "sample": 2, "train": 4, "merge": 4, "track": 4 + 4, "vqa": 1 + 4, "link": 4 * 10,
        "score": 4 * 5, "verdict": 4, "report": 4, "compare": 1, "gate": 4, "all": 1,
    }  # fmt: skip


def test_a_real_study_of_a_peer_makes_it_once_and_a_changed_variant_alone_again(folder: Path) -> None:
    targets = [f"results/{name}/scores/static/toy-val.json" for name in NAMES]
    counts = []
    for values in (TWO_BY_TWO, TWO_BY_TWO, {**TWO_BY_TWO, "study": {"seeds": [0, 1], "variants": {
        "iou": {"track": {"min_side": 5.0}}, "paper": VARIANTS["paper"]}}}):  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        done = snakemake(folder, *targets, "--nolock", "--force-use-threads")
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        counts.append(Counter() if "Nothing to be done" in output else jobs(output))
        counts[-1].pop("settings", None)
    assert counts == [{"toy": 1, "track": 1, "link": 4, "score": 4}, {}, {"track": 1, "link": 2, "score": 2}]
    tracks = [folder / "results" / name / "tracks/static/toy-val" for name in NAMES]
    files = [next(place.glob("*_000001/*_001.txt")) for place in tracks]
    assert files[2].samefile(files[3])
    assert not files[1].samefile(files[2])
    assert not [place for place in tracks if (place / ".snakemake_timestamp").stat().st_nlink > 1]


def test_a_real_study_trains_a_changed_variant_alone_again(tmp_path: Path) -> None:
    tiny = {"steps": 1, "group": 2, "prompts_per_step": 1, "micro_batch": 2, "eval_every": 1, "eval_pairs": 2}
    small = {**SMALL, "train": tiny, "sample": {"pairs": 8, "val_pairs": 2, "max_gap": 1}}
    small["toy"] = {**SMALL["toy"], "train_sequences": 3}
    adapters = [f"results/{name}-seed0/adapters/grpo" for name in VARIANTS]
    counts, hashes = list[Counter[str]](), list[list[str]]()
    for changed in ({"reward": "paper"}, {"reward": "paper", "learning_rate": 1.0e-3}):
        variants = {"iou": {}, "paper": {"train": changed}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**small, "study": {"variants": variants}}))
        done = snakemake(tmp_path, *adapters)
        assert done.returncode == 0, done.stdout + done.stderr
        counts.append(jobs(done.stdout + done.stderr))
        counts[-1].pop("settings")
        hashes.append([hash_file(tmp_path / adapter / "provenance.json") for adapter in adapters])
    assert counts == [{"toy": 1, "sample": 1, "train": 2, "link": 2}, {"train": 1, "link": 1}]
    (iou, paper), (iou_after, paper_after) = hashes
    assert iou == iou_after
    assert paper != paper_after


def test_a_linked_folder_keeps_what_it_had_when_its_source_is_made_again(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with folders.atomic_folder(tmp_path / "shared") as part:
            (part / "below").mkdir()
            (part / "below" / "file").write_text(text)
            (part / "provenance.json").write_text('{"stage": "test"}')
            (part / ".hidden").touch()
        if text == "old":
            folders.link_folder(tmp_path / "shared", tmp_path / "run")
            assert (tmp_path / "shared/below/file").samefile(tmp_path / "run/below/file")
            (tmp_path / "shared").rename(tmp_path / "moved")
    assert (tmp_path / "run/below/file").read_text() == "old"
    assert not (tmp_path / "run/.hidden").exists()


def test_a_linked_result_is_verified_by_the_files_of_its_run_when_the_shared_folders_are_gone(tmp_path: Path) -> None:
    results, recorded = tmp_path / "a-seed0", "results/shared/pairs-12ab/pairs/manifest.json"
    write_json(results / "report/summary.json", {"run": "a-seed0"})
    write_json(results / "pairs/manifest.json", {})
    source = {"pairs": {"path": recorded, "sha256": None}}
    write_json(results / "adapters/grpo/provenance.json", record("train", inputs=source))
    assert verify.Run(results).find(recorded) == (results / "pairs/manifest.json").resolve()
    assert verify.Run(results).find("results/shared/other/pairs/manifest.json") is None


def test_the_doctor_names_the_shared_results_that_no_run_needs_or_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layers = config.read_layers([], [config.Layer("study.yaml", TWO_BY_TWO)])
    needed = make(TWO_BY_TWO).runs["iou-seed0"].homes["pairs"]
    for home in (needed, "results/shared/pairs-held", "results/shared/pairs-left"):
        (tmp_path / home / "pairs").mkdir(parents=True)
        (tmp_path / home / "pairs" / "rows").write_bytes(b"0" * 20_000_000)
        (tmp_path / home / "config").mkdir()
        (tmp_path / home / "config/sample.json").write_text("{}")
    (tmp_path / "results/shared/toy-none/config").mkdir(parents=True)
    (tmp_path / "results/shared/toy-none/config/toy.json").write_text("{}")
    folders.link_folder(tmp_path / "results/shared/pairs-held/pairs", tmp_path / "results/old-seed0/pairs")
    (line,) = (line for line in study.check(layers) if line.subject == "results/shared/")
    assert line[::2] == (
        "warning",
        "1 results that no run needs or holds, 0.02 GB; to free the space, `rm -r results/shared/pairs-left`",
    )
