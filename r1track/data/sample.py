"""Sample: pairs of crops from a tracking data set, as Parquet shards and a manifest.

Sequences are split once, by name, into those for training and those held out, and dealt out to shards beforehand. A
shard follows from the seed and from names alone, so that any number of processes writes the same bytes, and the same
command goes on from the finished shards after a kill. `sample.hub` takes a data set of questions in their place.
"""

import hashlib
import json
import logging
from collections import Counter
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from rich.progress import track as progress

from r1track.core import config, files
from r1track.core.pairs import FEATURES
from r1track.core.schema import Sample
from r1track.core.sequences import detect, read_list
from r1track.data import formats, shards
from r1track.data.export import export

log = logging.getLogger(__name__)
disable_progress_bars()  # ours say what is being done


def split(names: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Names for training and names held out (at least one each), in the order of their seeded hashes.

    Raises ValueError for fewer than two names.
    """
    if len(names) < 2:
        raise ValueError(f"{len(names)} sequence(s) cannot be split into training and held-out ones; give at least 2")
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"split:{seed}:{name}".encode()).digest())
    held = min(len(names) - 1, max(1, round(share * len(names))))
    return ordered[held:], ordered[:held]


def deal(names: list[str], wanted: int, rows: int) -> list[list[tuple[str, int]]]:
    """The wanted pairs, spread evenly over the names, as (name, pairs), in shards of about `rows` pairs."""
    names = names[:wanted]
    each, extra = divmod(wanted, max(1, len(names)))
    quotas = [(name, each + (k < extra)) for k, name in enumerate(names)]
    step = max(1, rows // max(1, each + (extra > 0)))
    return [quotas[start : start + step] for start in range(0, len(names), step)]


def _plan(settings: config.Settings, root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest as far as it is known beforehand, and what gives the rows of each shard, by its name."""
    sample, folders = settings.sample, read_list(root)
    excluded = {name: why for name, why in sample.exclude.items() if folders.pop(name, None)}
    if unknown := sorted(sample.exclude.keys() - excluded):
        log.warning("sample.exclude: not in %s: %s", root / "list.txt", ", ".join(unknown))
    train, held = split(list(folders), sample.val_share, settings.seed)
    layout = detect(folders[train[0]]) if sample.layout == "auto" else sample.layout
    makers = {}
    for name, names, wanted in (("train", train, sample.pairs), ("val", held, sample.val_pairs)):
        for k, shard in enumerate(deal(names, wanted, sample.shard_rows)):
            parts = [(folders[sequence], pairs) for sequence, pairs in shard]
            makers[f"{name}/{name}-{k:05d}.parquet"] = partial(shards.pairs, parts, layout, settings)
    told = {"root": str(root), "list": files.hash_file(root / "list.txt"), "layout": layout, "excluded": excluded}
    return {**told, "splits": {"train": {"sequences": train}, "val": {"sequences": held}}}, makers


def _write(jobs: list[shards.Job], processes: int, sample: Sample) -> dict[str, dict[str, Any]]:
    """Write the shards; returns what is to be said of each, by name. Raises ValueError for too many rejected draws."""
    found, rejected, wanted = {}, Counter[str](), sample.pairs + sample.val_pairs
    count = min(processes, len(jobs))
    with get_context("spawn").Pool(count, shards.start) if count > 1 else nullcontext() as pool:
        written = pool.imap_unordered(shards.write, jobs) if pool else map(shards.write, jobs)
        for name, shard in progress(written, "sample", len(jobs)):
            found[name] = shard
            rejected.update(shard["rejected"])
            if rejected.total() > sample.max_rejected * wanted:
                raise ValueError(
                    f"{rejected.total()} draws rejected for {wanted} pairs, more than sample.max_rejected = "
                    f"{sample.max_rejected} for each: {dict(rejected.most_common(5))}; mend the data, or loosen "
                    "sample.min_visibility, sample.inside or sample.shift"
                )
    return dict(sorted(found.items()))


def run(settings: config.Settings, root: Path | None, out: Path, processes: int = 0, form: str | None = None) -> None:
    """Write train/ and val/ shards, manifest and provenance to `out`: pairs of the split at `root`, or of sample.hub.

    processes: how many work at once, 0 for one per core; the shards are the same. form: also export the pairs, to
    `out`-form (formats). Raises FileNotFoundError or ValueError, with file and remedy, for data that cannot be sampled.
    """
    if settings.sample.hub:
        root = None
    elif root is None:
        raise ValueError("nothing to sample from; give --root, or set sample.hub")
    provenance = files.Provenance("sample", {"list": root / "list.txt"} if root else {})
    manifest, makers = _plan(settings, root) if root else formats.plan(settings)
    manifest = {"settings": config.stage_values(settings, "sample"), **manifest}
    with files.resumed_folder(out, json.loads(json.dumps(manifest))) as folder:
        jobs = [(folder / name, make, FEATURES.arrow_schema) for name, make in makers.items()]
        written = _write(jobs, processes or files.cores(), settings.sample)
        for name, told in manifest["splits"].items():
            chosen = {Path(key).name: shard for key, shard in written.items() if key.startswith(name)}
            rejected = sum((Counter(shard["rejected"]) for shard in chosen.values()), Counter[str]())
            count = sum(shard["pairs"] for shard in chosen.values())
            told |= {"pairs": count, "rejected": dict(sorted(rejected.items()))}
            told["shards"] = {key: shard["sha256"] for key, shard in chosen.items()}
            log.info("%s: %d pairs; rejected draws: %s", name, told["pairs"], told["rejected"] or "none")
        for left in (*folder.glob("*/*.json"), *folder.glob("*/.*.part")):
            left.unlink()
        files.write_json(folder / "manifest.json", manifest)
        provenance.write(folder / "provenance.json", seed=settings.seed, notes={"settings": manifest["settings"]})
    if form:
        export(out, form, settings.task.think)
