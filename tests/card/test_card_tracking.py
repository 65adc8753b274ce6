"""Tracking with passes replayed from CUDA graphs (track.graphs), over the emulated card: the same tracks."""

from pathlib import Path

import pytest
import torch
from toys import toy_split

from r1track.core import config
from r1track.tracking import predictors, track


def test_tracks_with_graphs_are_those_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of unequal length, so that the batch shrinks."""
    split = toy_split(tmp_path / "toy", sequences=3)
    clip = sorted(path for path in split.iterdir() if path.is_dir())[0]
    for frame in sorted(clip.glob("*.jpg"))[4:]:
        frame.unlink()
    for file in clip.glob("*.*"):
        if file.suffix in {".txt", ".label"} and file.name != "nlp.txt":
            file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    tracks, replays, replay = {}, [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(graph) or replay(graph))
    for graphs in (False, True):
        values = {"preset": "demo", "track": {"graphs": graphs, "batch": 3}}
        settings = predictors.settings_for(config.resolve(values), "tiny")
        track.run(settings, "tiny", split, tmp_path / str(graphs))
        tracks[graphs] = [file.read_bytes() for file in sorted((tmp_path / str(graphs)).glob("*/*_001.txt"))]
        assert bool(replays) is graphs
    assert len(tracks[True]) == 3
    assert tracks[True] == tracks[False]
    assert len(set(replays)) == 2, "one graph for three rows, and one for the two that go on"
