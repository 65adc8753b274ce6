"""The doctor's plan: hours, memory and the card; what does not fit fails and comes with remedies."""

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from diagnoses import bad, examined
from test_cli import run

from r1track.core import config, provenance
from r1track.core.provenance import Card, Hardware, Provenance
from r1track.preflight import doctor

pytestmark = pytest.mark.usefixtures("elsewhere", "logging_as_it_was")


@pytest.mark.parametrize(("arm", "steps"), [("grpo", {"steps": 10}), ("sft", {"sft": {"steps": 10}})])
def test_the_hours_are_those_of_a_training_here_or_not_measured(
    arm: str, steps: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Hardware(cpu="a processor", cores=2, gpu=Card(name="A Card", memory_gib=24.0))
    for module in (doctor, provenance):
        monkeypatch.setattr(module, "hardware", lambda: here)
    subject, start = f"hours of train {arm}", "not measured on A Card: no training with these settings"

    def hours(**train: Any) -> str:
        (line,) = (line for line in examined(train={"arms": [arm], **train}).lines if line.subject == subject)
        assert line.state == "ok"
        return line.finding

    assert hours().startswith(start)
    record = Provenance("train", {})
    settings = config.stage_values(config.resolve({"train": steps}), config.stage_file("train", arm))
    notes = {"train_seconds": 20.0, "settings": settings}
    record.write(Path(f"results/short/adapters/{arm}/provenance.json"), notes=notes)
    wanted: dict[str, Any] = {"steps": 1800} if arm == "grpo" else {"sft": {"steps": 1800}}
    assert hours(**wanted) == f"1.00 on A Card, at 2 seconds per step as measured in results/short/adapters/{arm}"
    assert hours(**wanted, weight_decay=0.5).startswith(start)
    monkeypatch.setattr(doctor, "hardware", lambda: here.model_copy(update={"gpu": None}))
    assert hours(**wanted).startswith("not measured on a processor: ")


def test_of_a_base_whose_shape_is_not_known_all_but_the_plan_is_examined() -> None:
    unknown = {
        "preset": "r1track-5k",
        "model": {"base": "some/body"},
        "data": {"train": "nowhere", "sets": {"toy": "toy/val"}},
    }
    found = examined(**unknown)
    assert not found.well
    assert found.plans == []
    state, finding = bad(found)["model.base"]
    assert (state, "its shape is not known here" in finding) == ("warning", True)
    assert "(`hf download some/body config.json`); no stage is planned" in finding
    assert bad(found)["data.train"][0] == "error"
    assert "not in the cache" in bad(found)["vqa.sets.mmstar"][1]
    assert bad(examined(model={"base": "./nowhere"}))["model.base"][0] == "error"


def test_a_stage_that_does_not_fit_fails_and_its_remedies_fit() -> None:
    hub = {
        "preset": "r1track-5k",
        "data": {"train": "toy/train", "sets": {"toy": "toy/val"}},
        "train": {"quantize": "none"},
    }
    assert examined(**hub).well
    found = examined(budget=13e9, **hub)
    assert [line for line in found.lines if line[0] == "error"] == []
    assert not found.well
    assert set(found.remedies) == {"train grpo"}
    assert found.remedies["train grpo"]
    assert all(peak <= 13e9 for peak in found.remedies["train grpo"].values())


def test_without_a_card_the_tiny_base_may_be_too_large_for_the_budget() -> None:
    found = examined(budget=0.5e9)
    assert set(found.remedies) == {"train grpo", "merge", "track", "vqa"}
    assert found.well


def test_where_no_single_change_makes_a_stage_fit_the_command_says_so() -> None:
    Path("config.yaml").write_text("preset: r1track-5k\n")
    lines = run("doctor", "--budget", 8).output.splitlines()
    assert "merge fits after no single change; take a smaller base" in lines
    assert any(line.startswith("train grpo fits after one of: train.prompts_per_step: 16 (") for line in lines)


def test_a_real_base_without_a_card_is_a_warning_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = "none; torch is built for CPUs: where there is a card, install environment.yml"
    assert bad(examined(preset="r1track-5k"))["card"] == ("warning", finding)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for preset in ("r1track-5k", "demo"):
        finding = "none; torch is built for CUDA 13.0, so look at the driver"
        assert bad(examined(preset=preset))["card"] == ("warning", finding)


def test_unsloth_without_a_card_is_an_error() -> None:
    state, finding = bad(examined(train={"backend": "unsloth"}))["train.backend"]
    assert (state, finding.endswith("install environment.yml on a card, or take `auto`")) == ("error", True)


def test_a_card_is_described_planned_for_and_refused_bfloat16_where_it_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = namedtuple("Card", "name total_memory")("Old Card", int(16e9))
    for name, value in {
        "is_available": True, "get_device_name": "Old Card", "get_device_capability": (7, 5),
        "mem_get_info": (int(4e9), int(16e9)),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    found = examined(model={"dtype": "bfloat16"})
    assert found.budget == 16e9
    errors = bad(found)
    assert errors["card"][0] == "warning"
    assert errors["card"][1].startswith("Old Card, 16.0 GB, 4.0 free, CUDA ")
    assert errors["model.dtype"] == ("error", "bfloat16; it needs compute capability 8.0; take float16")
