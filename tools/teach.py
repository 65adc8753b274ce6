"""Teach: supervised training of the tiny base that the repository holds, by `python tools/teach.py OUT`.

It has three parts. First the vision tower is trained alone (tools/sight.py). Then the whole model is trained, with one
forward pass per kind of question and step; the loss is the mean over all answer tokens; the target of a coordinate is a
narrow bell over the numbers around it; helper heads, removed at the end, train the image tokens to carry what is where.
In the last part, without the helper heads, a share of the answers is the template's box (lessons.UNDECIDED).
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import tiny_model
import torch
import typer
from lessons import UNDECIDED, Item, Lessons
from rich.progress import track as progress_bar
from sight import Sight, learn_to_see, patches, places, rate_at
from torch.nn import functional

from r1track.core.folders import atomic_folder

logger = logging.getLogger(__name__)
RATE, SHARES = 2e-3, {"vqa": 6, "ground": 12, "pair": 14}  # highest learning rate; questions of each kind in 32
SETTLE_RATE, SETTLE_SHARES = 4e-4, {"vqa": 14, "ground": 6, "pair": 12}
BLUR = 1.0  # standard deviation, in pixels, of the soft target around a true coordinate, so that near misses cost less


class Helper(torch.nn.Module):
    """Heads that are used in training only. M-RoPE encodes no absolute position: without these heads, the answers do
    not depend on where the objects are for tens of thousands of examples.

    What each head predicts, and from what:
    - sight (see Sight): from the image tokens as the vision tower gives them;
    - present, corners: whether an object's centre is here, and its box, from the image tokens after the second layer;
    - target: which token has the target's centre, from the image tokens of a pair after the third layer;
    - query, key: which token the question means, from the token before the first coordinate, after the second layer;
    - box: the target's box, from the same token after the third layer, so that all four coordinates are of one object.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.sight = Sight(hidden)
        self.present, self.corners, self.target = (torch.nn.Linear(hidden, n) for n in (1, 4, 1))
        self.query, self.key, self.box = (torch.nn.Linear(hidden, n) for n in (64, 64, 4))

    def forward(
        self, hidden: tuple[torch.Tensor, ...], images: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        present = batch["present"]
        rows, tokens = present.shape

        def last_image(layer: int) -> torch.Tensor:
            return hidden[layer][images].reshape(rows, -1, hidden[layer].shape[-1])[:, -tokens:]

        second, third = last_image(2), last_image(3)
        loss = 0.5 * self.sight(last_image(0), batch)
        loss = loss + functional.binary_cross_entropy_with_logits(self.present(second)[..., 0], present)
        errors = (self.corners(second) - batch["corners"]).abs().mean(-1)
        loss = loss + 4 * (errors * present).sum() / present.sum()
        known = torch.arange(rows)[batch["target"] >= 0]
        if not len(known):
            return loss
        target, before = batch["target"][known], batch["before_coordinate"][known]
        attention = (self.key(second[known]) @ self.query(hidden[2][known, before])[..., None])[..., 0] / 8
        loss = loss + 0.5 * functional.cross_entropy(attention, target)
        error = (self.box(hidden[3][known, before]) - batch["corners"][known, target]).abs().mean()
        loss = loss + 4 * error
        if images.sum() == 2 * rows * tokens:  # a pair: the template came before the search region
            loss = loss + 0.5 * functional.cross_entropy(self.target(third)[..., 0], batch["target"])
        return loss


class Trainer:
    """Plain supervised training of the tiny base, one forward pass per kind of question and step."""

    def __init__(self, seed: int, batch: int):
        self.processor: Any = tiny_model.make_processor()
        self.tokenizer = self.processor.tokenizer
        self.model: Any = tiny_model.make_model(self.tokenizer, seed)
        self.helper = Helper(tiny_model.HIDDEN)
        self.zero = self.tokenizer.convert_tokens_to_ids("0")
        self.lessons, self.batch = Lessons(seed), batch
        self.positions: dict[tuple[int, int, int], torch.Tensor] = {}

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
            "before_coordinate": (self._is_number(labels).int().argmax(1) - 1).clamp(0),  # index of a token
            **places([item.objects for item in items], height, width),
        }  # fmt: skip

    def _positions(self, ids: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """M-RoPE positions; the rows of one kind share their layout, so the positions of the first row serve all."""
        key = (ids.shape[1], len(grid) // len(ids), int(grid[0, 2]))
        if key not in self.positions:
            kinds = (ids[:1] == self.model.config.image_token_id).int()
            one, _ = self.model.model.get_rope_index(ids[:1], kinds, grid[: key[1]])
            self.positions[key] = one
        return self.positions[key].expand(3, len(ids), -1)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        """Mean cross-entropy over answer tokens, and the share of them predicted correctly."""
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
        if batch["present"].any() and not self.lessons.undecided:
            images = batch["input_ids"] == self.model.config.image_token_id
            loss = loss + self.helper(output.hidden_states, images, batch)
        return loss, right

    def _is_number(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels >= self.zero) & (labels < self.zero + tiny_model.NUMBERS)

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Target distributions, (tokens, vocabulary): one-hot for words, a narrow bell for numbers."""
        vocabulary = self.model.config.text_config.vocab_size
        targets = functional.one_hot(labels, vocabulary).float()
        number = self._is_number(labels)
        distance = torch.arange(tiny_model.NUMBERS) - (labels[number, None] - self.zero)
        targets[number, self.zero : self.zero + tiny_model.NUMBERS] = torch.softmax(-(distance**2) / (2 * BLUR**2), -1)
        return targets

    def run(self, steps: int, rate: float, shares: dict[str, int]) -> list[dict[str, float]]:
        """Train for `steps` steps and return the log; rate: the highest; shares: questions of each kind in 32."""
        log, start = [], time.time()
        parts = {kind: self.batch * share // 32 for kind, share in shares.items()}
        parameters = [*self.model.parameters(), *self.helper.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
        self.model.train()
        for step in progress_bar(range(steps), "teach"):
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_at(step / steps)
            batches = [self.collate([getattr(self.lessons, kind)() for _ in range(n)]) for kind, n in parts.items()]
            losses, right = zip(*(self.loss(batch) for batch in batches), strict=True)
            weighted = sum(loss * n for loss, n in zip(losses, parts.values(), strict=True))
            (weighted / sum(parts.values())).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 50 == 0 or step == steps - 1:
                row = {"step": step, "seconds": round(time.time() - start, 1)}
                row |= {f"{kind}_loss": round(loss.item(), 3) for kind, loss in zip(parts, losses, strict=True)}
                row |= {f"{kind}_right": round(share, 3) for kind, share in zip(parts, right, strict=True)}
                log.append(row)
                logger.info("%s", row)
        return log


def save(trainer: Trainer, folder: Path, record: dict[str, object]) -> None:
    """Write the base as 16-bit floats in the standard layout; made.json holds the settings and logs of its training."""
    model = trainer.model.eval().to(torch.float16)
    model.config.dtype = torch.float16
    with atomic_folder(folder) as out:
        model.save_pretrained(out)
        trainer.processor.save_pretrained(out)
        for name in ("processor_config.json", "tokenizer_config.json"):
            text = (out / name).read_text()
            (out / name).write_text(text.replace("ImageProcessorOnly", "Qwen2_5_VLProcessor"))
        described = json.loads((out / "processor_config.json").read_text())  # with the half that AutoProcessor wants
        video = {"size": described["image_processor"]["size"], "video_processor_type": "Qwen2VLVideoProcessor"}
        text = json.dumps({**described, "video_processor": video}, indent=2, sort_keys=True)
        (out / "processor_config.json").write_text(f"{text}\n")
        (out / "made.json").write_text(json.dumps(record, indent=1) + "\n")


def make(folder: Path, seed: int = 0, look: int = 1100, steps: int = 2800, settle: int = 450, batch: int = 32) -> None:
    """Make the tiny base and write it to `folder`. look, steps, settle: steps of the three parts of its training."""
    trainer = Trainer(seed, batch)
    start = time.time()
    tower = trainer.model.model.visual
    tower_log = learn_to_see(tower, trainer.helper.sight, trainer.lessons, trainer.processor, look)
    log = trainer.run(steps, RATE, SHARES)
    trainer.lessons.undecided = True
    last_log = trainer.run(settle, SETTLE_RATE, SETTLE_SHARES)
    seconds = round(time.time() - start)
    settings = {"seed": seed, "look": look, "steps": steps, "settle": settle, "batch": batch, "undecided": UNDECIDED}
    cost = {"seconds": seconds, "threads": torch.get_num_threads()}
    save(trainer, folder, {**settings, **cost, "looked": tower_log, "log": [*log[::10], log[-1]], "settled": last_log})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.run(make)
