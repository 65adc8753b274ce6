"""The doctor: it finds what would stop a run, says what to do, and lets a sound machine pass."""

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diagnoses import Usage, bad, examined
from safetensors.torch import save_file
from test_cli import run
from toys import bare_sequence, toy_split

from r1track.core import config, files, hub, models
from r1track.preflight import data, doctor, findings, memory

pytestmark = pytest.mark.usefixtures("elsewhere", "logging_as_it_was")


def test_the_demo_is_well_on_a_machine_without_a_card() -> None:
    found = examined()
    assert bad(found) == {}
    assert found.well
    assert found.budget == 24e9
    assert [plan.stage for plan in found.plans] == ["train grpo", "merge", "track", "vqa"]


def test_a_package_of_another_version_and_a_missing_one_are_errors_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ["torch==0.1", "no-such-package>=2", 'numpy<1; extra == "cpu"', 'pillow<1; extra == "gpu"', "rich>=1"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    found = examined()
    assert not found.well
    assert {subject: state for subject, (state, _) in bad(found).items()} == {
        "torch": "error", "no-such-package": "error", "numpy": "warning",
    }  # fmt: skip
    assert bad(found)["torch"][1].startswith(f"{torch.__version__}, not ==0.1; `pip install 'torch==0.1'`")
    assert bad(found)["no-such-package"][1].startswith("missing, not >=2; `pip install 'no-such-package>=2'`")


def test_another_python_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    assert bad(examined())["python"][1].startswith("3.9.1, not <3.13,>=3.11; ")


def test_data_that_are_not_there_empty_or_without_frames_are_named_with_their_field(tmp_path: Path) -> None:
    toy_split(tmp_path / "whole", sequences=2, length=2)
    bare_sequence(tmp_path / "broken", "one", [[1, 2, 3, 4]] * 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "list.txt").touch()
    sets = {"whole": "whole", "broken": "broken", "empty": "empty", "gone": "gone"}
    found = examined(data={"train": "nowhere", "sets": sets})
    errors = bad(found)
    assert set(errors) == {"data.train", "data.sets.broken", "data.sets.empty", "data.sets.gone"}
    assert errors["data.train"][1].startswith("nowhere/list.txt: no such file; give a split's folder")
    assert errors["data.sets.broken"][1].startswith("broken/one/00000001.jpg: cannot be decoded")
    assert errors["data.sets.empty"][1].startswith("empty/list.txt: names no sequence")
    assert ("ok", "data.sets.whole", "whole, 2 sequences") in found.lines
    assert not found.well


def test_a_set_that_is_tracked_from_texts_of_which_there_are_none_or_few_is_named(tmp_path: Path) -> None:
    toy_split(tmp_path / "all", sequences=2, length=2)
    for name in ("none", "some"):
        shutil.copytree(tmp_path / "all", tmp_path / name)
        for text in sorted((tmp_path / name).glob("*/nlp.txt"))[: 2 if name == "none" else 1]:
            text.unlink()
    values = {"data": {"train": "toy/train", "sets": {name: name for name in ("all", "none", "some")}}}
    assert bad(examined(**values, sample={"pairs": 5})) == {}
    found = examined(**values, sample={"pairs": 5}, track={"start": "text", "starts": {"all": "box"}})
    state, finding = bad(found)["data.sets.none"]
    assert (state, "0 of 2 sequences have a description, from which tracking starts: AO would be 0; " in finding) == (
        "error",
        True,
    )
    assert bad(found)["data.sets.some"][0] == "warning"
    assert set(bad(found)) == {"data.sets.none", "data.sets.some"}
    assert not found.well


def test_what_sample_or_track_would_stop_at_and_corners_in_place_of_sizes_are_named(tmp_path: Path) -> None:
    for name in ("short", "empty", "corners", "right"):
        toy_split(tmp_path / name, sequences=3, length=4)
    (first, *_), (second, *_), *_ = (sorted((tmp_path / name).glob("*/groundtruth.txt")) for name in ("short", "empty"))
    first.write_text(first.read_text().splitlines()[0])
    lines = second.read_text().splitlines()
    second.write_text("\n".join(["1,1,0,5", *lines[1:]]))
    for file in (tmp_path / "corners").glob("*/groundtruth.txt"):
        file.write_text("100,70,130,100\n" * 4)  # in frames of 160 x 120
    sets = {name: name for name in ("empty", "corners", "right")}
    found = examined(data={"train": "short", "sets": sets}, sample={"pairs": 5})
    name = first.parent.name
    assert bad(found) == {
        "data.train": (
            "error",
            f"short/{name}: a pair needs two frames with a box each; name the sequence in sample.exclude "
            "(1 of 3 sequences)",
        ),
        "data.sets.empty": (
            "error",
            f"empty/{name}/groundtruth.txt, line 1: [1.0, 1.0, 0.0, 5.0] has no extent, so there is nothing to track; "
            "correct it, or take the sequence out of list.txt (1 of 3 sequences)",
        ),
        "data.sets.corners": (
            "warning",
            "100% of the boxes in 3 sequences reach beyond their frames; a line is x,y,w,h: left, top, width, height, "
            "not two corners",
        ),
    }
    excluded = {"pairs": 5, "exclude": {name: "one box"}}
    assert bad(examined(data={"train": "short", "sets": {"right": "right"}}, sample=excluded)) == {}
    assert (
        bad(examined(data={"train": "right", "sets": {"empty": "empty"}}, sample={"pairs": 5}, track={"start": "text"}))
        == {}
    )


def test_sequences_that_are_trained_on_and_scored_are_a_warning(tmp_path: Path) -> None:
    for name in ("train", "val"):
        toy_split(tmp_path / name, sequences=3, length=4)
    (tmp_path / "link").symlink_to("train")
    first, *others = (tmp_path / "train" / "list.txt").read_text().split()
    values = {"data": {"train": "train", "sets": {"val": "val", "same": "link"}}}
    finding = "{} of its 3 sequences are in data.train, too, so their scores say little; score on other ones"
    assert bad(examined(**values, sample={"pairs": 5})) == {"data.sets.same": ("warning", finding.format(3))}
    excluded = {"pairs": 5, "exclude": {first: "scored"}}
    assert bad(examined(**values, sample=excluded)) == {"data.sets.same": ("warning", finding.format(2))}
    assert bad(examined(**values, sample={"pairs": 5, "exclude": dict.fromkeys([first, *others], "scored")})) == {}


def test_five_thousand_pairs_from_three_sequences_are_a_warning(tmp_path: Path) -> None:
    toy_split(tmp_path / "few", sequences=3, length=2)
    found = examined(data={"train": "few", "sets": {"toy": "toy/val"}}, sample={"pairs": 5000})
    assert bad(found) == {
        "sample.pairs": (
            "warning",
            "5000 from 3 sequences, 1.67e+03 of each; that few targets are learnt by heart; take fewer",
        )
    }
    assert found.well
    assert ("ok", "sample.pairs", "1200 from 135 sequences, 8.89 of each") in examined().lines


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_reporter_that_is_not_installed_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == name else object())
    found = examined(train={"report_to": name})
    assert bad(found) == {"train.report_to": ("error", f"{name}; not installed; `pip install {name}`")}
    assert not found.well
    monkeypatch.setattr(doctor, "find_spec", lambda module: object())
    assert ("ok", "train.report_to", name) in examined(train={"report_to": name}).lines


