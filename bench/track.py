"""Frames per second of the tracker, compared with a plain loop on the same weights in the same run.

    PYTHONPATH=. python bench/track.py [--model tiny] [--sequences 32] [--quick]

The plain loop is what an inference script does: one sequence at a time, the whole question encoded for every frame,
`generate` of transformers. Prints `ratio 32 sequences X`, then the speed for other numbers of sequences side by side,
then the share of time of each part. Both are measured in turns, in wall seconds; the median of the turns counts.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from measure import timed
from rich.console import Console

from r1track.core import config, generation, models, prompts
from r1track.core.sequences import Sequence, read_split
from r1track.data import toy
from r1track.tracking import predictors, track
from r1track.tracking.views import Predict

console = Console(soft_wrap=True, highlight=False)


def settings_of(model: str, batch: int, reuse: bool) -> config.Settings:
    return config.resolve({"model": {"base": model}, "track": {"batch": batch, "reuse": reuse}})


def load(settings: config.Settings, model: str) -> Predict:
    return predictors.load_predictor(predictors.settings_for(settings, model), model).predict


def seconds(sequences: list[Sequence], predict: Predict, settings: config.Settings) -> float:
    """Wall seconds per frame."""
    start = time.perf_counter()
    frames = sum(len(finished.boxes) - 1 for finished in track.follow(sequences, predict, settings))
    return (time.perf_counter() - start) / frames


def shares(sequences: list[Sequence], model: str) -> dict[str, float]:
    """The share of the time that each part of tracking takes. Other threads read the frames meanwhile.

    Call this last: the clocks that it sets stay on.
    """
    settings = settings_of(model, 32, True)
    loaded = models.load(model, settings.model)
    models.load = lambda *_: loaded
    spent = {
        "reading frames (beside the rest)": timed(track, "read_image"),
        "vision tower": timed(loaded.model.model.visual, "forward"),
        "prefixes, with their vision": timed(generation.Decoder, "prefixes"),
        "decoding tokens": timed(generation.Decoder, "decode"),
        "answers in all": timed(generation.Decoder, "answers"),
        "reading answers": timed(prompts, "parse_box"),
    }
    predict = load(settings, model)
    start = time.perf_counter()
    list(track.follow(sequences, predict, settings))
    total = time.perf_counter() - start
    return {label: sum(seconds) / total for label, seconds in spent.items()}


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
        plain, ours = settings_of(chosen.model, 1, False), settings_of(chosen.model, chosen.sequences, True)
        plain_predict, our_predict = load(plain, chosen.model), load(ours, chosen.model)
        turns = []
        for _ in range(1 if chosen.quick else chosen.turns):
            loop = seconds(sequences[:2], plain_predict, plain)
            many = seconds(sequences[: chosen.sequences], our_predict, ours)
            turns.append((loop, many))
        loop, many = (statistics.median(side) for side in zip(*turns, strict=True))
        console.print(
            f"plain loop {1 / loop:.1f} frames/s, ours {1 / many:.1f} frames/s, {torch.get_num_threads()} threads"
        )
        console.print(f"ratio {chosen.sequences} sequences {loop / many:.2f}")
        if chosen.quick:
            return
        for rows in (1, 2, 4, 8, 16, 32, 64):
            settings = settings_of(chosen.model, rows, True)
            spent = seconds(sequences[: max(rows, 4)], load(settings, chosen.model), settings)
            console.print(
                f"{rows:3d} side by side: {1 / spent:6.1f} frames/s, {loop / spent:5.2f} times the plain loop"
            )
        for label, share in shares(sequences[:32], chosen.model).items():
            console.print(f"{share:6.1%} {label}")


if __name__ == "__main__":
    main()
