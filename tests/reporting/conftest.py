"""What tests of the report share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field
from small_run import small_run

from r1track.core import config, schema
from r1track.reporting import report


class AnyNames(schema.Data):
    """Splits of any name."""

    sets: dict[str, str] = Field({})


class AnySettings(schema.Settings):
    """Settings that take such splits."""

    data: AnyNames = AnyNames()


@pytest.fixture
def any_set_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration refuses hostile names of sets; without that check the page must be safe all the same."""
    monkeypatch.setattr(config, "Settings", AnySettings)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def run(whole: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Callable[[], Path]]:
    """A copy of the run that a test may spoil, its split, and a function that makes the report anew."""
    results, root = whole
    shutil.copytree(results.parent, tmp_path / "copy")
    results = tmp_path / "copy" / "run"

    def make() -> Path:
        report.run(config.load(results / "config/report.json"), results, results / "report")
        return results / "report"

    return results, root, make