def test_a_question_set_is_a_package_a_folder_or_looked_for_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    sources = {"easy": "easy-vqa", "mine": "./mine", "gone": "./gone", "hub": "some/set"}
    sets = {name: {"source": source, "revision": "abc"} for name, source in sources.items()}
    found = examined(preset="r1track-5k", model={"base": "tiny"}, vqa={"sets": sets})
    lines = {line.subject: line for line in found.lines}
    assert lines["vqa.sets.easy"] == ("ok", "vqa.sets.easy", "the package easy-vqa")
    assert lines["vqa.sets.mine"] == ("ok", "vqa.sets.mine", "./mine")
    assert bad(found)["vqa.sets.gone"][0] == "error"
    assert bad(found)["vqa.sets.hub"] == ("warning", f"some/set at abc, not in the cache; {hub.REMEDY}")
    monkeypatch.setattr(data, "find_spec", lambda module: None)
    assert bad(examined())["vqa.sets.easy-vqa"][1] == "the package easy-vqa; `pip install easy-vqa==1.0`"


def test_an_extra_model_has_a_line_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(models.TINY, tmp_path / "other")
    field, one = "track.extra.rival.model", {"model": "other"}
    (line,) = (line for line in examined(track={"extra": {"rival": one}}).lines if line.subject == field)
    assert line == ("ok", field, "other, 0.00 GB here")
    assert bad(examined(track={"extra": {"rival": {"model": "./gone"}}}))[field][0] == "error"
    found = bad(examined(track={"extra": {"rival": {"model": "some/tracker", "revision": "abc"}}}))[field]
    assert found[0] == "warning"
    assert found[1].startswith("some/tracker, abc; it is to be downloaded; ")


