"""Verdict: whether tuned models keep the base's general ability, by a rule that is fixed before the run.

    r1track verdict --config FILE --base DIR --tuned DIR [--tuned DIR ...] --out FILE.json

The folders hold <set>.jsonl as the vqa stage writes them, or the samples that lmms-eval logs. Items are paired by
doc_id and judged by their strict scores. D is the unweighted mean over the sets of the differences tuned - base, in
points. [L, U] is the wider of two intervals: the percentiles alpha and 1 - alpha of a paired bootstrap of whole images,
and Tango's score bounds at alpha / 2. M is verdict.margin. docs/verdict.md says why, and how often this is wrong.

INVALID       items or settings differ, a set is too small, the base differs from itself or from its published score, a
              model answers with boxes, or the shares of unparsed answers are apart
REGRESSED     U < 0 and D <= -M, or a set is flagged: Holm-adjusted p < alpha and a loss of set_drop or more
RETAINED      L > -M, no set flagged
INCONCLUSIVE  none of these: `needed_items` says how many would decide, were D the truth

That a loss is not significant never means that ability is retained.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from r1track.ability import metrics
from r1track.core import config, files, schema, statistics
from r1track.core.boxes import Array

log = logging.getLogger(__name__)
FLIPS = 20  # items shown per set whose score changed
# What lmms-eval logs beside the scores of a sample.
NO_SCORE = {"doc_id", "doc", "input", "target", "resps", "filtered_resps", "token_counts", "doc_hash", "input_media"}
SAME = ("doc_hash", "target")

Row = dict[str, Any]
Pairs = list[tuple[Row, Row]]


def run(settings: config.Settings, base: Path, tuned: Sequence[Path], out: Path) -> None:
    """Judge folders of answers and write the verdicts to `out`, by the folders' names; the provenance stands beside it.

    Scores, differences, bounds and intervals are in points (percent), `leaks` in shares from 0 to 1. A loss of ability
    is a result, not an error: what verdict.on_regression asks for happens after the report is written (`gate`).
    Raises FileNotFoundError or ValueError for folders that hold no answers, or are named alike.
    """
    inputs = {"base": base, **{f"tuned {folder.name}": folder for folder in tuned}}
    record = files.Provenance("verdict", inputs)
    if len({folder.name for folder in tuned}) < len(tuned):
        raise ValueError(f"{', '.join(map(str, tuned))}: two folders of one name; rename one of them")
    judged = judge_all(base, tuned, settings.verdict)
    files.write_json(out, judged)
    stage = config.stage_values(settings, "verdict")
    record.write(out.with_name(f"{out.name}.provenance.json"), seed=settings.verdict.seed, notes={"settings": stage})
    for name, each in judged["models"].items():
        log.log(logging.INFO if each["verdict"] == "RETAINED" else logging.WARNING, "%s: %s", name, each["summary"])


def judge_all(base: Path, tuned: Sequence[Path], rule: schema.Verdict) -> Row:
    """The rule, its hash, and the verdicts by the names of the folders, as `run` writes them."""
    values = rule.model_dump(exclude={"on_regression"})
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return {"rule": values, "rule_sha256": digest, "models": {each.name: judge(base, each, rule) for each in tuned}}


def gate(path: Path, on_regression: str) -> None:
    """Raise ValueError when the last verdict at `path` is REGRESSED or INVALID and `on_regression` is `fail`.

    The last is the model that the run is for; an arm before it is there to compare.
    """
    name, found = list(files.read_json(path)["models"].items())[-1]
    if on_regression == "fail" and found["verdict"] in ("REGRESSED", "INVALID"):
        remedy = "train less or gentler, or set verdict.on_regression to `warn`; the report is written all the same"
        raise ValueError(f"{path}: {name}: {found['summary']}; {remedy}")


def summary(found: Row) -> str:
    """A verdict in one line."""
    figures = ""
    if found["difference"] is not None:
        low, high = found["interval"]
        figures = f" {found['difference']:+.2f} points [{low:+.2f}, {high:+.2f}], margin {found['margin']:g}:"
    return f"{found['verdict']}:{figures} {'; '.join(found['reasons'])}"


def judge(base: Path, tuned: Path, rule: schema.Verdict) -> Row:
    """The verdict on two folders of answers, with everything that it rests on."""
    answers = [_read_folder(folder) for folder in (base, tuned)]
    manifests = [folder / "manifest.json" for folder in (base, tuned)]
    ours, theirs = (files.read_json(path) if path.is_file() else {} for path in manifests)
    asked, noise = ours.get("settings", {}), ours.get("self")
    sections = [name for name, values in asked.items() if theirs.get("settings", asked).get(name) != values]
    faults = [f"base and tuned were asked with different settings: {', '.join(sections)}"] if sections else []
    if noise and abs(noise["difference"]) > rule.max_self_gap:
        faults += [f"the base differs from itself by {noise['difference']:+.2f} points, above {rule.max_self_gap:g}"]
    published = asked.get("vqa", {}).get("sets", {})
    sets: dict[str, Row] = {}
    draws: list[Array] = []
    for place, name in enumerate(sorted({*answers[0], *answers[1]})):
        pairs, unpaired = _paired(name, *(each.get(name, []) for each in answers))
        faults += unpaired
        if pairs:
            sets[name], drawn = _compare(pairs, rule, [rule.seed, place])
            draws.append(drawn)
            faults += validity_faults(name, sets[name], rule, published.get(name, {}).get("published"))
    found = {**decide(sets, draws, faults, rule), "margin": rule.margin, "self": noise, "kl": theirs.get("kl", {})}
    return {**found, "summary": summary(found), "sets": sets}


def _read_folder(folder: Path) -> dict[str, list[Row]]:
    """The rows by set; lmms-eval calls its files <date>_samples_<task>.jsonl, in a folder for the model."""
    found: dict[str, list[Row]] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        name = path.stem.split("_samples_")[-1]
        if name in found:
            raise ValueError(f"{path}: a second file of the set {name} below {folder}; leave one")
        found[name] = _read_rows(path)
    if not found:
        raise FileNotFoundError(f"{folder}: no <set>.jsonl in it; give a folder that `r1track vqa` or lmms-eval wrote")
    return found


def _read_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            fault = f"no field {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}: {fault}; write the file anew") from error
    ids = {row["doc_id"] for row in rows}
    if len(ids) < len(rows):
        raise ValueError(f"{path}: {len(rows)} rows have only {len(ids)} doc_ids; each question must stand there once")
    return rows


def _row(raw: Row) -> Row:
    """A sample of ours or of lmms-eval's; the first score in it is the strict one."""
    answer = raw["filtered_resps"]
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    values = [each.get("score") if isinstance(each, dict) else each for k, each in raw.items() if k not in NO_SCORE]
    scores = [float(value) for value in values if isinstance(value, int | float) and 0 <= value <= 1]
    if not scores:
        raise ValueError(f"no score from 0 to 1 among {sorted(raw.keys() - NO_SCORE)}")
    return {
        "doc_id": str(raw["doc_id"]),
        "doc_hash": raw["doc_hash"],
        "image": raw.get("image", raw["doc_id"]),
        "question": str(raw.get("input", "")),
        "target": str(raw["target"]),
        "answer": str(answer),
        "strict": scores[0],
        "lenient": raw.get("lenient", scores[0]),
        "unparsed": raw.get("unparsed", metrics.is_empty(str(answer))),
    }


