"""What several tests of tracking need: a small split, a function in the place of a model, and a server."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
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


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client does not wait: `anyio.sleep` only adds its seconds to this list."""
    import anyio

    from r1track.tracking import endpoint

    monkeypatch.delenv(endpoint.KEY, raising=False)
    seconds: list[float] = []

    async def sleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return seconds


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Start a server that answers by a function of (request, how many came before): a text, or a status and more."""
    from chat_server import Served

    with ExitStack() as stack:

        def start(reply: Callable[..., Any], known: Sequence[str] | None = ("m",)) -> Served:
            served = Served(reply, known)
            stack.callback(served.stop)
            return served

        yield start
