"""Claims about the reader: what is read as it stands, and what is refused with file, line, value and remedy."""

import numpy as np
import pytest
from toys import REAL, bare_sequence, needs_real, toy_split

from r1track.sequences import read_split
from r1track.toy.world import HEIGHT, WIDTH

BOXES = [[10, 10, 20, 20], [11, 10, 20, 20], [12, 10, 20, 20]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_split(tmp_path_factory.mktemp("toy") / "val", sequences=6, length=24)


def test_a_toy_split_reads_back_as_it_was_written(toy):
    found = read_split(toy)
    assert [s.name for s in found] == (toy / "list.txt").read_text().split()
    for s in found:
        folder = toy / s.name
        assert s.frames == tuple(sorted(folder.glob("*.jpg")))
        np.testing.assert_array_equal(s.boxes, np.loadtxt(folder / "groundtruth.txt", delimiter=","))
        np.testing.assert_array_equal(s.visibility * 8, np.loadtxt(folder / "cover.label"))
        np.testing.assert_array_equal(s.absent, np.loadtxt(folder / "absence.label") == 1)
        assert s.text == f"{s.meta['major_class']} {s.meta['object_class']}"
        assert s.resolution() == (WIDTH, HEIGHT)
        assert s.complete
    assert any(s.absent.any() for s in found)


def test_lines_of_the_list_may_be_paths_and_the_last_part_is_the_name(tmp_path):
    bare_sequence(tmp_path / "deep" / "down", "clip", BOXES)
    root = tmp_path / "split"
    root.mkdir()
    (root / "list.txt").write_text("../deep/down/clip\n\n")
    assert [s.name for s in read_split(root)] == ["clip"]


def test_labels_are_optional_and_their_absence_is_unknown_visibility(tmp_path):
    bare_sequence(tmp_path, "clip", [*BOXES, [-1, -1, -1, -1]])
    (s,) = read_split(tmp_path)
    assert s.absent.tolist() == [False, False, False, True]
    assert np.isnan(s.visibility[:3]).all()
    assert s.visibility[3] == 0
    assert s.text is None


def test_a_cover_file_of_nothing_but_zeros_is_unknown(tmp_path):
    bare_sequence(tmp_path, "clip", BOXES, cover=[0, 0, 0])
    assert np.isnan(read_split(tmp_path)[0].visibility).all()


def test_one_row_of_ground_truth_is_a_test_sequence(tmp_path):
    folder = bare_sequence(tmp_path, "clip", BOXES)
    (folder / "groundtruth.txt").write_text("10,10,20,20\n")
    (s,) = read_split(tmp_path)
    assert s.boxes.shape == (1, 4)
    assert s.absent.shape == s.visibility.shape == (3,)
    assert not s.complete


def test_frames_are_ordered_by_number(tmp_path):
    folder = bare_sequence(tmp_path, "clip", BOXES)
    for old, new in (("00000003", "11"), ("00000002", "10"), ("00000001", "9")):
        (folder / f"{old}.jpg").rename(folder / f"{new}.jpg")
    assert [p.stem for p in read_split(tmp_path)[0].frames] == ["9", "10", "11"]


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def delete(name):
    return lambda folder: (folder / name).unlink()


DAMAGE = {
    "no list": (delete("../list.txt"), r"list\.txt: no such file; give a split's folder"),
    "empty list": (write("../list.txt", "\n \n"), r"list\.txt: names no sequence; write one folder"),
    "missing folder": (write("../list.txt", "clip\ngone\n"), r"list\.txt, line 2: no folder .*gone; unpack it"),
    "the same name twice": (write("../list.txt", "clip\n./clip\n"), r"list\.txt, line 2: the name 'clip' stands twice"),
    "no ground truth": (delete("groundtruth.txt"), r"groundtruth\.txt: no such file; restore"),
    "empty ground truth": (write("groundtruth.txt", ""), r"groundtruth\.txt: 0 rows for 3 frames"),
    "short ground truth": (write("groundtruth.txt", "1,2,3,4\n" * 2), r"groundtruth\.txt: 2 rows for 3 frames; write"),
    "long ground truth": (write("groundtruth.txt", "1,2,3,4\n" * 4), r"groundtruth\.txt: 4 rows for 3 frames; write"),
    "words": (write("groundtruth.txt", "1,2,3,4\n1,two,3,4\n"), r"groundtruth\.txt, line 2: .*'1,two,3,4'; restore"),
    "NaN": (write("groundtruth.txt", "1,2,3,4\n1,2,3,4\n1,nan,3,4\n"), r"groundtruth\.txt, line 3: .*finite"),
    "three columns": (write("groundtruth.txt", "1,2,3\n" * 3), r"groundtruth\.txt, line 1: expected 4 finite numbers"),
    "no frames": (lambda folder: [p.unlink() for p in folder.glob("*.jpg")], r"clip: no frames .*; restore"),
    "a frame missing": (delete("00000002.jpg"), r"00000003\.jpg: follows frame 1, some are missing; restore"),
    "a stray image": (write("cover.jpg", ""), r"cover\.jpg: not a numbered frame; delete it"),
    "short labels": (write("absence.label", "0\n0\n"), r"absence\.label: 2 rows for 3 frames; restore or delete"),
    "cover of nine": (write("cover.label", "8\n9\n8\n"), r"cover\.label, line 2: 9 is not one of 0 to 8; restore"),
    "half an absence": (write("absence.label", "0\n0\n0.5\n"), r"absence\.label, line 3: 0\.5 is not one of 0 to 1"),
    "an unreadable label": (write("cover.label", "8\nx\n8\n"), r"cover\.label, line 2: expected one finite number"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damaged_input_is_refused_with_file_and_remedy(tmp_path, fault):
    damage, message = DAMAGE[fault]
    damage(bare_sequence(tmp_path, "clip", BOXES))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_split(tmp_path)


@needs_real
def test_the_real_clips_read():
    found = {s.name: s for s in read_split(REAL)}
    assert len(found) == 6
    assert sum(len(s.frames) for s in found.values()) == 552
    assert found["vot_book"].resolution() == (640, 480)
    assert all(s.complete and not s.absent.any() and (s.visibility == 1).all() for s in found.values())
