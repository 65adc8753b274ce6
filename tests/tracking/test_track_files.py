"""Claims about track files: what is written is read back, and a damaged file is named."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r1track.core.errors import UserError
from r1track.tracking.track_files import Track, read_track, write_track

TRACK = Track(
    "clip",
    np.array([[1.0, 2, 30, 40], [1.25, 2.5, 30, 40.125]]),
    np.array([0.5, 0.25]),
    ["init", "held"],
    ["", 'a "box",\r\nin two lines'],
)


def test_a_track_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_track(tmp_path, TRACK)
    track = read_track(tmp_path, "clip", 2)
    assert (track.boxes == TRACK.boxes).all()
    assert (track.seconds == TRACK.seconds).all()
    assert (track.name, track.statuses, track.answers) == (TRACK.name, TRACK.statuses, TRACK.answers)


@pytest.mark.parametrize(
    ("end", "read"),
    [("\r", "\n"), ("\r\r\n", "\n\r\n"), *((end, end) for end in ("\n", "\r\n", "\x85", "\u2028", "\x00"))],
)
def test_an_answer_of_two_lines_is_one_row_wherever_its_line_ends(end: str, read: str, tmp_path: Path) -> None:
    write_track(tmp_path, replace(TRACK, answers=["", f"one{end}two"]))
    assert read_track(tmp_path, "clip", 2).answers == ["", f"one{read}two"]


FORMULAS = ["=1+1", "+1", "-1", "@A1", "\t=1", "\r\n=1", "\n=1", '=HYPERLINK("http://x","y")', "'=1", "''-1", "＝1"]


@pytest.mark.parametrize("answer", FORMULAS)
def test_an_answer_that_a_spreadsheet_could_run_is_text_there_and_comes_back_as_it_was(
    answer: str, tmp_path: Path
) -> None:
    write_track(tmp_path, replace(TRACK, answers=[answer, answer]))
    with (tmp_path / "clip" / "clip_status.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["answer"] for row in csv.DictReader(stream)] == [f"'{answer}"] * 2
    assert read_track(tmp_path, "clip", 2).answers == [answer] * 2


def test_other_answers_stand_in_the_file_as_they_are(tmp_path: Path) -> None:
    answers = ["[1, 2, 3, 4]", "'quoted'"]
    write_track(tmp_path, replace(TRACK, answers=answers))
    lines = (tmp_path / "clip" / "clip_status.csv").read_text().splitlines()
    assert lines[1:] == ['1,init,"[1, 2, 3, 4]"', "2,held,'quoted'"]
    assert read_track(tmp_path, "clip", 2).answers == answers


def test_an_answer_of_a_million_characters_is_read(tmp_path: Path) -> None:
    write_track(tmp_path, replace(TRACK, answers=["", "ä" * 10**6]))
    assert read_track(tmp_path, "clip", 2).answers == ["", "ä" * 10**6]


def test_the_files_are_those_of_the_got10k_toolkit_and_a_status_file(tmp_path: Path) -> None:
    write_track(tmp_path, TRACK)
    texts = {path.name: path.read_bytes().decode() for path in (tmp_path / "clip").iterdir()}
    assert texts == {
        "clip_001.txt": "1.000,2.000,30.000,40.000\n1.250,2.500,30.000,40.125\n",
        "clip_time.txt": "0.50000000\n0.25000000\n",
        "clip_status.csv": 'frame,status,answer\n1,init,\n2,held,"a ""box"",\r\nin two lines"\n',
    }


def test_boxes_alone_are_a_track_without_times_and_statuses(tmp_path: Path) -> None:
    write_track(tmp_path, TRACK)
    for part in ("time.txt", "status.csv"):
        (tmp_path / "clip" / f"clip_{part}").unlink()
    track = read_track(tmp_path, "clip")
    assert (len(track.boxes), len(track.seconds), track.statuses, track.answers) == (2, 0, [], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame,status,answer\n1,init,\n", r"clip_status\.csv: 1 rows for 2 frames; run `r1track track` again"),
        ("frame,answer\n1,a\n2,b\n", r"clip_status\.csv: expected the columns frame, status and answer; run"),
        ("frame,status,answer\n1,init\n2,held\n", r"clip_status\.csv: expected the columns"),
    ],
)
def test_a_damaged_status_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    write_track(tmp_path, TRACK)
    (tmp_path / "clip" / "clip_status.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_track(tmp_path, "clip")


BOXES, TIMES = "1.000,2.000,30.000,40.000\n1.250,2.500,30.000,40.125\n", "0.5\n0.25\n"
KINDS = {  # what peers write: its files
    "got10k on GOT-10k, three runs": {
        "clip/clip_001.txt": BOXES,
        "clip/clip_002.txt": "9,9,9,9\n" * 2,
        "clip/clip_time.txt": "0.50000000,0.6,0.7\n0.25000000,0.3,0.4\n",
    },
    "got10k on other sets": {"clip.txt": BOXES, "times/clip_time.txt": TIMES},
    "pytracking": {"clip.txt": BOXES.replace(",", "\t"), "clip_time.txt": TIMES},
    "pytracking, before it had times": {"clip.txt": BOXES.replace(",", "\t")},
    "blanks, saved on Windows": {"clip.txt": "\ufeff" + BOXES.replace(",", " ").replace("\n", "\r\n")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_tracks_of_other_toolkits_are_read(kind: str, tmp_path: Path) -> None:
    for name, text in KINDS[kind].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    track = read_track(tmp_path, "clip", 2)
    assert (track.boxes == TRACK.boxes).all()
    assert track.seconds.tolist() == ([0.5, 0.25] if any("time" in name for name in KINDS[kind]) else [])
    assert track.statuses == []
    with pytest.raises(UserError, match=r"clip.*\.txt: 2 rows for 3 frames; run"):
        read_track(tmp_path, "clip", 3)


def test_columns_of_times_that_change_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text(BOXES)
    (tmp_path / "clip_time.txt").write_text("0.1,0.2\n0.1\n")
    with pytest.raises(UserError, match=r"clip_time\.txt, line 2: expected 2 finite numbers .*'0\.1'"):
        read_track(tmp_path, "clip", 2)
