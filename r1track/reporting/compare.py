"""Compare: several runs side by side, their spread over seeds, and paired tests between groups of runs.

    r1track report --compare results/<run> results/<run> ... --out DIR

Runs form a group when nothing but seed and name differ. Tests pair sequences, each averaged over a group's seeds: p is
that of a permutation of signs, exact up to 2^n = PERMUTATIONS. docs/report.md says more.
"""

from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy.stats import permutation_test

from r1track.core import config
from r1track.core.boxes import Array
from r1track.core.errors import UserError
from r1track.core.folders import check_replaceable
from r1track.core.provenance import Provenance
from r1track.core.statistics import BLOCK, bootstrap_p, crossed_bootstrap, holm
from r1track.reporting.records import Json
from r1track.reporting.report import write
from r1track.reporting.summary import BASE, number, read_run, summarise
from r1track.tracking.score import SEED, Scores, SequenceScore, paired_difference

PERMUTATIONS = 2**14
NOTES = {
    "Runs": "Runs of one group differ in the seed alone. Times and memory are those of the machines they ran on.",
    "Spread over seeds": "sd: the sample standard deviation; a group of one run has none.",
    "What the groups differ in": "Settings; the SHA-256 of the true boxes' split and of the training split's list.",
    "AO over seeds and sequences": "As below, but other seeds are drawn too: m - 1 of the m of a group, the same ones "
    "for both sides where their seeds are equal. Share of seeds: in the variance of the difference; the rest is that "
    "of sequences. Groups of one seed are left out; with less than five seeds the interval is a rough one.",
    "Paired tests of AO": "Each sequence is averaged over the seeds of its group first. So the interval (95 %, "
    "bootstrap) and p (permuted signs; adjusted by Holm) tell how the result may vary with other sequences. How it "
    "varies with other seeds, the table before this one tells.",
}


class Run(NamedTuple):
    """A run: its figures by name, every field that tells its group from others, and scores (tuned, base) by set."""

    run: str  # its folder
    group: str
    model: str
    seed: int
    figures: dict[str, float | None]
    draws: int
    fields: Json
    scores: dict[str, tuple[Scores, Scores]]


class Spread(NamedTuple):
    """A figure over the runs of a group that have it: None where there are none, sd also where there is one."""

    runs: int
    mean: float | None
    sd: float | None
    min: float | None
    max: float | None


class PairedTest(NamedTuple):
    """Pooled AO of one side minus that of the other on a set; or why they cannot be paired, and no figure."""

    difference: str
    set: str
    refused: str | None = None
    sequences: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None  # adjusted for the number of tests


class CrossedTest(NamedTuple):
    """A difference as in PairedTest; its interval and p (bootstrap) are over seeds and sequences; share: of seeds."""

    difference: str
    set: str
    value: float
    low: float
    high: float
    p: float
    share: float  # of the variance, 0 to 1


class Comparison(NamedTuple):
    """fields: those in which groups differ, with the value of each group."""

    runs: list[Run]
    groups: dict[str, dict[str, Spread]]
    fields: dict[str, Json]
    tests: list[PairedTest]
    crossed: list[CrossedTest]

    def as_json(self) -> Json:
        """The content of compare.json; a test has the fields that it has values for."""
        shown = ("run", "group", "model", "seed", "figures")
        return {
            "runs": [{key: getattr(run, key) for key in shown} for run in self.runs],
            "groups": {name: {k: spread._asdict() for k, spread in row.items()} for name, row in self.groups.items()},
            "fields": self.fields,
            "tests": [{k: value for k, value in test._asdict().items() if value is not None} for test in self.tests],
            "crossed": [test._asdict() for test in self.crossed],
        }


