"""Verdict: whether tuned models keep the base's general ability, by a rule that is fixed before the run.

    r1track verdict --config FILE --base DIR --tuned DIR [--tuned DIR ...] --out FILE.json

The folders hold <set>.jsonl as the vqa stage writes them, or the samples that lmms-eval logs. docs/verdict.md defines
the rule, its interval and its four words, and gives its error rates.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from r1track.ability import metrics, records
from r1track.ability.records import Decision, ScoredAnswer, SetStatistics, SetVerdict, Verdict, Verdicts
from r1track.core import config, files, schema, statistics
from r1track.core.boxes import Array
from r1track.core.errors import MissingFile, UserError
from r1track.core.provenance import Provenance

log = logging.getLogger(__name__)
FLIPS = 20  # items shown per set whose score changed
Pairs = list[tuple[ScoredAnswer, ScoredAnswer]]  # of base and tuned


def run(settings: config.Settings, base: Path, tuned: Sequence[Path], out: Path) -> None:
    """Judge folders of answers and write the `Verdicts` to `out`, by the folders' names; provenance is put beside it.

    A loss of ability is a result, not an error: `gate` stops the run for it, after the report is written. Raises
    UserError for folders that hold no answers, or have the same name.
    """
    record = Provenance("verdict", {"base": base, **{f"tuned {folder.name}": folder for folder in tuned}})
    if len({folder.name for folder in tuned}) < len(tuned):
        raise UserError(f"{', '.join(map(str, tuned))}: two folders of one name; rename one of them")
    notes = {"settings": config.stage_values(settings, "verdict")}
    with record.result_file(out, seed=settings.verdict.seed, notes=notes) as temp_path:
        verdicts = judge_all(base, tuned, settings.verdict)
        temp_path.write_text(files.json_text(verdicts.as_json()), encoding="utf-8")
    for name, verdict in verdicts.models.items():
        log.log(logging.INFO if verdict.verdict == "RETAINED" else logging.WARNING, "%s: %s", name, verdict.summary)


def judge_all(base: Path, tuned: Sequence[Path], rule: schema.Verdict) -> Verdicts:
    """The rule, its hash, and the verdicts by the names of the folders, as `run` writes them."""
    values = rule.model_dump(exclude={"on_regression"})
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return Verdicts(rule=values, rule_sha256=digest, models={path.name: judge(base, path, rule) for path in tuned})


def gate(path: Path, on_regression: str) -> None:
    """Raise UserError when the last verdict at `path` is REGRESSED or INVALID and `on_regression` is `fail`.

    The last verdict is about the model that the run is for; an arm before it is there for comparison.
    """
    name, verdict = list(files.read_record(path, Verdicts).models.items())[-1]
    if on_regression == "fail" and verdict.verdict in ("REGRESSED", "INVALID"):
        remedy = "train for fewer steps or at a lower rate, or set verdict.on_regression to `warn`"
        raise UserError(f"{path}: {name}: {verdict.summary}; {remedy}; the report is written in either case")


def judge(base: Path, tuned: Path, rule: schema.Verdict) -> Verdict:
    """The verdict on two folders of answers, with everything that it rests on."""
    answers, tuned_answers = _read_folder(base), _read_folder(tuned)
    manifest, tuned_manifest = _read_manifest(base), _read_manifest(tuned)
    faults, settings = _manifest_faults(manifest, tuned_manifest, rule), config.flat(manifest.settings)
    sets, draws = dict[str, SetVerdict](), list[Array]()
    for place, name in enumerate(sorted({*answers, *tuned_answers})):
        pairs, unpaired = _pair(name, answers.get(name, []), tuned_answers.get(name, []))
        faults += unpaired
        if pairs:
            sets[name], set_draws = _compare(pairs, rule, [rule.seed, place])
            draws.append(set_draws)
            field = f"vqa.sets.{name}.published"
            published = settings.get(f"{field}.{settings.get('model.base')}", settings.get(field))
            if not isinstance(published, int | float | None):
                where = f"{base / 'manifest.json'}: settings.{field}"
                raise UserError(f"{where}: {published!r} is no number; run the stage `vqa` again")
            faults += validity_faults(name, sets[name], rule, published)
    flagged = flagged_sets(sets, rule)
    sets = {name: row.model_copy(update={"flagged": name in flagged}) for name, row in sets.items()}
    decision = decide(sets, draws, faults, rule)
    figures, beside = "", {"margin": rule.margin, "repeat": manifest.repeat, "kl": tuned_manifest.kl}
    if decision.interval:
        low, high = decision.interval
        figures = f" {decision.difference:+.2f} points [{low:+.2f}, {high:+.2f}], margin {rule.margin:g}:"
    summary = f"{decision.verdict}:{figures} {'; '.join(decision.reasons)}"
    return Verdict(**dict(decision), **beside, summary=summary, sets=sets)


def _read_folder(folder: Path) -> dict[str, list[ScoredAnswer]]:
    """The answers by set; lmms-eval calls its files <date>_samples_<task>.jsonl, in a folder for the model."""
    answers = dict[str, list[ScoredAnswer]]()
    for path in sorted(folder.rglob("*.jsonl")):
        name = path.stem.split("_samples_")[-1]
        if name in answers:
            raise UserError(f"{path}: a second file of the set {name} below {folder}; delete one of them")
        answers[name] = records.read_answers(path)
    if not answers:
        raise MissingFile(f"{folder}: no <set>.jsonl in it; give a folder that `r1track vqa` or lmms-eval wrote")
    return answers


def _read_manifest(folder: Path) -> records.Manifest:
    path = folder / "manifest.json"
    return files.read_record(path, records.Manifest) if path.is_file() else records.Manifest()


def _manifest_faults(base: records.Manifest, tuned: records.Manifest, rule: schema.Verdict) -> list[str]:
    """Faults where settings differ, or where the base answered otherwise when it was asked again."""
    others = tuned.settings or base.settings
    sections = [name for name, values in base.settings.items() if others.get(name) != values]
    faults = [f"base and tuned were asked with different settings: {', '.join(sections)}"] if sections else []
    if base.repeat and _above(abs(base.repeat.difference), rule.max_self_gap):
        faults += [f"the base differs from itself by {base.repeat.difference:+.2f} points, above {rule.max_self_gap:g}"]
    return faults


def _pair(name: str, base: Sequence[ScoredAnswer], tuned: Sequence[ScoredAnswer]) -> tuple[Pairs, list[str]]:
    """The items that both models answered, and the faults: items of one model alone, and questions that differ."""
    by_id = {row.doc_id: row for row in tuned}
    pairs = [(row, by_id[row.doc_id]) for row in base if row.doc_id in by_id]
    faults = []
    if not len(pairs) == len(base) == len(tuned):
        alone = f"{len(base) - len(pairs)} only by base, {len(tuned) - len(pairs)} only by tuned"
        faults.append(f"{name}: item ids differ: {len(pairs)} answered by both, {alone}")
    changed = [a.doc_id for a, b in pairs if (a.doc_hash, a.target) != (b.doc_hash, b.target)]
    if changed:
        faults.append(f"{name}: {len(changed)} items differ in doc_hash, target, first {changed[0]}")
    return pairs, faults


def _compare(pairs: Pairs, rule: schema.Verdict, seed: Sequence[int]) -> tuple[SetVerdict, Array]:
    """The comparison of one set, not flagged yet, and the bootstrap draws of its difference in points: (draws,)."""
    scores = np.array([[row.strict for row in pair] for pair in pairs])
    lenient = 100 * float(np.mean([b.lenient - a.lenient for a, b in pairs]))
    figures, draws = set_statistics(scores, [row.image for row, _ in pairs], rule, seed)
    leaks = {name: _leaks([pair[side] for pair in pairs]) for side, name in enumerate(("base", "tuned"))}
    flips = [
        records.Flip(doc_id=a.doc_id, question=a.input, target=a.target, base=a.filtered_resps, tuned=b.filtered_resps)
        for a, b in [(a, b) for a, b in pairs if a.strict != b.strict][:FLIPS]
    ]
    return SetVerdict(**dict(figures), lenient_difference=lenient, leaks=leaks, flips=flips, flagged=False), draws


def set_statistics(
    scores: Array, images: Sequence[str], rule: schema.Verdict, seed: Sequence[int]
) -> tuple[SetStatistics, Array]:
    """The statistics of one set, and the bootstrap draws of its difference in points: (rule.draws,).

    scores: (n, 2) from 0 to 1, of base and tuned; images: the names of the n items' images, equal where items share
    one. Items that share an image say less than as many items alone, so Tango's bounds are taken for fewer items: n is
    divided by the ratio of the clustered bootstrap's variance to that of independent items.
    """
    change, n = scores[:, 1] - scores[:, 0], len(scores)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    draws = statistics.clustered_bootstrap(change, images, rule.draws, seed)
    up, down = float(change.clip(0).sum()), -float(change.clip(None, 0).sum())
    b, c, m = np.array([up, down, n]) / max(1.0, float(draws.var()) * n / float(change.var() or 1))
    low, high = statistics.tango_lower(b, c, m, rule.alpha / 2), -statistics.tango_lower(c, b, m, rule.alpha / 2)
    figures = SetStatistics(
        n=n,
        base=100 * float(scores[:, 0].mean()),
        tuned=100 * float(scores[:, 1].mean()),
        gained=gained,
        lost=lost,
        difference=100 * float(change.mean()),
        mcnemar_p=statistics.mcnemar(gained, lost) if np.isin(scores, (0, 1)).all() else None,
        bootstrap_p=statistics.bootstrap_p(draws),
        tango_lower=100 * statistics.tango_lower(up, down, n, rule.alpha),
        interval=_wider(100 * draws, 100 * low, 100 * high, rule),
    )
    return figures, 100 * draws


def _leaks(answers: Sequence[ScoredAnswer]) -> records.Leaks:
    boxes = [metrics.is_box(row.filtered_resps) and not metrics.is_box(row.target) for row in answers]
    tags = [metrics.has_tags(row.filtered_resps) for row in answers]
    box, tag, unparsed = (float(np.mean(values)) for values in (boxes, tags, [row.unparsed for row in answers]))
    length = float(np.median([len(row.filtered_resps) for row in answers]))
    return records.Leaks(box=box, tags=tag, unparsed=unparsed, median_length=length)


def _above(value: float, limit: float) -> bool:
    """Whether a value is above a limit by more than the rounding of its computation: 89.6 - 81.6 is not above 8."""
    return value - limit > 1e-9


def _wider(draws: Array, low: float, high: float, rule: schema.Verdict) -> tuple[float, float]:
    """The bootstrap's interval, widened to the score bounds `low` and `high`, in the unit of all three."""
    ends = np.quantile(draws, [rule.alpha, 1 - rule.alpha])
    return min(low, float(ends[0])), max(high, float(ends[1]))


