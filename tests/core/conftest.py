"""Models that the tests of decoding share."""

import pytest
from toys import accustomed, toy_pairs, varied_pairs

from r1track.core import config, models
from r1track.core.models import Loaded


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return models.load("tiny", config.resolve({}).model)


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A base that thinks about two and three images before it answers."""
    folder = tmp_path_factory.mktemp("thinker")
    settings = config.resolve({"preset": "demo", "sample": {"pairs": 8, "val_pairs": 4}})
    pairs = varied_pairs(toy_pairs(folder, settings), folder / "told", later="some", thought="It moved from [1, 2].")
    return models.load(str(accustomed(pairs, folder / "base")), config.resolve({}).model)