def test_the_adapter_of_an_extra_model_has_a_line_whether_it_is_here_in_the_cache_or_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(adapter: str, revision: str | None = None) -> findings.Line:
        rival = {"model": "tiny", "adapter": adapter, "adapter_revision": revision}
        lines = {line.subject: line for line in examined(track={"extra": {"rival": rival}}).lines}
        assert lines["track.extra.rival.model"].finding == "tiny, 0.00 GB here"
        return lines["track.extra.rival.adapter"]

    (tmp_path / "mine").mkdir()
    files.write_json(tmp_path / "mine/adapter_config.json", {"peft_type": "LORA"})
    assert line("./mine")[::2] == ("error", "./mine; no adapter_model.safetensors there; copy the weights")
    weights = tmp_path / "mine/adapter_model.safetensors"
    save_file({"weight": torch.zeros(2_500_000)}, weights)
    assert line("./mine")[::2] == ("ok", "./mine, 0.01 GB here")
    state, _, finding = line("some/adapter", "abc")
    assert (state, finding.startswith("some/adapter, abc; it is to be downloaded; ")) == ("warning", True)
    cached = {"adapter_config.json": str(tmp_path / "mine/adapter_config.json")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda base, name, revision: cached.get(name))
    assert line("some/adapter", "abc")[::2] == ("ok", "some/adapter, abc, 0.01 GB here")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "adapter_model.safetensors: cannot be read" in line("./mine").finding


def test_too_little_disk_is_an_error_that_says_how_much_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(9e9, 0, 9e9))
    errors = bad(examined(preset="r1track-5k", data={"train": "toy/train", "sets": {"toy": "toy/val"}}))
    model = memory.Model(config.resolve({"preset": "r1track-5k"}))
    pairs = 2 * 5200 * 2 * 336**2  # two crops of each pair, twice: under results and, as a copy, under scratch
    size = 2 * model.parameters + pairs + 2 * (model.adapter + model.optimiser)
    expected = f"a run writes {size / 1e9:.1f} GB to its disk, 9.0 are free; make room, or link it to another disk"
    assert errors["results/"] == errors["scratch/"] == ("error", expected)


