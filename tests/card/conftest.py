"""The tests of the card's own path, `make test-card`: collected where the process has an emulated card."""

import gc
import os
import tempfile
from pathlib import Path

import pytest

CARD = os.environ.get("FAKECARD")
collect_ignore_glob = [] if CARD else ["test_*.py"]

if CARD:  # before a test module imports what Unsloth patches
    from r1track.training import backend

    backend.enter("unsloth", Path(tempfile.mkdtemp(prefix="r1track-card-")))
    gc.freeze()  # Unsloth's loader collects garbage some twenty times: half a second each over all that is imported


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of two images."""
    from card_runs import settings
    from toys import toy_pairs

    return toy_pairs(tmp_path_factory.mktemp("data"), settings())


@pytest.fixture(scope="session")
def mixed_pairs(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of two and of three images, so that prompts are of unequal length."""
    from toys import varied_pairs

    return varied_pairs(pairs, tmp_path_factory.mktemp("mixed"), rows=4, later="some")
