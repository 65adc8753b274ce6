"""Plots of the page: inline SVG by matplotlib, with alternative text, in the page's own text colour.

Beside each plot stand its lines as data, read from the plot itself, so that the page can show values under the pointer.
"""

import io
import itertools
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import matplotlib
import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r1track.reporting.records import Cost, Json
from r1track.tracking.score import Scores

INK = "#010203"  # stands for the page's text colour until the SVG is written
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "r1track", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": INK, "grid.alpha": 0.15, "legend.frameon": False, "axes.titlesize": 9,
}  # fmt: skip
# Mid tones: a contrast of at least 3 to 1 on the page, light or dark. The film strips use the same colours.
COLOURS = {"base": "#d9660f", "truth": "#1f9d55", "oracle": "#1f9d55", "template": "#a05fd6", "static": "#7d868f"}
TUNED = ("#3b82f6", "#db3f8f", "#0f969c")
SPAN = 10  # steps that the bold line averages
CURVES = {
    "held_out_iou": "mean IoU of greedy answers to held-out pairs",
    "held_out_parsed": "share of answers to held-out pairs that are readable",
    "reward": "mean reward", "iou": "mean IoU of the answers", "giou": "mean GIoU of the answers",
    "format": "part of the reward: format", "length_cost": "part of the reward: length",
    "reward_std": "standard deviation of the reward", "frac_reward_zero_std": "share of groups with equal rewards",
    "parsed": "share of readable answers", "truncated": "share of completions cut at the maximum",
    "length": "tokens per completion", "kl": "KL to the initial model", "entropy": "entropy of the completions",
    "token_accuracy": "share of correct tokens", "loss": "loss",
}  # fmt: skip
MACHINE = {
    "grad_norm": "gradient norm", "learning_rate": "learning rate", "seconds": "seconds per step",
    "samples_per_second": "samples per second", "memory_gib": "peak memory so far, GiB",
}  # fmt: skip


