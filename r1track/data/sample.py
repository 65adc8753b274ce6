"""Sample: pairs of crops from a tracking data set, as Parquet shards and a manifest.

Sequences are split into training and held-out ones, and pairs assigned to shards, before any frame is read. A shard
depends on the seed and on names alone: any number of processes writes the same bytes, and after a kill the same command
continues from the finished shards. With `sample.hub`, the pairs come from a data set of questions instead.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from datasets import Features, disable_progress_bars
from rich.progress import track as progress

from r1track.core import config, files
from r1track.core.errors import UserError
from r1track.core.folders import check_replaceable, resumed_folder
from r1track.core.pairs import FEATURES, HUB_FEATURES
from r1track.core.provenance import Provenance
from r1track.core.schema import Sample
from r1track.core.sequences import detect, read_list
from r1track.data import formats, shards
from r1track.data.export import export

log = logging.getLogger(__name__)
Makers = dict[str, shards.Maker]  # of every shard, by its name
REMEDY = "mend the data, or loosen sample.min_visibility, sample.inside or sample.shift"
disable_progress_bars()  # this stage has a progress bar of its own


def split(names: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Names of the training and the held-out sequences, one or more each, in seeded order. UserError for under two."""
    if len(names) < 2:
        raise UserError(f"{len(names)} sequence(s) cannot be split into training and held-out ones; give at least 2")
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"split:{seed}:{name}".encode()).digest())
    count = min(len(names) - 1, max(1, round(share * len(names))))
    return ordered[count:], ordered[:count]


def deal(names: list[str], wanted: int, rows: int) -> list[list[tuple[str, int]]]:
    """Spread `wanted` pairs evenly over the names: (name, number of pairs), in shards of about `rows` pairs."""
    names = names[:wanted]
    base, extra = divmod(wanted, max(1, len(names)))
    quotas = [(name, base + (k < extra)) for k, name in enumerate(names)]
    step = max(1, rows // max(1, base + (extra > 0)))
    return [quotas[start : start + step] for start in range(0, len(names), step)]


def _plan(settings: config.Settings, root: Path) -> tuple[dict[str, Any], Makers]:
    """The manifest without what only the shards can tell, and the makers of the shards."""
    sample, folders = settings.sample, read_list(root)
    excluded = {name: reason for name, reason in sample.exclude.items() if folders.pop(name, None)}
    if unknown := sorted(sample.exclude.keys() - excluded):
        log.warning("sample.exclude: not in %s: %s", root / "list.txt", ", ".join(unknown))
    train, val = split(list(folders), sample.val_share, settings.seed)
    layout = detect(folders[train[0]]) if sample.layout == "auto" else sample.layout
    makers: Makers = {}
    for name, names, wanted in (("train", train, sample.pairs), ("val", val, sample.val_pairs)):
        for k, shard in enumerate(deal(names, wanted, sample.shard_rows)):
            parts = [(folders[sequence], pairs) for sequence, pairs in shard]
            makers[f"{name}/{name}-{k:05d}.parquet"] = partial(shards.pairs, parts, layout, settings)
    listed = files.hash_file(root / "list.txt") if (root / "list.txt").is_file() else None
    source = {"root": str(root), "list": listed, "layout": layout, "excluded": excluded}
    return {**source, "splits": {"train": {"sequences": train}, "val": {"sequences": val}}}, makers


def _write_all(
    folder: Path, makers: Makers, processes: int, columns: Features
) -> Generator[tuple[str, shards.Shard], None, None]:
    """Write the shards, side by side; yields name and content of each as it is done. UserError when a process dies."""
    count = min(processes, len(makers))
    if count <= 1:
        yield from ((name, shards.write(folder / name, make, columns)) for name, make in makers.items())
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), shards.start)
    try:
        names = {pool.submit(shards.write, folder / name, make, columns): name for name, make in makers.items()}
        for future in as_completed(names):
            yield names[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {count} processes that write shards died; most likely memory ran out: give a smaller --processes. "
            "The same command continues from the finished shards"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _write(folder: Path, makers: Makers, processes: int, sample: Sample) -> dict[str, shards.Shard]:
    """Write the shards; returns them by name, sorted. Raises UserError for too many rejected draws."""
    written, rejected, wanted = {}, Counter[str](), sample.pairs + sample.val_pairs
    columns = HUB_FEATURES if sample.hub else FEATURES
    with closing(_write_all(folder, makers, processes, columns)) as finished:
        for name, shard in progress(finished, "sample", len(makers)):
            written[name] = shard
            rejected.update(shard.rejected)
            if rejected.total() > sample.max_rejected * wanted:
                limit, draws = f"sample.max_rejected = {sample.max_rejected}", dict(rejected.most_common(5))
                fault = f"{rejected.total()} draws rejected for {wanted} pairs, more than {limit} for each"
                raise UserError(f"{fault}: {draws}; {REMEDY}")
    return dict(sorted(written.items()))


def run(settings: config.Settings, root: Path | None, out: Path, processes: int = 0, forms: Sequence[str] = ()) -> None:
    """Write train/ and val/ shards, manifest and provenance to `out`: pairs of the split at `root`, or of sample.hub.

    processes: 0 for one per core; the shards do not depend on it. forms: also export to `out`-form (formats). Raises
    UserError for data that cannot be sampled or of which a split gives no pair, and when a process dies.
    """
    check_replaceable(out, "sample")  # before the work
    for form in forms:
        check_replaceable(out.with_name(f"{out.name}-{form}"), "export")
    root = None if settings.sample.hub else root
    if root is None and not settings.sample.hub:
        raise UserError("nothing to sample from; give --root, or set sample.hub")
    local: dict[str, Path | str] = {} if files.on_hub(hub := str(settings.sample.hub)) else {"hub": hub}
    provenance = Provenance("sample", {"list": root / "list.txt"} if root else local)
    manifest, makers = _plan(settings, root) if root else formats.plan(settings)
    manifest = {"settings": config.stage_values(settings, "sample"), **manifest}
    identity = {**manifest, "inputs": {name: source.sha256 for name, source in provenance.inputs.items()}}
    with resumed_folder(out, json.loads(json.dumps(identity)), "sample") as folder:
        written = _write(folder, makers, processes or files.cores(), settings.sample)
        for name, content in manifest["splits"].items():
            chosen = {Path(key).name: shard for key, shard in written.items() if key.startswith(name)}
            rejected = sum((Counter(shard.rejected) for shard in chosen.values()), Counter[str]())
            content["pairs"] = sum(shard.pairs for shard in chosen.values())
            content["negatives"] = sum(shard.negatives for shard in chosen.values())
            if chosen and not content["pairs"]:
                draws = dict(rejected.most_common(5))
                raise UserError(f"{name}: no pair could be made; rejected draws: {draws}; {REMEDY}")
            content["rejected"] = dict(sorted(rejected.items()))
            content["shards"] = {key: shard.sha256 for key, shard in chosen.items()}
            absent = content["negatives"]
            counts = f"{content['pairs']} pairs" + (f", {absent} of them without the target" if absent else "")
            log.info("%s: %s; rejected draws: %s", name, counts, content["rejected"] or "none")
        for leftover in (*folder.glob("*/*.json"), *folder.glob("*/.*.part")):
            leftover.unlink()
        files.write_json(folder / "manifest.json", manifest)
        provenance.write(folder / "provenance.json", seed=settings.seed, notes={"settings": manifest["settings"]})
    for form in forms:
        export(out, form, settings.task)
