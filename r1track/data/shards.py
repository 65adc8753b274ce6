"""Shards: a shard of pairs, from the annotation to the Parquet file: the work of one process of `sample`.

Frames and crops are drawn first, for which no pixel is read; then each frame is decoded once, no larger than its crops
need. A sequence draws from its own random stream, from (seed, name): no other changes its pairs.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from r1track.core import boxes, files
from r1track.core.crops import Crop, jitter_box
from r1track.core.schema import Settings
from r1track.core.sequences import Sequence, read_sequence

TRIES = 20  # draws per wanted pair before a part of a sequence is given up for it
BATCH = 64  # pairs whose frames are read together, and rows that are written together
FACTORS, JITTER = (2.0, 8.0), 0.2  # of policy `paper`: side over sqrt(w * h), displacement in shares of the side
SPARE = 1.1  # decoded frames keep this many pixels, along a side, for a pixel of the crop
DECODE = {k: getattr(cv2, f"IMREAD_REDUCED_COLOR_{k}") for k in (2, 4, 8)} | {1: cv2.IMREAD_COLOR}
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
Row = dict[str, Any]
Job = tuple[Path, Callable[[], Iterable[Row | str]], pa.Schema]  # a file, what gives rows or reasons for none, columns
# Frames, counted from 0, and a crop of each: template, search region, and perhaps a later template.
Pair = tuple[tuple[int, Crop], ...]


def draw(sequence: Sequence, settings: Settings, rng: np.random.Generator, most: int) -> Iterator[Pair | str]:
    """A template and up to `most` search regions to it: pairs, or the reasons why there are none."""
    sample, task, paper = settings.sample, settings.task, settings.sample.policy == "paper"
    size, length = int(rng.choice(sample.sizes or [task.size])), len(sequence.frames)
    if paper:
        first, *seconds = (int(t) for t in rng.choice(length, 2, replace=False))
    else:
        gaps = rng.integers(1, min(sample.max_gap, length - 1) + 1, min(most, sample.per_template))
        first = int(rng.integers(0, length - gaps.max()))
        seconds = [first + int(gap) for gap in gaps]

    def look(t: int, factor: float, drifts: bool = False) -> Crop | str:
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
            held = jitter_box(box, rng, shift=sample.shift, scale=sample.scale) if drifts else box
            crop = Crop.around(held, factor, size)
        whole = crop.to_crop(boxes.xywh_to_xyxy(box))
        shown = boxes.clip(whole, size, size)
        if boxes.area(shown) < sample.inside * boxes.area(whole):
            return "target outside the crop"
        return crop if (shown[2:] - shown[:2] >= 1).all() else "target thinner than a pixel"

    template = look(first, task.template_factor)
    for second in seconds:
        search = look(second, task.search_factor, drifts=True) if isinstance(template, Crop) else template
        between = range(min(first, second) + 1, max(first, second)) if task.templates == 2 else ()
        later = int(rng.choice(between)) if between else first
        third = look(later, task.template_factor) if between else "none"
        if isinstance(template, Crop) and isinstance(search, Crop):
            yield (first, template), (second, search), *([(later, third)] if isinstance(third, Crop) else [])
        else:
            yield str(search)


def decode(path: Path, crops: Iterable[Crop]) -> tuple[cv2.typing.MatLike | None, int]:
    """A frame, BGR, as small as a JPEG can be decoded and the crops allow, and how many times smaller that is.

    None stands for a frame that is cut short or no image.
    """
    data, spare = path.read_bytes(), min(1 / crop.scale for crop in crops) / SPARE
    jpeg = data.startswith(b"\xff\xd8")
    reduced = max(k for k in DECODE if k == 1 or (jpeg and k <= spare))
    whole = data and (not jpeg or b"\xff\xd9" in data[-1024:])  # without its end, OpenCV would show grey
    pixels, flags = np.frombuffer(data, np.uint8), DECODE[reduced] | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(pixels, flags) if whole else None, reduced


def cut(sequence: Sequence, pairs: list[Pair], least: float) -> Iterator[Row | str]:
    """Rows of the pairs whose frames can be read and hold a share of `least` of the box; for others, why not."""
    crops: dict[int, set[Crop]] = defaultdict(set)
    for t, crop in chain.from_iterable(pairs):
        crops[t].add(crop)
    shown: dict[tuple[int, Crop], bytes] = {}
    faults: dict[int, str] = {}
    for t in sorted(crops):
        (frame, reduced), box = decode(sequence.frames[t], crops[t]), boxes.xywh_to_xyxy(sequence.boxes[t])
        if frame is None:
            faults[t] = f"frame cannot be decoded: {sequence.frames[t]}"
        elif boxes.area(boxes.clip(box, *np.multiply(frame.shape[1::-1], reduced))) < least * boxes.area(box):
            faults[t] = "target outside the image"
        else:
            for crop in crops[t]:
                shown[t, crop] = cv2.imencode(".jpg", crop.warp(frame, reduced), JPEG)[1].tobytes()
    for pair in pairs:
        fault = next((faults[t] for t, _ in pair if t in faults), None)
        yield fault or _row(sequence, pair, [shown[each] for each in pair])


def _row(sequence: Sequence, pair: Pair, images: list[bytes]) -> Row:
    (first, crop), (second, _), *_ = pair
    seen = [crop.to_crop(boxes.xywh_to_xyxy(sequence.boxes[t])) for t, crop in pair]
    template, answer, *later = (boxes.clip(box, crop.size, crop.size).tolist() for box in seen)
    return {
        "images": [{"bytes": image, "path": None} for image in images], "answer": answer, "template_box": template,
        "second_box": later[0] if later else None, "sequence": sequence.name, "frames": [t + 1 for t, _ in pair],
        "gap": second - first, "boxes": [sequence.boxes[t].tolist() for t, _ in pair], "size": crop.size,
        "crops": [[crop.x, crop.y, crop.side] for _, crop in pair], "visibility": float(sequence.visibility[second]),
    }  # fmt: skip


def pairs(parts: list[tuple[Path, int]], layout: str, settings: Settings) -> Iterator[Row | str]:
    """So many pairs of each folder, and reasons for draws that gave none. Raises ValueError for what cannot be read."""
    for folder, wanted in parts:
        sequence, tries, found = read_sequence(folder, layout), 0, list[Pair]()
        if len(sequence.frames) < 2 or not sequence.complete:
            raise ValueError(f"{folder}: a pair needs two frames with a box each; name the sequence in sample.exclude")
        digest = hashlib.sha256(f"{settings.seed}:{sequence.name}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
        while len(found) < wanted and tries < TRIES * wanted:
            for drawn in draw(sequence, settings, rng, wanted - len(found)):
                tries += 1
                if isinstance(drawn, str):
                    yield drawn
                else:
                    found.append(drawn)
        yield from ["pair given up: no usable frames"] * (wanted - len(found))
        for start in range(0, len(found), BATCH):
            yield from cut(sequence, found[start : start + BATCH], settings.sample.min_visibility)


def start() -> None:
    """What a process does first: one thread for OpenCV, as there is a process for each core."""
    cv2.setNumThreads(1)


def write(job: Job) -> tuple[str, dict[str, Any]]:
    """Write a job's rows as a Parquet file, few in memory at a time; returns its name and what is to be said of it.

    The same stands beside the file, as JSON, until the stage is done: a file that has it is not written again.
    """
    path, make, columns = job
    told, rejected = path.with_suffix(".json"), Counter[str]()
    if not told.is_file():
        with files.atomic_file(path) as temp_path, ParquetWriter(temp_path, columns) as writer:
            rows, count = iter(make()), 0
            while batch := list(islice(rows, BATCH)):
                rejected.update(row for row in batch if isinstance(row, str))
                if kept := [row for row in batch if isinstance(row, dict)]:
                    writer.write_table(pa.Table.from_pylist(kept, schema=columns))
                    count += len(kept)
        found = {"pairs": count, "rejected": dict(sorted(rejected.items())), "sha256": files.hash_file(path)}
        files.write_json(told, found)
    return f"{path.parent.name}/{path.name}", dict(files.read_json(told))