def _paired(name: str, base: Sequence[Row], tuned: Sequence[Row]) -> tuple[Pairs, list[str]]:
    """The items that both models answered, and a fault where others are or where they are not the same questions."""
    theirs = {row["doc_id"]: row for row in tuned}
    pairs = [(row, theirs[row["doc_id"]]) for row in base if row["doc_id"] in theirs]
    faults = []
    if not len(pairs) == len(base) == len(tuned):
        alone = f"{len(base) - len(pairs)} only by base, {len(tuned) - len(pairs)} only by tuned"
        faults.append(f"{name}: item ids differ: {len(pairs)} answered by both, {alone}")
    changed = [before["doc_id"] for before, after in pairs if any(before[field] != after[field] for field in SAME)]
    if changed:
        faults.append(f"{name}: {len(changed)} items differ in {', '.join(SAME)}, first {changed[0]}")
    return pairs, faults


def _compare(pairs: Pairs, rule: schema.Verdict, seed: Sequence[int]) -> tuple[Row, Array]:
    """What one set says, and the bootstrap draws of its difference, both in points."""
    strict, lenient = (np.array([[row[key] for row in pair] for pair in pairs], float) for key in ("strict", "lenient"))
    found, draws = set_statistics(strict, [before["image"] for before, _ in pairs], rule, seed)
    flips = [
        {**{key: a[key] for key in ("doc_id", "question", "target")}, "base": a["answer"], "tuned": b["answer"]}
        for a, b in pairs
        if a["strict"] != b["strict"]
    ]
    leaks = {name: _leaks([pair[side] for pair in pairs]) for side, name in enumerate(("base", "tuned"))}
    change = 100 * float((lenient[:, 1] - lenient[:, 0]).mean())
    return {**found, "lenient_difference": change, "leaks": leaks, "flips": flips[:FLIPS]}, draws


