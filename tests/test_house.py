"""The house: which folder of the package may import which, as pyproject.toml says, and how long a file may be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1track.core import config

FOLDERS = ("core", "data", "training", "tracking", "ability", "reporting", "preflight")
MOST_LINES = 350


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """The linter of imports over the package in `folder`; it lies beside Python, or on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    place = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
    return subprocess.run(["lint-imports", "--no-cache"], cwd=folder, env=place, capture_output=True, text=True)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    shutil.copy(config.ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(config.PACKAGE, tmp_path / "r1track", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_package_keeps_the_rules(house: Path) -> None:
    done = lint(house)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("core/boxes.py", "r1track.tracking.motion"),  # up
        ("data/sample.py", "r1track.training.rewards"),  # aside
        ("tracking/score.py", "r1track.reporting.paper"),
        ("reporting/report.py", "r1track.training.progress"),  # down, to what it may not see
        ("preflight/doctor.py", "r1track.ability.metrics"),
        ("ability/vqa.py", "r1track.cli"),
    ],
)
def test_a_planted_import_is_found(module: str, imported: str, house: Path) -> None:
    file = house / "r1track" / module
    file.write_text(f"{file.read_text()}\n\ndef planted() -> None:\n    import {imported}\n")
    done = lint(house)
    source = f"r1track.{module.removesuffix('.py').replace('/', '.')}"
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{source} -> {imported}" in done.stdout


def test_a_new_folder_must_have_its_place(house: Path) -> None:
    (house / "r1track" / "annex").mkdir()
    (house / "r1track" / "annex" / "__init__.py").touch()
    assert lint(house).returncode == 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_importing_a_folder_imports_nothing(folder: str) -> None:
    """Unsloth must be imported before TRL, so that a folder may not bring TRL with it."""
    assert (config.PACKAGE / folder / "__init__.py").read_text() == ""


def too_long(root: Path) -> dict[str, int]:
    """The Python files of a repository that have too many lines; what .gitignore names at its root is not its own."""
    ignored = {".git", *(line.strip("/") for line in (root / ".gitignore").read_text().splitlines())}
    files = [file for top in root.iterdir() if top.name not in ignored for file in (top, *top.rglob("*.py"))]
    lines = {str(file.relative_to(root)): len(file.read_text().splitlines()) for file in files if file.suffix == ".py"}
    return {name: count for name, count in lines.items() if count > MOST_LINES}


def test_no_python_file_of_the_repository_is_too_long() -> None:
    assert too_long(config.ROOT) == {}


def test_a_planted_long_file_is_found(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("/.venv/\n")
    for name, count in {"a.py": 351, "tests/deep/b.py": 351, "c.py": 350, ".venv/d.py": 351, "e.md": 351}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n" * count)
    assert too_long(tmp_path) == {"a.py": 351, "tests/deep/b.py": 351}
