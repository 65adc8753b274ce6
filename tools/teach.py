"""Teach: supervised training of the tiny base that the repository holds, by `python tools/teach.py OUT`.

One forward pass per kind of question and step; every token of an answer counts alike; targets of coordinates are narrow
bells; helper heads, thrown away at the end, make the image tokens tell where things are.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from lessons import UNDECIDED, Item, Lessons
from numpy.typing import NDArray
from rich.progress import track as progress_bar
from torch.nn import functional
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from r1track.boxes import Array
from r1track.files import atomic_folder
from r1track.toy import base

logger = logging.getLogger(__name__)
BLUR = 1.0  # deviation, in pixels, of the soft target around a true coordinate: near misses are near


def patches(images: NDArray[np.uint8], processor: Qwen2VLImageProcessorPil) -> torch.Tensor:
    """Pixels (n, height, width, 3) as the image processor would give them, all at once: (n * patches, features)."""
    mean, std = (torch.tensor(v) for v in (processor.image_mean, processor.image_std))
    pixels = (torch.from_numpy(images).float() / 255 - mean) / std
    n, height, width, _ = pixels.shape
    rows, columns = height // 28, width // 28
    split = pixels.reshape(n, rows, 2, 14, columns, 2, 14, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return split.unsqueeze(6).expand(*split.shape[:6], 2, 14, 14).reshape(n * rows * columns * 4, -1)


def places(objects: list[list[Array]], height: int, width: int) -> dict[str, torch.Tensor]:
    """Where the objects of each last image are, by image token.

    present (n, tokens): 0 or 1; corners (n, tokens, 4): in units of 84 px; target (n,): the token that holds the
    target's centre, or -100 where the image does not show it.
    """
    tokens = height * width
    present, corners = torch.zeros(len(objects), tokens), torch.zeros(len(objects), tokens, 4)
    target = torch.full((len(objects),), -100)
    for row, seen in enumerate(objects):
        for k, box in reversed(list(enumerate(seen))):  # the target last: it is drawn on top
            x, y = (int(v // 28) for v in ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
            if 0 <= x < width and 0 <= y < height:
                present[row, y * width + x] = 1
                corners[row, y * width + x] = torch.tensor(box / base.SIZE, dtype=torch.float32)
                if k == 0:
                    target[row] = y * width + x
    return {"present": present, "corners": corners, "target": target}


class Helper(torch.nn.Module):
    """Heads that help the tiny base to learn and are thrown away: M-RoPE knows no absolute place, and without them the
    answers stay blind to where things are for tens of thousands of examples.

    From the image tokens after the second layer: is an object's centre here, and what is its box? From those after the
    third: is the target's centre here? And where the first coordinate is about to be answered: which of them does the
    question mean?
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.present, self.corners, self.target = (torch.nn.Linear(hidden, n) for n in (1, 4, 1))
        self.query, self.key = (torch.nn.Linear(hidden, 64) for _ in range(2))

    def forward(
        self, hidden: tuple[torch.Tensor, ...], images: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        present = batch["present"]
        rows, tokens = present.shape

        def last_image(layer: int) -> torch.Tensor:
            return hidden[layer][images].reshape(rows, -1, hidden[layer].shape[-1])[:, -tokens:]

        second, third = last_image(2), last_image(3)
        loss = functional.binary_cross_entropy_with_logits(self.present(second)[..., 0], present)
        wrong = (self.corners(second) - batch["corners"]).abs().mean(-1)
        loss = loss + 4 * (wrong * present).sum() / present.sum()
        if not (batch["target"] >= 0).any():
            return loss
        asked = self.query(hidden[3][torch.arange(rows), batch["asked"]])
        meant = (self.key(second) @ asked[..., None])[..., 0] / 8
        loss = loss + 0.5 * functional.cross_entropy(meant, batch["target"])
        if images.sum() == 2 * rows * tokens:  # a pair: the template came before the search region
            loss = loss + 0.5 * functional.cross_entropy(self.target(third)[..., 0], batch["target"])
        return loss


class Trainer:
    """Plain supervised training of the tiny base, one forward pass per kind of question and step."""

    def __init__(self, seed: int, steps: int, batch: int, rate: float):
        self.processor: Any = base.make_processor()
        self.tokenizer = self.processor.tokenizer
        self.model: Any = base.make_model(self.tokenizer, seed)
        self.helper = Helper(base.HIDDEN)
        self.zero = self.tokenizer.convert_tokens_to_ids("0")
        self.lessons = Lessons(seed)
        self.steps, self.rate = steps, rate
        self.parts = {"vqa": batch // 4, "ground": batch // 4, "pair": batch - 2 * (batch // 4)}
        self.positions: dict[tuple[int, int, int], torch.Tensor] = {}
        decay = [p for p in (*self.model.parameters(), *self.helper.parameters()) if p.ndim > 1]
        plain = [p for p in (*self.model.parameters(), *self.helper.parameters()) if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))

    def collate(self, items: list[Item]) -> dict[str, torch.Tensor]:
        """Model inputs and labels of items of one kind; labels are -100 outside the answers."""
        pixels = np.stack([image for item in items for image in item.images])
        height, width = pixels.shape[1] // 28, pixels.shape[2] // 28
        pads = "<|image_pad|>" * (height * width)
        rows, starts = [], []
        for item in items:
            text = self.tokenizer.apply_chat_template(item.question, tokenize=False, add_generation_prompt=True)
            question = self.tokenizer(text.replace("<|image_pad|>", pads))["input_ids"]
            rows.append(question + self.tokenizer(item.answer + "<|im_end|>")["input_ids"])
            starts.append(len(question))
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), longest), -100)
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, start : len(row)] = torch.tensor(row[start:])
        grid = torch.tensor([[1, height * 2, width * 2]]).expand(len(pixels), 3)
        return {
            "input_ids": ids, "labels": labels, "image_grid_thw": grid,
            "pixel_values": patches(pixels, self.processor.image_processor),
            "asked": (self._is_number(labels).int().argmax(1) - 1).clamp(0),  # the token before the first coordinate
            **places([item.objects for item in items], height, width),
        }  # fmt: skip

    def _positions(self, ids: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """M-RoPE positions; the rows of one kind share their layout, so the first row's serve all."""
        key = (ids.shape[1], len(grid) // len(ids), int(grid[0, 2]))
        if key not in self.positions:
            kinds = (ids[:1] == self.model.config.image_token_id).int()
            one, _ = self.model.model.get_rope_index(ids[:1], kinds, grid[: key[1]])
            self.positions[key] = one
        return self.positions[key].expand(3, len(ids), -1)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        """Mean cross-entropy over answer tokens, and the share of them predicted rightly."""
        labels = batch["labels"][:, 1:]
        output = self.model.model(
            input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], image_grid_thw=batch["image_grid_thw"],
            position_ids=self._positions(batch["input_ids"], batch["image_grid_thw"]), use_cache=False,
            output_hidden_states=True,
        )  # fmt: skip
        hidden = output.last_hidden_state[:, :-1]
        chosen = labels != -100
        logits = self.model.lm_head(hidden[chosen])
        right = (logits.argmax(-1) == labels[chosen]).float().mean().item()
        loss = -(self._targets(labels[chosen]) * logits.log_softmax(-1)).sum(-1).mean()
        if batch["present"].any():
            images = batch["input_ids"] == self.model.config.image_token_id
            loss = loss + self.helper(output.hidden_states, images, batch)
        return loss, right

    def _is_number(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels >= self.zero) & (labels < self.zero + base.NUMBERS)

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Target distributions, shape (tokens, vocabulary): one-hot for words, a narrow bell for numbers."""
        vocabulary = self.model.config.text_config.vocab_size
        targets = functional.one_hot(labels, vocabulary).float()
        number = self._is_number(labels)
        distance = torch.arange(base.NUMBERS) - (labels[number, None] - self.zero)
        targets[number, self.zero : self.zero + base.NUMBERS] = torch.softmax(-(distance**2) / (2 * BLUR**2), -1)
        return targets

    def batches(self) -> Iterator[tuple[float, list[dict[str, torch.Tensor]]]]:
        for step in range(self.steps):
            progress = step / self.steps
            draws = {kind: [getattr(self.lessons, kind)(progress) for _ in range(n)] for kind, n in self.parts.items()}
            yield progress, [self.collate(items) for items in draws.values()]

    def run(self) -> list[dict[str, float]]:
        """Train; returns the log. Learning rate: linear warm-up over 2 % of the steps, then cosine to 2 %."""
        log, began = [], time.time()
        self.model.train()
        for step, (progress, parts) in enumerate(progress_bar(self.batches(), "teach", self.steps)):
            factor = min(1.0, (step + 1) / (0.02 * self.steps)) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            losses, shares = zip(*(self.loss(part) for part in parts), strict=True)
            weighted = sum(loss * n for loss, n in zip(losses, self.parts.values(), strict=True))
            (weighted / sum(self.parts.values())).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if step % 50 == 0 or step == self.steps - 1:
                row = {"step": step, "seconds": round(time.time() - began, 1)}
                row |= {f"{kind}_loss": round(loss.item(), 3) for kind, loss in zip(self.parts, losses, strict=True)}
                row |= {f"{kind}_right": round(share, 3) for kind, share in zip(self.parts, shares, strict=True)}
                log.append(row)
                logger.info("%s", row)
        return log


def save(trainer: Trainer, folder: Path, record: dict[str, object]) -> None:
    """Write the base as 16-bit floats in the standard layout, with the record of its making."""
    model = trainer.model.eval().to(torch.float16)
    model.config.dtype = torch.float16
    with atomic_folder(folder) as out:
        model.save_pretrained(out)
        trainer.processor.save_pretrained(out)
        for name in ("processor_config.json", "tokenizer_config.json"):
            text = (out / name).read_text()
            (out / name).write_text(text.replace("ImageProcessorOnly", "Qwen2_5_VLProcessor"))
        (out / "made.json").write_text(json.dumps(record, indent=1) + "\n")


def make(folder: Path, seed: int = 0, steps: int = 5200, batch: int = 32, rate: float = 2e-3) -> None:
    """Make the tiny base and write it to `folder`."""
    trainer = Trainer(seed, steps, batch, rate)
    began = time.time()
    log = trainer.run()
    seconds = round(time.time() - began)
    settings = {"seed": seed, "steps": steps, "batch": batch, "rate": rate, "undecided": UNDECIDED}
    cost = {"seconds": seconds, "threads": torch.get_num_threads()}
    save(trainer, folder, {**settings, **cost, "log": [*log[::10], log[-1]]})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.run(make)