class Table(NamedTuple):
    """A table of the page and the text; the first cell of a row is its head."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def run(folders: list[Path], out: Path) -> None:
    """Write index.html, compare.json, compare.md and provenance.json about the runs at `folders` to the folder `out`.

    Raises UserError for fewer than two folders, one given twice and two runs of one seed, MissingFile naming the file
    that a run lacks.
    """
    check_replaceable(out, "compare")  # before the work
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise UserError(f"{' '.join(map(str, folders))}: give two or more results folders, none of them twice")
    inputs = {str(folder / part): folder / part for folder in folders for part in ("config", "scores")}
    provenance, comparison = Provenance("compare", inputs), compare(folders)
    write(out, provenance, "compare", {"tables": _tables(comparison)}, comparison.as_json())


def compare(folders: list[Path]) -> Comparison:
    """Runs with their figures, groups with their spreads, the fields in which groups differ, and the tests."""
    runs, kinds, groups = list[Run](), list[Json](), dict[str, list[Run]]()
    for run in map(_read, folders):
        kinds += [] if run.fields in kinds else [run.fields]
        runs.append(run._replace(group=chr(ord("A") + kinds.index(run.fields))))
        groups.setdefault(runs[-1].group, []).append(runs[-1])
    for one, two in combinations(runs, 2):
        if (one.group, one.seed) == (two.group, two.seed):
            fault = f"have the same settings and seed {one.seed}, so they say nothing about other seeds"
            raise UserError(f"{one.run} and {two.run} {fault}; leave one of them out")
    if titles := _variants(groups):
        runs = [run._replace(group=titles[run.group]) for run in runs]
    groups = {titles.get(name, name): sorted(rows, key=lambda run: run.seed) for name, rows in groups.items()}
    names = sorted({field for fields in kinds for field in fields})
    values = {field: {name: members[0].fields.get(field) for name, members in groups.items()} for field in names}
    fields = {field: row for field, row in values.items() if len(set(map(repr, row.values()))) > 1}
    tests, crossed = _tests(groups)
    adjusted = iter(holm([test.p for test in tests if test.p is not None]))
    tests = [test if test.p is None else test._replace(p_holm=next(adjusted)) for test in tests]
    return Comparison(runs, {name: _spreads(members) for name, members in groups.items()}, fields, tests, crossed)


def _variants(groups: dict[str, list[Run]]) -> dict[str, str]:
    """The titles of a study's groups, from the folders <variant>-seed<k> of their runs; {} for other folders."""
    titles = dict[str, str]()
    for group, runs in groups.items():
        names = {Path(run.run).name.removesuffix(f"-seed{run.seed}") for run in runs}
        if len(names) > 1 or any(not Path(run.run).name.endswith(f"-seed{run.seed}") for run in runs):
            return {}
        titles[group] = names.pop()
    return titles if len({*titles.values()}) == len(groups) else {}


def _read(folder: Path) -> Run:
    """A run, without its group."""
    results = read_run(folder)
    summary, fields = summarise(results), config.flat(results.settings)
    model, cost, seed = summary.model, summary.cost, fields.pop("seed")
    sources = results.record("pairs", "sample").inputs.values() if results.logs else ()
    fields["training split"] = [source.sha256 for source in sources]
    figures, scores = dict[str, float | None](), dict[str, tuple[Scores, Scores]]()
    for name, score in summary.sets.items():
        fields[f"true boxes of {name}"] = results.split(model, name).sha256
        scores[name] = results.scores[name][model], results.scores[name][BASE]
        row, change = score.models[model], score.differences[model].value if model != BASE else None
        values = {"AO": row.ao, "SR.50": row.sr50, "SR.75": row.sr75, f"AO − {BASE}": change}
        presence = row.presence.model_dump(include={"precision", "recall"}) if row.presence else {}
        values |= {f"absent frames, {key}": value for key, value in presence.items()}
        values |= {f"AO, {key}": group.ao for key, group in scores[name][0].attributes.items()}
        figures |= {f"{name}: {key}": value for key, value in values.items()}
    figures["general ability − base, points"] = summary.verdict.difference if summary.verdict else None
    figures["training, min"] = summary.training[model].minutes if results.logs else None
    figures["all stages, min"] = cost.wall_seconds / 60
    figures["memory, GiB"] = cost.peak_cpu_bytes / 2**30
    figures["GPU memory, GiB"] = cost.peak_gpu_bytes and cost.peak_gpu_bytes / 2**30
    return Run(str(folder), "", model, seed, figures, summary.draws, fields, scores)


def _spreads(members: list[Run]) -> dict[str, Spread]:
    spreads = {}
    for key in members[0].figures:
        known = np.array([value for run in members if (value := run.figures[key]) is not None])
        sd = known.std(ddof=1).item() if len(known) > 1 else None
        ends = (known.mean().item(), sd, known.min().item(), known.max().item()) if len(known) else [None] * 4
        spreads[key] = Spread(len(known), *ends)
    return spreads