def validity_faults(name: str, compared: SetVerdict, rule: schema.Verdict, published: float | None) -> list[str]:
    """Faults of one set: too few items, a base far from its published score, boxes as answers, unparsed rates apart.

    published: the base's published score in percent, None where there is none.
    """
    unparsed = 100 * (compared.leaks["tuned"].unparsed - compared.leaks["base"].unparsed)
    gap = 0.0 if published is None else abs(compared.base - published)
    checks = {
        f"{compared.n} items, fewer than {rule.min_items}": compared.n < rule.min_items,
        f"the base has {compared.base:.1f} %, published are {published} %": _above(gap, rule.max_published_gap),
    }
    for side, leaks in compared.leaks.items():
        fault = f"{leaks.box:.1%} of the answers of {side} are boxes, above {rule.max_box_share:.1%}"
        checks[fault] = _above(leaks.box, rule.max_box_share)
    fault = f"unparsed answers changed by {unparsed:+.1f} points, above {rule.max_unparsed_gap:g}"
    checks[fault] = _above(abs(unparsed), rule.max_unparsed_gap)
    return [f"{name}: {fault}" for fault, wrong in checks.items() if wrong]


def flagged_sets(sets: Mapping[str, SetStatistics], rule: schema.Verdict) -> list[str]:
    """Names of the sets with a significant loss of `set_drop` or more; p values are Holm-adjusted over the sets.

    A set's p is the larger of two: McNemar's test ignores that items share images, the bootstrap is inexact for small
    counts.
    """
    adjusted = statistics.holm([max(row.mcnemar_p or 0, row.bootstrap_p) for row in sets.values()])
    rows = zip(sets.items(), adjusted, strict=True)
    return [name for (name, row), p in rows if p < rule.alpha and not _above(row.difference, -rule.set_drop)]


