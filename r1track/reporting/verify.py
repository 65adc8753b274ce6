"""Verify: whether a report tells the truth about the results that it stands beside.

    r1track verify results/<run>

Computed again are hashes, scores from the boxes, scores of answers from their text, verdicts from the answers, and the
report from all of them. What needs the models (agreement of a merge, KL) is checked by the hashes of its files alone.

altered   a file is not what its stage wrote
stale     a result was made from sources, or with settings, that have changed since: its stage is to run again
differs   a recorded figure is not what its sources give
gone      not there any more, or never on this machine: no lie, but not checked either
"""

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track as progress

from r1track.ability import records, verdict, vqa
from r1track.core import config, files, schema
from r1track.reporting import report
from r1track.reporting.summary import read, root_of
from r1track.tracking import score

STATES = ("agrees", "altered", "stale", "differs", "gone")
# What other versions of the libraries may draw otherwise; the hash of the page covers it.
DRAWN = re.compile(r'data:image[^"]*|<svg.*?</svg>', re.DOTALL)
NOTHING = "nothing"

Record = dict[str, Any]


class Finding(NamedTuple):
    """What one check came to."""

    state: str  # one of STATES
    file: str
    words: str = ""


class Run:
    """A results folder: its provenance records by their paths in it, and where the paths that they hold lie now."""

    def __init__(self, results: Path):
        self.results, self.hash = results, cache(files.hash_path)
        self.name = str(read(results / "report" / "summary.json", "report")["run"])
        paths = sorted(path.relative_to(results) for path in results.rglob("*provenance.json"))
        self.records: dict[Path, Record] = {p: files.read_json(results / p) for p in paths if "/." not in f"/{p}"}

    def find(self, recorded: str, revision: str | None = None) -> Path | None:
        """Where a recorded path lies: in this folder, which may have been moved or copied, or where it was.

        revision: of a base on the hub, which is looked for in the hub's cache.
        """
        parts, home = Path(recorded).parts, self.results.resolve()
        own = [home.joinpath(*parts[k:]) for k in range(1, len(parts)) if parts[k - 1] == self.name]
        places = [*own, files.resolve_path(recorded, revision), home.parent.parent / recorded]
        return next((place for place in places if place.exists()), None)

    def compare(self, record: Record, file: Path | str, saved: Any, made: Any, state: str | None = None) -> Finding:
        """What was saved against what was made again; state: the word to use where they differ."""
        unequal = list(_unequal(saved, json.loads(json.dumps(made))))
        if not unequal:
            return Finding("agrees", str(file))
        words = "{}recorded {}, now {}".format(*unequal[0]) + f" (and {len(unequal) - 1} more)" * (len(unequal) > 1)
        if state is None:
            later = tuple(_result(p) for p, each in self.records.items() if each["finished"] > record["finished"])
            sources = later if record["stage"] == "report" else record["inputs"]  # a report rests on all of them
            state = "stale" if any(name.endswith(later) for name in sources) else "differs"
            made_at, here = record["git_commit"], files.git_commit()
            words += f"; made at commit {made_at[:12]}, this is {here[:12]}" if made_at != here else ""
        return Finding(state, str(file), words)


