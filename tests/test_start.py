"""docs/start.md: its commands run as far as no network and no card are needed, and what it installs resolves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r1track.core import config

ROOT = config.ROOT
PAGE = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
INSTALL = re.findall(r"^With (\w+):\n\n((?: {4}.*\n)+)", PAGE, re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_without_a_network_and_a_card(block: str, tmp_path: Path) -> None:
    for name in ("Snakefile", "config.yaml", "profiles", "workflow", "environment.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    place = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(["bash", "-e", "-c", block], cwd=tmp_path, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if "fetch" in block:
        assert "hf download Qwen/Qwen2.5-VL-3B-Instruct  # model.base, not in the cache" in done.stdout
        assert "hf download Lin-Chen/MMStar --repo-type dataset" in done.stdout


def test_each_way_to_install_is_three_lines_that_end_with_the_doctor_and_names_files_that_are_there() -> None:
    assert [way for way, _ in INSTALL] == ["conda", "pip", "uv"]
    for _, block in INSTALL:
        lines = [line.strip() for line in block.splitlines()]
        assert len(lines) == 3
        assert lines[-1] == "r1track doctor"
        (file,) = set(re.findall(r"(?:-r|-f) (\S+)", block))
        assert (ROOT / file).is_file()


def test_the_card_that_the_page_asks_for_is_that_of_the_lock() -> None:
    lock = (ROOT / "requirements-card.lock").read_text()
    (version, cuda) = re.findall(r"torch in the lock \(([\d.]+)\) is built for CUDA ([\d.]+)\.", PAGE)[0]
    assert f"torch=={version}\n" in lock
    assert f"cuda-toolkit=={cuda}." in lock


@pytest.mark.skipif("REGISTRY" not in os.environ, reason="asks a package registry for minutes: REGISTRY=1 runs it")
@pytest.mark.parametrize(("lock", "extra"), [("requirements.lock", "cpu"), ("requirements-card.lock", "gpu")])
def test_the_locks_resolve_on_python_3_12(lock: str, extra: str, tmp_path: Path) -> None:
    command = ["make", "--silent", "--eval", "python312: ; @echo $(PYTHON312)", "python312"]  # one that starts
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert found, "no Python 3.12 here: give PYTHON312=..."
    subprocess.run([*found, "-m", "venv", tmp_path / "venv"], check=True)
    command = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", "--dry-run"]
    done = subprocess.run(
        [*command, f"{ROOT}[{extra},dev]", "--constraint", ROOT / lock], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