def decide(
    sets: Mapping[str, SetStatistics], draws: Sequence[Array], faults: list[str], rule: schema.Verdict
) -> Decision:
    """The decision on the sets together; draws: of each set, (draws,) in points; faults: reasons for INVALID."""
    if not sets:
        return Decision(verdict="INVALID", reasons=faults, difference=None, interval=None, needed_items=None)
    losses = [f"{name} lost {-sets[name].difference:.2f} points" for name in flagged_sets(sets, rule)]
    bounds = np.array([(row.difference, *row.interval) for row in sets.values()])
    d, needed = float(bounds[:, 0].mean()), None
    low, high = interval = _wider(np.mean(draws, axis=0), *statistics.mean_bounds(*bounds.T), rule)
    word: records.Word
    if faults:
        word, reasons = "INVALID", faults
    elif losses or (high < 0 and not _above(d, -rule.margin)):
        word, reasons = "REGRESSED", losses or ["the loss is certain and not below the margin"]
    elif _above(low, -rule.margin):
        word, reasons = "RETAINED", ["a loss as large as the margin is ruled out, and no set is flagged"]
    else:
        items = sum(row.n for row in sets.values())
        # The interval's width already holds what images share and how the sets are weighted.
        gap, reach = (d + rule.margin, d - low) if _above(d, -rule.margin) else (d, high - d)
        variance = items * (reach / float(ndtri(1 - rule.alpha / 2))) ** 2
        needed = statistics.needed_items(variance, gap, power=rule.power, alpha=rule.alpha / 2)
        word, reasons = "INCONCLUSIVE", [f"{items} items do not decide; {needed} would, were this the true difference"]
    return Decision(verdict=word, reasons=reasons, difference=d, interval=interval, needed_items=needed)
