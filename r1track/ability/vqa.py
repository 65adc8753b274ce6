"""VQA: general questions to one model, answered greedily and scored, one file per question set.

    r1track vqa --config FILE --model DIR_OR_ID --out DIR [--pairs DIR]

Base and tuned models get the same items, prompts, processor files (the base's), batch size and limits, so that a
difference between two of these folders is the tuning's. How much the answers move without any tuning is measured as
well: some items are asked again in batches of another size, where rounding falls otherwise.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track as progress

from r1track.ability import metrics
from r1track.ability import questions as question_sets
from r1track.core import config, files, prompts, schema

log = logging.getLogger(__name__)
Row = dict[str, Any]
SELF_ITEMS = 300  # items per set that are asked again, all where there are fewer


def run(settings: config.Settings, model: str, out: Path, pairs: Path | None = None) -> None:
    """Write <set>.jsonl for every set of vqa.sets, manifest.json and provenance.json to `out`, which appears whole.

    A row has lmms-eval's fields doc_id, input, target, filtered_resps (the answer) and doc_hash, the image's hash as
    `image`, metric and targets, and strict, lenient and unparsed (0 to 1). The manifest has the settings, for every set
    its items with the hashes of their images, its scores in percent, and under `self` how the second asking differed:
    items, difference (points, second minus first), changed (answers that read otherwise). Its own `self` has their
    sums, and the mean of the differences; `kl` is what `kl.measure` found, on held-out pairs, too, where there
    are any. Sets that a broken run has finished are kept. Raises ValueError for a set that cannot be used.
    """
    from r1track.ability import kl
    from r1track.core import models

    record = files.Provenance("vqa", {"model": model}, settings.model.revision)
    vqa, base = settings.vqa, models.resolve_model_dir(settings.model.base, settings.model.revision)
    limits = settings.model.model_copy(update={"max_pixels": vqa.max_pixels or settings.model.max_pixels})
    chosen = {name: question_sets.load(name, spec, vqa.seed, limits) for name, spec in vqa.sets.items()}
    folder = models.resolve_model_dir(model, settings.model.revision)
    identity: Row = {"model": model, "weights": record.inputs["model"].sha256, "commit": files.git_commit()}
    identity["settings"] = config.stage_values(settings, "vqa")
    with files.resumed_folder(out, identity) as work:
        kept = work / "manifest.json"
        manifest = files.read_json(kept) if kept.is_file() else {**identity, "sets": {}}
        probes = [] if folder == base else _probes(settings, chosen, pairs)
        told = kl.ask_base(settings.model.base, limits, probes, vqa.batch) if probes else []
        loaded = replace(models.load(model, limits), processor=models.load_processor(base, limits))
        for name, items in chosen.items():
            hashes = {item.doc_id: item.image_sha256 for item in items}
            if manifest["sets"].get(name, {}).get("items") != hashes:
                manifest["sets"][name] = {**_ask_set(loaded, name, vqa, items, work / f"{name}.jsonl"), "items": hashes}
                files.write_json(kept, manifest)
        manifest["self"] = _pooled([found["self"] for found in manifest["sets"].values()])
        manifest["kl"] = kl.measure(loaded, told)
        files.write_json(kept, manifest)
        record.write(work / "provenance.json", seed=vqa.seed, notes={"settings": manifest["settings"]})


def _ask_set(loaded: Any, name: str, vqa: schema.Vqa, items: Sequence[question_sets.Item], out: Path) -> Row:
    """Ask one set, write its rows to `out`, ask a part of it again, and say what came of it."""
    rows = ask(loaded, name, items, vqa.sets[name].max_tokens, vqa.batch)
    files.write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    found = figures(rows)
    log.info("%s: %d questions, %.1f %% right, %.1f %% leniently, %.1f %% unparsed", name, *[*found.values()][:4])
    return {**found, "sha256": files.hash_file(out), "self": _ask_again(loaded, name, vqa, items, rows)}


def figures(rows: Sequence[Row]) -> Row:
    """How many rows a set has, their scores in percent, and POPE's figures where it asks for yes or no."""
    found = {key: 100 * sum(row[key] for row in rows) / len(rows) for key in metrics.Scores._fields}
    if rows[0]["metric"] == "yes_no":
        found |= metrics.yes_no_figures([row["filtered_resps"] for row in rows], [row["target"] for row in rows])
    return {"n": len(rows), **found}


