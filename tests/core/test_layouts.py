"""Claims about the layouts of data sets: each is told from its files, read to the same boxes, and refused by line."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from toys import BOXES

from r1track.core.schema import Sample
from r1track.core.sequences import LAYOUTS, detect, read_sequence, read_split


def corners(boxes):
    """Four corners a row, turned by a little: the upright box around them is the box given."""
    rows = []
    for x, y, w, h in boxes:
        rows.append([x + 0.1 * w, y, x + w, y + 0.2 * h, x + 0.9 * w, y + h, x, y + 0.8 * h])
    return rows


def text(rows, separator=","):
    return "".join(separator.join(f"{v:g}" for v in row) + "\n" for row in rows)


def vatic(rows):
    return "".join(
        f'0 {x:g} {y:g} {x + w:g} {y + h:g} {t} {int(w < 0)} 0 0 "ball"\n' for t, (x, y, w, h) in enumerate(rows)
    )


GONE = [float("nan")] * 4
MIXED = [*BOXES, GONE, BOXES[0]]
# What a line of list.txt names, the frames' folder and first name from there, and the files beside them.
MADE = {
    "otb": ("clip", "img/0001.jpg", {"groundtruth_rect.txt": text(np.add(BOXES, [1, 1, 0, 0]), "\t")}),
    "lasot": (
        "ball/clip",
        "img/00000001.jpg",
        {
            "groundtruth.txt": text([*BOXES, [0, 0, 0, 0], BOXES[0]]),
            "full_occlusion.txt": "0,1,0,0,0",
            "out_of_view.txt": "0,0,0,1,0",
            "nlp.txt": "a red ball\n",
        },
    ),
    "tnl2k": ("clip", "imgs/00001.png", {"groundtruth.txt": text(BOXES), "language.txt": "a red ball"}),
    "vot": ("clip", "color/00000001.jpg", {"groundtruth.txt": text(corners(BOXES))}),
    "vot-flat": ("clip", "00000001.jpg", {"groundtruth.txt": text(corners(BOXES))}),
    "nfs": (
        "30/clip",
        "00001.jpg",
        {"../clip.txt": vatic([box for box in [*BOXES, [5, 5, -1, 5], *BOXES * 2] for _ in range(8)])},
    ),
    "trackingnet": ("frames/clip", "0.jpg", {"../../anno/clip.txt": text(BOXES)}),
    "uav123": ("data_seq/UAV123/clip", "000001.jpg", {"../../../anno/UAV123/clip.txt": text(MIXED)}),
}
ROWS = {"lasot": 5, "uav123": 5, "nfs": 10}


def write_clip(root: Path, layout: str) -> Path:
    """A sequence in a layout, whose frames are empty files; it is the only line of list.txt."""
    line, first, files = MADE[layout]
    folder = root / line
    start = Path(first)
    (folder / start).parent.mkdir(parents=True)
    for t in range(ROWS.get(layout, 3)):
        number = str(int(start.stem) + t).zfill(len(start.stem))
        (folder / start).with_stem(number).touch()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (root / "list.txt").write_text(f"{line}\n")
    return folder


@pytest.mark.parametrize("layout", MADE)
def test_every_layout_is_told_from_its_files_and_read_to_the_same_boxes(tmp_path, layout):
    folder = write_clip(tmp_path, layout)
    assert detect(folder) == layout
    (s,) = read_split(tmp_path)
    assert s.name == "clip"
    assert s.complete
    assert len(s.frames) == ROWS.get(layout, 3)
    assert all(path.is_file() for path in s.frames)
    np.testing.assert_allclose(s.boxes[:3], BOXES, atol=1e-9)
    expected = {"lasot": [0, 1, 0, 1, 0], "uav123": [0, 0, 0, 1, 0], "nfs": [0, 0, 0, 1, *[0] * 6]}.get(
        layout, [0, 0, 0]
    )
    assert s.absent.tolist() == [bool(gone) for gone in expected]
    assert (s.visibility[s.absent] == 0).all()
    assert np.isnan(s.visibility[~s.absent]).all()
    assert s.text == ("a red ball" if layout in ("lasot", "tnl2k") else None)
    assert np.isfinite(s.boxes).all()


def test_the_layouts_of_the_configuration_are_those_of_the_reader():
    assert get_args(Sample.model_fields["layout"].annotation) == ("auto", *LAYOUTS)
    assert {*MADE, "got10k"} == set(LAYOUTS)


def test_a_tracker_s_test_split_has_the_first_box_only(tmp_path):
    folder = write_clip(tmp_path, "trackingnet")
    (folder / "../../anno/clip.txt").write_text("10,10,20,20\n")
    (s,) = read_split(tmp_path)
    assert not s.complete
    assert s.boxes.shape == (1, 4)


def test_a_row_more_or_less_is_cut_off_in_nfs_alone(tmp_path):
    folder = write_clip(tmp_path, "nfs")
    (folder / "00011.jpg").touch()
    (s,) = read_split(tmp_path)
    assert len(s.frames) == len(s.boxes) == 10
    np.testing.assert_array_equal(s.boxes[4:7], BOXES)
    (folder / "00012.jpg").touch()
    (folder / "00013.jpg").touch()
    with pytest.raises(ValueError, match="80 rows for 13 frames"):
        read_sequence(folder, "nfs")
    folder = write_clip(tmp_path / "other", "otb")
    (folder / "img" / "0004.jpg").touch()
    with pytest.raises(ValueError, match="3 rows for 4 frames"):
        read_sequence(folder, "otb")


def test_a_folder_of_no_layout_and_a_wrong_guess_say_what_was_looked_for(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "list.txt").write_text("clip\n")
    with pytest.raises(ValueError, match="no frames with boxes; looked for") as caught:
        read_split(tmp_path)
    assert all(f"{frames} with {truth} ({name})" in str(caught.value) for name, (frames, truth, _) in LAYOUTS.items())
    folder = write_clip(tmp_path / "other", "vot")
    with pytest.raises(ValueError, match=r"clip: no frames \(img/\*\.jpg, \.jpeg, \.png, \.webp, \.bmp\); restore"):
        read_sequence(folder, "otb")
    folder = write_clip(tmp_path / "third", "lasot")
    with pytest.raises(
        FileNotFoundError, match=r"groundtruth_rect\.txt: no such file, which layout otb needs; .*sample"
    ):
        read_sequence(folder, "otb")
    folder = write_clip(tmp_path / "fourth", "vot-flat")
    with pytest.raises(ValueError, match=r"groundtruth\.txt, line 1: expected 4 finite numbers"):
        read_sequence(folder, "got10k")


ROW_FAULTS = {
    "words": (
        "otb",
        "groundtruth_rect.txt",
        "1 2 3 4\n1 two 3 4\n1 2 3 4\n",
        r"line 2: no box of layout otb: '1 two 3 4'",
    ),
    "an infinity": ("otb", "groundtruth_rect.txt", "1 2 3 inf\n" * 3, r"line 1: no box of layout otb"),
    "eight numbers": ("otb", "groundtruth_rect.txt", text(corners(BOXES)), r"line 1: no box of layout otb"),
    "a mask": ("vot", "groundtruth.txt", "m0,0,2,2,0,4\n" * 3, r"line 1: no box of layout vot: 'm0,0,2,2,0,4'"),
    "short rows": ("nfs", "../clip.txt", "0 1 2 3\n" * 4, r"line 1: no box of layout nfs"),
    "a short flag file": ("lasot", "out_of_view.txt", "0,0,1", r"out_of_view\.txt: 3 rows for 5 frames"),
    "a flag of two": ("lasot", "full_occlusion.txt", "0,0,2,0,0", r"full_occlusion\.txt, line 3: .* not one of 0 to 1"),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_damaged_annotation_of_other_layouts_is_refused_with_file_and_line(tmp_path, fault):
    layout, name, content, message = ROW_FAULTS[fault]
    folder = write_clip(tmp_path, layout)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sequence(folder, layout)
