"""Small splits for tests: clips of the toy world, and bare annotations whose frames are empty files."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Value
from numpy.typing import ArrayLike
from PIL import Image

from r1track.core import config, models, prompts
from r1track.core.boxes import iou, xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.pairs import FEATURES, held_out, held_out_rows, questions
from r1track.core.pairs import load as open_pairs
from r1track.core.schema import Task
from r1track.data import sample, toy
from r1track.data.toy import write_split

REAL = Path(__file__).resolve().parents[2] / "shared" / "realseq"
BOXES = [[10, 10, 20, 20], [11, 10, 20, 20], [12, 10, 20, 20]]  # of a bare sequence of three frames
needs_real = pytest.mark.skipif(
    not (REAL / "list.txt").is_file(), reason="the real clips (shared/realseq beside the repository) are not here"
)


def toy_split(folder: Path, *, sequences: int = 4, length: int = 12, seed: int = 7) -> Path:
    """A validation split of the toy world at `folder`; clips of 24 frames have some in which the target is absent."""
    write_split(folder, "val", sequences=sequences, length=length, seed=seed)
    return folder


def bare_sequence(
    root: Path, name: str, boxes: ArrayLike, *, cover: Iterable[int] = (), size: str = "(100, 80)", kind: str = "dog"
) -> Path:
    """A sequence folder with annotations and empty image files; it joins `root/list.txt`."""
    boxes = np.asarray(boxes, dtype=float)
    folder = root / name
    folder.mkdir(parents=True)
    for t in range(len(boxes)):
        (folder / f"{t + 1:08d}.jpg").touch()
    np.savetxt(folder / "groundtruth.txt", boxes, fmt="%.4f", delimiter=",")
    cover = list(cover)
    if cover:
        (folder / "cover.label").write_text("".join(f"{c}\n" for c in cover))
    (folder / "meta_info.ini").write_text(f"[METAINFO]\nobject_class: {kind}\nresolution: {size}\n")
    with (root / "list.txt").open("a") as stream:
        stream.write(f"{name}\n")
    return folder


def brightest(images: list[Image.Image]) -> str:
    """An answer that depends on nothing but the search image, the last of them, 84 wide: its brightest quarter."""
    gray = np.asarray(images[-1].convert("L"), dtype=float)
    quarters = [gray[y : y + 42, x : x + 42].mean() for y in (0, 42) for x in (0, 42)]
    y, x = divmod(int(np.argmax(quarters)), 2)
    return prompts.numbers([14 + 12 * x, 14 + 12 * y, 56 + 12 * x, 56 + 12 * y])


def toy_pairs(folder: Path, settings: config.Settings, sequences: int = 8) -> Path:
    """Pairs of a few toy clips, as the settings want them."""
    write_split(folder / "train", "train", sequences=sequences, length=16, seed=5)
    sample.run(settings, folder / "train", folder / "pairs")
    return folder / "pairs"


def pairs_of_every_kind(place: Path) -> Path:
    """In `place`/pairs pairs with the target and without, with a later template and without; in `place`/hub/pairs the
    same with questions of their own."""
    few = {"pairs": 12, "val_pairs": 4, "max_gap": 2}
    values = {"preset": "demo", "task": {"templates": 2}, "sample": {**few, "negatives": 0.5}}
    write_split(place / "train", "train", sequences=6, length=12, seed=0)
    sample.run(config.resolve(values), place / "train", place / "pairs", 1, ["easyr1"])
    rows = open_pairs(place / "pairs" / "train")
    kinds = {(bool(answer), len(images)) for answer, images in zip(rows["answer"], rows["images"], strict=True)}
    assert kinds == {(True, 2), (True, 3), (False, 2), (False, 3)}
    hub = {**values, "sample": {**few, "hub": str(place / "pairs-easyr1")}}
    sample.run(config.resolve(hub), None, place / "hub" / "pairs", 1)
    return place


def varied_pairs(pairs: Path, out: Path, *, rows: int = 4, later: str = "none", thought: str | None = None) -> Path:
    """The first pairs of each split again, with a later template in `none`, `some` or `all` of them, and a thought."""
    features = FEATURES.copy()
    if thought:
        features["thought"] = Value("string")
    for split in ("train", "val"):
        table = list(open_pairs(pairs / split).select(range(rows)))
        for k, row in enumerate(table):
            if later == "all" or (later == "some" and k % 2):
                row.update(images=[*row["images"], row["images"][0]], second_box=row["template_box"])
            if thought:
                row["thought"] = thought
        (out / split).mkdir(parents=True)
        Dataset.from_list(table, features=features).to_parquet(out / split / "0.parquet")
    shutil.copy(pairs / "manifest.json", out)
    return out


def accustomed(pairs: Path, out: Path, steps: int = 32) -> Path:
    """The tiny base, all of its weights trained for a moment on these pairs, to answer their form of question."""
    rows = open_pairs(pairs / "train")
    processor = models.load_processor(models.TINY, config.resolve({}).model)
    told = [prompts.numbers(box) for box in rows["answer"]]
    if thoughts := "thought" in rows.column_names:
        told = [prompts.thoughtful(thought, answer) for thought, answer in zip(rows["thought"], told, strict=True)]
    answers = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in told]
    chats = [[*asked, answer] for asked, answer in zip(questions(rows, Task(think=thoughts)), answers, strict=True)]
    texts = processor.apply_chat_template(chats, tokenize=False)
    images = [image for row in rows["images"] for image in prompts.places(row)]
    batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    for row, text in zip(labels, texts, strict=True):
        row[: -len(processor.tokenizer(text.split("assistant\n")[-1])["input_ids"])] = -100
    model = models.load_weights(models.TINY, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.half().save_pretrained(out)
    for file in (*models.TINY.glob("*.json"), models.TINY / "chat_template.jinja"):
        if not (out / file.name).exists():
            shutil.copy(file, out)
    return out


def with_pixels(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with the images' pixels, as TRL itself has them, in place of their numbers."""
    hung, grids = trainer.image_cache.images, inputs["image_grid_thw"]
    numbers = [int(128 * high + low) for high, low in inputs["pixel_values"][grids.prod(1).cumsum(0) - 1].tolist()]
    return {**inputs, "pixel_values": torch.cat([hung[n].pixels for n in numbers])}


