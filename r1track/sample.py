"""Sample: pairs of crops from a tracking data set, as Parquet shards and a manifest.

A pair is what the tracker will meet: the template centred on the target at a fixed factor, and a search region around
where the tracker would still believe the target to be. Sequences are split once, by name, into those for training and
those held out. Every sequence draws from its own random stream, from (seed, name): one more changes no other.
"""

import hashlib
import io
import logging
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from PIL import Image
from rich.progress import track as progress

from r1track import boxes, config, files
from r1track.crops import Crop, drift
from r1track.pairs import FEATURES
from r1track.sequences import Sequence, read_split

log = logging.getLogger(__name__)
disable_progress_bars()  # ours say what is being done
TRIES = 20  # draws per wanted pair before the sequence is given up for it
INSIDE = 0.5  # share of the target that the search crop must contain


def _stream(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def _encode(image: Image.Image) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, subsampling=0)
    return {"bytes": stream.getvalue(), "path": None}


def split(names: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Names for training and names held out (at least one each), by the order of their seeded hashes.

    Raises ValueError for fewer than two names.
    """
    if len(names) < 2:
        raise ValueError(f"{len(names)} sequence(s) cannot be split into training and held-out ones; give at least 2")
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"split:{seed}:{name}".encode()).digest())
    held = min(len(names) - 1, max(1, round(share * len(names))))
    return sorted(ordered[held:]), sorted(ordered[:held])


class Cutter:
    """Draws the pairs of one sequence after another and counts what it rejects, by reason."""

    def __init__(self, settings: config.Settings):
        self.task, self.sample, self.seed = settings.task, settings.sample, settings.seed
        self.rejected: Counter[str] = Counter()

    def _frames(self, sequence: Sequence, rng: np.random.Generator) -> tuple[int, int] | None:
        """Template and search frame in forward order, or None with the reason counted."""
        length = len(sequence.frames)
        first = int(rng.integers(0, length - 1))
        second = int(rng.integers(first + 1, min(length, first + 1 + self.sample.max_gap)))
        for t in (first, second):
            if sequence.absent[t] or not (sequence.boxes[t, 2:] > 0).all():
                self.rejected["target absent"] += 1
                return None
            if sequence.visibility[t] < self.sample.min_visibility:  # NaN, unknown, passes
                self.rejected["target covered"] += 1
                return None
        return first, second

    def draw(self, sequence: Sequence, rng: np.random.Generator) -> dict[str, Any] | None:
        """One pair, or None with the reason counted."""
        frames = self._frames(sequence, rng)
        if frames is None:
            return None
        first, second = frames
        truth = sequence.boxes[second]
        template = Crop.around(sequence.boxes[first], self.task.template_factor, self.task.size)
        last = drift(truth, rng, shift=self.sample.shift, scale=self.sample.scale)
        search = Crop.around(last, self.task.search_factor, self.task.size)
        whole = search.to_crop(boxes.xywh_to_xyxy(truth))
        answer = boxes.clip(whole, self.task.size, self.task.size)
        if boxes.area(answer) < INSIDE * boxes.area(whole):
            self.rejected["target outside the search crop"] += 1
            return None
        images = []
        for crop, t in ((template, first), (search, second)):
            with Image.open(sequence.frames[t]) as image:
                images.append(_encode(crop.cut(image)))
        return {
            "images": images,
            "answer": answer.tolist(),
            "template_box": template.to_crop(boxes.xywh_to_xyxy(sequence.boxes[first])).tolist(),
            "second_box": None,
            "sequence": sequence.name,
            "frames": [first + 1, second + 1],
            "gap": second - first,
            "boxes": [sequence.boxes[first].tolist(), truth.tolist()],
            "crops": [[crop.x, crop.y, crop.side] for crop in (template, search)],
            "visibility": float(sequence.visibility[second]),
            "size": self.task.size,
        }

    def pairs(self, sequences: list[Sequence], wanted: int, title: str) -> Iterator[dict[str, Any]]:
        """As many pairs as wanted, spread evenly over the sequences.

        Raises ValueError when the sequences do not yield them.
        """
        each, extra = divmod(wanted, len(sequences))
        found = 0
        for k, sequence in enumerate(progress(sequences, description=title)):
            quota = each + (k < extra)
            if len(sequence.frames) < 2 or len(sequence.boxes) < len(sequence.frames):
                raise ValueError(
                    f"{sequence.name}: a pair needs two frames with a box each; leave this sequence out of list.txt"
                )
            rng, tries = _stream(self.seed, sequence.name), 0
            while quota and tries < TRIES * (quota + 1):
                tries += 1
                row = self.draw(sequence, rng)
                if row is not None:
                    quota, found = quota - 1, found + 1
                    yield row
            if quota:
                self.rejected["pairs given up: no usable frames"] += quota
        if found < wanted / 2:
            raise ValueError(
                f"{title}: only {found} of {wanted} pairs could be cut (rejected: {dict(self.rejected)}); "
                "loosen sample.min_visibility or sample.shift"
            )


def _write_shards(rows: Iterator[dict[str, Any]], folder: Path, shard_rows: int, wanted: int) -> int:
    folder.mkdir(parents=True)
    shards, count, total = max(1, math.ceil(wanted / shard_rows)), 0, 0
    buffer: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal count
        name = f"{folder.name}-{count:05d}-of-{shards:05d}.parquet"
        Dataset.from_list(buffer, features=FEATURES).to_parquet(folder / name)
        count += 1
        buffer.clear()

    for row in rows:
        buffer.append(row)
        total += 1
        if len(buffer) == shard_rows:
            flush()
    if buffer:
        flush()
    return total


def run(settings: config.Settings, root: Path, out: Path) -> None:
    """Cut the pairs of the split at `root` and write train/ and val/ shards, manifest and provenance to `out`."""
    provenance = files.Provenance("sample", [root / "list.txt"])
    sequences = {sequence.name: sequence for sequence in read_split(root)}
    train, held = split(list(sequences), settings.sample.val_share, settings.seed)
    manifest: dict[str, Any] = {"root": str(root), "settings": config.stage_values(settings, "sample"), "splits": {}}
    with files.atomic_folder(out) as folder:
        for name, names, wanted in (("train", train, settings.sample.pairs), ("val", held, settings.sample.val_pairs)):
            cutter = Cutter(settings)
            rows = cutter.pairs([sequences[n] for n in names], wanted, f"sample {name}")
            total = _write_shards(rows, folder / name, settings.sample.shard_rows, wanted)
            shards = {p.name: files.hash_file(p) for p in sorted((folder / name).glob("*.parquet"))}
            rejected = dict(sorted(cutter.rejected.items()))
            manifest["splits"][name] = {"pairs": total, "sequences": names, "rejected": rejected, "shards": shards}
            log.info("%s: %d pairs from %d sequences; rejected draws: %s", name, total, len(names), rejected or "none")
        files.write_json(folder / "manifest.json", manifest)
        provenance.write(folder / "provenance.json", seed=settings.seed)
