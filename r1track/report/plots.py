"""Plots of the page: SVG made by matplotlib, inlined, with alternative text, in ink that follows the page's."""

import io
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r1track.score import THRESHOLDS

INK = "#010203"  # stands for the page's text colour until the SVG is written
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "r1track", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": INK, "grid.alpha": 0.15, "legend.frameon": False, "axes.titlesize": 9,
}  # fmt: skip
# Mid tones: at least 3 to 1 against the page in both schemes. The strips draw in the same colours.
COLOURS = {"base": "#d9660f", "truth": "#1f9d55", "oracle": "#1f9d55", "template": "#a05fd6", "static": "#7d868f"}
TUNED = ("#3b82f6", "#db3f8f", "#0f969c")
CURVES = {
    "reward": "mean reward", "iou": "mean IoU of the answers", "parsed": "share of readable answers",
    "kl": "KL to the model it started from", "flat_groups": "share of flat groups", "loss": "loss",
}  # fmt: skip


def colours(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model; tuned ones take theirs in turn."""
    free = iter(TUNED * 4)
    return {model: COLOURS.get(model) or next(free) for model in models}


def _svg(figure: Figure, name: str, text: str) -> Markup:
    """The figure as an SVG element; `name` keeps its ids apart from those of others on the page."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg ") :].replace(INK, "currentColor")
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\1{name}-", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(text)}" ', 1))


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def success(name: str, scores: dict[str, dict[str, Any]]) -> Markup:
    """Success rate over the IoU threshold for each model of one set; peers are dashed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(4.7, 3.9)
        for model, colour in colours(scores).items():
            score, peer = scores[model], model in COLOURS and model != "base"
            label = f"{model} (AO {score['ao']:.3f})"
            axes.plot(
                THRESHOLDS, score["curve"], color=colour, lw=1.4 if peer else 2.2, ls="--" if peer else "-", label=label
            )
        axes.set(xlabel="IoU threshold", ylabel="share of frames above it", xlim=(0, 1), ylim=(0, 1.02))
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        values = "; ".join(f"{model} {s['sr50']:.3f} at 0.50, {s['sr75']:.3f} at 0.75" for model, s in scores.items())
        return _svg(figure, f"success-{name}", f"Success plot on {name}. Share of frames with a larger IoU: {values}.")


def training(logs: dict[str, list[dict[str, Any]]]) -> list[Markup]:
    """One small plot per logged figure, a line per arm: each step thin, the mean of ten steps bold."""
    return [_curve(key, title, logs) for key, title in CURVES.items()]


def _curve(key: str, title: str, logs: dict[str, list[dict[str, Any]]]) -> Markup:
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.4, 2.3)
        ends = []
        for arm, colour in colours(logs).items():
            points = [(row["step"], row[key]) for row in logs[arm] if row.get(key) is not None]
            if not points:
                ends.append(f"{arm}: not logged")
                continue
            steps, values = np.array(points, dtype=np.float64).T
            span = min(10, len(values))
            mean = np.convolve(values, np.ones(span) / span, "valid")
            axes.plot(steps, values, color=colour, lw=0.8, alpha=0.45)
            axes.plot(steps[span - 1 :], mean, color=colour, lw=2, label=arm)
            ends.append(f"{arm}: from {values[:span].mean():.3f} to {mean[-1]:.3f} (means of {span} steps)")
        axes.set(title=title, xlabel="step")
        if len(logs) > 1:
            axes.legend(fontsize=8)
        return _svg(figure, f"curve-{key}", f"{title} over the steps. {'; '.join(ends)}.")
