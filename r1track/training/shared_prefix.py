"""Shared prefix: GRPO that computes each prompt once per group, in the rollout and in the loss.

The idea is Prefix Grouper's (arXiv 2506.05433), here for a vision-language model with several images per prompt. TRL's
trainer draws rollouts through its hook `rollout_func`, and computes log-probabilities with its own code, over a model
that is given each prompt once (trl_patches.py).
"""

from collections.abc import Callable
from math import gcd
from types import SimpleNamespace
from typing import Any

import torch
from trl.models.utils import unwrap_model_for_generation

from r1track.core import generation, schema
from r1track.core.graphs import Graphs
from r1track.core.models import ImageProcessorOnly, Images, Loaded

Rollout = Callable[[list[Any], Any], dict[str, Any]]


def make_rollout(settings: schema.Settings, processor: ImageProcessorOnly) -> Rollout:
    """TRL's `rollout_func`: from prompts (each `num_generations` times in a row), the ids of prompts and completions,
    and the log-probabilities of the completions' tokens. At most train.rollout_batch completions are in one batch.

    Raises UserError for train.graphs without a card.
    """
    train = settings.train
    graphs = Graphs("train.graphs") if train.graphs else None

    def rollout(questions: list[Any], trainer: Any) -> dict[str, Any]:
        group = trainer.num_generations
        firsts = [messages[0]["content"] for messages in questions[::group]]
        images = [[part["image"] for part in content if part["type"] == "image"] for content in firsts]
        texts: Any = processor.apply_chat_template(questions[::group], tokenize=False, add_generation_prompt=True)
        # Without checkpointing, which forbids a cache. Not in eval mode: on a CPU it repacks 4-bit weights for good.
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
            loaded = Loaded(model, processor, model.device)
            decoder = generation.Decoder(loaded, max_tokens=train.max_tokens, think=settings.task.think, graphs=graphs)
            sampler, batch = generation.sampled(train.temperature), train.rollout_batch // group
            prompt_ids, completions = complete(decoder, texts, images, sampler, batch=batch, copies=group)
        return {
            "prompt_ids": [ids for ids in prompt_ids for _ in range(group)],
            "completion_ids": [completion.tokens for completion in completions],
            "logprobs": [completion.values for completion in completions],
        }

    return rollout


def complete(
    decoder: generation.Decoder,
    texts: list[str],
    images: Images,
    sampler: generation.Sampler,
    ended: Callable[[list[int]], bool] | None = None,
    *,
    batch: int,
    copies: int = 1,
) -> tuple[list[list[int]], list[generation.Completion]]:
    """The ids of prompts, and `copies` completions of each in a row; `batch` prompts are encoded at once.

    Completions are drafted after the box in their prompt and after one of an earlier batch of the same call, so that a
    run gone on from a checkpoint draws what it would have drawn.
    """
    prompt_ids: list[list[int]] = []
    completions: list[generation.Completion] = []
    for start in range(0, len(texts), batch):
        some = texts[start : start + batch]
        prefill = decoder.prefill(some, [image for row in images[start : start + batch] for image in row])
        prompt_ids += [ids[mask].tolist() for ids, mask in zip(prefill.ids, prefill.mask.bool(), strict=True)]
        earlier = [completion.tokens for completion in completions[-1:]]
        examples = [[decoder.drafter.example(text), *earlier] for text in some for _ in range(copies)]
        repeated = _repeated(decoder, prefill, copies)
        completions += decoder.decode(repeated, sampler, ended, examples=examples, drop=True)
    return prompt_ids, completions


def _repeated(decoder: generation.Decoder, prefill: generation.Prefill, group: int) -> generation.Prefill:
    """Every row `group` times, one after another."""
    cache = decoder.repeated(prefill.cache, prefill.mask, group)
    names = ("logits", "mask", "after", "ids")
    tensors = {name: getattr(prefill, name).repeat_interleave(group, 0) for name in names}
    return prefill._replace(**tensors, cache=cache, drafts=[draft for draft in prefill.drafts for _ in range(group)])