def colours(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model; tuned models take those of TUNED in turn."""
    tuned = itertools.cycle(TUNED)
    return {model: COLOURS.get(model) or next(tuned) for model in models}


def _svg(figure: Figure, name: str, text: str) -> Markup:
    """The figure as an SVG element with the alternative text `text`; its ids begin with `name`, whatever it holds."""
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg ") :].replace(INK, "currentColor")
    prefix = re.sub(r"[^A-Za-z0-9-]", lambda match: f"_{ord(match[0]):x}_", name)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\1{prefix}-", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(text)}" ', 1))


def _plot(figure: Figure, axes: Axes, name: str, text: str) -> Markup:
    """The figure, and its lines as JSON for page.js.

    box: left, right, top and bottom of the axes as shares of the picture. limits: of the x axis. Of each line x, y, and
    `at`: y as a share of the picture's height, from the top.
    """
    svg = _svg(figure, name, text)  # first, since it lays the axes out
    box, (bottom, top), lines = axes.get_position(), axes.get_ylim(), []
    for line in axes.get_lines():
        x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data())
        at = (1 - box.y0 - (y - bottom) / (top - bottom) * box.height).round(4).tolist()
        style = {"name": line.get_label(), "colour": line.get_color()}
        lines.append({**style, "x": x.round(4).tolist(), "y": [float(f"{value:.4g}") for value in y], "at": at})
    place = {"box": [box.x0, box.x1, 1 - box.y1, 1 - box.y0], "limits": [float(end) for end in axes.get_xlim()]}
    data = htmlsafe_json_dumps({"x": axes.get_xlabel(), **place, "lines": lines})
    return svg + Markup('<script type="application/json">') + data + Markup("</script>")


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def success(name: str, scores: dict[str, Scores]) -> Markup:
    """Success plot of the set `name`: the share of frames above each IoU threshold, by model; peers are dashed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(4.7, 3.9)
        for model, colour in colours(scores).items():
            peer = model in COLOURS and model != "base"
            width, style = (1.4, "--") if peer else (2.2, "-")
            curve = scores[model].curve  # at evenly spaced IoU thresholds from 0 to 1
            axes.plot(np.linspace(0, 1, len(curve)), curve, color=colour, lw=width, ls=style, label=model)
        axes.set(xlabel="IoU threshold", ylabel="share of frames above the threshold", xlim=(0, 1), ylim=(0, 1.02))
        labels = [f"{model} (AO {score.ao:.3f})" for model, score in scores.items()]
        figure.legend(axes.get_lines(), labels, loc="outside lower center", ncols=2, fontsize=9)
        values = "; ".join(f"{model} {s.sr50:.3f} at 0.50, {s.sr75:.3f} at 0.75" for model, s in scores.items())
        text = f"Success plot on {name}. Share of frames with a larger IoU: {values}."
        return _plot(figure, axes, f"success-{name}", text)


def training(logs: dict[str, list[Json]], titles: dict[str, str]) -> tuple[list[Markup], list[str]]:
    """A small plot per logged figure with a line per arm; and in words, figures that never changed or are not logged.

    logs: the rows of log.jsonl by arm. titles: by the figure's name in these rows.
    """
    plots, constant = [], []
    for key, title in titles.items():
        values = {row[key] for rows in logs.values() for row in rows if row.get(key) is not None}
        if len(values) > 1:
            plots.append(_curve(key, title, logs))
        else:
            constant.append(f"{title}: {f'always {values.pop():g}' if values else 'not logged'}")
    return plots, constant


def _curve(key: str, title: str, logs: dict[str, list[Json]]) -> Markup:
    """Each step as a thin line, the mean of SPAN steps as a bold one; held-out figures, which are rare, as they are."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.4, 2.3)
        ends, bold = [], []
        for arm, colour in colours(logs).items():
            points = [(row["step"], row[key]) for row in logs[arm] if row.get(key) is not None]
            if not points:
                ends.append(f"{arm}: not logged")
                continue
            steps, values = np.array(points, dtype=np.float64).T
            span = 1 if key.startswith("held_out") else min(SPAN, len(values))
            mean = np.convolve(values, np.ones(span) / span, "valid")
            prefix = f"{arm}, " if len(logs) > 1 else ""
            if span > 1:
                axes.plot(steps, values, color=colour, lw=0.8, alpha=0.45, label=f"{prefix}this step")
            label, dots = (f"{prefix}mean of {span}", "") if span > 1 else (f"{prefix}this step", "o")
            bold += axes.plot(steps[span - 1 :], mean, color=colour, lw=2, marker=dots, ms=4, label=label)
            means = f" (means of {span} steps)" if span > 1 else ""
            ends.append(f"{arm}: from {mean[0]:.4g} to {mean[-1]:.4g}{means}")
        axes.set(title=title, xlabel="step")
        if len(logs) > 1:
            axes.legend(handles=bold, fontsize=8)
        return _plot(figure, axes, f"curve-{key}", f"{title} over the steps. {'; '.join(ends)}.")


def cost(stages: dict[str, Cost]) -> Markup:
    """Minutes of wall time and processor time of every stage, as bars."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(4.7, 0.7 + 0.38 * len(stages))
        places = np.arange(len(stages))
        for shift, name, colour in ((-0.2, "wall", TUNED[0]), (0.2, "cpu", COLOURS["static"])):
            minutes = [getattr(stage, f"{name}_seconds") / 60 for stage in stages.values()]
            axes.barh(places + shift, minutes, 0.36, color=colour, label=name)
        axes.set(yticks=places, yticklabels=list(stages), xlabel="minutes")
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.legend(fontsize=8)
        values = "; ".join(f"{name} {stage.wall_seconds / 60:.1f}" for name, stage in stages.items())
        return _svg(figure, "cost", f"Wall minutes of every stage: {values}.")
