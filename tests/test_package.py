"""The package as it is installed: it declares what it imports, and works in a folder without the repository."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from r1track.core import config

PROJECT = tomllib.loads((config.ROOT / "pyproject.toml").read_text())["project"]
# Declared, though the package does not import them: what they are for.
NOT_IMPORTED = {
    "accelerate": "transformers places weights and trains with it",
    "snakemake": "runs the workflow",
    "torchao": "pinned for Unsloth",
    "torchvision": "pinned for Unsloth",
    "triton": "pinned for Unsloth",
    "unsloth-zoo": "pinned for Unsloth",
    "xformers": "pinned for Unsloth",
}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def imported() -> set[str]:
    """The distributions that the package imports; one that is not installed has the name of its module."""
    modules = set()
    for file in config.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    distributions = packages_distributions()
    return {
        canonicalize_name(distributions.get(module, [module])[0])
        for module in modules - sys.stdlib_module_names - {"r1track"}
    }


def test_every_imported_package_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    assert imported() <= names(
        [*PROJECT["dependencies"], *extras["cpu"], *extras["gpu"], *extras["endpoint"], *extras["play"]]
    )
    assert imported() - names(PROJECT["dependencies"]) == {
        "bitsandbytes",
        "easy-vqa",
        "fastapi",
        "httpx2",
        "openai",
        "starlette",
        "unsloth",
        "uvicorn",
    }  # not for every machine


def test_no_package_is_declared_in_vain() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = names([*PROJECT["dependencies"], *extras["cpu"], *extras["gpu"], *extras["endpoint"], *extras["play"]])
    assert declared - imported() == NOT_IMPORTED.keys()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as the wheel unpacks it, with nothing else of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / "source").mkdir(exist_ok=True)
        shutil.copy(config.ROOT / name, folder / "source")
    shutil.copytree(config.PACKAGE, folder / "source" / "r1track", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "./source", "--no-deps", "--no-build-isolation", "-w", "."]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_package_is_in_its_wheel(installed: Path) -> None:
    files = [path.relative_to(config.PACKAGE) for path in config.PACKAGE.rglob("*") if path.is_file()]
    names = [path for path in files if "__pycache__" not in path.parts]
    assert {path.suffix for path in names} >= {".py", ".yaml", ".j2", ".css", ".js"}
    assert [path for path in names if not (installed / "r1track" / path).is_file()] == []


def test_the_commands_work_from_a_wheel_in_another_folder(installed: Path, tmp_path: Path) -> None:
    sizes = "toy: {train_sequences: 4, val_sequences: 1, length: 12}\nsample: {pairs: 6, val_pairs: 2}\n"
    (tmp_path / "config.yaml").write_text(f"preset: demo\n{sizes}")
    place = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "r1track", *words]
        done = subprocess.run(command, cwd=tmp_path, env=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "doctor" in run("--help")
    assert "fits" in run("doctor")
    run("toy", "--config", "config.yaml", "--out", "toy")
    run("sample", "--config", "config.yaml", "--root", "toy/train", "--out", "pairs", "--processes", "1")
    run("track", "--config", "config.yaml", "--model", "tiny", "--root", "toy/val", "--out", "tracks")
    assert (tmp_path / "tracks/Toy_Val_000001/Toy_Val_000001_001.txt").is_file()
    provenance = (tmp_path / "tracks/provenance.json").read_text()
    assert '"git_commit": "unknown"' in provenance