def ask(loaded: Any, name: str, items: Sequence[question_sets.Item], max_tokens: int, batch: int) -> list[Row]:
    """The scored answers to the items, in their order, asked `batch` at a time under a progress bar of that name."""
    from r1track.core import models

    # Images of like size need little padding; the largest come first, so that too little memory shows at once.
    order = sorted(range(len(items)), key=lambda place: -items[place].pixels)
    rows: dict[int, Row] = {}
    for start in progress(range(0, len(items), batch), description=name):
        places = order[start : start + batch]
        questions = [prompts.ask(items[place].question) for place in places]
        pictures = [[items[place].picture()] for place in places]
        answers = models.generate(loaded, questions, pictures, max_tokens=max_tokens, batch=batch)
        rows.update((place, _row(items[place], answer)) for place, answer in zip(places, answers, strict=True))
    return [rows[place] for place in range(len(items))]


def _row(item: question_sets.Item, answer: str) -> Row:
    asked = {"input": item.question, "targets": item.targets, "image": item.image_sha256, "metric": item.metric}
    return {"doc_id": item.doc_id, "target": item.target, **scored({**asked, "filtered_resps": answer})}


def scored(row: Row) -> Row:
    """A row with doc_hash and scores as its image, input, targets, metric and filtered_resps give them."""
    content = json.dumps([row["image"], row["input"], row["targets"]]).encode()
    scores = metrics.score(row["metric"], row["filtered_resps"], row["targets"])._asdict()
    return {**row, "doc_hash": hashlib.sha256(content).hexdigest(), **scores}


def _ask_again(
    loaded: Any, name: str, vqa: schema.Vqa, items: Sequence[question_sets.Item], first: Sequence[Row]
) -> Row:
    random = np.random.default_rng([vqa.seed, 1])
    places = sorted(random.permutation(len(items))[:SELF_ITEMS].tolist())
    again = [items[place] for place in places]
    second = ask(loaded, f"{name}, asked again", again, vqa.sets[name].max_tokens, vqa.batch // 2 or 2)
    pairs = [(first[place], row) for place, row in zip(places, second, strict=True)]
    return {
        "items": len(pairs),
        "difference": 100 * sum(after["strict"] - before["strict"] for before, after in pairs) / len(pairs),
        "changed": sum(before["filtered_resps"] != after["filtered_resps"] for before, after in pairs),
    }


def _pooled(each: Sequence[Row]) -> Row | None:
    keys = ("items", "difference", "changed")
    total = {key: sum(one[key] for one in each) for key in keys}
    return {**total, "difference": total["difference"] / len(each)} if each else None


def _probes(settings: config.Settings, chosen: dict[str, list[question_sets.Item]], pairs: Path | None) -> list[Any]:
    """Prompts on which the KL to the base is measured: `tracking` from held-out pairs, `questions` from all sets."""
    from r1track.ability.kl import Probe
    from r1track.core.pairs import held_out

    many = settings.vqa.kl_prompts
    every = [item for items in chosen.values() for item in items]
    some = every[:: max(1, len(every) // max(1, many))][:many]
    probes = [Probe("questions", prompts.ask(item.question), [item.picture()]) for item in some]
    if pairs and many:
        think = files.read_json(pairs / "manifest.json")["settings"]["task"]["think"]
        probes += [Probe("tracking", *each) for each in zip(*held_out(pairs, many, think), strict=True)]
    return probes
