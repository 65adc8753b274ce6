"""VQA: general questions to one model, answered greedily and scored, one file per question set.

    r1track vqa --config FILE --model DIR_OR_ID --out DIR

Base and tuned models get the same items, prompt, processor settings, batch size and limits, so that a difference
between two of these folders is the tuning's. How much the answers move without any tuning is measured as well: some
items are asked again in batches of another size, where rounding falls otherwise.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track as progress

from r1track import config, files, prompts, schema
from r1track.vqa import metrics, sets

log = logging.getLogger(__name__)
SELF_ITEMS = 300  # items per set that are asked again, all where there are fewer


def run(settings: config.Settings, model: str, out: Path) -> None:
    """Write <set>.jsonl for every set of vqa.sets, then manifest.json and provenance.json, into `out`.

    A row has doc_id, image, image_sha256, question, target, answer (raw text), strict and lenient (0 to 1). The
    manifest has the settings, and for every set its items with the hashes of their images, its scores in percent, and
    under `self` how the second asking differed: items, difference (points, second minus first), changed (answers that
    read otherwise). Its own `self` sums these over the sets; there the difference is their unweighted mean. Files of
    other sets that an earlier run left in `out` are removed. Raises ValueError for a set that cannot be used.
    """
    from r1track import models

    record = files.Provenance("vqa", [model])
    chosen = {name: sets.load(name, spec, settings.vqa.seed) for name, spec in settings.vqa.sets.items()}
    for old in out.glob("*.jsonl"):
        old.unlink()
    loaded = models.load(model, settings.model)
    found = {}
    for name, items in chosen.items():
        rows = _ask(loaded, name, settings.vqa.sets[name], items, settings.vqa.batch)
        _write_rows(out / f"{name}.jsonl", rows)
        right = {key: 100 * sum(row[key] for row in rows) / len(rows) for key in metrics.Scores._fields}
        log.info("%s: %d questions, %.1f %% right, %.1f %% leniently", name, len(rows), *right.values())
        found[name] = {
            "n": len(rows),
            **right,
            "sha256": files.hash_file(out / f"{name}.jsonl"),
            "self": _ask_again(loaded, name, settings.vqa, items, rows),
            "items": {row["doc_id"]: row["image_sha256"] for row in rows},
        }
    manifest = {
        "model": model,
        "settings": config.stage_values(settings, "vqa"),
        "self": _pooled([each["self"] for each in found.values()]),
        "sets": found,
    }
    files.write_json(out / "manifest.json", manifest)
    record.write(out / "provenance.json", seed=settings.vqa.seed, base=settings.model.base)


def _ask(loaded: Any, name: str, spec: schema.VqaSet, items: Sequence[sets.Item], batch: int) -> list[dict[str, Any]]:
    from r1track import models

    metric = metrics.BY_NAME[spec.metric]
    rows = []
    for start in progress(range(0, len(items), batch), description=name):
        part = items[start : start + batch]
        # Other braces may stand in a prompt, so it is no format string.
        questions = [prompts.ask(spec.prompt.replace("{question}", item.question)) for item in part]
        pictures = [[item.picture()] for item in part]
        answers = models.answer(loaded, questions, pictures, max_tokens=spec.max_tokens, batch=batch)
        rows += [_row(item, answer, metric(answer, item.target)) for item, answer in zip(part, answers, strict=True)]
    return rows


def _row(item: sets.Item, answer: str, scores: metrics.Scores) -> dict[str, Any]:
    return {
        "doc_id": item.doc_id,
        "image": item.image_id,
        "image_sha256": item.image_sha256,
        "question": item.question,
        "target": item.target,
        "answer": answer,
        **scores._asdict(),
    }


def _ask_again(
    loaded: Any, name: str, vqa: schema.Vqa, items: Sequence[sets.Item], first: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    random = np.random.default_rng([vqa.seed, 1])
    places = sorted(random.permutation(len(items))[:SELF_ITEMS].tolist())
    other = vqa.batch // 2 or 2
    second = _ask(loaded, f"{name}, asked again", vqa.sets[name], [items[place] for place in places], other)
    pairs = [(first[place], row) for place, row in zip(places, second, strict=True)]
    return {
        "items": len(pairs),
        "difference": 100 * sum(after["strict"] - before["strict"] for before, after in pairs) / len(pairs),
        "changed": sum(before["answer"] != after["answer"] for before, after in pairs),
    }


def _pooled(each: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not each:
        return None
    return {
        "items": sum(one["items"] for one in each),
        "difference": sum(one["difference"] for one in each) / len(each),
        "changed": sum(one["changed"] for one in each),
    }


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
