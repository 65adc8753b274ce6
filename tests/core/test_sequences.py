"""Claims about the reader: what is read as it stands, and what is refused with file, line, value and remedy."""

import shutil

import numpy as np
import pytest
from toys import BOXES, REAL, bare_sequence, needs_real, toy_split

from r1track.core.errors import UserError
from r1track.core.sequences import read_list, read_split
from r1track.data.toy import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_split(tmp_path_factory.mktemp("toy") / "val", sequences=6, length=24)


def test_a_toy_split_reads_back_as_it_was_written(toy):
    sequences = read_split(toy)
    assert [s.name for s in sequences] == (toy / "list.txt").read_text().split()
    for s in sequences:
        folder = toy / s.name
        assert s.frames == tuple(sorted(folder.glob("*.jpg")))
        np.testing.assert_array_equal(s.boxes, np.loadtxt(folder / "groundtruth.txt", delimiter=","))
        np.testing.assert_array_equal(s.visibility * 8, np.loadtxt(folder / "cover.label"))
        np.testing.assert_array_equal(s.absent, np.loadtxt(folder / "absence.label") == 1)
        assert not s.cut.any()
        assert s.text == f"{s.meta['major_class']} {s.meta['object_class']}"
        assert s.resolution() == (WIDTH, HEIGHT)
        assert s.complete
    assert any(s.absent.any() for s in sequences)


def test_lines_of_the_list_may_be_paths_and_the_last_part_is_the_name(tmp_path):
    bare_sequence(tmp_path / "deep" / "down", "clip", BOXES)
    (tmp_path / "list.txt").write_text("deep/down/clip\n\n")
    assert [s.name for s in read_split(tmp_path)] == ["clip"]


def test_a_link_in_the_split_leads_where_its_owner_wants(tmp_path):
    bare_sequence(tmp_path / "elsewhere", "clip", BOXES)
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "mine").symlink_to("../elsewhere/clip")
    (tmp_path / "split" / "list.txt").write_text("mine\n")
    assert [s.name for s in read_split(tmp_path / "split")] == ["mine"]


@pytest.mark.parametrize(
    "line", ["../clip", "..", "a/../../clip", "/clip", "{root}/clip", "cl\0ip", "\x1b[31mclip", "x/..", "."]
)
def test_no_line_of_the_list_leads_out_of_its_folder(line, tmp_path):
    bare_sequence(tmp_path, "clip", BOXES)
    (tmp_path / "list.txt").write_text("clip\n" + line.format(root=tmp_path))
    with pytest.raises(UserError, match=r"list\.txt, line 2: .* is no path below .*; name a folder there, or a link"):
        read_split(tmp_path)


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


def test_frames_in_which_the_border_cuts_the_target_are_known_by_their_label(tmp_path):
    folder = bare_sequence(tmp_path, "clip", BOXES)
    (folder / "cut_by_image.label").write_text("0\n1\n0\n")
    assert read_split(tmp_path)[0].cut.tolist() == [False, True, False]


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


def test_annotation_is_read_in_any_encoding_with_a_mark_and_with_any_separator(tmp_path):
    folder = bare_sequence(tmp_path, "clip", BOXES, cover=[8, 8, 4])
    (folder / "nlp.txt").write_text("a red ball")
    (expected,) = read_split(tmp_path)
    paths = (*folder.glob("*.t*"), *folder.glob("*.label"), tmp_path / "list.txt")
    texts = {path: path.read_text().replace(",", "\t").replace("\n", "\r\n") for path in paths}
    for encoding in ("utf-8-sig", "utf-16"):
        for path, text in texts.items():
            path.write_bytes(text.encode(encoding))
        (s,) = read_split(tmp_path)
        np.testing.assert_array_equal(s.boxes, expected.boxes)
        np.testing.assert_array_equal(s.visibility, expected.visibility)
        assert (s.name, s.text) == ("clip", "a red ball")


def test_frames_may_have_any_usual_suffix_in_any_case_and_a_name_before_their_number(tmp_path):
    folder = bare_sequence(tmp_path, "clip", BOXES)
    for number, name in enumerate(("frame_0009.JPG", "frame_0010.jpeg", "frame_0011.jpg"), 1):
        (folder / f"{number:08d}.jpg").rename(folder / name)
    for beside in ("._frame_0009.jpg", "frame_0009.png", "mask.png", "frame_12.txt"):  # hidden, other kinds
        (folder / beside).touch()
    assert [p.name for p in read_split(tmp_path)[0].frames] == ["frame_0009.JPG", "frame_0010.jpeg", "frame_0011.jpg"]


