"""Claims about the reader of text files: which encodings are read, what is refused, and what a line of numbers is."""

import os
from pathlib import Path

import pytest

from r1track.core.errors import UserError
from r1track.core.text import LARGEST, numbers, read_text

WORDS = "der grüne Ball, 左\r\n1,2,3,4\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_in_utf_8_and_with_a_mark_is_read_as_it_was_written(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(WORDS.encode(encoding))
    assert read_text(tmp_path / "a.txt") == WORDS


def test_utf_16_of_either_order_is_read(tmp_path: Path) -> None:
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        (tmp_path / "a.txt").write_bytes(mark + WORDS.encode(encoding))
        assert read_text(tmp_path / "a.txt") == WORDS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("grüner".encode("latin-1"), r"a\.txt: byte 2 is no UTF-8; save the file as UTF-8"),
        ("Größe 5€".encode("cp1252"), r"a\.txt: byte 2 is no UTF-8; save"),
        ("緑".encode("shift-jis"), r"a\.txt: byte 0 is no UTF-8"),
        (b"\xff\xfea", r"a\.txt: byte \d is no UTF-16; save the file as UTF-8"),
        (b"\xff\xfe" + "ab".encode("utf-16-le") + b"\x00\xd8", r"a\.txt: byte \d is no UTF-16"),
    ],
)
def test_another_encoding_is_refused_with_file_place_and_remedy(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_text(tmp_path / "a.txt")


def test_what_is_no_regular_file_of_a_sensible_size_is_refused_and_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "folder", "gone"):
        with pytest.raises(UserError, match=f"{name}: no such file; restore it"):
            read_text(tmp_path / name)
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", LARGEST + 1)
    with pytest.raises(UserError, match=f"huge: more than {LARGEST} bytes"):
        read_text(tmp_path / "huge")


@pytest.mark.parametrize(
    "line", ["8,8,20,20", "8, 8, 20, 20", "8\t8\t20\t20", " 8 8  20 20\r", "8e0,.8E+1,2e1,+20.", "8 ,8 , 20,\t20"]
)
def test_numbers_have_commas_tabs_or_blanks_between(line: str) -> None:
    assert numbers(line) == [8, 8, 20, 20]


@pytest.mark.parametrize(
    "line",
    ["", "8,,20", "8,8,20,", ",8", "1_0", "0x10", "1e", "--1", "8;8", "٨", "8.8.8", "true", "1,2\x00", "infinity"],
)
def test_anything_else_is_no_line_of_numbers(line: str) -> None:
    assert numbers(line) == []
