"""VQA: general questions to one model, answered greedily and scored, one file per question set.

    r1track vqa --config FILE --model DIR_OR_ID --out DIR [--pairs DIR]

Base and tuned models get the same items, prompts, processor files (the base's), batch size and limits. Rounding depends
on the size of a batch: to measure its effect alone, some items are asked again in batches of another size.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track as progress

from r1track.ability import metrics
from r1track.ability import questions as question_sets
from r1track.ability.questions import Item
from r1track.ability.records import Answer, Manifest, Repeat, ScoredAnswer, SetFigures
from r1track.core import config, files, prompts, schema
from r1track.core.folders import check_replaceable, resumed_folder
from r1track.core.provenance import Provenance, git_commit

if TYPE_CHECKING:
    from r1track.ability.kl import Probe
    from r1track.core.models import Loaded

log = logging.getLogger(__name__)
SELF_ITEMS = 300  # items per set that are asked again, all where there are fewer


def run(settings: config.Settings, model: str, out: Path, pairs: Path | None = None) -> None:
    """Write <set>.jsonl (`ScoredAnswer`), manifest.json (`Manifest`) and provenance.json to the folder `out`.

    pairs: folder of pairs; on its held-out ones the KL of a tuned model is measured. An interrupted run is resumed
    after the last set that it finished. Raises UserError for a set that cannot be used.
    """
    from r1track.ability import kl
    from r1track.core import models

    check_replaceable(out, "vqa")  # before questions are loaded
    record = Provenance("vqa", {"model": model}, settings.model.revision)
    vqa, base = settings.vqa, models.resolve_model_dir(settings.model.base, settings.model.revision)
    limits = settings.model.model_copy(update={"max_pixels": vqa.max_pixels or settings.model.max_pixels})
    chosen = {name: question_sets.load(name, spec, vqa.seed, limits) for name, spec in vqa.sets.items()}
    folder, stage = models.resolve_model_dir(model, settings.model.revision), config.stage_values(settings, "vqa")
    weights = record.inputs["model"].sha256
    manifest = Manifest(model=model, weights=weights, commit=git_commit(), settings=stage)
    rows = [(one.doc_id, one.question, one.targets, one.image_sha256) for items in chosen.values() for one in items]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    with resumed_folder(out, {**manifest.as_json(), "questions": digest}, "vqa") as work:
        path = work / "manifest.json"
        sets = dict(files.read_record(path, Manifest).sets) if path.is_file() else {}
        probes = [] if folder == base else _probes(settings, chosen, pairs)
        probes = kl.ask_base(settings.model.base, limits, probes, vqa.batch) if probes else []
        loaded = replace(models.load(model, limits), processor=models.load_processor(base, limits))
        for name, items in chosen.items():
            if name not in sets:
                entry = _ask_set(loaded, name, vqa, items, work / f"{name}.jsonl")
                hashes = {item.doc_id: item.image_sha256 for item in items}
                sets[name] = entry.model_copy(update={"items": hashes})
                files.write_json(path, manifest.model_copy(update={"sets": sets}).as_json())
        repeat = _pooled([entry.repeat for entry in sets.values() if entry.repeat])
        update = {"sets": sets, "repeat": repeat, "kl": kl.measure(loaded, probes)}
        files.write_json(path, manifest.model_copy(update=update).as_json())
        record.write(work / "provenance.json", seed=vqa.seed, notes={"settings": stage})


def _ask_set(loaded: "Loaded", name: str, vqa: schema.Vqa, items: Sequence[Item], out: Path) -> SetFigures:
    """Ask one set, write its answers to `out`, ask a part of it again; the set's figures."""
    rows = ask(loaded, name, items, vqa.sets[name].max_tokens, vqa.batch)
    files.write_text(out, "".join(json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in rows))
    means = figures(rows)
    text = "%s: %d questions, %.1f %% right, %.1f %% leniently, %.1f %% unparsed"
    log.info(text, name, means.n, means.strict, means.lenient, means.unparsed)
    places = sorted(np.random.default_rng([vqa.seed, 1]).permutation(len(items))[:SELF_ITEMS].tolist())
    again = [items[place] for place in places]
    second = ask(loaded, f"{name}, asked again", again, vqa.sets[name].max_tokens, vqa.batch // 2 or 2)
    pairs = [(rows[place], row) for place, row in zip(places, second, strict=True)]
    difference = 100 * sum(after.strict - before.strict for before, after in pairs) / len(pairs)
    changed = sum(before.filtered_resps != after.filtered_resps for before, after in pairs)
    repeat = Repeat(items=len(pairs), difference=difference, changed=changed)
    return means.model_copy(update={"sha256": files.hash_file(out), "repeat": repeat})


def figures(rows: Sequence[ScoredAnswer]) -> SetFigures:
    """The number of rows, their mean scores in percent, and POPE's figures where the metric is yes_no."""
    means = {key: 100 * sum(getattr(row, key) for row in rows) / len(rows) for key in metrics.Scores._fields}
    if rows[0].metric == "yes_no":
        means |= metrics.yes_no_figures([row.filtered_resps for row in rows], [row.target for row in rows])
    return SetFigures(n=len(rows), **means)


def ask(loaded: "Loaded", name: str, items: Sequence[Item], max_tokens: int, batch: int) -> list[ScoredAnswer]:
    """The scored answers to the items, in their order; `batch` items are asked at once, under a progress bar `name`."""
    from r1track.core import models

    # Images of similar size need little padding. The largest come first: if memory is too small, it shows at once.
    order = sorted(range(len(items)), key=lambda place: -items[place].pixels)
    rows: dict[int, ScoredAnswer] = {}
    for start in progress(range(0, len(items), batch), description=name):
        places = order[start : start + batch]
        questions = [prompts.ask(items[place].question) for place in places]
        pictures = [[items[place].picture()] for place in places]
        answers = models.generate(loaded, questions, pictures, max_tokens=max_tokens, batch=batch)
        for item, place, answer in zip([items[place] for place in places], places, answers, strict=True):
            row = Answer(
                doc_id=item.doc_id, target=item.target, input=item.question, targets=item.targets,
                image=item.image_sha256, metric=item.metric, filtered_resps=answer,
            )  # fmt: skip
            rows[place] = scored(row)
    return [rows[place] for place in range(len(items))]


def scored(row: Answer) -> ScoredAnswer:
    """The answer with its scores, and the hash of its image, question and targets."""
    content = json.dumps([row.image, row.input, row.targets]).encode()
    scores = metrics.score(row.metric, row.filtered_resps, row.targets)._asdict()
    values = {key: getattr(row, key) for key in Answer.model_fields}
    return ScoredAnswer(**values, doc_hash=hashlib.sha256(content).hexdigest(), **scores)


def _pooled(repeats: Sequence[Repeat]) -> Repeat | None:
    if not repeats:
        return None
    items, changed = sum(row.items for row in repeats), sum(row.changed for row in repeats)
    return Repeat(items=items, difference=sum(row.difference for row in repeats) / len(repeats), changed=changed)


def _probes(settings: config.Settings, chosen: dict[str, list[Item]], pairs: Path | None) -> "list[Probe]":
    """Prompts on which the KL to the base is measured: `questions` from all sets, `tracking` from held-out pairs."""
    from r1track.ability.kl import Probe
    from r1track.core.pairs import PairsManifest, held_out

    count = settings.vqa.kl_prompts
    items = [item for items in chosen.values() for item in items]
    items = items[:: max(1, len(items) // max(1, count))][:count]
    probes = [Probe("questions", prompts.ask(item.question), [item.picture()]) for item in items]
    if pairs and count:
        task = files.read_record(pairs / "manifest.json", PairsManifest).settings.task
        probes += [Probe("tracking", *pair) for pair in zip(*held_out(pairs, count, task), strict=True)]
    return probes
