"""The workflow of the small run of `trials` as a process, and what its results hold."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from trials import CONFIG

from r1track.core import config, files

COMMAND = (sys.executable, "-m", "snakemake", "--snakefile", str(config.ROOT / "Snakefile"), "--configfile")
HERE = ("--workflow-profile", str(config.ROOT / "profiles/default"), "--cores", "2")
TIMES = ("provenance.json", "_time.txt", "log.jsonl", "index.html", "summary.json", "summary.md", ".log", ".tsv")
SPEED = re.compile(r'"fps(_run)?": [\d.]+')  # in scores


def begin(
    folder: Path, *targets: str, where: Sequence[str] = HERE, sections: dict[str, Any] | None = None, **train: Any
) -> subprocess.Popen[str]:
    """The workflow of the small run in `folder`, in a session of its own.

    where: the profile that its stages run by, and other options of Snakemake. sections: others in place of the small
    run's. train: other values of that section.
    """
    folder.mkdir(exist_ok=True)
    changes = {"verdict": CONFIG["verdict"] | {"on_regression": "warn"}, "train": CONFIG["train"] | train}
    changes |= sections or {}
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | changes))
    place = {**os.environ, "PYTHONPATH": str(config.ROOT), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "config.yaml", *where, "--", *targets]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=place, text=True, start_new_session=True, **pipes)


def end(workflow: subprocess.Popen[str]) -> None:
    output = workflow.communicate()[0]
    assert workflow.returncode == 0, output[-4000:]


def results(folder: Path) -> dict[str, str]:
    """What the results hold that is no time: the scores as text without their speeds, hashes of the other files."""
    hashes = {name: digest for name, digest in files.hashes(folder / "results").items() if not name.endswith(TIMES)}
    texts = {name: (folder / "results" / name).read_text() for name in hashes if "/scores/" in name}
    return hashes | {name: SPEED.sub("", text) for name, text in texts.items()}
