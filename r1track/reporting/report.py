"""Stage `report`: one page that says what was run, what the results are and how far to trust them; and the figures.

    r1track report --results results/<run> --out DIR

index.html needs no other file and no JavaScript; its figures are those of summary.json and summary.md. Only the film
strips need the frames of the sequences; where these are missing, the page says so.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from r1track.core import config, files, schema
from r1track.core.folders import atomic_folder, check_replaceable
from r1track.core.provenance import Provenance
from r1track.reporting import plots, strips
from r1track.reporting.records import Json, Summary
from r1track.reporting.summary import BASE, NONE, Run, interval, number, read_run, summarise
from r1track.tracking.score import SEED, Scores

log = logging.getLogger(__name__)
HERE = Path(__file__).parent


def run(settings: config.Settings, results: Path, out: Path, name: str = "") -> None:
    """Write index.html, summary.json, summary.md and provenance.json of the run at `results` to the folder `out`.

    name: of the run, if not that of its folder. Raises UserError naming a file that is missing or does not fit.
    """
    check_replaceable(out, "report")  # before the work
    run = read_run(results)
    general = "vqa/verdict.json" if run.verdicts else f"vqa/{BASE}"
    provenance = Provenance("report", {name: results / name for name in ("config", "scores", general)})
    summary = summarise(run, name)
    write(out, provenance, "summary", _page_parts(settings.report, run, summary), summary.model_dump(mode="json"))
    log.info("%s: %s", out / "index.html", summary.judgement)


def write(out: Path, provenance: Provenance, name: str, parts: dict[str, Any], data: Json) -> None:
    """Write index.html and <name>.md, <name>.json with `data`, and provenance.json to the folder `out`.

    parts: what the templates <name>.html.j2 and <name>.md.j2 need, by name.
    """
    page, text = (environment().get_template(f"{name}.{kind}.j2").render(parts) for kind in ("html", "md"))
    with atomic_folder(out, provenance.stage) as temp_path:
        files.write_text(temp_path / "index.html", page)
        files.write_text(temp_path / f"{name}.md", text)
        files.write_json(temp_path / f"{name}.json", data)
        provenance.write(temp_path / "provenance.json")


def _page_parts(wanted: schema.Report, run: Run, summary: Summary) -> dict[str, Any]:
    """What page and text show, by the names in their templates."""
    tuned, think = summary.model, summary.settings["task"]["think"]
    folders = {arm: run.results / "adapters" / arm / "examples" for arm in run.logs}
    changes = {name: _changes(models, tuned) for name, models in run.scores.items()}
    return {
        "run": run,
        "summary": summary,
        "success": {name: plots.success(name, models) for name, models in run.scores.items()},
        "curves": plots.training(run.logs, plots.CURVES),
        "machine": plots.training(run.logs, plots.MACHINE),
        "examples": {arm: strips.examples(folder, wanted.strips, think) for arm, folder in folders.items()},
        "strips": {name: strips.read(run, name, tuned, changes[name], wanted) for name in changes},
        "changes": changes,
        "colours": {strips.TRUTH: plots.COLOURS["truth"], **plots.colours([BASE, tuned])},
        "bars": plots.cost(summary.cost.stages),
    }


def _changes(scores: dict[str, Scores], model: str) -> dict[str, float | None]:
    """The change of AO from the base to `model` by sequence, largest gain first; None, last, where no frame counts.

    Of the base itself its AO.
    """
    pairs = {name: (row.ao, scores[model].sequences[name].ao) for name, row in scores[BASE].sequences.items()}
    changes = {name: None if a is None or b is None else b - a * (model != BASE) for name, (a, b) in pairs.items()}
    return dict(sorted(changes.items(), key=lambda row: (row[1] is None, -(row[1] or 0), row[0])))


def environment() -> Environment:
    """Renders the templates beside this file; its filters write figures as text, and text as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(["html.j2"], default=False),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = {"number": number, "interval": interval, "duration": _duration, "gib": _gib, "setting": _setting}
    filters["seeds"] = _seeds
    environment.filters |= {**filters, "markdown": _markdown}
    environment.globals |= {kind: Markup((HERE / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js")}
    return environment


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"


def _gib(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**30:.2f} GiB"


def _seeds(settings: Json) -> str:
    """The seeds of a run in one sentence."""
    trained = bool(settings["train"]["arms"])
    uses = {"toy": "toy world", "vqa": "questions", **({"verdict": "bootstrap of the verdict"} if trained else {})}
    parts = [f"pairs and training {settings['seed']}"] * trained
    parts += [f"{use} {settings[name]['seed']}" for name, use in uses.items() if name in settings]
    return f"Seeds: {', '.join(parts)}, bootstrap of the scores {SEED}."


def _setting(value: Any) -> str:
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value)


def _markdown(text: str) -> str:
    """A text on one line that Markdown shows as it is: a name cannot become markup, a link or another cell."""
    text = re.sub(r"[\\`*<|~&]|(?<=\])(?=[(\[:])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(text.split())
