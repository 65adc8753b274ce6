"""Shared prefix: GRPO that computes a group's prompt once, in the rollout and in the loss, and not once per answer.

The idea is Prefix Grouper's (arXiv 2506.05433), here for a vision-language model with several images per prompt. The
trainer is TRL's (trl_patches.py), over either backend: rollouts go through its own hook, and log-probabilities are
computed by its own code, over a model that sees each prompt once.
"""

from collections.abc import Callable
from math import gcd
from types import SimpleNamespace
from typing import Any

import torch
from trl.models.utils import unwrap_model_for_generation

from r1track.core import generation, schema
from r1track.core.models import ImageProcessorOnly, Loaded


def make_rollout(settings: schema.Train, processor: ImageProcessorOnly) -> Callable[[list[Any], Any], dict[str, Any]]:
    """The function that TRL's trainer draws its rollouts with; train.rollout_batch answers at most are side by side."""

    def rollout(questions: list[Any], trainer: Any) -> dict[str, Any]:
        group = trainer.num_generations
        texts: Any = processor.apply_chat_template(questions[::group], tokenize=False, add_generation_prompt=True)
        images = [
            [part["image"] for part in each[0]["content"] if part["type"] == "image"] for each in questions[::group]
        ]
        asked_ids: list[list[int]] = []
        found: list[generation.Completion] = []
        step = max(1, settings.rollout_batch // group)
        # Without checkpointing, which forbids a cache. Not in eval mode: on a CPU it repacks 4-bit weights for good.
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
            decoder = generation.Decoder(Loaded(model, processor, model.device), max_tokens=settings.max_tokens)
            for start in range(0, len(texts), step):
                chunk = [image for row in images[start : start + step] for image in row]
                asked = decoder.ask(texts[start : start + step], chunk)
                for ids, mask in zip(asked.ids, asked.mask.bool(), strict=True):
                    asked_ids += [ids[mask].tolist()] * group
                found += decoder.decode(_repeated(asked, group), generation.sampled(settings.temperature), drop=True)
        return {
            "prompt_ids": asked_ids,
            "completion_ids": [each.tokens for each in found],
            "logprobs": [each.kept for each in found],
        }

    return rollout


def _repeated(asked: generation.Prefill, group: int) -> generation.Prefill:
    """Every row `group` times, one after another."""
    asked.cache.batch_repeat_interleave(group)
    logits, mask, after, ids = (each.repeat_interleave(group, 0) for each in (asked.logits, *asked[2:]))
    return generation.Prefill(logits, asked.cache, mask, after, ids)


def shared(model: Any, group: int) -> Callable[..., SimpleNamespace]:
    """A stand-in for `model` that TRL may call with rows of prompt and answer, `group` rows in turn of the same prompt.

    Each prompt goes through the model once, followed by its answers: an answer sees the prompt and itself, and its
    positions (M-RoPE) go on from the prompt's. The logits are those of the rows, and so are their gradients.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(
        *, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor, mm_token_type_ids: torch.Tensor, logits_to_keep: int, use_cache: bool,
    ) -> SimpleNamespace:  # fmt: skip
        rows, length = input_ids.shape
        each = gcd(group, rows)  # a micro-batch may hold part of a group
        answer, prompt = logits_to_keep - 1, length - logits_to_keep + 1
        firsts = slice(None, None, each)
        ids, mask = input_ids[firsts, :prompt], attention_mask[firsts, :prompt]
        if not torch.equal(ids.repeat_interleave(each, 0), input_ids[:, :prompt]):
            raise RuntimeError("the rows of a group do not stand together; shared_prefix needs them to")
        images = (ids == core.config.vision_start_token_id).sum(1) * each
        grid, pixels = _of_firsts(image_grid_thw, pixel_values, images.tolist(), each)
        kinds = mm_token_type_ids[firsts, :prompt]
        positions, _ = core.model.get_rope_index(ids, image_grid_thw=grid, attention_mask=mask, mm_token_type_ids=kinds)
        after = positions.masked_fill(mask == 0, 0).amax((0, 2)) + 1
        ahead = (after[:, None] + torch.arange(answer, device=ids.device)).repeat(1, each)
        # For answer i: the prompt's last token, which foretells its first, then all of its own.
        own = prompt + torch.arange(each * answer, device=ids.device).view(each, answer)
        keep = torch.cat([own.new_full((each, 1), prompt - 1), own], 1).flatten()
        logits = model(
            input_ids=torch.cat([ids, input_ids[:, prompt:].reshape(-1, each * answer)], 1),
            attention_mask=_mask(mask, each, answer), pixel_values=pixels, image_grid_thw=grid,
            position_ids=torch.cat([positions, ahead.expand(3, -1, -1)], 2), logits_to_keep=keep, use_cache=use_cache,
        ).logits  # fmt: skip
        return SimpleNamespace(logits=logits.view(rows, answer + 1, -1))

    return forward


def _of_firsts(
    grid: torch.Tensor, pixels: torch.Tensor, images: list[int], each: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image grids and pixels of the first row of every group; images: how many those of a whole group are."""
    grids = [part[: len(part) // each] for part in grid.split(images)]
    patches = [int(part.prod(-1).sum()) for part in grid.split(images)]
    firsts = [part[: len(part) // each] for part in pixels.split(patches)]
    return torch.cat(grids), torch.cat(firsts)


def _mask(prompt: torch.Tensor, each: int, answer: int) -> torch.Tensor:
    """What may see what, (groups, 1, length, length): a prompt itself, an answer the prompt and itself, never ahead."""
    groups, length = prompt.shape
    owner = torch.arange(each, device=prompt.device).repeat_interleave(answer)
    owner = torch.cat([owner.new_full((length,), -1), owner])  # -1: the prompt
    near = (owner[:, None] == owner) | (owner == -1)
    seen = torch.ones_like(near).tril() & near
    real = torch.cat([prompt.bool(), prompt.new_ones(groups, each * answer).bool()], 1)
    alone = torch.eye(len(owner), device=prompt.device, dtype=torch.bool)  # so that no row of padding sees nothing
    return ((seen & real[:, None]) | alone)[:, None]
