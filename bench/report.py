"""Size of the report's page and time to make it, for a validation split as large as GOT-10k's.

    PYTHONPATH=.:tests python bench/report.py [--sequences 180] [--frames 100] [--steps 977]

The results are invented, but have the shape and the files of a real run: frames of 1280x720 with noise (links to forty
drawn ones); boxes at random distances from the true ones, as tracks of the base, of two arms and of three peers; logs
with every figure of a training run; sampled answers with crops of 336. Scores and verdict come from the real stages.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sample
import small_run
from PIL import Image
from rich.progress import track as progress

from r1track.ability import verdict
from r1track.core import config, files
from r1track.core.records import MergeRecord
from r1track.core.sequences import Sequence, read_split
from r1track.reporting import report
from r1track.tracking import score
from r1track.training import progress as training_progress
from r1track.training import rewards

SIZE = 336
WANDER = {"base": 40.0, "sft": 16.0, "grpo": 8.0, "static": 80.0, "template": 30.0, "oracle": 0.5}  # pixels
STATUSES = ["ok"] * 46 + ["held", "clipped", "absent"]


def write_track(folder: Path, sequence: Sequence, wander: float, rng: np.random.Generator) -> None:
    """Boxes around the true ones, times and statuses, as the stage `track` writes them."""
    boxes, count, name = sequence.boxes.copy(), len(sequence.frames), sequence.name
    boxes[1:, :2] += rng.normal(0, wander, (count - 1, 2))
    folder.mkdir(parents=True)
    np.savetxt(folder / f"{name}_001.txt", boxes, "%.3f", ",")
    np.savetxt(folder / f"{name}_time.txt", np.full(count, 0.2), "%.8f")
    rows = [f'{t + 1},{rng.choice(STATUSES) if t else "init"},"[100, 100, 180, 180]"' for t in range(count)]
    (folder / f"{name}_status.csv").write_text("\n".join(["frame,status,answer", *rows]) + "\n")


def write_arm(adapter: Path, steps: int, rng: np.random.Generator) -> None:
    """A log of every figure, sampled answers every 25 steps, and the provenance."""
    names = list(training_progress.NAMES.values())
    rows = [{"step": k, **dict(zip(names, rng.random(len(names)), strict=True))} for k in range(1, steps + 1)]
    files.write_text(adapter / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for step in range(0, steps, 25):
        crops = [Image.fromarray(sample_crop(rng)) for _ in range(2)]
        answers = [json.dumps(rng.integers(90, 190, 2).tolist() + rng.integers(200, 300, 2).tolist()) for _ in range(8)]
        target = [100.0, 100.0, 250.0, 250.0]
        shown = [dict(rewards.score(text, target, size=SIZE), answer=text) for text in answers]
        training_progress.keep_example(adapter / "examples", step, crops, {"target": target, "answers": shown})
    files.write_json(adapter / "provenance.json", small_run.record("train", quantize="nf4", train_seconds=9000.0))


def sample_crop(rng: np.random.Generator) -> np.ndarray:
    """A crop with noise, so that its JPEG is as large as that of a real crop."""
    colours = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
    coarse = colours.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.normal(0, 6, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def make(folder: Path, sequences: int, frames: int, steps: int) -> Path:
    """A results folder whose set is a split of `sequences` sequences of `frames` frames."""
    rng = np.random.default_rng(0)
    sample.WIDTH, sample.HEIGHT, sample.SIDES, sample.LENGTH = 1280, 720, (60, 400), frames
    sample.write_data(folder, sequences)
    root, results = folder / "many", folder / "run"
    for stage in config.NEEDS:
        files.write_json(results / "config" / f"{stage}.json", config.stage_values(small_run.SETTINGS, stage))
    small_run.configure(results, "report", "data", sets={"got10k-val": str(root)})
    small_run.configure(results, "train", "train", arms=["sft", "grpo"])
    split = read_split(root)
    for model, wander in progress(WANDER.items(), "tracks and scores"):
        tracks = results / "tracks" / model / "got10k-val"
        for sequence in split:
            write_track(tracks / sequence.name, sequence, wander, rng)
        files.write_json(
            tracks / "provenance.json", small_run.record("track", inputs={"split": {"path": str(root), "sha256": None}})
        )
        score.run(tracks, root, results / "scores" / model / "got10k-val.json", 1000)
    merged = MergeRecord(pairs=64, agreement=1.0, update_kept=1, base="made up", onto="original").model_dump()
    arms = ("sft", "grpo")
    for arm in arms:
        write_arm(results / "adapters" / arm, steps, rng)
        files.write_json(results / "models" / arm / "merge.json", merged)
    for model in ("base", *arms):
        small_run.write_answers(results / "vqa" / model, 0 if model == "base" else 2)
    vqa = results / "vqa"
    verdict.run(small_run.SETTINGS, vqa / "base", [vqa / arm for arm in arms], vqa / "verdict.json")
    return results


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=180)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--steps", type=int, default=977)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = make(Path(folder), options.sequences, options.frames, options.steps)
        start, cpu_start = time.perf_counter(), time.process_time()
        report.run(config.load(results / "config" / "report.json"), results, results / "report")
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        size = (results / "report" / "index.html").stat().st_size / 1e6
    cost = {"megabytes": round(size, 2), "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    sys.stdout.write(json.dumps({**vars(options), **cost}) + "\n")
    return cost


if __name__ == "__main__":
    main()
