"""Verify: computes again what a report and its results say, and names every file that does not agree.

    r1track verify results/<run>

Computed again are hashes, scores, verdicts and the report. docs/report.md says what each check compares, and what the
STATES mean. What needs a model (agreement of a merge, KL) is checked by the hashes of its files alone.
"""

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import track as progress
from rich.table import Table
from rich.text import Text

from r1track.ability import records, verdict, vqa
from r1track.core import config, files, schema
from r1track.core.errors import MissingFile, UserError
from r1track.core.provenance import ProvenanceRecord as Record
from r1track.core.provenance import git_commit
from r1track.reporting import report
from r1track.reporting.summary import read_as, read_settings, result_of, unnamed
from r1track.tracking import score

STATES = ("agrees", "altered", "stale", "differs", "missing")
# Pictures: other versions of the libraries may draw other bytes. The hash of the page covers them.
PICTURES = re.compile(r'data:image[^"]*|<svg.*?</svg>', re.DOTALL)
NOTHING = "nothing"

Check = Callable[["Run", Path, Record], Iterator["Finding"]]


class Finding(NamedTuple):
    """The result of one check; file: in the results folder; words: what differs, or why it is missing."""

    state: str  # one of STATES
    file: str
    words: str = ""


class RunName(BaseModel):
    """What a summary.json says of its run's name."""

    run: str


class Run:
    """A results folder, and its provenance records by their paths in it. Raises MissingFile without a report."""

    def __init__(self, results: Path):
        self.results, self.hash = results, cache(files.hash_path)
        self.name = read_as(RunName, results / "report" / "summary.json", "report").run
        self.names = {self.name}  # and those that its folder had when a result was recorded
        self.records, self.unread = dict[Path, Record](), list[Finding]()
        for path in sorted(path.relative_to(results) for path in results.rglob("*provenance.json")):
            if "/." not in f"/{path}":
                try:
                    self.records[path] = files.read_record(results / path, Record)
                    parts = {name: Path(source.path).parts for name, source in self.records[path].inputs.items()}
                    self.names |= set(parts.get("tracks", ())[-4:-3])
                    self.names |= {name for p in parts.values() for at, name in pairwise(p) if at == "shared"}  # study
                except UserError as error:
                    self.unread.append(Finding("altered", str(path), str(error)))

    def find(self, recorded: str, revision: str | None = None) -> Path | None:
        """Where a recorded path lies now: in this folder, which may have been moved or copied, or where it was.

        revision: of a base on the hub, which is looked up in the hub's cache.
        """
        parts, home = Path(recorded).parts, self.results.resolve()
        own = [home.joinpath(*parts[k:]) for k in range(1, len(parts)) if parts[k - 1] in self.names]
        places = [*own, files.resolve_path(recorded, revision), home.parent.parent / recorded]
        return next((place for place in places if place.exists()), None)

    def compare(self, record: Record, file: Path | str, saved: Any, computed: Any, state: str | None = None) -> Finding:
        """A saved value against the one computed now; state: of the finding where they differ, else found out here."""
        unequal = list(_unequal(*(json.loads(json.dumps(value)) for value in (saved, computed))))
        if not unequal:
            return Finding("agrees", str(file))
        words = "{}recorded {}, now {}".format(*unequal[0]) + f" (and {len(unequal) - 1} more)" * (len(unequal) > 1)
        if state is None:
            later = tuple(result_of(p) for p, other in self.records.items() if other.finished > record.finished)
            paths = [source.path for source in record.inputs.values()]
            sources = later if record.stage == "report" else paths  # a report is made from all results
            state = "stale" if any(path.endswith(later) for path in sources) else "differs"
            commit, here = record.git_commit, git_commit()
            words += f"; made at commit {commit[:12]}, this is {here[:12]}" if commit != here else ""
        return Finding(state, str(file), words)


