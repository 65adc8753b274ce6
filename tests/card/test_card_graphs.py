"""Tracking and rollouts over Unsloth, with decoding replayed from CUDA graphs: the same tracks, the same training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from card_runs import settings
from safetensors.torch import load_file
from toys import toy_split

from r1track.core import config, files, generation
from r1track.tracking import predictors, track
from r1track.training import train


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that are replayed, one after another."""
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(graph) or replay(graph))
    return replays


def test_tracks_with_graphs_are_those_without(tmp_path: Path, replays: list[Any]) -> None:
    """Sequences of unequal length, so that the batch shrinks."""
    split = toy_split(tmp_path / "toy", sequences=3)
    clip = sorted(path for path in split.iterdir() if path.is_dir())[0]
    for frame in sorted(clip.glob("*.jpg"))[4:]:
        frame.unlink()
    for file in clip.glob("*.*"):
        if file.suffix in {".txt", ".label"} and file.name != "nlp.txt":
            file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    tracks = {}
    for graphs in (False, True):
        values = {"preset": "demo", "track": {"graphs": graphs, "batch": 3}}
        settings = predictors.settings_for(config.resolve(values), "tiny")
        track.run(settings, "tiny", split, tmp_path / str(graphs))
        tracks[graphs] = [file.read_bytes() for file in sorted((tmp_path / str(graphs)).glob("*/*_001.txt"))]
        assert bool(replays) is graphs
    assert len(tracks[True]) == 3
    assert tracks[True] == tracks[False]
    assert len(set(replays)) == 2, "one graph for three rows, and one for the two that go on"


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_training_with_graphs_draws_the_same_completions(
    quantize: str, pairs: Path, tmp_path: Path, replays: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rows are dropped here: with graphs others stay, and the draws would be in another order."""
    decode = generation.Decoder.decode
    monkeypatch.setattr(
        generation.Decoder, "decode", lambda self, *args, **named: decode(self, *args, **{**named, "drop": False})
    )
    adapters, rows = {}, {}
    for graphs in (False, True):
        run = settings(dtype="float32", quantize=quantize, graphs=graphs, steps=3, learning_rate=1e-2)
        out = tmp_path / str(graphs)
        train.run(run, "grpo", "tiny", pairs, out / "scratch", out / "adapter")
        adapters[graphs] = load_file(out / "adapter" / "adapter_model.safetensors")
        rows[graphs] = [json.loads(line) for line in (out / "adapter" / "log.jsonl").read_text().splitlines()]
        assert files.read_json(out / "adapter" / "provenance.json")["backend"] == "unsloth"
        assert bool(replays) is graphs
    for name in ("reward", "length", "entropy"):
        assert [row.get(name) for row in rows[True]] == pytest.approx([row.get(name) for row in rows[False]], rel=1e-4)
    for name, weights in adapters[False].items():
        assert torch.allclose(adapters[True][name], weights, rtol=1e-3, atol=1e-5), name
    assert len({row.get("reward") for row in rows[True]}) > 2, "the model moves between rollouts"
    assert len(set(replays)) == 1, "recorded once, for all rollouts"
