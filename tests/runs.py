"""Whole results folders in seconds, for tests of what reads them: peers track for the models, answers are made up."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from r1track.ability import records, verdict, vqa
from r1track.core import config, files, sequences
from r1track.core.provenance import Provenance
from r1track.core.records import MergeRecord
from r1track.reporting import report
from r1track.tracking import score, track

SETTINGS = config.resolve(
    {
        "preset": "demo", "score": {"draws": 200}, "report": {"strips": 1, "strip_frames": 2},
        "track": {"peers": ["static"]},
        "verdict": {"min_items": 20, "on_regression": "warn"},
    }
)  # fmt: skip
Boxes = Callable[[sequences.Sequence], np.ndarray]


def make_run(results: Path, root: Path, settings: config.Settings = SETTINGS, boxes: Boxes | None = None) -> Path:
    """A run whose base never moves and whose grpo knows the truth, or answers `boxes`; its report is not made yet.

    Where the settings train nothing, each third-party model knows the truth.
    """
    for stage in config.NEEDS:
        files.write_json(results / "config" / f"{stage}.json", config.stage_values(settings, stage))
    peers = {"static": "static", "base": "static"}
    if settings.train.arms:
        make_training(results, root, settings)
    for model, peer in (peers | dict.fromkeys(settings.train.arms or settings.track.extra, "oracle")).items():
        make_tracks(results, root, model, peer, settings, boxes if peer == "oracle" else None)
    for model, wrong in [("base", 0), ("grpo", 2)][: 1 + len(settings.train.arms)]:
        make_answers(results / "vqa" / model, wrong, settings)
    if settings.train.arms:
        verdict.run(settings, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    return results


def make_training(results: Path, root: Path, settings: config.Settings) -> None:
    """The pairs of a run, the adapter of grpo, and its merged model."""
    stage = {name: config.stage_values(settings, name) for name in config.NEEDS}
    listing, manifest = Provenance("sample", {"list": root / "list.txt"}), results / "pairs" / "manifest.json"
    files.write_json(manifest, {"settings": stage["sample"], "pairs": 8})
    listing.write(manifest.with_name("provenance.json"), notes={"settings": stage["sample"]})
    adapter, merged = results / "adapters" / "grpo", results / "models" / "grpo"
    trained = Provenance("train", {"pairs": manifest})
    summed = Provenance("merge", {"adapter": adapter, "pairs": manifest})
    rows = [{"step": k, "reward": k / 9, "iou": k / 9, "parsed": 1.0, "kl": None} for k in range(1, 10)]
    files.write_text(adapter / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    files.write_text(adapter / "adapter_model.safetensors", "weights")
    notes = {"quantize": "none", "train_seconds": 90.0, "settings": stage["train"]}
    trained.write(adapter / "provenance.json", seed=settings.seed, notes=notes)
    checked = MergeRecord(pairs=64, agreement=0.984375, update_kept=1, base="tiny", onto="original")
    files.write_json(merged / "merge.json", checked.model_dump())
    summed.write(merged / "provenance.json", notes={"settings": stage["merge"]})


def make_tracks(
    results: Path, root: Path, model: str, peer: str, settings: config.Settings, boxes: Boxes | None = None
) -> None:
    """Tracks of a model and their scores; boxes, if given, take the place of what the peer said."""
    out = results / "tracks" / model / "toy-val"
    track.run(settings, f"peer:{peer}", root, out)
    if boxes:
        record = Provenance("track", {"split": root})
        for sequence in sequences.read_split(root):
            np.savetxt(out / sequence.name / f"{sequence.name}_001.txt", boxes(sequence), fmt="%.3f", delimiter=",")
        record.write(out / "provenance.json", notes={"settings": config.stage_values(settings, "track")})
    score.run(out, root, results / "scores" / model / "toy-val.json", settings.score.draws)


def make_answers(folder: Path, wrong: int, settings: config.Settings) -> None:
    """Thirty answered questions, the first `wrong` of them wrongly."""
    record, rows = Provenance("vqa", {"model": folder / "weights"}), []
    for k in range(30):
        row = {"doc_id": str(k), "input": "Which colour?", "target": "red", "targets": ["red"], "metric": "exact"}
        answer = records.Answer(**row, image=str(k), filtered_resps="blue" if k < wrong else "red")
        rows.append(vqa.scored(answer))
    files.write_text(folder / "easy-vqa.jsonl", "".join(json.dumps(row.as_json()) + "\n" for row in rows))
    stage = config.stage_values(settings, "vqa")
    manifest = {"settings": stage, "sets": {"easy-vqa": vqa.figures(rows).as_json()}, "self": None, "kl": {}}
    files.write_json(folder / "manifest.json", manifest)
    record.write(folder / "provenance.json", notes={"settings": stage})


def make_report(results: Path) -> Path:
    """The report of a run, beside its results."""
    report.run(config.load(results / "config" / "report.json"), results, results / "report")
    return results / "report"
