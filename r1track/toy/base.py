"""The tiny base: a real Qwen2.5-VL of about two million parameters that is able but undecided.

It is made by `r1track toy-base --out DIR`: a tokenizer and an image processor of its own, then supervised training on
three kinds of question, every answer's tokens counted alike:

- easy-VQA's training questions (its test questions are never seen);
- a named object to be found in a whole toy frame, in Qwen's grounding form;
- tracking pairs cut from toy clips. In the last part of the training a share of their answers (UNDECIDED) repeats the
  template's box instead of the target's. A greedy answer then copies the prompt's numbers, as weak bases do, while the
  right answer stays among the samples: something for GRPO to find.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import easy_vqa
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from r1track import prompts
from r1track.boxes import xywh_to_xyxy
from r1track.crops import Crop, drift
from r1track.files import atomic_folder
from r1track.models import ImageProcessorOnly
from r1track.toy import world

SIZE = 84  # side of a crop as the tiny model sees it: 3 x 3 merged patches, the template's target in the middle one
FRAME = (112, 84)  # a whole toy frame as the image processor shows it
UNDECIDED = 0.55  # share of pair answers that repeat the template's box, in the last part
UNDECIDED_FROM = 0.85  # where the last part begins, in shares of the training
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<unk>")  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per whole number, per word and per fixed sentence of our prompts, so that texts stay short."""
    sentences = [
        "user\n", "assistant\n", "system\n", prompts.TEMPLATE_HEAD, prompts.SEARCH_HEAD,
        prompts.QUESTION, prompts.ANSWER_PLAIN, prompts.ANSWER_THINK, prompts.SHORT, prompts.GROUND_HEAD,
        prompts.GROUND_TAIL, '```json\n[\n\t{"bbox_2d": ', ', "label": "', '"}\n]\n```',
        "<think>", "</think>", "<answer>", "</answer>",
    ]  # fmt: skip
    questions, answers, _ = easy_vqa.get_train_questions()
    splitter = pre_tokenizers.Split(Regex(r"\d{1,3}| ?[A-Za-z]+|, |\s|[^\sA-Za-z\d]"), "isolated")
    words = {piece for text in {*questions, *answers} for piece, _ in splitter.pre_tokenize_str(text)}
    words |= {w for kind in (*world.COLORS, *world.SHAPES) for w in (kind, f" {kind}")}
    vocabulary = [*SPECIAL, *map(str, range(512)), *",.:;-+?!()[]{}\"'\n\t ", ", ", *sorted(words)]
    vocabulary = list(dict.fromkeys(vocabulary))
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(sentence, normalized=False) for sentence in sentences])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>",
        padding_side="left", clean_up_tokenization_spaces=False, model_max_length=4096, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def make_processor() -> ImageProcessorOnly:
    """The tiny base's processor: every crop and easy-VQA image is seen at 84 px, a whole toy frame at 112 x 84."""
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": SIZE * SIZE, "longest_edge": FRAME[0] * FRAME[1]})
    return ImageProcessorOnly(images, make_tokenizer(), chat_template=CHAT_TEMPLATE)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The tiny architecture with random weights."""
    torch.manual_seed(seed)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    hidden = 128
    text = {
        "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
        "hidden_size": hidden,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 3, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": hidden,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [0, 1, 2], "tokens_per_second": 2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    return model


@dataclass(frozen=True)
class Item:
    """One supervised example: its images (RGB arrays of one common shape), its question and its answer."""

    images: list[NDArray[np.uint8]]
    question: prompts.Messages
    answer: str


class Lessons:
    """Draws training items; `progress` in [0, 1] decides how hard they are."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.grounds = [world.make_ground(self.rng) for _ in range(400)]
        questions, answers, ids = easy_vqa.get_train_questions()
        paths = easy_vqa.get_train_image_paths()
        self.photos = {i: np.asarray(Image.open(p).convert("RGB").resize((SIZE, SIZE), 3)) for i, p in paths.items()}
        self.questions = list(zip(questions, answers, ids, strict=True))

    def _world(self, progress: float, length: int) -> world.World:
        most = 0 if progress < 0.07 else 1 if progress < 0.22 else 3
        rng = self.rng
        ground = self.grounds[rng.integers(len(self.grounds))]
        return world.make(rng, length, int(rng.integers(0, most + 1)), False, ground)

    def vqa(self, progress: float) -> Item:
        """A question of easy-VQA's training split."""
        question, answer, photo = self.questions[self.rng.integers(len(self.questions))]
        return Item([self.photos[photo]], prompts.ask(question + prompts.SHORT), answer)

    def ground(self, progress: float) -> Item:
        """A named object in a whole toy frame; any object whose kind is there once may be asked for."""
        clip = self._world(progress, 1)
        names = [thing.name for thing in clip.things]
        chosen = int(self.rng.choice([i for i, name in enumerate(names) if names.count(name) == 1]))
        frame = Image.fromarray(clip.frame(0)).resize(FRAME, Image.Resampling.BICUBIC)
        box = xywh_to_xyxy(clip.box(0, chosen)) * (FRAME[0] / world.WIDTH)
        return Item([np.asarray(frame)], prompts.ground(names[chosen]), prompts.ground_answer(box, names[chosen]))

    def pair(self, progress: float) -> Item:
        """Template and search region of one clip; late in the training some answers repeat the template's box."""
        clip = self._world(progress, 12)
        first, second = self.rng.integers(0, clip.length, 2)
        box = clip.box(second)
        template = Crop.around(clip.box(first), 4, SIZE)
        shift = 0.3 if self.rng.random() < 0.7 else 0.8
        search = Crop.around(drift(box, self.rng, shift=shift, scale=0.12), 4, SIZE)
        given = template.to_crop(xywh_to_xyxy(clip.box(first)))
        answer = np.clip(search.to_crop(xywh_to_xyxy(box)), 0, SIZE)
        if progress >= UNDECIDED_FROM and self.rng.random() < UNDECIDED:
            answer = given
        images = [np.asarray(c.cut(Image.fromarray(clip.frame(t)))) for c, t in ((template, first), (search, second))]
        return Item(images, prompts.build(given), prompts.numbers(answer))


