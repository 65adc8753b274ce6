"""Claims about OpenCV's CSRT among the peers."""

import csv
from pathlib import Path

import pytest
from PIL import Image
from toys import REAL, bare_sequence, needs_real, toy_split

from r1track.core import config, schema
from r1track.core.sequences import read_split
from r1track.tracking import score, track
from r1track.tracking.track_files import read_track


def settings(size: int = 84, batch: int = 3) -> config.Settings:
    return config.Settings(task=schema.Task(size=size), track=schema.Track(batch=batch))


def test_csrt_follows_its_targets_each_with_a_state_of_its_own(tmp_path: Path) -> None:
    toy = toy_split(tmp_path / "val")
    for batch in (1, 3):
        track.run(settings(batch=batch), "peer:csrt", toy, tmp_path / str(batch))
    track.run(settings(), "peer:static", toy, tmp_path / "static")
    assert score.score(tmp_path / "3", toy, 100).ao > score.score(tmp_path / "static", toy, 100).ao + 0.2
    for sequence in read_split(toy):
        file = Path(sequence.name) / f"{sequence.name}_001.txt"
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "3" / file).read_bytes()


def test_a_target_too_small_for_csrt_is_held(tmp_path: Path) -> None:
    folder = bare_sequence(tmp_path / "set", "clip", [[10, 10, 1, 1]] * 3)
    for frame in folder.glob("*.jpg"):
        Image.new("RGB", (100, 80)).save(frame)
    track.run(settings(), "peer:csrt", tmp_path / "set", tmp_path / "out")
    assert read_track(tmp_path / "out", "clip").statuses == ["init", "held", "held"]


@needs_real
def test_on_real_clips_csrt_scores_what_is_known_of_it(tmp_path: Path) -> None:
    clips = ("vot_book", "otb_diving")
    (tmp_path / "real").symlink_to(REAL)
    (tmp_path / "list.txt").write_text("".join(f"real/{clip}\n" for clip in clips))
    with (REAL / "baselines.csv").open() as stream:
        known = {r["sequence"]: float(r["AO"]) for r in csv.DictReader(stream) if r["tracker"] == "CSRT"}
    track.run(settings(size=336), "peer:csrt", tmp_path, tmp_path / "out")
    scores = score.score(tmp_path / "out", tmp_path, 100).sequences
    assert {clip: scores[clip].ao for clip in clips} == pytest.approx({clip: known[clip] for clip in clips}, abs=1e-3)
