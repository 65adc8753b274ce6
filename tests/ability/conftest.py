"""What tests of the verdict share."""

from pathlib import Path

import pytest
from answers import write


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base that is asked 600 questions and answers each fifth wrongly."""
    return write(tmp_path / "base", range(0, 600, 5), self={"items": 300, "difference": 0.0, "changed": 0})
