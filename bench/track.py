"""Frames per second of the tracker against a plain loop, on the same weights in the same run.

    PYTHONPATH=. python bench/track.py [--model tiny] [--sequences 32] [--quick]

The plain loop is what an inference script does: one sequence at a time, the whole question encoded anew for every
frame, `generate` of transformers. Prints `ratio 32 sequences X`, then how it grows with the number side by side, then
where the time goes. The two sides are measured in turns, in wall seconds, and the median of the turns counts.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import timed
from rich.console import Console

from r1track.core import config, generation, models, prompts
from r1track.core.sequences import Sequence, read_split
from r1track.data import toy
from r1track.tracking import predictors, track

console = Console(soft_wrap=True, highlight=False)


def settings_of(model: str, batch: int, reuse: bool) -> config.Settings:
    return config.resolve({"model": {"base": model}, "track": {"batch": batch, "reuse": reuse}})


def ask_of(settings: config.Settings, model: str) -> Any:
    return predictors.load_predictor(predictors.settings_for(settings, model), model)[0]


def seconds(sequences: list[Sequence], ask: Any, settings: config.Settings) -> float:
    """Wall seconds per frame."""
    began = time.perf_counter()
    frames = sum(len(done.boxes) - 1 for done in track.follow(sequences, ask, settings))
    return (time.perf_counter() - began) / frames


def shares(sequences: list[Sequence], model: str) -> dict[str, float]:
    """Share of the time that each part of tracking takes; frames are decoded beside the rest, on other threads.

    The clocks stay on: to be measured last.
    """
    settings = settings_of(model, 32, True)
    loaded = models.load(model, settings.model)
    models.load = lambda *given, **named: loaded
    spent = {
        "reading frames (beside the rest)": timed(track, "open_frame"),
        "vision tower": timed(loaded.model.model.visual, "forward"),
        "prefixes, with their vision": timed(generation.Decoder, "prefixes"),
        "decoding tokens": timed(generation.Decoder, "decode"),
        "answers in all": timed(generation.Decoder, "answers"),
        "reading answers": timed(prompts, "parse_box"),
    }
    ask = ask_of(settings, model)
    began = time.perf_counter()
    list(track.follow(sequences, ask, settings))
    whole = time.perf_counter() - began
    return {label: sum(seconds) / whole for label, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="folder, hub id, or `tiny`")
    parser.add_argument("--sequences", type=int, default=32, help="sequences side by side")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each side")
    parser.add_argument("--quick", action="store_true", help="one turn, no growth, no shares")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        toy.write_split(Path(folder) / "val", "val", sequences=max(64, chosen.sequences), length=24, seed=1)
        sequences = read_split(Path(folder) / "val")
        plain, ours = (settings_of(chosen.model, *how) for how in ((1, False), (chosen.sequences, True)))
        asks = {id(each): ask_of(each, chosen.model) for each in (plain, ours)}
        turns = []
        for _ in range(1 if chosen.quick else chosen.turns):
            loop = seconds(sequences[:2], asks[id(plain)], plain)
            many = seconds(sequences[: chosen.sequences], asks[id(ours)], ours)
            turns.append((loop, many))
        loop, many = (statistics.median(side) for side in zip(*turns, strict=True))
        console.print(
            f"plain loop {1 / loop:.1f} frames/s, ours {1 / many:.1f} frames/s, {torch.get_num_threads()} threads"
        )
        console.print(f"ratio {chosen.sequences} sequences {loop / many:.2f}")
        if chosen.quick:
            return
        for rows in (1, 2, 4, 8, 16, 32, 64):
            made = settings_of(chosen.model, rows, True)
            each = seconds(sequences[: max(rows, 4)], ask_of(made, chosen.model), made)
            console.print(f"{rows:3d} side by side: {1 / each:6.1f} frames/s, {loop / each:5.2f} times the plain loop")
        for label, share in shares(sequences[:32], chosen.model).items():
            console.print(f"{share:6.1%} {label}")


if __name__ == "__main__":
    main()
