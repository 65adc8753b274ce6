"""The plan of a workflow: the data, names and models it takes, the order of its arms, the files that are stale."""

from pathlib import Path

import pytest
import yaml
from dry_runs import RESULTS, ROOT, make_plan, make_test_split, write_split

from r1track import plan
from r1track.core import config
from r1track.core.files import write_json


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


def test_a_split_without_a_list_is_planned_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "split" / "clip").mkdir(parents=True)
    assert make_plan({"data": {"train": str(tmp_path / "split")}}).train == str(tmp_path / "split")
    assert plan.listing(str(tmp_path / "split")) == str(tmp_path / "split")
    (tmp_path / "split" / "list.txt").write_text("clip\n")
    assert plan.listing(str(tmp_path / "split")) == f"{tmp_path}/split/list.txt"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_plan({"data": {"sets": {"mine": "~/split"}}}).sets == {"mine": f"{tmp_path}/split"}


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


def test_the_files_of_an_extra_model_are_inputs_of_its_tracks(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").touch()
    run = make_plan({"track": {"extra": {"mine": {"model": str(tmp_path), "adapter": str(tmp_path / "lora")}}}})
    files = [tmp_path / "config.json", tmp_path / "lora" / "adapter_config.json"]
    assert [Path(file).resolve() for file in run.weights("mine")] == files


def test_a_run_has_one_test_split_at_most_and_something_to_score(tmp_path: Path) -> None:
    split = str(make_test_split(tmp_path / "split"))
    for sets in ({"one": split}, {"one": split, "two": split, "val": "toy/val"}):
        with pytest.raises(
            config.ConfigError, match=r"are test splits; keep at most one, and one set that can be scored"
        ):
            make_plan({"data": {"sets": sets}})
