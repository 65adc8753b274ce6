"""Frames per second of the tracker, compared with a plain loop on the same weights in the same run.

    PYTHONPATH=. python bench/track.py [--model tiny] [--sequences 32] [--clips SPLIT] [--quick]
    PYTHONPATH=. python bench/track.py --drafts scratch/bench/3B/base --sequences 8    # after bench/gpu.py

The plain loop is what an inference script does: one sequence at a time, the whole question encoded for every frame,
`generate` of transformers. Prints `ratio 32 sequences X`, then the speed for other numbers of sequences side by side,
then the share of time of each part. Both are measured in turns, in wall seconds; the median of the turns counts.

Before that, one sequence at a time, drafts on and off in turns: a model of 36 narrow layers, in Qwen's own tokens,
which answers with the true boxes (scripted.py). Prints `passes per answer tracking X`; --clips names other sequences
than the toy world's, in any layout that the tracker reads. Qwen's tokens come with `pip install --no-deps dashscope`.
--drafts: this alone, in bfloat16 on the model of a folder, with all sequences side by side, 6 frames of each.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import shapes
import torch
from measure import timed
from rich.console import Console
from scripted import CLOCK, Script

from r1track.core import config, generation, models, prompts
from r1track.core.sequences import Sequence, read_split
from r1track.data import toy
from r1track.tracking import peers, predictors, track
from r1track.tracking.views import Predict, View

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


def start(sequence: Sequence, frames: int) -> Sequence:
    """The first frames of a sequence."""
    parts = ("frames", "boxes", "absent", "visibility", "cut")
    return replace(sequence, **{name: getattr(sequence, name)[:frames] for name in parts})


def drafting(sequences: list[Sequence], batch: int, base: Path, dtype: str = "float32") -> None:
    """Print passes and frames per second with drafts and without, over answers with the true boxes."""
    tracked = {"batch": batch, "max_tokens": 32}
    values: dict[str, Any] = {"model": {"base": str(base), "dtype": dtype}, "track": tracked}
    settings, most = predictors.settings_for(config.Settings.model_validate(values), str(base)), generation.DRAFT
    loaded, real_load = models.load(str(base), settings.model), models.load
    script, oracle = Script(loaded.model, loaded.processor.tokenizer), peers.find("oracle")
    models.load = lambda *_: loaded
    modes = {"without drafts": (0, False), "drafts": (most, False)}
    modes |= {"drafts and graphs": (most, True)} if torch.cuda.is_available() else {}
    answer = {
        graphs: load(config.Settings.model_validate(values | {"track": {**tracked, "graphs": graphs}}), str(base))
        for _, graphs in modes.values()
    }
    models.load = real_load
    figures: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    for sequence in [sequences[k : k + batch] for k in range(0, len(sequences), batch)]:
        for mode, (generation.DRAFT, graphs) in modes.items():

            def predict(views: list[View], graphs: bool = graphs) -> list[str]:
                script.say([text or "[]" for text in oracle(views)])
                return answer[graphs](views)

            script.passes, began = 0, CLOCK()
            tracks = track.follow(sequence, predict, settings, reveal=True)
            frames = sum(len(finished.boxes) - 1 for finished in tracks)
            prefixes = -(-len(sequence) // batch)
            figures[mode].append(((script.passes - prefixes) * len(sequence) / frames, (CLOCK() - began) / frames))
    generation.DRAFT = most
    passes = {mode: statistics.mean(n for n, _ in kept) for mode, kept in figures.items()}
    console.print(
        f"passes per answer tracking {passes['drafts']:.2f}, without drafts {passes['without drafts']:.2f}, "
        f"{batch} side by side"
    )
    for mode, kept in figures.items():
        speed = 1 / statistics.median(s for _, s in kept)
        pairs = zip(figures["without drafts"], kept, strict=True)
        gain = statistics.median(slow / fast for (_, slow), (_, fast) in pairs)
        console.print(f"frames/s {speed:.2f} {mode}, ratio {gain:.2f} ({CLOCK.__name__})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="folder, hub id, or `tiny`")
    parser.add_argument("--sequences", type=int, default=32, help="sequences side by side")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each side")
    parser.add_argument("--clips", type=Path, help="a split of sequences for the passes")
    parser.add_argument("--drafts", type=Path, help="folder of a model; only its passes with drafts and without")
    parser.add_argument("--quick", action="store_true", help="one turn, no growth, no shares")
    chosen = parser.parse_args()
    made = chosen.sequences if chosen.quick else max(64, chosen.sequences)
    with tempfile.TemporaryDirectory() as folder:
        toy.write_split(Path(folder) / "val", "val", sequences=made, length=24, seed=1)
        sequences = read_split(Path(folder) / "val")
        clips = read_split(chosen.clips) if chosen.clips else sequences
        if chosen.drafts:
            few = [start(clip, 6) for clip in clips[: chosen.sequences]]
            return drafting(few, chosen.sequences, chosen.drafts, "bfloat16")
        shapes.write_base("deep", Path(folder) / "deep")
        few = [start(clip, 24) for clip in clips[: 2 if chosen.quick else 6]]
        drafting(few, 1, Path(folder) / "deep")
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
            predict, few = load(settings, chosen.model), sequences[: max(rows, 4)]
            spent = statistics.median(seconds(few, predict, settings) for _ in range(chosen.turns))
            console.print(
                f"{rows:3d} side by side: {1 / spent:6.1f} frames/s, {loop / spent:5.2f} times the plain loop"
            )
        for label, share in shares(sequences[:32], chosen.model).items():
            console.print(f"{share:6.1%} {label}")


if __name__ == "__main__":
    main()