def _tests(groups: dict[str, list[Run]]) -> tuple[list[PairedTest], list[CrossedTest]]:
    """Every group against its base, and every two groups, on every set; p is not adjusted yet."""
    tests, crossed = list[PairedTest](), list[CrossedTest]()
    pairs = [(f"{name} − {BASE} of {name}", rows, rows, 1) for name, rows in groups.items() if rows[0].model != BASE]
    pairs += [(f"{two} − {one}", groups[two], groups[one], 0) for one, two in combinations(groups, 2)]
    for title, first, second, side in pairs:  # side: of the second, 0 tuned, 1 base
        for name in dict.fromkeys([*first[0].scores, *second[0].scores]):
            one, two = (str(members[0].fields.get(f"true boxes of {name}", "")) for members in (first, second))
            if not one or one != two:
                why = f"other true boxes: {one[:12]}, {two[:12]}" if one and two else "not in both"
                tests.append(PairedTest(title, name, f"not paired, {why}"))
                continue
            a, b = (_averaged([run.scores[name][k] for run in runs]) for runs, k in ((first, 0), (second, side)))
            change = paired_difference(a, b, first[0].draws)
            frames = {key: row.frames for key, row in b.sequences.items() if row.frames}
            sums = [
                np.array([[run.scores[name][k].sequences[key].overlap_sum for key in frames] for run in runs])
                for runs, k in ((first, 0), (second, side))
            ]
            p = _sign_test(sums[0].mean(0) - sums[1].mean(0)) if len(frames) > 1 else None
            tests.append(PairedTest(title, name, None, len(frames), *change, p))
            if len(frames) > 1 and min(map(len, sums)) > 1:
                paired = [run.seed for run in first] == [run.seed for run in second]
                sizes = np.array([*frames.values()])
                both, seeds, items = crossed_bootstrap(sums[0], sums[1], sizes, first[0].draws, SEED, paired=paired)
                low, high = np.percentile(both, [2.5, 97.5]).tolist()
                share = float(seeds.var() / (seeds.var() + items.var() or 1))
                crossed.append(CrossedTest(title, name, change.value, low, high, bootstrap_p(both), share))
    return tests, crossed


def _sign_test(gaps: Array) -> float:
    """The p of no difference, by permuted signs."""
    batch = max(1, BLOCK // len(gaps))  # of permutations that are held at a time; the result is the same for any
    test = permutation_test(
        (gaps,), np.sum, permutation_type="samples", n_resamples=PERMUTATIONS, batch=batch, rng=SEED
    )
    return float(test.pvalue)


def _averaged(scores: list[Scores]) -> Scores:
    """Scores of one set in which the overlaps of a sequence are the mean of several runs."""
    first, rows = scores[0], dict[str, SequenceScore]()
    for name, row in first.sequences.items():
        rows[name] = row.model_copy(update={"overlap_sum": fmean(s.sequences[name].overlap_sum for s in scores)})
    return first.model_copy(update={"ao": fmean(score.ao for score in scores), "sequences": rows})


def _tables(comparison: Comparison) -> list[Table]:
    """What page and text show; tables without rows are left out."""
    runs = comparison.runs
    figures = [[key, *(str(getattr(run, key)) for run in runs)] for key in ("group", "model", "seed")]
    keys = dict.fromkeys(key for run in runs for key in run.figures)
    figures += [[key, *(number(run.figures.get(key)) for run in runs)] for key in keys]
    spreads = [
        [f"{name}: {key}", str(spread.runs), *map(number, spread[1:])]
        for name, row in comparison.groups.items() for key, spread in row.items()
    ]  # fmt: skip
    fields = [[field, *map(str, row.values())] for field, row in comparison.fields.items()]
    tests = [
        [test.difference, test.set, test.refused or str(test.sequences),
         *(number(value, 3, "+") for value in (test.value, test.low, test.high)),
         number(test.p, 4), number(test.p_holm, 4)] for test in comparison.tests
    ]  # fmt: skip
    columns = [["figure", *(run.run for run in runs)], ["figure", *Spread._fields], ["field", *comparison.groups]]
    crossed = [
        [test.difference, test.set, *(number(value, 3, "+") for value in (test.value, test.low, test.high)),
         number(test.p, 4), number(test.share)] for test in comparison.crossed
    ]  # fmt: skip
    columns += [["difference", "set", "AO", "low", "high", "p", "share of seeds"]]
    columns += [["difference", "set", "sequences", "AO", "low", "high", "p", "p adjusted"]]
    tables = map(Table, NOTES, NOTES.values(), columns, (figures, spreads, fields, crossed, tests))
    return [table for table in tables if table.rows]
