"""Compare: several runs side by side, their spread over seeds, and paired tests of what else they differ in.

    r1track report --compare results/<run> results/<run> ... --out DIR

Runs form a group when nothing but the seed and the run's name differs: configuration, true boxes, training split. The
figures of a run are those of its summary, about the model that its verdict is about. Paired are sequences: a group's
overlaps of each are averaged over its seeds, and compared is the pooled AO of these averages, with a bootstrap over
sequences. p: a permutation test that turns the signs of the sequences' differences, exact up to 2^n = PERMUTATIONS.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.stats import permutation_test

from r1track.core import config, files
from r1track.core.statistics import holm
from r1track.reporting.report import HERE, environment
from r1track.reporting.summary import BASE, read, summarise
from r1track.tracking.score import SEED, Scores, paired_difference

PERMUTATIONS = 2**14
ENDS = ("mean", "sd", "min", "max")
NOTES = {
    "Runs": "Runs of one group differ in the seed alone. Times and memory are those of the machines they ran on.",
    "Spread over seeds": "sd: the sample standard deviation; a group of one run has none.",
    "What the groups differ in": "Configuration, SHA-256 of the true boxes' split and of the training split's list.",
    "Paired tests of AO": "Each sequence is averaged over its group's seeds first, so the interval (95 %, bootstrap) "
    "and p (signs permuted; adjusted by Holm) speak of other sequences; of other seeds, the spread tells.",
}

Found = dict[str, Any]


def run(folders: list[Path], out: Path) -> None:
    """Write index.html, compare.json, compare.md and provenance.json about the runs at `folders` to the folder `out`.

    Raises ValueError for fewer than two folders or one given twice, FileNotFoundError naming what a run lacks.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ValueError(f"{' '.join(map(str, folders))}: give two or more results folders, none of them twice")
    provenance = files.Provenance("compare", [folder / part for folder in folders for part in ("config", "scores")])
    found, pages = compare(folders), environment()
    shown = {"tables": _tables(found, pages.filters["number"]), "css": Markup((HERE / "page.css").read_text("utf-8"))}
    with files.atomic_folder(out) as temp_path:
        files.write_text(temp_path / "index.html", pages.get_template("compare.html.j2").render(shown))
        files.write_text(temp_path / "compare.md", pages.get_template("compare.md.j2").render(shown))
        files.write_json(temp_path / "compare.json", found)
        provenance.write(temp_path / "provenance.json")


def compare(folders: list[Path]) -> Found:
    """Runs with their figures, groups with their spreads, the fields in which groups differ, and the tests."""
    runs, groups, kinds = [_read(folder) for folder in folders], dict[str, list[Found]](), list[Found]()
    for each in runs:
        kinds += [] if each["fields"] in kinds else [each["fields"]]
        each["group"] = chr(ord("A") + kinds.index(each["fields"]))
        groups.setdefault(each["group"], []).append(each)
    every = sorted({field for fields in kinds for field in fields})
    values = {field: {name: fields.get(field) for name, fields in zip(groups, kinds, strict=True)} for field in every}
    tests = list(_tests(groups))
    paired = [test for test in tests if "p" in test]
    for test, p in zip(paired, holm([test["p"] for test in paired]), strict=True):
        test["p_holm"] = p
    return {
        "runs": [{key: each[key] for key in ("run", "group", "model", "seed", "figures")} for each in runs],
        "groups": {name: _spreads(members) for name, members in groups.items()},
        "fields": {field: each for field, each in values.items() if any(v != each["A"] for v in each.values())},
        "tests": tests,
    }


def _read(folder: Path) -> Found:
    """A run: its figures, the scores of tuned and base by set, and whatever else than the seed tells it from others."""
    summary, settings, figures, scores = summarise(folder), Found(), Found(), Found()
    model, cost = summary["verdict"]["model"], summary["cost"]
    for path in sorted(folder.glob("config/*.json")):
        settings |= files.read_json(path)
    seed, fields = settings.pop("seed"), config.flat(settings)
    fields["training split"] = [*read(folder / "pairs" / "provenance.json", "sample")["inputs"].values()]
    for name, each in summary["sets"].items():
        tracked = read(folder / "tracks" / model / name / "provenance.json", "track")
        fields[f"true boxes of {name}"] = next(iter(tracked["inputs"].values()))  # `track` names the split first
        scores[name] = [read(folder / "scores" / m / f"{name}.json", "score") for m in (model, BASE)]
        row, change = each["models"][model], each["differences"][model]["value"]
        ours = {"AO": row["ao"], "SR.50": row["sr50"], "SR.75": row["sr75"], f"AO − {BASE}": change}
        figures |= {f"{name}: {key}": value for key, value in ours.items()}
    figures["general ability − base, points"] = summary["verdict"]["difference"]
    figures["training, min"] = summary["training"][model]["minutes"]
    figures["all stages, min"] = cost["wall_seconds"] / 60
    for key, size in {"memory, GiB": cost["peak_cpu_bytes"], "GPU memory, GiB": cost["peak_gpu_bytes"]}.items():
        figures[key] = size and size / 2**30
    told = {"run": str(folder), "model": model, "seed": seed, "draws": summary["draws"]}
    return {**told, "figures": figures, "fields": fields, "scores": scores}