def patches(images: NDArray[np.uint8], processor: Qwen2VLImageProcessorPil) -> torch.Tensor:
    """Pixels (n, height, width, 3) as the image processor would give them, all at once: (n * patches, features)."""
    mean, std = (torch.tensor(v) for v in (processor.image_mean, processor.image_std))
    pixels = (torch.from_numpy(images).float() / 255 - mean) / std
    n, height, width, _ = pixels.shape
    rows, columns = height // 28, width // 28
    split = pixels.reshape(n, rows, 2, 14, columns, 2, 14, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return split.unsqueeze(6).expand(*split.shape[:6], 2, 14, 14).reshape(n * rows * columns * 4, -1)


class Trainer:
    """Plain supervised training of the tiny base, one forward pass per kind of question and step."""

    def __init__(self, seed: int, steps: int, batch: int, rate: float):
        self.processor = make_processor()
        self.tokenizer = self.processor.tokenizer
        self.model = make_model(self.tokenizer, seed)
        self.lessons = Lessons(seed)
        self.steps, self.rate = steps, rate
        self.parts = {"vqa": batch // 5, "ground": batch // 4, "pair": batch - batch // 5 - batch // 4}
        self.positions: dict[tuple[int, int, int], torch.Tensor] = {}
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
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
        hidden = self.model.model(
            input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], image_grid_thw=batch["image_grid_thw"],
            position_ids=self._positions(batch["input_ids"], batch["image_grid_thw"]), use_cache=False,
        ).last_hidden_state[:, :-1]  # fmt: skip
        chosen = labels != -100
        logits = self.model.lm_head(hidden[chosen])
        right = (logits.argmax(-1) == labels[chosen]).float().mean().item()
        return torch.nn.functional.cross_entropy(logits, labels[chosen]), right

    def batches(self) -> Iterator[tuple[float, list[dict[str, torch.Tensor]]]]:
        for step in range(self.steps):
            progress = step / self.steps
            draws = {kind: [getattr(self.lessons, kind)(progress) for _ in range(n)] for kind, n in self.parts.items()}
            yield progress, [self.collate(items) for items in draws.values()]

    def run(self, console: Console) -> list[dict[str, float]]:
        """Train; returns the log. Learning rate: linear warm-up over 2 % of the steps, then cosine to 2 %."""
        log, began = [], time.time()
        self.model.train()
        for step, (progress, parts) in enumerate(self.batches()):
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
                console.print(row)
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


def make(folder: Path, *, seed: int = 0, steps: int = 6000, batch: int = 56, rate: float = 2e-3) -> None:
    """Make the tiny base and write it to `folder`."""
    trainer = Trainer(seed, steps, batch, rate)
    began = time.time()
    log = trainer.run(Console())
    seconds = round(time.time() - began)
    settings = {"seed": seed, "steps": steps, "batch": batch, "rate": rate, "undecided": UNDECIDED}
    save(trainer, folder, {**settings, "seconds": seconds, "threads": torch.get_num_threads(), "log": log[::10]})


if __name__ == "__main__":
    import sys

    make(Path(sys.argv[1]), steps=int(sys.argv[2]))
