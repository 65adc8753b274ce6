"""Verdict: whether a tuned model keeps the base's general ability, by a rule that is fixed before the run.

    r1track verdict --config FILE --base DIR --tuned DIR --out FILE.json

Both folders hold one <set>.jsonl per question set, as the vqa stage writes them. Items are paired by doc_id and judged
by their strict scores. D is the unweighted mean over the sets of the differences tuned - base, in points; [L, U] its
percentiles alpha and 1 - alpha from a paired bootstrap that draws whole images; M is verdict.margin.

INVALID       items or settings differ, a set is too small, the base differs from itself by more than SELF_LIMIT, a
              model answers with boxes, or the shares of empty answers are apart
REGRESSED     U < 0 and D <= -M, or a set is flagged: Holm-adjusted McNemar p < alpha and a loss of set_drop or more
RETAINED      L > -M, no set flagged
INCONCLUSIVE  none of these: `needed_items` says how many would decide, were D the truth

That a loss is not significant never means that ability is retained.
"""

import hashlib
import json
import logging
import statistics as plain
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1track import config, files, schema
from r1track.boxes import Array
from r1track.vqa import metrics, statistics

log = logging.getLogger(__name__)
SELF_LIMIT = 0.5  # points by which the base may differ from itself in batches of another size
POWER = 0.8
SEED = 0  # of the bootstrap
FLIPS = 20  # items shown per set whose score changed
FIELDS = ("doc_id", "image", "image_sha256", "question", "target", "answer", "strict", "lenient")
SAME = ("image_sha256", "question", "target")

Row = dict[str, Any]
Pairs = list[tuple[Row, Row]]


def run(settings: config.Settings, base: Path, tuned: Path, out: Path) -> None:
    """Judge two folders of answers and write the verdict to `out`, its provenance beside it.

    Scores, differences, bounds and intervals are in points (percent), `leaks` in shares from 0 to 1. A loss of ability
    is a result, not an error: what verdict.on_regression asks for happens after the report is written (`gate`).
    Raises FileNotFoundError or ValueError for folders that hold no answers.
    """
    record = files.Provenance("verdict", [base, tuned])
    found = judge(base, tuned, settings.verdict)
    files.write_json(out, found)
    record.write(out.with_suffix(".provenance.json"), seed=SEED)
    line = summary(found)
    log.log(logging.INFO if found["verdict"] == "RETAINED" else logging.WARNING, line)


def gate(path: Path, on_regression: str) -> None:
    """Raise ValueError when the verdict at `path` is REGRESSED or INVALID and `on_regression` is `fail`."""
    found = files.read_json(path)
    if on_regression == "fail" and found["verdict"] in ("REGRESSED", "INVALID"):
        remedy = "train less or gentler, or set verdict.on_regression to `warn`; the report is written all the same"
        raise ValueError(f"{path}: {summary(found)}; {remedy}")


def summary(found: dict[str, Any]) -> str:
    """A verdict in one line."""
    figures = ""
    if found["difference"] is not None:
        low, high = found["interval"]
        figures = f" {found['difference']:+.2f} points [{low:+.2f}, {high:+.2f}], margin {found['margin']:g}:"
    return f"{found['verdict']}:{figures} {'; '.join(found['reasons'])}"


def judge(base: Path, tuned: Path, rule: schema.Verdict) -> dict[str, Any]:
    """The verdict on two folders of answers, with everything that it rests on."""
    answers = [_read_folder(folder) for folder in (base, tuned)]
    manifests = [
        files.read_json(path) if (path := folder / "manifest.json").is_file() else {} for folder in (base, tuned)
    ]
    noise = manifests[0].get("self")
    faults = _unlike(*manifests) + _noisy(noise)
    sets: dict[str, dict[str, Any]] = {}
    draws: list[Array] = []
    for place, name in enumerate(sorted({*answers[0], *answers[1]})):
        pairs, unpaired = _paired(name, *(each.get(name, []) for each in answers))
        faults += unpaired
        if pairs:
            found, drawn = _compare(pairs, rule, [SEED, place])
            faults += _unfit(name, found, rule)
            sets[name] = found
            draws.append(drawn)
    _flag(sets, rule)
    verdict = _decide(sets, draws, faults, rule)
    fixed = {**rule.model_dump(exclude={"on_regression"}), "self_limit": SELF_LIMIT, "power": POWER, "seed": SEED}
    return {
        **verdict,
        "margin": rule.margin,
        "rule": fixed,
        "rule_sha256": hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest(),
        "self": noise,
        "sets": sets,
    }


def _read_folder(folder: Path) -> dict[str, list[Row]]:
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no <set>.jsonl in it; give a folder that `r1track vqa` wrote")
    return {path.stem: _read_rows(path) for path in paths}


def _read_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); rerun the vqa stage") from error
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise ValueError(f"{path}, line {number}: no field {', '.join(missing)}; rerun the vqa stage")
        rows.append(row)
    ids = {row["doc_id"] for row in rows}
    if len(ids) < len(rows):
        raise ValueError(f"{path}: {len(rows)} rows have only {len(ids)} doc_ids; each question must stand there once")
    return rows


def _unlike(base: dict[str, Any], tuned: dict[str, Any]) -> list[str]:
    """A fault where the manifests say that the two models were asked under different settings."""
    ours, theirs = base.get("settings", {}), tuned.get("settings", {})
    sections = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    return [f"base and tuned were asked with different settings: {', '.join(sections)}"] if sections else []