def _spreads(members: list[Found]) -> dict[str, Found]:
    """Of each figure: how many runs have it, and its ENDS; sd is null for one run, all are for none."""
    found = {}
    for key in members[0]["figures"]:
        known = np.array([each["figures"][key] for each in members if each["figures"][key] is not None])
        sd = known.std(ddof=1).item() if len(known) > 1 else None
        ends = (known.mean().item(), sd, known.min().item(), known.max().item()) if len(known) else [None] * 4
        found[key] = {"runs": len(known), **dict(zip(ENDS, ends, strict=True))}
    return found


def _tests(groups: dict[str, list[Found]]) -> Iterator[Found]:
    """Every group against its base, and every two groups, on every set."""
    pairs = [(f"{name} − {BASE} of {name}", members, members, 1) for name, members in groups.items()]
    pairs += [(f"{two} − {one}", groups[two], groups[one], 0) for one, two in combinations(groups, 2)]
    for title, first, second, side in pairs:  # side: of the second, 0 tuned, 1 base
        for each in dict.fromkeys([*first[0]["scores"], *second[0]["scores"]]):
            truths = [members[0]["fields"].get(f"true boxes of {each}") for members in (first, second)]
            found = {"difference": title, "set": each}
            if None in truths or truths[0] != truths[1]:
                why = "not in both" if None in truths else f"other true boxes: {truths[0][:12]}, {truths[1][:12]}"
                yield {**found, "refused": f"not paired, {why}"}
                continue
            a, b = (
                _averaged([run["scores"][each][k] for run in members]) for members, k in ((first, 0), (second, side))
            )
            change = paired_difference(Scores.model_validate(a), Scores.model_validate(b), first[0]["draws"])
            rows = b["sequences"]
            names = [name for name in rows if rows[name]["frames"]]
            gaps = np.array([a["sequences"][name]["overlap_sum"] - rows[name]["overlap_sum"] for name in names])
            drawn = permutation_test((gaps,), np.sum, permutation_type="samples", n_resamples=PERMUTATIONS, rng=SEED)
            yield {**found, "sequences": len(names), **change._asdict(), "p": float(drawn.pvalue)}


def _averaged(scores: list[Found]) -> Found:
    """Scores of one set in which the overlaps of a sequence are the mean of several runs."""
    rows = {name: {**row} for name, row in scores[0]["sequences"].items()}
    for name, row in rows.items():
        row["overlap_sum"] = sum(each["sequences"][name]["overlap_sum"] for each in scores) / len(scores)
    total = {key: sum(row[key] for row in rows.values()) for key in ("overlap_sum", "frames")}
    return {**scores[0], "ao": total["overlap_sum"] / total["frames"], "sequences": rows}


def _tables(found: Found, number: Any) -> list[Found]:
    """What page and text show: titles, notes, columns, and rows of strings, the first of each its head."""
    heads = [[key, *(str(each[key]) for each in found["runs"])] for key in ("group", "model", "seed")]
    keys = dict.fromkeys(key for each in found["runs"] for key in each["figures"])
    figures = [[key, *(number(each["figures"].get(key)) for each in found["runs"])] for key in keys]
    spreads = [
        [f"{name}: {key}", str(row["runs"]), *(number(row[end]) for end in ENDS)]
        for name, each in found["groups"].items() for key, row in each.items()
    ]  # fmt: skip
    fields = [[field, *map(str, each.values())] for field, each in found["fields"].items()]
    tests = []
    for each in found["tests"]:
        told = [number(each.get(key), 3, "+") for key in ("value", "low", "high")]
        told += [number(each.get(key), 4) for key in ("p", "p_holm")]
        tests.append([each["difference"], each["set"], each.get("refused") or str(each["sequences"]), *told])
    columns = [["figure", *(each["run"] for each in found["runs"])], ["figure", "runs", *ENDS]]
    columns += [["field", *found["groups"]], ["difference", "set", "sequences", "AO", "low", "high", "p", "p adjusted"]]
    tables = zip(NOTES, NOTES.values(), columns, ([*heads, *figures], spreads, fields, tests), strict=True)
    return [dict(zip(("title", "note", "columns", "rows"), each, strict=True)) for each in tables if each[-1]]
