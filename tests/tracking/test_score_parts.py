"""Claims about parts of a score: frames without a target, sequences of a length, sequences with an attribute."""

import numpy as np
import pytest
from PIL import Image
from toys import bare_sequence
from tracks import SIZE, scored, write_track

from r1track.core.sequences import read_split
from r1track.tracking import score


def test_presence_is_precision_and_recall_of_the_status_absent_against_the_labels(tmp_path):
    """Two sequences: of 5 absent frames 2 are called so, and of 3 frames that are called so 2 are absent."""
    box, statuses = [10, 10, 20, 20], {"a": "init ok absent absent held ok", "b": "init ok held absent failed ok"}
    for name, cover in {"a": [8, 8, 0, 0, 0, 8], "b": [8, 8, 0, 8, 0, 8]}.items():
        truth = [box if eighths else [-1] * 4 for eighths in cover]
        folder = bare_sequence(tmp_path / "set", name, truth, cover=cover)
        (folder / "absence.label").write_text("".join(f"{int(eighths == 0)}\n" for eighths in cover))
        write_track(tmp_path / "t" / "s", name, [box] * 6, status=statuses[name].split())
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert figures["presence"] == {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 5), "frames": 5}
    counts = {name: (row["absent"], row["absent_found"]) for name, row in figures["sequences"].items()}
    assert counts == {"a": (3, 2), "b": (2, 0)}
    for name in statuses:
        status = tmp_path / "t" / "s" / name / f"{name}_status.csv"
        status.write_text(status.read_text().replace("absent", "held"))
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert figures["presence"] == {"precision": None, "recall": 0.0, "frames": 5}


@pytest.mark.parametrize("reason", ["full_occlusion", "out_of_view"])
def test_lasots_two_labels_count_as_absent(reason, tmp_path):
    folder = tmp_path / "set" / "cat" / "cat-1"
    (folder / "img").mkdir(parents=True)
    for t in range(1, 5):
        Image.new("RGB", SIZE).save(folder / "img" / f"{t:08d}.jpg")
    (folder / "groundtruth.txt").write_text("10,10,20,20\n" * 4)
    (folder / f"{reason}.txt").write_text("0,0,1,1")
    (tmp_path / "set" / "list.txt").write_text("cat/cat-1\n")
    write_track(tmp_path / "t" / "s", "cat-1", [[10, 10, 20, 20]] * 4, status=["init", "absent", "absent", "ok"])
    assert scored(tmp_path / "t" / "s", tmp_path / "set", 100)["presence"] == {
        "precision": 0.5, "recall": 0.5, "frames": 2,
    }  # fmt: skip


def test_presence_is_null_where_no_frame_is_absent_or_a_track_has_no_statuses(tmp_path):
    box = [10, 10, 20, 20]
    bare_sequence(tmp_path / "all", "a", [box] * 3)
    write_track(tmp_path / "t" / "all", "a", [box] * 3, status=["init", "ok", "absent"])
    assert scored(tmp_path / "t" / "all", tmp_path / "all", 100)["presence"] is None
    bare_sequence(tmp_path / "some", "a", [box, [-1] * 4, box], cover=[8, 0, 8])
    write_track(tmp_path / "t" / "some", "a", [box] * 3)
    assert scored(tmp_path / "t" / "some", tmp_path / "some", 100)["presence"] is None


def test_sequences_are_grouped_by_their_length(tmp_path):
    for name, length in (("a", 100), ("b", 101), ("c", 301)):
        truth = [[0, 0, 10, 10]] * length
        bare_sequence(tmp_path / "set", name, truth)
        write_track(tmp_path / "t" / "s", name, [[0, 0, 10, {"a": 10, "b": 5, "c": 2}[name]]] * length)
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)["lengths"]
    assert {name: group["ao"] for name, group in figures.items()} == pytest.approx(
        {"to 100 frames": 1, "101 to 300": 0.5, "301 to 1000": 0.2}
    )


STILL = [[20.0, 20, 20, 20]] * 5
HARD = {
    "nothing": ([*STILL[:3], [39, 20, 20, 20], [39, 20, 20, 20]], {}, []),  # by 19 pixels, below its size of 20
    "fast": ([*STILL[:3], [32, 37, 20, 20], [32, 37, 20, 20]], {}, ["fast motion"]),  # by 20.8
    "fast by its own size": ([[20, 20, 40, 10], [20, 20, 40, 10], [20, 41, 40, 10]], {}, ["fast motion"]),
    "twice": ([*STILL, [20, 20, 20, 40]], {}, []),  # twice the area and half the aspect are the limits themselves
    "larger": ([*STILL, [20, 20, 29, 29]], {}, ["scale change"]),
    "smaller": ([*STILL, [20, 20, 14, 14]], {}, ["scale change"]),
    "wider": ([*STILL, [20, 20, 29, 14]], {}, ["aspect change"]),
    "taller": ([*STILL, [20, 20, 14, 29]], {}, ["aspect change"]),
    "hidden": (STILL, {"cover": [8, 8, 7, 8, 8]}, ["occlusion"]),
    "seen": (STILL, {"cover": [8] * 5}, []),
    "cut": (STILL, {"cut_by_image": [0, 0, 0, 1, 0]}, ["out of view"]),
    "gone and far away": ([*STILL[:2], [-1, -1, -1, -1], [80, 60, 20, 20]], {"absence": [0, 0, 1, 0]}, ["out of view"]),
}


@pytest.mark.parametrize("name", HARD)
def test_attributes_are_found_from_the_annotation(tmp_path, name):
    truth, labels, expected = HARD[name]
    folder = bare_sequence(tmp_path / "set", "a", truth)
    for label, values in labels.items():
        (folder / f"{label}.label").write_text("".join(f"{value}\n" for value in values))
    (sequence,) = read_split(tmp_path / "set")
    assert score.attributes(sequence) == expected


def test_ao_by_attribute_is_the_mean_over_the_sequences_that_have_it(tmp_path):
    for name, height in {"fast": 10, "larger": 20, "hidden": 5, "cut": 20}.items():
        truth, labels, _ = HARD[name]
        truth = [*truth[:-1], [20, 20, 29, 29]] if name == "cut" else truth
        folder = bare_sequence(tmp_path / "set", name, truth)
        for label, values in labels.items():
            (folder / f"{label}.label").write_text("".join(f"{value}\n" for value in values))
        guess = np.array(truth, dtype=float)
        guess[1:, 3] *= height / 20
        write_track(tmp_path / "t" / "s", name, guess)
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert {name: (group["ao"], group["sequences"]) for name, group in figures["attributes"].items()} == {
        "fast motion": (pytest.approx(0.5), 1), "occlusion": (pytest.approx(0.25), 1),
        "out of view": (pytest.approx(1), 1), "scale change": (pytest.approx(1), 2),
    }  # fmt: skip
    assert figures["sequences"]["cut"]["attributes"] == ["scale change", "out of view"]
