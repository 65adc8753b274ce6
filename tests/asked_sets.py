"""Sets of questions as tests ask for them, and a folder of one's own questions."""

import json
from pathlib import Path

import datasets
from PIL import Image

from r1track.ability import questions as question_sets
from r1track.core import config

TINY = config.resolve({"preset": "demo"}).model
TEXT = datasets.Value("string")
TEXTS = datasets.List(TEXT)


def load(spec, model=TINY):
    return question_sets.load("mine", spec, 0, model)


def own_folder(folder: Path, rows):
    """A folder of one's own questions: <split>/metadata.jsonl beside images."""
    (folder / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "test" / "images" / "a.png")
    (folder / "test" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)
