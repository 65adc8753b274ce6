"""Stage `report`: one page that says what was run, what the results are and how far to trust them; and the figures.

    r1track report --results results/<run> --out DIR

index.html needs no other file. Its figures are those of summary.json and summary.md, see `summary.summarise`. Only the
film strips need the frames of the sequences; where these are missing, the page says so. Everything can be read without
JavaScript; page.js adds sorting, a filter, values under the pointer and stepping through frames.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from r1track.core import config, files, schema
from r1track.core.folders import atomic_folder
from r1track.reporting import plots, strips
from r1track.reporting.records import Summary
from r1track.reporting.summary import (
    BASE,
    NONE,
    interval,
    number,
    read_log,
    read_records,
    read_scores,
    read_verdicts,
    split_of,
    summarise,
)
from r1track.tracking.score import Scores

log = logging.getLogger(__name__)
HERE = Path(__file__).parent


class SequenceRow(NamedTuple):
    """A sequence: AO of base and tuned model, and their difference; None where no frame counts. status: of the tuned
    model's frames, how many have each.
    """

    name: str
    object_class: str
    frames: int
    base: float | None
    tuned: float | None
    change: float | None
    status: dict[str, int]


def run(settings: config.Settings, results: Path, out: Path, name: str = "") -> None:
    """Write index.html, summary.json, summary.md and provenance.json of the run at `results` to the folder `out`.

    name: of the run, if not that of its folder. Raises UserError naming the file when results are missing or do not fit
    together.
    """
    inputs = {name: results / name for name in ("config", "scores", "vqa/verdict.json")}
    provenance = files.Provenance("report", inputs)
    summary = summarise(results, name)
    templates = environment()
    page = templates.get_template("page.html.j2").render(summary=summary, **_page_parts(settings, results, summary))
    text = templates.get_template("summary.md.j2").render(summary=summary)
    with atomic_folder(out, "report") as temp_path:
        files.write_text(temp_path / "index.html", page)
        files.write_json(temp_path / "summary.json", summary.model_dump(mode="json"))
        files.write_text(temp_path / "summary.md", text)
        provenance.write(temp_path / "provenance.json")
    log.info("%s: %s", out / "index.html", summary.judgement)


def _page_parts(settings: config.Settings, results: Path, summary: Summary) -> dict[str, Any]:
    """What the page shows beyond the summary, by the names in its template."""
    scores, tuned = read_scores(results, summary.settings), summary.verdict.model
    logs = {arm: read_log(results, arm) for arm in summary.training}
    count, think = settings.report.strips, summary.settings["task"]["think"]
    folders = {arm: results / "adapters" / arm / "examples" for arm in logs}
    rows = {name: _sequence_rows(models, tuned) for name, models in scores.items()}
    return {
        "success": {name: plots.success(name, models) for name, models in scores.items()},
        "sequences": rows,
        "curves": plots.training(logs, plots.CURVES),
        "machine": plots.training(logs, plots.MACHINE),
        "examples": {arm: strips.examples(folder, count, think) for arm, folder in folders.items()},
        "verdict": read_verdicts(results),
        "strips": {name: _strips(settings.report, results, name, rows[name], tuned) for name in scores},
        "changes": {name: {row.name: row.change for row in rows[name]} for name in rows},
        "colours": {strips.TRUTH: plots.COLOURS["truth"], **plots.colours([BASE, tuned])},
        "bars": plots.cost(summary.cost.stages),
        "records": read_records(results),
        # Our own files, not results.
        **{kind: Markup((HERE / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js")},
    }


def _sequence_rows(scores: dict[str, Scores], model: str) -> list[SequenceRow]:
    """The sequences of a set, the largest gain of `model` first; last those without a scored frame."""
    rows = []
    for name, base in scores[BASE].sequences.items():
        tuned = scores[model].sequences[name]
        change = None if base.ao is None or tuned.ao is None else tuned.ao - base.ao
        rows.append(SequenceRow(name, base.class_name, base.frames, base.ao, tuned.ao, change, tuned.status))
    return sorted(rows, key=lambda row: (row.change is None, -(row.change or 0), row.name))


def _strips(
    wanted: schema.Report, results: Path, name: str, rows: list[SequenceRow], tuned: str
) -> tuple[list[strips.Strip], str | None]:
    """The strips of the set `name`, failures last; or none, and why."""
    picks = strips.choose({row.name: row.change for row in rows if row.change is not None}, wanted.strips)
    picks += strips.failures({row.name: row.status for row in rows}) if wanted.strips else []
    root = Path(split_of(results, BASE, name).path)
    shown, missing = strips.read(results / "tracks", name, root, [BASE, tuned], picks, wanted.strip_frames)
    if missing:
        log.warning("no film strips of %s: %s", name, missing)
    return shown, missing


def environment() -> Environment:
    """Renders the templates beside this file; its filters write figures as text, and text as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=select_autoescape(["html.j2"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"number": number, "interval": interval, "duration": _duration, "gib": _gib, "setting": _setting}
    environment.filters |= {**filters, "markdown": _markdown}
    return environment


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"


def _gib(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**30:.2f} GiB"


def _setting(value: Any) -> str:
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value)


def _markdown(text: str) -> str:
    """A text on one line that Markdown shows as it is: a name cannot become markup, a link or another cell."""
    text = re.sub(r"[\\`*<|~&]|(?<=\])(?=[(\[:])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(text.split())
