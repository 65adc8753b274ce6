"""Claims about the submission: what the server takes, and that what it would refuse is refused here."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from toys import bare_sequence

from r1track.core.errors import UserError
from r1track.tracking import submit

LENGTHS = {name: 2 + number % 3 for number, name in enumerate(submit.NAMES)}


@pytest.fixture(scope="module")
def test_split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tracks of a test split, and the split."""
    place = tmp_path_factory.mktemp("submit")
    tracks, root = place / "tracks", place / "test"
    for number, (name, length) in enumerate(LENGTHS.items()):
        boxes = np.column_stack([np.full((length, 2), 10.25 + number), np.full((length, 2), 20)])
        folder = bare_sequence(root, name, boxes)
        (folder / "groundtruth.txt").write_text(f"{10.25 + number:.4f},{10.25 + number:.4f},20.0000,20.0000\n")
        (tracks / name).mkdir(parents=True)
        np.savetxt(tracks / name / f"{name}_001.txt", boxes, fmt="%.3f", delimiter=",")
        np.savetxt(tracks / name / f"{name}_time.txt", np.full(length, 0.125), fmt="%.8f")
        (tracks / name / f"{name}_status.csv").write_text("frame,status,answer\n")
    return tracks, root


@pytest.fixture(scope="module")
def whole(test_split: tuple[Path, Path]) -> Path:
    tracks, root = test_split
    submit.run(tracks, root.parent / "base.zip", root)
    return root.parent / "base.zip"


def test_the_zip_holds_boxes_and_times_of_the_180_sequences_at_its_root_and_nothing_else(
    test_split: tuple[Path, Path], whole: Path
) -> None:
    with zipfile.ZipFile(whole) as archive:
        assert sorted(archive.namelist()) == sorted(
            f"GOT-10k_Test_{n:06d}/GOT-10k_Test_{n:06d}_{part}.txt" for n in range(1, 181) for part in ("001", "time")
        )
        for name in (submit.NAMES[0], submit.NAMES[-1]):
            assert archive.read(f"{name}/{name}_001.txt") == (test_split[0] / name / f"{name}_001.txt").read_bytes()
    assert whole.with_name("base.zip.provenance.json").is_file()


def test_without_the_split_the_form_alone_is_checked(test_split: tuple[Path, Path], tmp_path: Path) -> None:
    submit.run(test_split[0], tmp_path / "base.zip")
    submit.verify(tmp_path / "base.zip")


NAME = submit.NAMES[7]
ROWS = f"{NAME}/{NAME}_001.txt", f"{NAME}/{NAME}_time.txt"
FAULTS = {
    "spaces": ({ROWS[0]: "1.000, 2.000, 3.000, 4.000\n"}, r"_001\.txt, line 1: '1\.000, 2\.000"),
    "tabs": ({ROWS[0]: "1.000\t2.000\t3.000\t4.000\n"}, r"_001\.txt, line 1: "),
    "two decimals": ({ROWS[0]: "17.250,17.250,20.000,20.000\n1.00,2.00,3.00,4.00\n"}, r"_001\.txt, line 2: '1\.00"),
    "three numbers": ({ROWS[0]: "1.000,2.000,3.000\n"}, r"_001\.txt, line 1: "),
    "not a number": ({ROWS[0]: "nan,nan,nan,nan\n"}, r"_001\.txt, line 1: 'nan"),
    "no extent": ({ROWS[0]: "17.250,17.250,20.000,20.000\n0.000,0.000,0.000,0.000\n0.0,\n"}, r"line 3"),
    "zeros": ({ROWS[0]: "17.250,17.250,20.000,20.000\n0.000,0.000,0.000,0.000\n" * 2}, r"lacks boxes, their extent"),
    "no boxes": ({ROWS[0]: ""}, r"lacks boxes, their extent, or times"),
    "short times": ({ROWS[1]: "0.125\n"}, r"lacks boxes, their extent, or times"),
    "two runs": ({ROWS[1]: "0.1,0.1\n" * 3}, r"_time\.txt, line 1: '0\.1,0\.1'"),
    "a missing file": ({ROWS[1]: None}, r"_time\.txt is missing; track the test split"),
    "a stray file": ({f"{NAME}/{NAME}_status.csv": ""}, r"_status\.csv is too much"),
    "a folder above": ({"base/GOT-10k_Test_000001/GOT-10k_Test_000001_001.txt": ""}, r"is too much"),
    "another first box": (
        {ROWS[0]: "17.350,17.250,20.000,20.000\n" * LENGTHS[NAME]}, r"another first box or length than in"
    ),
    "another length": (
        {ROWS[0]: "17.250,17.250,20.000,20.000\n" * 9, ROWS[1]: "0.1\n" * 9}, r"another first box or length than in"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_server_would_refuse_is_refused_with_its_place(
    fault: str, test_split: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    changes, message = FAULTS[fault]
    odd = tmp_path / "odd.zip"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(odd, "w") as target:
        contents = {name: source.read(name).decode() for name in source.namelist()} | changes
        for name, text in contents.items():
            if text is not None:
                target.writestr(name, text)
    with pytest.raises(ValueError, match=message):
        submit.verify(odd, test_split[1])


def test_refused_tracks_leave_no_zip(test_split: tuple[Path, Path], tmp_path: Path) -> None:
    tracks = tmp_path / "tracks"
    shutil.copytree(test_split[0], tracks)
    (tracks / NAME / f"{NAME}_001.txt").write_text("0.000,0.000,0.000,0.000\n" * LENGTHS[NAME])
    with pytest.raises(ValueError, match="from boxes"):
        submit.run(tracks, tmp_path / "out" / "base.zip", test_split[1])
    assert not list((tmp_path / "out").iterdir())


def test_tracks_of_another_split_are_refused(test_split: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "Toy").mkdir()
    (tmp_path / "Toy" / "Toy_001.txt").write_text("1.000,2.000,3.000,4.000\n")
    with pytest.raises(ValueError, match=r"GOT-10k_Test_000001_001\.txt: no such file; track the test split"):
        submit.run(tmp_path, tmp_path / "base.zip")


def test_tracks_of_pytracking_are_packed_in_the_form_of_the_server(
    test_split: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    for name in submit.NAMES:
        rows = (test_split[0] / name / f"{name}_001.txt").read_text()
        (tmp_path / f"{name}.txt").write_text(rows.replace(",", "\t").replace(".000", ""))
        times = (test_split[0] / name / f"{name}_time.txt").read_text()
        (tmp_path / f"{name}_time.txt").write_text("".join(f"{t},0.5\n" for t in times.split()))
    submit.run(tmp_path, tmp_path / "out.zip", test_split[1])
    with zipfile.ZipFile(whole) as ours, zipfile.ZipFile(tmp_path / "out.zip") as theirs:
        assert {name: ours.read(name) for name in ours.namelist()} == {n: theirs.read(n) for n in theirs.namelist()}


def test_a_file_that_is_no_submission_is_not_replaced(test_split: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.zip").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.zip: is there, and this command did not write it; give another name"):
        submit.run(test_split[0], tmp_path / "thesis.zip")
    assert (tmp_path / "thesis.zip").read_text() == "mine"
    for _ in range(2):  # its own it replaces
        submit.run(test_split[0], tmp_path / "base.zip")
