"""The longest files come first, so that no process waits for them at the end; and what several files need."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import CHROMIUM, MISSING

for name in ("COLUMNS", "FORCE_COLOR"):  # a terminal's, which would wrap and colour what the tests read
    os.environ.pop(name, None)
LONG = ("test_demo", "test_arms", "test_track", "test_tutorial")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    """The command configures logging for its process; here that process is the tests' own."""
    root, package = logging.getLogger(), logging.getLogger("r1track")
    before = (root.handlers[:], root.level, package.level)
    yield
    root.handlers[:], root.level, package.level = before
    logging.captureWarnings(False)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` has read lies in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    from playwright import sync_api

    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
