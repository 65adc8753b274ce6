"""What several tests of tracking need: a small split, and a function in the place of a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import toy_split

from r1track.core import models


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_split(tmp_path_factory.mktemp("toy") / "val")


@pytest.fixture
def answer_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Let a function of (question's text, images) stand in for the model; the list has its requests."""

    def install(function: Callable[..., str]) -> list[Any]:
        requests: list[Any] = []

        def answer(loaded: str, questions: list[Any], images: list[Any], *, max_tokens: int, batch: int) -> list[str]:
            assert "/model@" in loaded
            assert len(questions) == len(images) <= batch
            texts = ["".join(part.get("text", "") for part in question[0]["content"]) for question in questions]
            requests.extend((*row, max_tokens, loaded) for row in zip(questions, texts, images, strict=True))
            return [function(text, row) for text, row in zip(texts, images, strict=True)]

        monkeypatch.setattr(models, "load", lambda base, settings, adapter: f"{base}@{settings.revision}")
        monkeypatch.setattr(models, "generate", answer)
        return requests

    return install