def _noisy(noise: dict[str, Any] | None) -> list[str]:
    if noise is None or abs(noise["difference"]) <= SELF_LIMIT:
        return []
    return [f"the base differs from itself by {noise['difference']:+.2f} points, above {SELF_LIMIT}"]


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


def _compare(pairs: Pairs, rule: schema.Verdict, seed: Sequence[int]) -> tuple[dict[str, Any], Array]:
    """What one set says, and the bootstrap draws of its difference, both in points."""
    strict = 100 * np.array([[row["strict"] for row in pair] for pair in pairs], dtype=np.float64)
    lenient = 100 * np.array([[row["lenient"] for row in pair] for pair in pairs], dtype=np.float64)
    change = strict[:, 1] - strict[:, 0]
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    draws = statistics.clustered_bootstrap(change, [before["image"] for before, _ in pairs], rule.draws, seed)
    flipped = [pair for pair, moved in zip(pairs, change, strict=True) if moved]
    found = {
        "n": len(pairs),
        "base": float(strict[:, 0].mean()),
        "tuned": float(strict[:, 1].mean()),
        "gained": gained,
        "lost": lost,
        "difference": float(change.mean()),
        "lenient_difference": float((lenient[:, 1] - lenient[:, 0]).mean()),
        "mcnemar_p": statistics.mcnemar(gained, lost),
        "tango_lower": 100 * statistics.tango_lower(gained, lost, len(pairs), rule.alpha),
        "interval": _interval(draws, rule),
        "flagged": False,
        "leaks": {name: _leaks([pair[side] for pair in pairs]) for side, name in enumerate(("base", "tuned"))},
        "flips": [_flip(*pair) for pair in flipped[:FLIPS]],
    }
    return found, draws


def _flip(before: Row, after: Row) -> dict[str, str]:
    item = {key: before[key] for key in ("doc_id", "question", "target")}
    return {**item, "base": before["answer"], "tuned": after["answer"]}


def _leaks(rows: Sequence[Row]) -> dict[str, float]:
    answers = [row["answer"] for row in rows]
    tests = {"box": metrics.is_box, "tags": metrics.has_tags, "empty": metrics.is_empty}
    shares = {name: sum(map(test, answers)) / len(answers) for name, test in tests.items()}
    return {**shares, "median_length": float(plain.median(map(len, answers)))}


def _interval(draws: Array, rule: schema.Verdict) -> list[float]:
    return [float(value) for value in np.quantile(draws, [rule.alpha, 1 - rule.alpha])]


def _unfit(name: str, found: dict[str, Any], rule: schema.Verdict) -> list[str]:
    """Faults of one set: too small, boxes in the answers, shares of empty answers apart."""
    faults = []
    if found["n"] < rule.min_items:
        faults.append(f"{name}: {found['n']} items, fewer than {rule.min_items}")
    for model, leaks in found["leaks"].items():
        if leaks["box"] > rule.max_box_share:
            faults.append(
                f"{name}: {leaks['box']:.1%} of the answers of {model} are boxes, above {rule.max_box_share:.1%}"
            )
    gap = 100 * (found["leaks"]["tuned"]["empty"] - found["leaks"]["base"]["empty"])
    if abs(gap) > rule.max_unparsed_gap:
        faults.append(f"{name}: empty answers changed by {gap:+.1f} points, above {rule.max_unparsed_gap:g}")
    return faults


def _flag(sets: dict[str, dict[str, Any]], rule: schema.Verdict) -> None:
    adjusted = statistics.holm([found["mcnemar_p"] for found in sets.values()])
    for found, p in zip(sets.values(), adjusted, strict=True):
        found["flagged"] = p < rule.alpha and found["difference"] <= -rule.set_drop


def _decide(
    sets: dict[str, dict[str, Any]], draws: list[Array], faults: list[str], rule: schema.Verdict
) -> dict[str, Any]:
    """Verdict, reasons, difference, interval and needed items."""
    if not sets:
        return {"verdict": "INVALID", "reasons": faults, "difference": None, "interval": None, "needed_items": None}
    mean = np.mean(draws, axis=0)
    d = float(np.mean([found["difference"] for found in sets.values()]))
    low, high = _interval(mean, rule)
    flagged = [f"{name} lost {-found['difference']:.2f} points" for name, found in sets.items() if found["flagged"]]
    needed = None
    if faults:
        verdict, reasons = "INVALID", faults
    elif flagged or (high < 0 and d <= -rule.margin):
        verdict, reasons = "REGRESSED", flagged or ["the loss is certain and not below the margin"]
    elif low > -rule.margin:
        verdict, reasons = "RETAINED", ["a loss as large as the margin is ruled out, and no set is flagged"]
    else:
        items = sum(found["n"] for found in sets.values())
        # The bootstrap's variance already holds what images share and how the sets are weighted.
        gap = d + rule.margin if d > -rule.margin else d
        needed = statistics.needed_items(float(mean.var()) * items, gap, power=POWER, alpha=rule.alpha)
        verdict, reasons = (
            "INCONCLUSIVE",
            [f"{items} items do not decide; {needed} would, were this the true difference"],
        )
    return {"verdict": verdict, "reasons": reasons, "difference": d, "interval": [low, high], "needed_items": needed}
