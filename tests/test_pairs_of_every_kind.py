"""Whatever reads pairs takes those without the target, those without a later template, and those of others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import pairs_of_every_kind

from r1track.ability import vqa
from r1track.core import config, files
from r1track.core.pairs import held_out_rows
from r1track.reporting import strips
from r1track.training import merge, train

FEW = {
    "prompts_per_step": 4, "group": 2, "micro_batch": 8, "warmup": 0.0, "save_every": 1, "keep_every": 1, "steps": 2,
    "eval_every": 1, "eval_pairs": 4, "keep": "best", "max_tokens": 8,
    "sft": {"steps": 2, "batch": 6, "micro_batch": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs_of_every_kind(tmp_path_factory.mktemp("odd"))


def settings(**train: Any) -> config.Settings:
    merged = {"check_pairs": 4, "min_agreement": 0.0}
    values = {"task": {"templates": 2}, "train": {**FEW, **train}, "merge": merged, "vqa": {"kl_prompts": 4}}
    return config.resolve({"preset": "demo", **values})


@pytest.mark.parametrize("kind", ["pairs", "hub/pairs"])
@pytest.mark.parametrize(("arm", "shared"), [("sft", True), ("grpo", True), ("grpo", False)])
def test_an_arm_trains_and_is_measured_on_all_of_them(
    arm: str, shared: bool, kind: str, place: Path, tmp_path: Path
) -> None:
    made = settings(shared_prefix=shared)
    train.run(made, arm, "tiny", place / kind, tmp_path / "scratch", tmp_path / "adapter")
    assert files.read_json(tmp_path / "adapter" / "provenance.json")["kept"]["keep"] == "best"
    if arm == "sft":
        merge.run(made, "tiny", tmp_path / "adapter", place / kind, tmp_path / "merged")
        assert files.read_json(tmp_path / "merged" / "merge.json")["pairs"] == 4
    else:
        shown = strips.examples(tmp_path / "adapter" / "examples", 9, think=False)
        assert [len(pictures) for _, pictures in shown] == [len(example.images) for example, _ in shown]
        assert len(shown) == 2


@pytest.mark.parametrize("kind", ["pairs", "hub/pairs"])
def test_the_divergence_from_the_base_is_measured_on_all_of_them(kind: str, place: Path) -> None:
    rows = held_out_rows(place / kind, 4)
    assert {bool(answer) for answer in rows["answer"]} == {True, False}
    probes = vqa._probes(settings(), {}, place / kind)
    assert [len(probe.images) for probe in probes] == [len(images) for images in rows["images"]]
    assert np.array_equal(*(np.asarray(image) for image in (probes[0].images[-1], rows[0]["images"][1])))