def held_out_by_generate(
    made: config.Settings, pairs: Path, adapter: Path | None, count: int, max_tokens: int
) -> tuple[float, float]:
    """Mean IoU and share of readable answers to the first held-out pairs, by transformers' own `generate`."""
    questions, images = held_out(pairs, count, made.task)
    loaded = models.load("tiny", made.model, adapter)
    answers = models.generate(loaded, questions, images, max_tokens=max_tokens, batch=count)
    boxes = [prompts.parse_box(text, size=84) for text in answers]
    both = zip(boxes, held_out_rows(pairs, count)["answer"], strict=True)
    overlaps = [0.0 if box is None else float(iou(box, answer)) for box, answer in both]
    return float(np.mean(overlaps)), float(np.mean([box is not None for box in boxes]))


def tracked(rows: int, *, later: bool = False, think: bool = False) -> tuple[Any, list[list[Image.Image]], Any]:
    """Questions about `rows` clips with their templates, and the search regions of two frames of each."""
    rng = np.random.default_rng(3)
    asked, templates, searches = [], [], []
    for k in range(rows):
        clip = toy.make(rng, 2, 2, False, toy.make_ground(rng))
        crop = Crop.around(clip.box(0), 4.0, 84)
        box = crop.to_crop(xywh_to_xyxy(np.asarray(clip.box(0), dtype=float))) + 600 * (k % 2)  # more digits in some
        asked.append(prompts.build(box, second_box=box if later else None, think=think))
        shown = [crop.cut(Image.fromarray(clip.frame(t))) for t in range(2)]
        templates.append([shown[0]] * (1 + later))
        searches.append(shown)
    return asked, templates, [list(row) for row in zip(*searches, strict=True)]