DAMAGE = {
    "a number twice": (write("2.jpg", ""), r"2\.jpg: follows frame 2, as it does; delete one"),
    "names of two kinds": (write("frame_4.jpg", ""), r"frame_4\.jpg: not a numbered frame; .* name all frames alike"),
    "a huge box": (write("groundtruth.txt", "1,2,3,4\n1,2,1e200,4\n"), r"groundtruth\.txt, line 2: .* up to 1e\+06"),
    "an empty field": (write("groundtruth.txt", "1,2,3,4\n1,,3,4\n"), r"groundtruth\.txt, line 2: .*'1,,3,4'"),
    "underscores": (write("groundtruth.txt", "1,2,3,4\n1,2,3_0,4\n"), r"groundtruth\.txt, line 2: .*'1,2,3_0,4'"),
    "Latin-1": (
        lambda folder: (folder / "nlp.txt").write_bytes("grüner Ball".encode("latin-1")),
        r"nlp\.txt: byte 2 is no UTF-8; save the file as UTF-8",
    ),
    "a description without end": (write("nlp.txt", "a" * 2001), r"nlp\.txt: 2001 characters; describe the target in"),
    "a device as labels": (
        lambda folder: (folder / "cover.label").symlink_to("/dev/zero"),
        r"cover\.label: no such file; restore",
    ),
    "no split": (lambda folder: shutil.rmtree(folder.parent), r"list\.txt: no such file; give a split's folder"),
    "empty list": (write("../list.txt", "\n \n"), r"list\.txt: names no sequence; write one folder"),
    "missing folder": (
        write("../list.txt", "clip\ngone\n"),
        r"list\.txt, line 2: no folder .*gone; unpack it .*1 of 2 are",
    ),
    "the same name twice": (write("../list.txt", "clip\n./clip\n"), r"list\.txt, line 2: the name 'clip' stands twice"),
    "no ground truth": (
        delete("groundtruth.txt"),
        r"clip: no frames with boxes; .*groundtruth\.txt \(got10k\), .*; restore",
    ),
    "cut of two": (write("cut_by_image.label", "0\n2\n0\n"), r"cut_by_image\.label, line 2: 2 is not one of 0 to 1"),
    "empty ground truth": (write("groundtruth.txt", ""), r"groundtruth\.txt: 0 rows for 3 frames"),
    "short ground truth": (write("groundtruth.txt", "1,2,3,4\n" * 2), r"groundtruth\.txt: 2 rows for 3 frames; write"),
    "long ground truth": (write("groundtruth.txt", "1,2,3,4\n" * 4), r"groundtruth\.txt: 4 rows for 3 frames; write"),
    "words": (write("groundtruth.txt", "1,2,3,4\n1,two,3,4\n"), r"groundtruth\.txt, line 2: .*'1,two,3,4'; restore"),
    "NaN": (write("groundtruth.txt", "1,2,3,4\n1,2,3,4\n1,nan,3,4\n"), r"groundtruth\.txt, line 3: .*finite"),
    "three columns": (write("groundtruth.txt", "1,2,3\n" * 3), r"groundtruth\.txt, line 1: expected 4 finite numbers"),
    "no frames": (lambda folder: [p.unlink() for p in folder.glob("*.jpg")], r"clip: no frames .*; restore"),
    "a frame missing": (delete("00000002.jpg"), r"00000003\.jpg: follows frame 1, some are missing; restore"),
    "a frame of another kind": (
        lambda folder: (folder / "00000002.jpg").rename(folder / "00000002.png"),
        r"00000002\.png: a frame that is no \.jpg, as the others are; convert it",
    ),
    "a frame more of another kind": (write("4.PNG", ""), r"4\.PNG: a frame that is no \.jpg, as the others are; conv"),
    "no target as NaN": (write("groundtruth.txt", "nan,nan,nan,nan\n" * 3), r"line 1: .*without the target has -1,-1,"),
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


def test_the_list_alone_is_read_without_a_look_into_the_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("empty\n")
    assert read_list(tmp_path) == {"empty": tmp_path / "empty"}


@needs_real
def test_the_real_clips_read():
    sequences = {s.name: s for s in read_split(REAL)}
    assert len(sequences) == 6
    assert sum(len(s.frames) for s in sequences.values()) == 552
    assert sequences["vot_book"].resolution() == (640, 480)
    assert all(s.complete and not s.absent.any() and (s.visibility == 1).all() for s in sequences.values())
