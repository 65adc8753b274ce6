"""The recipe of the image: what its steps install, and the workflow that runs there from a mounted folder.

No card is needed; what a card in the container does is not shown.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from recipe import ENTRYPOINT, Built, build
from trials import CONFIG

from r1track.core import files, provenance
from r1track.core.config import ROOT

log = logging.getLogger(__name__)
COMMIT = provenance.git_commit()  # now, because the repository is copied now
# An extension of Python, with which Triton starts its kernels.
COMPILE = """
cd "$(mktemp -d)"
echo '#include <stdio.h>\n#include <Python.h>' > part.c
gcc -shared -fPIC -I "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')" part.c -o part.so
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    with build(tmp_path_factory.mktemp("recipe")) as made:
        log.info("the steps of the recipe were run %s", made.where)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a user with the configuration of a small run."""
    small = CONFIG | {"verdict": CONFIG["verdict"] | {"on_regression": "warn"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small))
    return tmp_path


def test_the_versions_are_those_that_the_environment_of_a_card_names(image: Built, folder: Path) -> None:
    *others, last = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (python,) = (line.partition("=")[2] for line in others if "=" in line)
    assert image.run(folder, ["python", "--version"]).startswith(f"Python {python}.")
    installed = {line.strip().lower() for line in image.run(folder, ["pip", "freeze"]).splitlines()}
    pinned = {line.lower() for line in last["pip"] if "==" in line}
    assert len(pinned) > 10
    assert pinned <= installed


def test_what_triton_builds_can_be_compiled(image: Built, folder: Path) -> None:
    image.run(folder, ["sh", "-c", COMPILE])


def test_the_commands_run_and_the_doctor_checks_a_mounted_configuration(image: Built, folder: Path) -> None:
    assert "track" in image.run(folder, ["r1track", "--help"])
    answer = image.run(folder, ["r1track", "doctor", "--config", "config.yaml"])
    assert re.findall(r"(?m)^(\w+) +(versions|data\.train|results/) ", answer) == [
        ("ok", "versions"),
        ("ok", "data.train"),
        ("ok", "results/"),
    ]


def test_the_workflow_runs_from_the_mounted_folder_to_its_report(image: Built, folder: Path) -> None:
    image.run(folder, [*ENTRYPOINT, "--cores", "2"])
    results = folder / "results/demo"
    assert (results / "report/index.html").is_file()
    record = files.read_json(results / "adapters/grpo/provenance.json")
    assert record["git_commit"] == COMMIT
    assert re.match(r"3\.12\.", record["versions"]["python"])
    assert "unsloth" in record["versions"]
