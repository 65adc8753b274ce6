"""Text: the one reader of the text files that people write: annotation, lists, descriptions, configuration."""

import re
from pathlib import Path

from r1track.core.errors import MissingFile, UserError

LARGEST = 2**26  # bytes of a text file; an annotation of 100 000 frames has 2 ** 22
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf)", re.ASCII | re.IGNORECASE)


def read_text(path: Path, remedy: str = "restore it", most: int = LARGEST) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a mark, its line ends kept. Raises MissingFile and UserError.

    most: bytes that the file may have.
    """
    if not path.is_file():  # a pipe or a device would be read for ever
        raise MissingFile(f"{path}: no such file; {remedy}")
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path}: more than {most} bytes, which is no text of ours; {remedy}")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise UserError(f"{path}: byte {error.start} is no {name}; save the file as UTF-8") from error


def numbers(line: str) -> list[float]:
    """The numbers of a line, with commas, tabs or blanks between; [] where it holds anything else."""
    words = re.split(r"\s*,\s*|\s+", line.strip())
    return [float(word) for word in words] if all(map(_NUMBER.fullmatch, words)) else []
