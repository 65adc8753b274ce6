"""What tests of the data share."""

from pathlib import Path

import pytest
from few_pairs import settings

from r1track.data import sample, toy


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of which the tests of `sample` make their pairs."""
    folder = tmp_path_factory.mktemp("toy") / "train"
    toy.write_split(folder, "train", sequences=10, length=20, seed=3)
    return folder


@pytest.fixture(scope="session")
def pairs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of theirs, by the settings of `few_pairs`."""
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    sample.run(settings(), root, out, processes=1)
    return out
