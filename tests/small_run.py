"""A whole results folder in a second: the toy world, tracked by peers that stand in for the models."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from toys import toy_split

from r1track.ability import verdict
from r1track.core import config, files
from r1track.core.records import MergeRecord
from r1track.tracking import score, track
from r1track.training import progress, rewards

SETTINGS = config.resolve(
    {"preset": "demo", "score": {"draws": 200}, "verdict": {"min_items": 20, "on_regression": "warn"}}
)
NASTY = "<script>alert('x')</script> & \"so on\""
KEPT = {"keep": "best", "step": 20, "held_out_iou": 0.2, "last_step": 30, "last_held_out_iou": 0.1}
TARGET = [20.0, 20.0, 60.0, 60.0]
ANSWERS = ("[20, 20, 60, 60]", "[30, 30, 70, 70]", NASTY)


def write_answers(folder: Path, wrong: int) -> None:
    """Thirty questions, the first `wrong` of them answered with something that HTML would take for markup."""
    rows = []
    for k in range(30):
        right = int(k >= wrong)
        row = {"doc_id": str(k), "input": f"Which {NASTY}?", "target": "red", "doc_hash": str(k), "image": str(k)}
        answer = {"filtered_resps": "red" if right else NASTY, "strict": right, "lenient": right, "unparsed": 0}
        rows.append({**row, **answer})
    folder.mkdir(parents=True)
    (folder / "easy-vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files.write_json(folder / "provenance.json", record("vqa", wall_seconds=40.0))
    kl = {"tracking": {"prompts": 64, "tokens": 900, "nats": 0.25}}
    files.write_json(folder / "manifest.json", {"kl": kl if folder.name != "base" else {}})


def record(stage: str, **notes: Any) -> dict[str, Any]:
    """A provenance as `files.Provenance` writes it."""
    return {
        "stage": stage, "finished": "2026-01-01T00:00:00Z", "git_commit": "abc", "versions": {"python": "3.12"},
        "hardware": {"cpu": "a processor", "cores": 2, "gpu": None}, "seed": 0, "base": None, "wall_seconds": 120.0,
        "cpu_seconds": 100.0, "peak_cpu_bytes": 2**30, "peak_gpu_bytes": None,
        "inputs": {"model": {"path": "somewhere", "sha256": None}}, **notes,
    }  # fmt: skip


def configure(results: Path, stage: str, section: str, **fields: Any) -> None:
    """Let the configuration of a stage have other values."""
    path = results / "config" / f"{stage}.json"
    values = files.read_json(path)
    files.write_json(path, {**values, section: {**values[section], **fields}})


def stand_in(results: Path, root: Path, model: str, peer: str, name: str = "toy-val") -> None:
    """Let a peer's tracks be those of `model`, and score them."""
    tracks = results / "tracks" / model / name
    shutil.rmtree(tracks, ignore_errors=True)
    shutil.copytree(results.parent / "peers" / peer, tracks)
    score.run(tracks, root, results / "scores" / model / f"{name}.json", 200)


def fail(results: Path, root: Path, model: str, failures: dict[tuple[str, int], str]) -> None:
    """Let frames (sequence, number from 1) of a model have other statuses, with an answer of its own, and score it."""
    tracks = results / "tracks" / model / "toy-val"
    for (name, frame), status in failures.items():
        path = tracks / name / f"{name}_status.csv"
        with path.open(newline="") as stream:
            rows = list(csv.reader(stream))
        rows[frame] = [str(frame), status, NASTY]
        with path.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)
    score.run(tracks, root, results / "scores" / model / "toy-val.json", 200)


def write_training(adapter: Path, steps: int = 30) -> None:
    """An arm's log, examples and provenance; format and length never change, the KL is not logged."""
    rows = [
        {"step": k, "reward": k / 60, "iou": k / 60, "parsed": 1.0, "kl": None, "frac_reward_zero_std": 0.1 / k,
         "format": 0.0, "grad_norm": 1 / k, **({} if k % 10 else {"held_out_iou": k / 100, "held_out_parsed": 1.0})}
        for k in range(1, steps + 1)
    ]  # fmt: skip
    files.write_text(adapter / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    crop = Image.new("RGB", (84, 84), "#556677")
    for step in range(0, steps, 10):
        shown = [dict(rewards.score(text, TARGET, size=84), answer=text) for text in ANSWERS]
        progress.keep_example(adapter / "examples", step, [crop, crop], {"target": TARGET, "answers": shown})
    files.write_json(adapter / "provenance.json", record("train", quantize="none", train_seconds=90.0, kept=KEPT))


def small_run(folder: Path, sequences: int = 5, length: int = 12) -> tuple[Path, Path]:
    """A run whose base never moves and whose tuned model knows the truth; its folder and its split."""
    root, results = toy_split(folder / "toy" / "val", sequences=sequences, length=length), folder / "run"
    for stage in config.NEEDS:
        files.write_json(results / "config" / f"{stage}.json", config.stage_values(SETTINGS, stage))
    for peer in ("static", "template", "oracle"):
        track.run(SETTINGS, f"peer:{peer}", root, folder / "peers" / peer)
        stand_in(results, root, peer, peer)
    stand_in(results, root, "base", "static")
    stand_in(results, root, "grpo", "oracle")
    write_training(results / "adapters/grpo")
    merged = MergeRecord(pairs=64, agreement=0.984375, update_kept=1, base="tiny", onto="original")
    files.write_json(results / "models/grpo/merge.json", merged.model_dump())
    for model, wrong in (("base", 0), ("grpo", 2)):
        write_answers(results / "vqa" / model, wrong)
    verdict.run(SETTINGS, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    return results, root