def test_room_is_looked_for_where_the_results_will_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`results` is a link to another disk; there is no `scratch` yet, so it will be made in the working folder."""
    (tmp_path / "other").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "results").symlink_to("../other")
    monkeypatch.chdir(tmp_path / "work")
    free = {tmp_path / "other": 1e9, tmp_path / "work": 2e9}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(9e9, 0, free[place.resolve()]))
    found = {line.subject: line.finding for line in examined().lines}
    assert "1.0 are free" in found["results/"]
    assert "2.0 are free" in found["scratch/"]


def test_a_configuration_that_cannot_be_used_is_one_error_and_no_plan() -> None:
    found = examined(train={"gruop": 8})
    assert bad(found)["configuration"][0] == "error"
    assert "train.gruop = 8: unknown field; did you mean 'group'?" in bad(found)["configuration"][1]
    assert found.plans == []
    assert not found.well


def test_a_base_is_looked_for_in_its_folder_and_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models.TINY, tmp_path / "base")
    assert "model.base" not in bad(examined(model={"base": "base"}))
    (tmp_path / "base" / "model.safetensors").unlink()
    assert bad(examined(model={"base": "base"}))["model.base"][0] == "error"
    hub = {"preset": "r1track-5k", "data": {"train": "toy/train", "sets": {"toy": "toy/val"}}}
    state, finding = bad(examined(**hub))["model.base"]
    assert (state, "7.5 GB are to be downloaded; `hf download Qwen/" in finding) == ("warning", True)
    with monkeypatch.context() as patch:
        kept = str(models.TINY / "config.json")
        patch.setattr(huggingface_hub, "try_to_load_from_cache", lambda base, name, revision: kept)
        assert "model.base" not in bad(examined(**hub))


def test_a_base_whose_weights_would_not_be_loaded_is_an_error_beforehand(tmp_path: Path) -> None:
    base = shutil.copytree(models.TINY, tmp_path / "base")
    described = files.read_json(base / "config.json")
    files.write_json(base / "config.json", {**described, "quantization_config": {"load_in_4bit": True}})
    assert "its weights are quantised already" in bad(examined(model={"base": "base"}))["model.base"][1]
    files.write_json(base / "config.json", described)
    (base / "model.safetensors").write_bytes((models.TINY / "model.safetensors").read_bytes()[:-1])
    found = examined(model={"base": "base"})
    assert bad(found)["model.base"][0] == "error"
    assert "base/model.safetensors: cannot be read" in bad(found)["model.base"][1]
    assert not found.well


def test_the_command_shows_lines_and_plan_and_its_code_says_whether_the_run_may_start(tmp_path: Path) -> None:
    Path("config.yaml").write_text("preset: demo\n")
    well = run("doctor")
    assert well.exit_code == 0, well.output
    for shown in ("model.base  tiny", "GB at the peak", "train grpo", "together", "backward", "hours on an RTX 3090"):
        assert shown in well.output
    Path("config.yaml").write_text("preset: r1track-5k\ntrain: {quantize: none}\n")
    ill = run("doctor", "--config", "config.yaml", "--budget", "12")
    assert ill.exit_code == 1
    assert "data/GOT-10k/train/list.txt: no such file" in ill.output
    assert "too large" in ill.output
    assert "train grpo fits after one of: " in ill.output


@pytest.mark.parametrize(
    ("one", "rule", "state"),
    [
        ({"items": 1500}, {}, None),
        ({"items": 333}, {}, None),
        ({"items": 332}, {}, "warning"),
        ({"items": 300, "source": "easy-vqa"}, {}, None),
        ({"items": 299, "source": "easy-vqa"}, {}, "error"),
        ({"items": 300, "max_unusable": 0.0}, {}, None),
        ({"items": 300, "max_unusable": 0.01}, {}, "warning"),
        ({"items": 299, "max_unusable": 0.0}, {}, "error"),
        ({"items": 299}, {"on_regression": "warn"}, "warning"),
        ({"items": 20, "max_unusable": 0.0}, {"min_items": 20}, None),
    ],
)
def test_a_set_whose_questions_may_be_too_few_for_a_verdict_is_named_before_hours_are_spent(
    one: dict[str, Any], rule: dict[str, Any], state: str | None
) -> None:
    Path("mine").mkdir()
    values = {"vqa": {"sets": {"mine": {"source": "./mine", **one}}}, "verdict": rule}
    found = bad(examined(**values))
    assert {subject: found[subject][0] for subject in found} == ({"vqa.sets.mine.items": state} if state else {})
    assert not state or "the verdict is INVALID: ask more" in found["vqa.sets.mine.items"][1]
    assert bad(examined(**values, train={"arms": []})) == {}