def set_statistics(
    scores: Array, images: Sequence[str], rule: schema.Verdict, seed: Sequence[int]
) -> tuple[Row, Array]:
    """The figures of one set, and the bootstrap draws of its difference, both in points.

    scores: (n, 2) from 0 to 1, of base and tuned; images: the n names of what items share.
    """
    change, n = scores[:, 1] - scores[:, 0], len(scores)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    draws = statistics.clustered_bootstrap(change, images, rule.draws, seed)
    # Items on one image are worth fewer than as many alone: the score bounds count them by the bootstrap's variance.
    up, down = float(change.clip(0).sum()), -float(change.clip(None, 0).sum())
    b, c, m = np.array([up, down, n]) / max(1.0, float(draws.var()) * n / float(change.var() or 1))
    low, high = statistics.tango_lower(b, c, m, rule.alpha / 2), -statistics.tango_lower(c, b, m, rule.alpha / 2)
    found = {
        "n": n,
        "base": 100 * float(scores[:, 0].mean()),
        "tuned": 100 * float(scores[:, 1].mean()),
        "gained": gained,
        "lost": lost,
        "difference": 100 * float(change.mean()),
        "mcnemar_p": statistics.mcnemar(gained, lost) if np.isin(scores, (0, 1)).all() else None,
        "bootstrap_p": statistics.bootstrap_p(draws),
        "tango_lower": 100 * statistics.tango_lower(up, down, n, rule.alpha),
        "interval": _wider(100 * draws, 100 * low, 100 * high, rule),
    }
    return found, 100 * draws


def _leaks(rows: Sequence[Row]) -> dict[str, float]:
    """Shares of answers that are boxes where none is asked for, that hold tags, that are unparsed; median length."""
    found = {
        "box": [metrics.is_box(row["answer"]) and not metrics.is_box(row["target"]) for row in rows],
        "tags": [metrics.has_tags(row["answer"]) for row in rows],
        "unparsed": [row["unparsed"] for row in rows],
    }
    length = float(np.median([len(row["answer"]) for row in rows]))
    return {**{name: float(np.mean(each)) for name, each in found.items()}, "median_length": length}


def _wider(draws: Array, low: float, high: float, rule: schema.Verdict) -> list[float]:
    """The bootstrap's interval, widened to the score bounds."""
    ends = np.quantile(draws, [rule.alpha, 1 - rule.alpha])
    return [min(low, float(ends[0])), max(high, float(ends[1]))]


def validity_faults(name: str, found: Row, rule: schema.Verdict, published: float | None) -> list[str]:
    """Faults of one set: too small, off its published score, boxes in the answers, shares of unparsed answers apart."""
    base, tuned = found["leaks"]["base"], found["leaks"]["tuned"]
    off = 0.0 if published is None else abs(found["base"] - published)
    apart = 100 * (tuned["unparsed"] - base["unparsed"])
    most, limit = f"above {rule.max_box_share:.1%}", rule.max_unparsed_gap
    checks = {
        f"{found['n']} items, fewer than {rule.min_items}": found["n"] < rule.min_items,
        f"the base has {found['base']:.1f} %, published are {published} %": off > rule.max_published_gap,
        f"{base['box']:.1%} of the answers of base are boxes, {most}": base["box"] > rule.max_box_share,
        f"{tuned['box']:.1%} of the answers of tuned are boxes, {most}": tuned["box"] > rule.max_box_share,
        f"unparsed answers changed by {apart:+.1f} points, above {limit:g}": abs(apart) > limit,
    }
    return [f"{name}: {fault}" for fault, wrong in checks.items() if wrong]


def decide(sets: dict[str, Row], draws: Sequence[Array], faults: list[str], rule: schema.Verdict) -> Row:
    """Verdict, reasons, difference, interval and needed items; the sets are told whether they are flagged."""
    if not sets:
        return {"verdict": "INVALID", "reasons": faults, "difference": None, "interval": None, "needed_items": None}
    # McNemar's test knows nothing of images that items share, the bootstrap nothing of small counts.
    adjusted = statistics.holm([max(found["mcnemar_p"] or 0, found["bootstrap_p"]) for found in sets.values()])
    for found, p in zip(sets.values(), adjusted, strict=True):
        found["flagged"] = p < rule.alpha and found["difference"] <= -rule.set_drop
    flagged = [f"{name} lost {-found['difference']:.2f} points" for name, found in sets.items() if found["flagged"]]
    each = np.array([(found["difference"], *found["interval"]) for found in sets.values()])
    d = float(each[:, 0].mean())
    low, high = _wider(np.mean(draws, axis=0), *statistics.mean_bounds(*each.T), rule)
    needed = None
    if faults:
        verdict, reasons = "INVALID", faults
    elif flagged or (high < 0 and d <= -rule.margin):
        verdict, reasons = "REGRESSED", flagged or ["the loss is certain and not below the margin"]
    elif low > -rule.margin:
        verdict, reasons = "RETAINED", ["a loss as large as the margin is ruled out, and no set is flagged"]
    else:
        items = sum(found["n"] for found in sets.values())
        # The interval's width already holds what images share and how the sets are weighted.
        gap, reach = (d + rule.margin, d - low) if d > -rule.margin else (d, high - d)
        variance = items * (reach / float(ndtri(1 - rule.alpha / 2))) ** 2
        needed = statistics.needed_items(variance, gap, power=rule.power, alpha=rule.alpha / 2)
        verdict = "INCONCLUSIVE"
        reasons = [f"{items} items do not decide; {needed} would, were this the true difference"]
    return {"verdict": verdict, "reasons": reasons, "difference": d, "interval": [low, high], "needed_items": needed}