def _unequal(saved: Any, made: Any, field: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two values of JSON differ by more than rounding, and both values in short."""
    if isinstance(saved, list) and isinstance(made, list):
        saved, made = dict(enumerate(saved, 1)), dict(enumerate(made, 1))
    numbers = isinstance(saved, float | int) and isinstance(made, float | int)
    if isinstance(saved, dict) and isinstance(made, dict):
        for key in dict.fromkeys([*saved, *made]):
            yield from _unequal(saved.get(key, NOTHING), made.get(key, NOTHING), f"{field}{key}: ")
    elif saved != made and not (numbers and math.isclose(saved, made, rel_tol=1e-9, abs_tol=1e-9)):
        a, b = str(saved), str(made)
        start = next((max(0, k - 40) for k in range(min(len(a), len(b))) if a[k] != b[k]), 0)
        yield field, a[start : start + 64], b[start : start + 64]


def _result(place: Path) -> str:
    """The file or folder that a record is about."""
    return re.sub(r"[./]provenance\.json$", "", place.as_posix())


def _files(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    """The files of a result against the hashes that its stage recorded."""
    folder, recorded = run.results / place.parent, record.get("outputs", {})
    found = files.hashes(folder) if place.name == "provenance.json" else {}
    found |= {name: run.hash(folder / name) for name in recorded if name not in found and (folder / name).is_file()}
    for name in sorted({*recorded, *found}):
        hashes = {"SHA-256": recorded.get(name, NOTHING)}, {"SHA-256": found.get(name)}
        finding = run.compare(record, place.parent / name, *hashes, "altered")
        yield finding if name in found else Finding("gone", finding.file)


def _sources(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    """What a result was made from against the recorded hashes, and its settings against those of the run."""
    for name, was in record["inputs"].items():
        path, told = run.find(name, record["base"]), f"made from {name}"
        if was is None or path is None:
            yield Finding("gone", _result(place), f"{told}, which is not here")
        else:
            yield run.compare(record, _result(place), {told: was}, {told: run.hash(path)}, "stale")
    path = run.results / "config" / f"{record['stage']}.json"
    if "settings" in record and path.is_file():
        yield run.compare(record, _result(place), record["settings"], files.read_json(path), "stale")


def _scores(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    tracks, listing = map(run.find, record["inputs"])
    if not tracks or not listing:
        raise FileNotFoundError("boxes or truth are not there any more")
    again = score.score(tracks, listing.parent, record["settings"]["score"]["draws"])
    yield run.compare(record, _result(place), files.read_json(run.results / _result(place)), again)


def _answers(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    """Scores of answers, from their text, and the figures of each set, from these."""
    for name, saved in files.read_json(run.results / place.with_name("manifest.json"))["sets"].items():
        file = place.with_name(f"{name}.jsonl")
        rows = records.read_answers(run.results / file)
        saved_rows, made_rows = ([row.as_json() for row in each] for each in (rows, map(vqa.scored, rows)))
        yield run.compare(record, file, {"line": saved_rows}, {"line": made_rows})
        figures = vqa.figures(rows).as_json()
        yield run.compare(record, place.with_name("manifest.json"), {key: saved[key] for key in figures}, figures)


def _verdicts(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    base, *tuned = (run.find(name) or Path(name) for name in record["inputs"])
    again = verdict.judge_all(base, tuned, schema.Verdict(**record["settings"]["verdict"])).as_json()
    yield run.compare(record, _result(place), files.read_json(run.results / _result(place)), again)


def _report(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    """Summary and page, made again from the results; how the folder is called now does not matter."""
    with tempfile.TemporaryDirectory() as folder:
        sides = run.results / place.parent, Path(folder, "report")
        report.run(config.load(run.results / "config" / "report.json"), run.results, sides[1])
        saved, made = ({**files.read_json(side / "summary.json"), "run": ""} for side in sides)
        yield run.compare(record, "report/summary.json", saved, made)
        for name in ("summary.md", "index.html"):
            texts = [DRAWN.sub("", (side / name).read_text(encoding="utf-8")) for side in sides]
            texts = [text.replace(run.name, "").replace(run.results.resolve().name, "") for text in texts]
            was, now = ({"line": text.splitlines()} for text in texts)
            drawn = name == "summary.md" or all(root_of(run.results, each).exists() for each in made["sets"])
            finding = run.compare(record, f"report/{name}", was, now)
            yield finding if drawn else Finding("gone", finding.file, "the frames of its film strips")
    scored = [f"scores/{model}/{name}.json" for name, each in made["sets"].items() for model in each["models"]]
    for file in ("vqa/verdict.json", *scored):
        if Path(f"{file}.provenance.json") not in run.records:
            yield Finding("differs", file, "has no provenance, so nothing says what it was made from")


CHECKS: dict[str, Callable[[Run, Path, Record], Iterator[Finding]]] = {
    "files": _files, "sources": _sources, "score": _scores, "vqa": _answers, "verdict": _verdicts, "report": _report
}  # fmt: skip


def examine(results: Path) -> dict[str, list[Finding]]:
    """All findings, by what was checked. Raises FileNotFoundError where there is no report."""
    run, found = Run(results), {kind: list[Finding]() for kind in CHECKS}
    for place, record in progress(run.records.items(), "verifying"):
        for kind in [kind for kind in CHECKS if kind in ("files", "sources", record["stage"])]:
            try:
                found[kind] += CHECKS[kind](run, place, record)
            except (OSError, ValueError, KeyError, TypeError) as error:
                state = "gone" if isinstance(error, FileNotFoundError) and kind != "report" else "differs"
                found[kind].append(
                    Finding(state, _result(place), f"cannot be checked: {type(error).__name__}: {error}")
                )
    return found