def _unequal(saved: Any, computed: Any, field: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two JSON values differ by more than rounding: the field, and both values, shortened."""
    if isinstance(saved, list) and isinstance(computed, list):
        saved, computed = dict(enumerate(saved, 1)), dict(enumerate(computed, 1))
    numbers = isinstance(saved, float | int) and isinstance(computed, float | int)
    if isinstance(saved, dict) and isinstance(computed, dict):
        for key in dict.fromkeys([*saved, *computed]):
            yield from _unequal(saved.get(key, NOTHING), computed.get(key, NOTHING), f"{field}{key}: ")
    elif saved != computed and not (numbers and math.isclose(saved, computed, rel_tol=1e-9, abs_tol=1e-9)):
        a, b = str(saved), str(computed)
        start = next((max(0, k - 40) for k in range(min(len(a), len(b))) if a[k] != b[k]), 0)
        yield field, a[start : start + 64], b[start : start + 64]


def _files(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    """The files of a result against the hashes that its stage recorded."""
    folder, recorded = run.results / place.parent, record.outputs
    hashes = files.hashes(folder) if place.name == "provenance.json" else {}
    hashes |= {name: run.hash(folder / name) for name in recorded if name not in hashes and (folder / name).is_file()}
    for name in sorted({*recorded, *hashes}):
        if name not in hashes:
            yield Finding("missing", str(place.parent / name))
            continue
        saved, now = {"SHA-256": recorded.get(name, NOTHING)}, {"SHA-256": hashes[name]}
        yield run.compare(record, place.parent / name, saved, now, "altered")


def _sources(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    """The sources of a result against the recorded hashes, and its settings against those of the run."""
    for source in record.inputs.values():
        path, origin = run.find(source.path, record.base), f"made from {source.path}"
        if source.sha256 is None or path is None:
            yield Finding("missing", result_of(place), f"{origin}, which is not here")
        else:
            yield run.compare(record, result_of(place), {origin: source.sha256}, {origin: run.hash(path)}, "stale")
    path = run.results / "config" / f"{config.stage_file(record.stage, record.arm)}.json"
    if record.settings is not None and path.is_file():
        yield run.compare(record, result_of(place), record.settings, files.read_json(path), "stale")


def _scores(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    tracks, listing = (run.find(record.inputs[name].path) for name in ("tracks", "list"))
    if not tracks or not listing:
        raise MissingFile("the boxes or the true boxes are not there")
    settings = schema.Score.model_validate((record.settings or {}).get("score"))
    again = score.score(tracks, listing.parent, settings.draws).as_json()
    yield run.compare(record, result_of(place), files.read_json(run.results / result_of(place)), again)


def _answers(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    """Scores of answers, from their text, and the figures of each set, from these."""
    manifest = files.read_record(run.results / place.with_name("manifest.json"), records.Manifest)
    for name, recorded in manifest.sets.items():
        file = place.with_name(f"{name}.jsonl")
        rows = records.read_answers(run.results / file)
        was, now = ([row.as_json() for row in answers] for answers in (rows, map(vqa.scored, rows)))
        yield run.compare(record, file, {"line": was}, {"line": now})
        figures, saved = vqa.figures(rows).as_json(), recorded.as_json()
        yield run.compare(record, place.with_name("manifest.json"), {key: saved.get(key) for key in figures}, figures)


def _verdicts(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    saved = files.read_record(run.results / result_of(place), records.Verdicts)
    paths = [record.inputs[name].path for name in ("base", *(f"tuned {model}" for model in saved.models))]
    base, *tuned = (run.find(path) or Path(path) for path in paths)
    rule = schema.Verdict.model_validate((record.settings or {}).get("verdict"))
    yield run.compare(record, result_of(place), saved.as_json(), verdict.judge_all(base, tuned, rule).as_json())


def _report(run: Run, place: Path, record: Record) -> Iterator[Finding]:
    """Summary and page against those made from the results now, and what is no part of the run."""
    for file in unnamed(run.results, read_settings(run.results)):
        yield Finding("stale", file, "the configuration names no such result, and no report holds it; delete it")
    with tempfile.TemporaryDirectory() as folder:
        sides = run.results / place.parent, Path(folder, "report")
        # The folder may have another name now.
        report.run(config.load(run.results / "config" / "report.json"), run.results, sides[1], run.name)
        saved, now = (files.read_json(side / "summary.json") for side in sides)
        yield run.compare(record, "report/summary.json", saved, now)
        for name in ("summary.md", "index.html"):
            texts = (PICTURES.sub("", (side / name).read_text(encoding="utf-8", errors="replace")) for side in sides)
            was, lines = ({"line": text.splitlines()} for text in texts)
            finding = run.compare(record, f"report/{name}", was, lines)
            roots = [run.records[Path(f"tracks/base/{split}/provenance.json")].inputs["split"] for split in now["sets"]]
            whole = name == "summary.md" or all(Path(root.path).exists() for root in roots)
            yield finding if whole else Finding("missing", finding.file, "the frames of its film strips are not here")
    scored = [f"scores/{model}/{name}.json" for name, scores in now["sets"].items() for model in scores["models"]]
    for file in (*(["vqa/verdict.json"] if now["verdict"] else []), *scored):
        if Path(f"{file}.provenance.json") not in run.records:
            yield Finding("differs", file, "has no provenance, so nothing says what it was made from")


CHECKS: dict[str, Check] = {
    "files": _files, "sources": _sources, "score": _scores, "vqa": _answers, "verdict": _verdicts, "report": _report
}  # fmt: skip


def examine(results: Path) -> dict[str, list[Finding]]:
    """All findings, by what was checked. Raises MissingFile where there is no report."""
    run, findings = Run(results), {kind: list[Finding]() for kind in CHECKS}
    findings["files"] += run.unread
    for place, record in progress(run.records.items(), "verifying"):
        for kind in [kind for kind in CHECKS if kind in ("files", "sources", record.stage)]:
            try:
                findings[kind] += CHECKS[kind](run, place, record)
            except (OSError, ValueError, KeyError, TypeError) as error:
                state = "missing" if isinstance(error, FileNotFoundError) and kind != "report" else "differs"
                fault = files.field_faults(error) if isinstance(error, ValidationError) else error
                kind_of = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                findings[kind].append(Finding(state, result_of(place), f"cannot be checked: {kind_of}{fault}"))
    return findings


def show(checks: dict[str, list[Finding]], console: Console) -> int:
    """Print how many checks ended in which state, and what does not agree; returns how many failed."""
    agrees, *faults, missing = STATES
    table = Table("checked", *STATES)
    for kind, findings in checks.items():
        table.add_row(kind, *(str(sum(finding.state == state for finding in findings)) for state in STATES))
    console.print(table)
    findings = [finding for findings in checks.values() for finding in findings]
    for state, file, words in sorted(findings, key=lambda finding: STATES.index(finding.state)):
        if state != agrees:
            line = Text.assemble((f"{state:9}", "yellow" if state == missing else "red"), (file, "bold"), "  ", words)
            console.print(line, soft_wrap=True)
    failed = sum(finding.state in faults for finding in findings)
    skipped = sum(finding.state == missing for finding in findings)
    word, count = "[red]Verification failed" if failed else "[green]Verified", len(findings) - skipped
    console.print(f"{word}[/]: {failed} of {count} checks failed, {skipped} were not possible.", soft_wrap=True)
    return failed
