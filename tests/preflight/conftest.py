"""What tests of the doctor share."""

import shutil
from pathlib import Path

import pytest
import torch
from diagnoses import Usage


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Results and scratch would be written here, with room for them and no card, whatever this machine has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(9e12, 0, 9e12))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
