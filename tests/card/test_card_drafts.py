"""Drafts over Unsloth's layers: passes over several tokens, with holes in the mask, against passes over one.

`shared_prefix.make_rollout` drafts nothing over Unsloth: this is what would have to pass first. Not run on a card yet.
"""

import random
from pathlib import Path

import pytest
from card_runs import make_trainer, set_adapter, step_settings

from r1track.core import generation, models


@pytest.mark.parametrize("holes", [64, 0])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_drafted_completions_are_those_without_drafts(
    quantize: str, holes: int, mixed_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(step_settings("unsloth", quantize, True), "grpo", mixed_pairs, tmp_path)
    set_adapter(trainer)
    monkeypatch.setattr(generation, "PASS", {"cpu": 256, "cuda": 256})
    monkeypatch.setattr(generation, "HOLES", holes)
    rows, processor = [trainer.train_dataset[k] for k in range(4)], trainer.processing_class
    texts = processor.apply_chat_template([row["prompt"] for row in rows], tokenize=False, add_generation_prompt=True)
    images = [image for row in rows for image in row["images"]]
    loaded = models.Loaded(trainer.model, processor, trainer.model.device)
    decoder, rng = generation.Decoder(loaded, max_tokens=12), random.Random(5)
    plain = decoder.decode(decoder.prefill(texts, images), generation.greedy)

    def draft(tokens: list[int], examples: list[list[int]]) -> list[int]:
        """Right for a while, now and then; then wrong."""
        return [*examples[0][len(tokens) :][: rng.randrange(4)], *range(rng.randrange(4))]

    monkeypatch.setattr(decoder.drafter, "draft", draft)
    told = [[each.tokens] for each in plain]
    drafted = decoder.decode(decoder.prefill(texts, images), generation.greedy, examples=told)
    assert [each.tokens for each in drafted] == [each.tokens for each in plain]
    for one, other in zip(drafted, plain, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-4)
