"""Stage `report`: one page that says what was run, what came out and whether to believe it, and its figures as data.

    r1track report --results results/<run> --out DIR

index.html holds everything that it shows. summary.json and summary.md have the figures of `summary.summarise`, and so
has the page. Only the film strips need the frames; where they are gone, the page says so. It is whole without
JavaScript; page.js adds sorting, a filter, values under the pointer and stepping.
"""

import json
import logging
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from r1track.core import config, files, schema
from r1track.reporting import plots, strips
from r1track.reporting.summary import BASE, Found, read, read_log, read_records, read_scores, root_of, summarise

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
NONE = "–"


def run(settings: config.Settings, results: Path, out: Path) -> None:
    """Write index.html, summary.json, summary.md and provenance.json of the run at `results` to the folder `out`.

    Raises FileNotFoundError or ValueError naming the file when the results are not whole.
    """
    inputs = {name: results / name for name in ("config", "scores", "vqa/verdict.json")}
    provenance = files.Provenance("report", inputs)
    summary = summarise(results)
    pages = environment()
    page = pages.get_template("page.html.j2").render(summary=summary, **_material(settings, results, summary))
    text = pages.get_template("summary.md.j2").render(summary=summary)
    with files.atomic_folder(out) as temp_path:
        files.write_text(temp_path / "index.html", page)
        files.write_json(temp_path / "summary.json", summary)
        files.write_text(temp_path / "summary.md", text)
        provenance.write(temp_path / "provenance.json")
    log.info("%s: %s", out / "index.html", summary["judgement"])


def _material(settings: config.Settings, results: Path, summary: Found) -> dict[str, Any]:
    """What the page shows beyond the summary."""
    scores, judged = read_scores(results), summary["verdict"]["model"]
    logs = {arm: read_log(results, arm) for arm in summary["training"]}
    wanted, think = settings.report, summary["settings"]["task"]["think"]
    examples = {arm: results / "adapters" / arm / "examples" for arm in logs}
    return {
        "success": {name: plots.success(name, each) for name, each in scores.items()},
        "sequences": {name: _sequences(each, judged) for name, each in scores.items()},
        "curves": plots.training(logs, plots.CURVES),
        "machine": plots.training(logs, plots.MACHINE),
        "answers": {arm: strips.answers(folder, wanted.strips, think) for arm, folder in examples.items()},
        "verdict": read(results / "vqa" / "verdict.json", "verdict"),
        "strips": {name: _strips(wanted, results, name, each, judged) for name, each in scores.items()},
        "colours": {strips.TRUTH: plots.COLOURS["truth"], **plots.colours([BASE, judged])},
        "bars": plots.cost(summary["cost"]["stages"]),
        "records": read_records(results),
        # Our own files, not results.
        **{kind: Markup((HERE / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js")},
    }


def _sequences(scores: dict[str, Found], judged: str) -> list[Found]:
    """One row per sequence, the largest gain first; AO is null, and the row last, where no frame counts."""
    rows = []
    for name, base in scores[BASE]["sequences"].items():
        tuned = scores[judged]["sequences"][name]
        known = base["ao"] is not None and tuned["ao"] is not None
        change = tuned["ao"] - base["ao"] if known else None
        row = {"name": name, "class": base["class"], "frames": base["frames"], "held": tuned["status"].get("held", 0)}
        rows.append({**row, "base": base["ao"], "tuned": tuned["ao"], "change": change})
    return sorted(rows, key=lambda row: (row["change"] is None, -(row["change"] or 0), row["name"]))


def _strips(wanted: schema.Report, results: Path, name: str, scores: dict[str, Found], judged: str) -> Found:
    changes = {row["name"]: row["change"] for row in _sequences(scores, judged) if row["change"] is not None}
    failed = strips.failures(scores[judged]["sequences"]) if wanted.strips else []
    root, picks = root_of(results, name), strips.choose(changes, wanted.strips)
    picked = [*picks, *failed]
    found, missing = strips.read(results / "tracks", name, root, [BASE, judged], picked, wanted.strip_frames)
    if missing:
        log.warning("no film strips of %s: %s", name, missing)
    parts = {"ranked": found[: len(picks)], "failed": found[len(picks) :]}
    return {**parts, "missing": missing, "root": str(root), "changes": changes, "status": scores[judged]["status"]}


def environment() -> Environment:
    """What renders pages and texts: the templates beside this file, and how figures are written in them."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=select_autoescape(["html.j2"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"number": _number, "interval": _interval, "duration": _duration, "gib": _gib, "setting": _setting}
    environment.filters |= filters
    return environment


def _number(value: float | None, digits: int = 3, sign: str = "") -> str:
    return NONE if value is None else f"{value:{sign}.{digits}f}"


def _interval(ends: tuple[float, float] | None, digits: int = 3, sign: str = "") -> str:
    return NONE if ends is None else f"[{_number(ends[0], digits, sign)}, {_number(ends[1], digits, sign)}]"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"


def _gib(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**30:.2f} GiB"


def _setting(value: Any) -> str:
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value)