def shared(model: Any, group: int) -> Callable[..., SimpleNamespace]:
    """A stand-in for `model`, called with rows of prompt and completion; `group` rows in turn have the same prompt.

    Each prompt goes through the model once, followed by its completions: a completion sees the prompt and itself, and
    its positions (M-RoPE) continue the prompt's. Logits (rows, logits_to_keep, vocabulary) and gradients are those of
    the rows. Raises RuntimeError when the rows of a group do not stand together.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(
        *, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor, mm_token_type_ids: torch.Tensor, logits_to_keep: int, use_cache: bool,
    ) -> SimpleNamespace:  # fmt: skip
        rows, length = input_ids.shape
        copies = gcd(group, rows)  # of a prompt; a micro-batch may hold part of a group
        completion, prompt = logits_to_keep - 1, length - logits_to_keep + 1  # tokens
        firsts = slice(None, None, copies)
        ids, mask = input_ids[firsts, :prompt], attention_mask[firsts, :prompt]
        if not torch.equal(ids.repeat_interleave(copies, 0), input_ids[:, :prompt]):
            raise RuntimeError("the rows of a group do not stand together; shared_prefix needs them to")
        images = (ids == core.config.vision_start_token_id).sum(1) * copies
        grid, pixels = _of_firsts(image_grid_thw, pixel_values, images.tolist(), copies)
        kinds = mm_token_type_ids[firsts, :prompt]
        positions, _ = core.model.get_rope_index(ids, image_grid_thw=grid, attention_mask=mask, mm_token_type_ids=kinds)
        after = positions.masked_fill(mask == 0, 0).amax((0, 2)) + 1
        ahead = (after[:, None] + torch.arange(completion, device=ids.device)).repeat(1, copies)
        # For completion i: the prompt's last token, which predicts its first, then all of its own.
        own = prompt + torch.arange(copies * completion, device=ids.device).view(copies, completion)
        keep = torch.cat([own.new_full((copies, 1), prompt - 1), own], 1).flatten()
        logits = model(
            input_ids=torch.cat([ids, input_ids[:, prompt:].reshape(-1, copies * completion)], 1),
            attention_mask=_mask(mask, copies, completion), pixel_values=pixels, image_grid_thw=grid,
            position_ids=torch.cat([positions, ahead.expand(3, -1, -1)], 2), logits_to_keep=keep, use_cache=use_cache,
        ).logits  # fmt: skip
        return SimpleNamespace(logits=logits.view(rows, completion + 1, -1))

    return forward


def _of_firsts(
    grid: torch.Tensor, pixels: torch.Tensor, images: list[int], copies: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image grids and pixels of the first row of every group; images: the number of images of each whole group."""
    grids = [part[: len(part) // copies] for part in grid.split(images)]
    patches = [int(part.prod(-1).sum()) for part in grid.split(images)]
    firsts = [part[: len(part) // copies] for part in pixels.split(patches)]
    return torch.cat(grids), torch.cat(firsts)


def _mask(prompt: torch.Tensor, copies: int, completion: int) -> torch.Tensor:
    """What sees what, (groups, 1, length, length): a prompt itself, a completion the prompt and itself, never ahead.

    prompt: the prompts' attention mask (groups, tokens). completion: tokens of one of the `copies` completions.
    """
    groups, length = prompt.shape
    owner = torch.arange(copies, device=prompt.device).repeat_interleave(completion)
    owner = torch.cat([owner.new_full((length,), -1), owner])  # -1: the prompt
    near = (owner[:, None] == owner) | (owner == -1)
    visible = torch.ones_like(near).tril() & near
    real = torch.cat([prompt.bool(), prompt.new_ones(groups, copies * completion).bool()], 1)
    alone = torch.eye(len(owner), device=prompt.device, dtype=torch.bool)  # so that no row of padding sees nothing
    return ((visible & real[:, None]) | alone)[:, None]
