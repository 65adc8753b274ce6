"""Shards: one shard of pairs, from the annotation to the Parquet file; each process of `sample` writes some of them.

Frames and crops are drawn first, without reading a pixel. Then each frame is decoded once, at the smallest size that is
enough. Each sequence has its own random generator, seeded by (seed, name): its pairs do not depend on the others.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pyarrow as pa
from datasets import Features
from pyarrow.parquet import ParquetWriter
from pydantic import BaseModel

from r1track.core import boxes, files
from r1track.core.crops import Crop, jitter_box
from r1track.core.errors import UserError
from r1track.core.images import read_reduced, read_size
from r1track.core.pairs import PairRow
from r1track.core.schema import Settings
from r1track.core.sequences import Sequence, read_sequence

TRIES = 20  # draws per wanted pair before the missing pairs of a sequence are given up; places tried for a negative
CLEAR = 0.1  # free space around the target outside of a negative's search region, over the target's width and height
BATCH = 64  # pairs whose frames are read together, and rows that are written together
# Policy `paper`: side of the crop over sqrt(w * h) of the box, and displacement of the crop relative to its side.
FACTORS, JITTER = (2.0, 8.0), 0.2
SPARE = 1.1  # a decoded frame has at least this many pixels per crop pixel, along a side
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
Rejection = str  # why a draw gave no pair
Maker = Callable[[], Iterable[PairRow | Rejection]]
# Frames, counted from 0, with a crop of each: template, search region, and perhaps a later template.
Pair = tuple[tuple[int, Crop], ...]


class Shard(BaseModel):
    """A finished shard: number of pairs and of negatives among them, of rejected draws by reason, hash of the file."""

    pairs: int
    negatives: int
    rejected: dict[str, int]
    sha256: str


def draw(sequence: Sequence, settings: Settings, rng: np.random.Generator, most: int) -> Iterator[Pair | Rejection]:
    """Draw a template and up to `most` search regions for it: pairs, or the reason where there is none."""
    sample, task, paper = settings.sample, settings.task, settings.sample.policy == "paper"
    size, length = int(rng.choice(sample.sizes or [task.size])), len(sequence.frames)
    if paper:
        first, *seconds = (int(t) for t in rng.choice(length, 2, replace=False))
    else:
        gaps = rng.integers(1, min(sample.max_gap, length - 1) + 1, min(most, sample.per_template))
        first = int(rng.integers(0, length - gaps.max()))
        seconds = [first + int(gap) for gap in gaps]

    def draw_crop(t: int, factor: float, jitter: bool = False) -> Crop | Rejection:
        box = sequence.boxes[t]
        if sequence.absent[t]:
            return "target absent"
        if sequence.visibility[t] < sample.min_visibility:  # NaN, unknown, passes
            return "target covered"
        if paper:
            crop = Crop.around(box, rng.uniform(*FACTORS), size)
            x, y = rng.uniform(-JITTER, JITTER, 2) * crop.side
            crop = replace(crop, x=crop.x + x, y=crop.y + y)
        else:
            centre = jitter_box(box, rng, shift=sample.shift, scale=sample.scale) if jitter else box
            crop = Crop.around(centre, factor, size)
        whole = crop.to_crop(boxes.xywh_to_xyxy(box))
        visible = boxes.clip(whole, size, size)
        if boxes.area(visible) < sample.inside * boxes.area(whole):
            return "target outside the crop"
        return crop if (visible[2:] - visible[:2] >= 1).all() else "target thinner than a pixel"

    template = draw_crop(first, task.template_factor)
    for second in seconds:
        search = draw_crop(second, task.search_factor, jitter=True) if isinstance(template, Crop) else template
        between = range(min(first, second) + 1, max(first, second)) if task.templates == 2 else ()
        later = int(rng.choice(between)) if between else first
        third = draw_crop(later, task.template_factor) if between else "none"
        if isinstance(template, Crop) and isinstance(search, Crop):
            yield (first, template), (second, search), *([(later, third)] if isinstance(third, Crop) else [])
        else:
            yield str(search)


def move_off(sequence: Sequence, pair: Pair, rng: np.random.Generator) -> Pair | None:
    """The pair with its search region elsewhere in the same frame, off the target: a negative. None without room.

    The region keeps its side. Its centre is uniform over the places in the frame from which it does not reach the
    target's box, widened by CLEAR. Of TRIES random places the first such one is taken.
    """
    template, (t, crop), *later = pair
    (x, y, w, h), half = sequence.boxes[t], crop.side / 2
    box = boxes.xywh_to_xyxy([x - CLEAR * w, y - CLEAR * h, (1 + 2 * CLEAR) * w, (1 + 2 * CLEAR) * h])
    try:
        size = read_size(sequence.frames[t])
    except UserError:
        return None  # `cut` counts the frame
    for centre_x, centre_y in rng.uniform((0, 0), size, (TRIES, 2)).tolist():
        moved = replace(crop, x=centre_x - half, y=centre_y - half)
        if not boxes.area(boxes.clip(moved.to_crop(box), crop.size, crop.size)):
            return template, (t, moved), *later
    return None


def decode(path: Path, crops: Iterable[Crop]) -> tuple[cv2.typing.MatLike, int]:
    """A frame with no more pixels than its crops need, as `read_reduced` gives it."""
    return read_reduced(path, min(1 / crop.scale for crop in crops) / SPARE)


def cut(sequence: Sequence, pairs: list[Pair], least: float) -> Iterator[PairRow | Rejection]:
    """The rows of the pairs, or the reason where a frame cannot be read or less than `least` of the box is in it."""
    crops: dict[int, set[Crop]] = defaultdict(set)
    for t, crop in chain.from_iterable(pairs):
        crops[t].add(crop)
    encoded: dict[tuple[int, Crop], bytes] = {}
    faults: dict[int, str] = {}
    for t in sorted(crops):
        box = boxes.xywh_to_xyxy(sequence.boxes[t])
        try:
            frame, reduced = decode(sequence.frames[t], crops[t])
        except UserError:
            faults[t] = f"frame cannot be decoded: {sequence.frames[t]}"
            continue
        if boxes.area(boxes.clip(box, *np.multiply(frame.shape[1::-1], reduced))) < least * boxes.area(box):
            faults[t] = "target outside the image"
        else:
            for crop in crops[t]:
                encoded[t, crop] = cv2.imencode(".jpg", crop.warp(frame, reduced), JPEG)[1].tobytes()
    for pair in pairs:
        fault = next((faults[t] for t, _ in pair if t in faults), None)
        yield fault or _row(sequence, pair, [encoded[key] for key in pair])


def _row(sequence: Sequence, pair: Pair, images: list[bytes]) -> PairRow:
    (first, crop), (second, _), *_ = pair
    in_crops = [crop.to_crop(boxes.xywh_to_xyxy(sequence.boxes[t])) for t, crop in pair]
    template, target, *later = (boxes.clip(box, crop.size, crop.size).tolist() for box in in_crops)
    return {
        "images": [{"bytes": image, "path": None} for image in images],
        "answer": target if boxes.area(target) else [], "template_box": template,
        "second_box": later[0] if later else None, "sequence": sequence.name, "frames": [t + 1 for t, _ in pair],
        "gap": second - first, "boxes": [sequence.boxes[t].tolist() for t, _ in pair], "size": crop.size,
        "crops": [[crop.x, crop.y, crop.side] for _, crop in pair], "visibility": float(sequence.visibility[second]),
        "problem": None,
    }  # fmt: skip


def pairs(parts: list[tuple[Path, int]], layout: str, settings: Settings) -> Iterator[PairRow | Rejection]:
    """Rows of pairs, and why others were rejected, of `parts`: folder of a sequence, number of pairs."""
    for folder, wanted in parts:
        sequence, tries, drawn = read_sequence(folder, layout), 0, list[Pair]()
        if len(sequence.frames) < 2 or not sequence.complete:
            raise UserError(f"{folder}: a pair needs two frames with a box each; name the sequence in sample.exclude")
        digest = hashlib.sha256(f"{settings.seed}:{sequence.name}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
        share = settings.sample.negatives
        negatives = int(share * wanted + rng.random()) if share else 0  # still to be made, of the first pairs that fit
        while len(drawn) < wanted and tries < TRIES * wanted:
            for pair in draw(sequence, settings, rng, wanted - len(drawn)):
                tries += 1
                if isinstance(pair, str):
                    yield pair
                else:
                    moved = move_off(sequence, pair, rng) if negatives else None
                    negatives -= moved is not None
                    drawn.append(moved or pair)
        yield from ["pair given up: no usable frames"] * (wanted - len(drawn))
        for start in range(0, len(drawn), BATCH):
            yield from cut(sequence, drawn[start : start + BATCH], settings.sample.min_visibility)


def start() -> None:
    """Prepare a process that writes shards: one thread for OpenCV, and an end together with the parent."""

    def exit_with_parent() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)  # the executor's processes would wait for work for ever

    cv2.setNumThreads(1)
    Thread(target=exit_with_parent, daemon=True).start()


def write(path: Path, make: Maker, columns: Features) -> Shard:
    """Write the rows of a shard to the Parquet file `path`, BATCH rows in memory at a time; returns its content.

    The content is kept beside the file, as JSON, until the stage is done: a finished shard is not written again.
    """
    record, rejected, stored = path.with_suffix(".json"), Counter[str](), columns.arrow_schema
    count = negatives = 0
    if not record.is_file():
        with files.atomic_file(path) as temp_path, ParquetWriter(temp_path, stored) as writer:
            items = iter(make())
            while batch := list(islice(items, BATCH)):
                rejected.update(item for item in batch if isinstance(item, str))
                if rows := [item for item in batch if isinstance(item, dict)]:
                    writer.write_table(pa.Table.from_pylist(rows, schema=stored))
                    count += len(rows)
                    negatives += sum(not row["answer"] for row in rows)
        counts = {"pairs": count, "negatives": negatives, "rejected": dict(sorted(rejected.items()))}
        shard = Shard.model_validate({**counts, "sha256": files.hash_file(path)})
        files.write_json(record, shard.model_dump())
    return files.read_record(record, Shard)
