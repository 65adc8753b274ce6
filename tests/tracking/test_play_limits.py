"""Claims about what `r1track play` refuses where no browser is needed: uploads beyond a limit, a port that is taken."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor  # Playwright may have a loop on this thread

import pytest

from r1track.core import config
from r1track.core.errors import UserError
from r1track.tracking import play


def test_uploads_have_a_limit_and_a_port_that_is_taken_is_named(tmp_path, monkeypatch):
    session = play.Session(tmp_path, config.resolve({}), "peer:static", play.predictors.Predictor(None, None))
    monkeypatch.setattr(play, "MOST_BYTES", 10)

    async def parts():
        yield b"12345678"
        yield b"12345678"

    with (
        ThreadPoolExecutor(1) as threads,
        pytest.raises(UserError, match=r"more than .* GiB with the copies for this page; give a shorter part"),
    ):
        threads.submit(asyncio.run, session.store("a.mp4", parts())).result()
    session.clear()
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: Address already in use; give another one, or 0"):
            play.run(config.resolve({}), "peer:static", None, port)
