"""One step over Unsloth: in float32 it is stock TRL's over transformers, with and without the shared prefix.

The reference is computed by another process, into which Unsloth is never imported.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from card_runs import distance, make_trainer, set_adapter, step_of, step_settings
from trl.models.utils import unwrap_model_for_generation

from r1track.core import config, generation, models, vision
from r1track.training import shared_prefix

QUANTIZE = ["none", "nf4"]


@pytest.fixture(scope="module")
def reference(mixed_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By quantisation: the inputs of a step, and what stock TRL makes of them."""
    folder = tmp_path_factory.mktemp("reference")
    plain = {name: value for name, value in os.environ.items() if name != "FAKECARD"}
    plain["PYTHONPATH"] = os.pathsep.join([str(config.ROOT), str(config.ROOT / "tests")])
    for quantize in QUANTIZE:
        command = [sys.executable, str(Path(__file__).with_name("card_runs.py")), str(mixed_pairs), quantize]
        subprocess.run([*command, str(folder / f"{quantize}.pt")], env=plain, check=True)
    return {quantize: torch.load(folder / f"{quantize}.pt", weights_only=False) for quantize in QUANTIZE}


def unsloth_trainer(quantize: str, shared: bool, pairs: Path, scratch: Path) -> Any:
    trainer = make_trainer(step_settings("unsloth", quantize, shared), "grpo", pairs, scratch)
    set_adapter(trainer)
    return trainer


@pytest.mark.parametrize("shared", [False, True], ids=["stock", "shared"])
@pytest.mark.parametrize("quantize", QUANTIZE)
def test_log_probabilities_loss_gradients_and_logs_are_those_of_stock_trl(
    quantize: str, shared: bool, reference: dict[str, Any], mixed_pairs: Path, tmp_path: Path
) -> None:
    inputs, stock = reference[quantize]["inputs"], reference[quantize]["step"]
    assert len({int(n) for n in inputs["prompt_mask"].sum(1)}) > 1  # left padding
    ours = step_of(unsloth_trainer(quantize, shared, mixed_pairs, tmp_path), inputs)
    for name in ("policy", "reference"):
        assert torch.allclose(ours[name], stock[name], rtol=1e-5, atol=1e-5), name
    assert (ours["policy"] - ours["reference"]).abs().max() > 1e-2  # the reference has its adapter off
    for name in ("loss", "kl", "entropy"):
        assert ours[name] == pytest.approx(stock[name], rel=1e-5), name
    assert distance(ours["gradients"], stock["gradients"]) < 1e-5
    assert stock["kl"] > 1e-3


def test_the_image_tower_is_that_of_the_backend_transformers(mixed_pairs: Path, tmp_path: Path) -> None:
    tower = unsloth_trainer("nf4", True, mixed_pairs, tmp_path).model.get_base_model().model.visual
    assert {type(block.attn) for block in tower.blocks} == {vision.WindowAttention}
    assert type(tower.patch_embed) is vision.PatchProduct


@pytest.mark.parametrize("fault", ["mask", "positions", "pixels"])
def test_a_wrong_mask_position_or_pixel_would_be_seen(
    fault: str, reference: dict[str, Any], mixed_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, stock = reference["none"]["inputs"], reference["none"]["step"]
    trainer = unsloth_trainer("none", True, mixed_pairs, tmp_path)
    if fault == "mask":  # completions see those before them
        monkeypatch.setattr(
            shared_prefix, "_mask",
            lambda prompt, n, length: torch.ones(len(prompt), 1, *[prompt.shape[1] + n * length] * 2).bool().tril(),
        )  # fmt: skip
    elif fault == "positions":  # the completions of a group are counted on, one after another
        repeat = torch.Tensor.repeat
        monkeypatch.setattr(torch.Tensor, "repeat", lambda self, *n: repeat(self, *n) + (1 if n == (1, 4) else 0))
    else:
        pixels = inputs["pixel_values"]
        inputs = {**inputs, "pixel_values": pixels + torch.linspace(-1, 1, len(pixels))[:, None]}
    wrong = step_of(trainer, inputs)
    assert (wrong["policy"] - stock["policy"]).abs().max() > 1e-3
    assert distance(wrong["gradients"], stock["gradients"]) > 1e-3


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_drafted_completions_are_the_same_over_unsloth_in_fewer_passes(
    quantize: str, mixed_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities too. The base's own answers: the adapter is still nothing."""
    trainer = make_trainer(step_settings("unsloth", quantize, True), "grpo", mixed_pairs, tmp_path)
    processor, core, most = trainer.processing_class, trainer.model.get_base_model(), generation.DRAFT
    rows = [trainer.train_dataset[k] for k in range(4)]
    texts = processor.apply_chat_template([row["prompt"] for row in rows], tokenize=False, add_generation_prompt=True)
    forward, passes = core.forward, []
    monkeypatch.setattr(core, "forward", lambda *args, **named: passes.append(1) or forward(*args, **named))

    def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, tokens = logits.float().log_softmax(-1).max(-1)
        return tokens, values

    drawn, counts = [], []
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
        decoder = generation.Decoder(models.Loaded(model, processor, model.device), max_tokens=24)
        for draft in (0, most):
            monkeypatch.setattr(generation, "DRAFT", draft)
            passes.clear()
            images = [row["images"] for row in rows]
            drawn.append(shared_prefix.complete(decoder, texts, images, likeliest, batch=2, copies=2)[1])
            counts.append(len(passes))
    plain, drafted = drawn
    assert [one.tokens for one in plain] == [one.tokens for one in drafted]
    assert len({tuple(one.tokens) for one in plain}) > 1
    for one, other in zip(plain, drafted, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-5)
    assert counts[1] < counts[0] - 6  # of two batches
