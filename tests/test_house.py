"""The house: which folder of the package may import which, as pyproject.toml says and `make test` holds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1track.core import config

FOLDERS = ("core", "data", "training", "tracking", "ability", "reporting", "preflight")


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
