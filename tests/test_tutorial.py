"""The tutorial does what it says: its blocks run in order, as written, in a fresh folder laid out as the repository."""

import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import NamedTuple

import pytest
from PIL import Image

from r1track.core import config, files

ROOT = config.ROOT
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
RUN = "snakemake --cores all --configfile mine.yaml\n"
CLONE = ("Snakefile", "config.yaml", "profiles", "workflow", "environment.yml")
ROOM = """import collections, shutil  # whatever this machine has free
Usage = collections.namedtuple("Usage", "total used free")
shutil.disk_usage = lambda place: Usage(9e12, 0, 9e12)
"""


class Followed(NamedTuple):
    """The folder in which the blocks were run, and what each printed."""

    folder: Path
    printed: dict[str, str]

    def after(self, word: str) -> str:
        """What the one block with `word` in it printed."""
        (found,) = (printed for block, printed in self.printed.items() if word in block)
        return found


def on_one_core() -> None:
    """`--cores all` means one then: Snakemake gives its jobs as many threads, which crawl beside other tests."""
    cores = sorted(os.sched_getaffinity(0))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    folder = tmp_path_factory.mktemp("tutorial")
    for name in CLONE:
        (folder / name).symlink_to(ROOT / name)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(ROOM)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join([str(folder / "site"), str(ROOT)])
    place = {**os.environ, "PATH": path, "PYTHONPATH": modules, "COLUMNS": "200"}
    printed: dict[str, str] = {}
    for kind, block in BLOCKS:
        if kind == "text":  # among what the block before printed
            said = words(list(printed.values())[-1])
            assert all(words(line) in said for line in block.splitlines()), f"{block}\nis not in\n{said}"
            continue
        command = {"bash": ["bash", "-e", "-c"], "python": [sys.executable, "-c"]}[kind]
        done = subprocess.run(
            [*command, block], cwd=folder, env=place, stdout=PIPE, stderr=STDOUT, text=True, preexec_fn=on_one_core
        )
        printed[block] = done.stdout  # as a terminal shows it
        assert done.returncode == 0, f"{block}\n{printed[block][-6000:]}"
    return Followed(folder, printed)


def test_every_block_runs_and_shows_what_the_page_shows(followed: Followed) -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "bash", "text"}
    assert len(followed.printed) + sum(kind == "text" for kind, _ in BLOCKS) == len(BLOCKS)


def test_the_run_leaves_what_the_page_names(followed: Followed) -> None:
    results = followed.folder / "results" / "mine"
    named = set(re.findall(r"`results/mine/([\w./-]+)`", PAGE))
    assert {"report/index.html", "scores/grpo/mine-val.json"} <= named
    assert all((results / name).exists() for name in named)
    assert len(list((results / "tracks" / "grpo" / "mine-val").rglob("*_001.txt"))) == 2
    assert files.read_json(results / "pairs" / "manifest.json")["splits"]["train"]["pairs"] == 120
    assert "clip-" in followed.after("pair.png")
    assert Image.open(followed.folder / "pair.png").size == (84, 84)


def test_the_summary_stands_once_and_below_all_else(followed: Followed) -> None:
    printed = next(printed for block, printed in followed.printed.items() if block == RUN)
    above, head, table = printed.partition("mine-val: 2 sequences")
    assert all(re.search(rf"^ *{model} +\d\.\d\d\d ", table, re.MULTILINE) for model in ("base", "grpo", "static"))
    assert "Complete log" in above
    assert head not in table
    assert "snakemake" not in table


def jobs(printed: str) -> dict[str, int]:
    table = printed.split("Job stats:")[-1].split("total")[0]
    found = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    return {rule: count for rule, count in found.items() if rule not in ("settings", "gate", "all")}


def test_a_change_reruns_what_the_page_says(followed: Followed) -> None:
    once = ("train", "merge", "track", "score", "vqa", "verdict", "report")
    assert jobs(followed.after("longer.yaml")) == dict.fromkeys(once, 1)
    assert jobs(followed.after("fewer.yaml")) == {"report": 1}


def test_the_video_has_film_picture_and_boxes(followed: Followed) -> None:
    assert all((followed.folder / f"followed.{kind}").stat().st_size for kind in ("mp4", "jpg"))
    assert len((followed.folder / "followed.csv").read_text().splitlines()) == 1 + 12
