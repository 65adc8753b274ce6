"""Snakemake on the demo, done or not: plans, dry runs and the jobs that they list."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from r1track import plan
from r1track.core import config
from r1track.core.files import write_json

ROOT = config.ROOT
MODELS = ("base", "grpo", "static", "template", "oracle")
RESULTS = "results/demo"
FOLDERS = [
    f"{RESULTS}/pairs",
    f"{RESULTS}/adapters/grpo",
    f"{RESULTS}/models/grpo",
    f"{RESULTS}/vqa/base",
    f"{RESULTS}/vqa/grpo",
    *(f"{RESULTS}/tracks/{model}/toy-val" for model in MODELS),
]
FILES = [
    "scratch/demo/toy/train/list.txt",
    "scratch/demo/toy/val/list.txt",
    f"{RESULTS}/vqa/verdict.json",
    f"{RESULTS}/vqa/kept",
    *(f"{RESULTS}/report/{name}" for name in ("index.html", "summary.json", "summary.md")),
    *(f"{RESULTS}/scores/{model}/toy-val.json" for model in MODELS),
]


def make_plan(values: dict[str, Any]) -> plan.Plan:
    return plan.make_plan(config.resolve(values))


def snakemake(folder: Path, *words: str, root: Path = ROOT, cores: str = "2") -> subprocess.CompletedProcess[str]:
    """Snakemake in `folder`, with the Snakefile and the package that lie in `root`; cores: "" for the profile's."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), *words]
    command += ["--cores", cores] if cores else []
    place = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True)


def planned(folder: Path, change: dict[str, Any], name: str = "none", root: Path = ROOT) -> Counter[str]:
    """The jobs of a dry run, by rule, with `change` over the configuration."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(change))
    done = snakemake(folder, "--dry-run", "--nolock", "--configfile", str(file), root=root)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return Counter() if "Nothing to be done" in output else jobs(output)


def jobs(output: str) -> Counter[str]:
    """The jobs by rule that Snakemake lists."""
    table = output.split("Job stats:")[-1].split("total")[0]
    return Counter({rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)})


def finish(folder: Path, root: Path = ROOT) -> Path:
    """Make `folder` a working directory in which Snakemake believes the demo to be done."""
    (folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for stage in config.NEEDS:
        write_json(folder / RESULTS / "config" / f"{stage}.json", config.stage_values(config.resolve({}), stage))
    done = snakemake(folder, "--touch", "--forceall", root=root)
    assert done.returncode == 0, done.stderr
    return folder


def write_split(folder: Path, *names: str) -> Path:
    folder.mkdir()
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def make_test_split(folder: Path) -> Path:
    """A folder as GOT-10k's test split begins."""
    split = write_split(folder, "GOT-10k_Test_000001")
    (split / "GOT-10k_Test_000001").mkdir()
    return split
