"""Claims about tracking through a server that fails: what is asked anew, what stops the run, and what is kept of it."""

import json
import socket
import sys
import threading
import time

import numpy as np
import pytest
from chat_server import asks, chat, honest, settings, tracked

from r1track.core.sequences import read_split
from r1track.tracking import track

pytestmark = pytest.mark.usefixtures("waits")


def test_a_server_that_fails_for_a_moment_is_asked_anew_after_growing_waits(serve, waits):
    served = serve(lambda body, k: "[1, 2, 3, 4]" if k == 2 else (503, "loading"))
    assert asks(served.url) == ["[1, 2, 3, 4]"]
    assert len(waits) == 2
    assert 0.375 <= waits[0] <= 0.5 < 0.75 <= waits[1] <= 1


def test_the_wait_that_a_busy_server_asks_for_is_kept(serve, waits):
    served = serve(lambda body, k: "yes" if k else (429, "busy", [("Retry-After", 7)]))
    assert asks(served.url) == ["yes"]
    assert waits == [7]


def test_a_server_that_asks_for_too_long_a_wait_stops_the_run(serve, waits):
    served = serve(lambda body, k: (429, "come back tomorrow", [("Retry-After", 86400)]))
    with pytest.raises(ValueError, match="no answer; the last try ended with 429 come back tomorrow"):
        asks(served.url)
    assert waits == []


def test_a_server_that_hangs_is_given_up_after_the_time_out_and_the_retries(serve, caplog):
    over = threading.Event()
    served = serve(lambda body, k: over.wait(20) and "late")
    begin = time.monotonic()
    with pytest.raises(ValueError, match=rf"{served.url}.*ended with ReadTimeout.*\n.*raise track\.endpoint\.timeout"):
        asks(served.url, timeout=0.2, retries=2)
    assert 0.6 <= time.monotonic() - begin < 5
    over.set()
    assert len(served.bodies) == 3
    assert caplog.text.count("Retrying request") == 2  # a user sees why it takes so long


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refused_question_stops_at_once_with_what_the_server_says(status, serve, waits):
    served = serve(lambda body, k: (status, '{"error": {"message": "too many images"}}'))
    with pytest.raises(ValueError, match=rf"{served.url}/chat/completions: refused with {status} .*too many images"):
        asks(served.url)
    assert (len(served.bodies), waits) == (1, [])


@pytest.mark.parametrize("body", ["{", "[]", "<html>hello</html>", '{"choices": []}', '{"choices": [{"text": "x"}]}'])
def test_what_is_no_answer_of_such_a_server_stops_at_once_and_is_shown(body, serve):
    served = serve(lambda *_: (200, body))
    with pytest.raises(ValueError, match="not an answer in OpenAI's form") as error:
        asks(served.url)
    assert body in str(error.value)
    assert len(served.bodies) == 1


def test_an_answer_without_text_holds_the_box(toy, tmp_path, serve):
    served = serve(lambda body, k: (200, chat(None)))
    track.run(settings(served.url), "m", toy, tmp_path / "out")
    for sequence in read_split(toy):
        assert (
            np.ptp(np.loadtxt(tmp_path / "out" / sequence.name / f"{sequence.name}_001.txt", delimiter=","), 0).max()
            == 0
        )


def test_a_model_that_the_server_does_not_know_is_refused_before_any_frame(toy, tmp_path, serve):
    served = serve(lambda body, k: (404, "The model `m` does not exist."), known=["this", "that"])
    with pytest.raises(ValueError, match=r"refused with 404 The model `m` does not exist(.|\n)*\['this', 'that'\]"):
        track.run(settings(served.url), "m", toy, tmp_path / "out")
    assert len(served.bodies) == 1
    assert "image" not in str(served.bodies)
    assert not list(tmp_path.iterdir())


def test_where_no_server_answers_the_run_stops_at_once(waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    begin = time.monotonic()
    with pytest.raises(ValueError, match=f"{url}/v1/: no server answers .*; start it, or correct the URL"):
        asks(url)
    assert time.monotonic() - begin < 5
    assert waits == []


def test_a_run_whose_server_dies_goes_on_with_what_is_missing_and_more_patience(toy, tmp_path, serve):
    broken = [True]
    served = serve(lambda body, k: (503, "gone") if broken and k >= 29 else honest(body, k))
    out = tmp_path / "set"
    with pytest.raises(
        ValueError, match=r"no answer; the last try ended with 503 gone\n(.|\n)*the same command goes on"
    ):
        track.run(settings(served.url, batch=1, retries=1), "m", toy, out)
    assert len(served.bodies) == 29 + 2  # in the third of four sequences of 12 frames
    assert [path.name for path in tmp_path.iterdir()] == [".set.partial"]
    broken.clear()
    track.run(settings(served.url, batch=1, retries=9, timeout=9.0), "m", toy, out)
    assert len(served.bodies) == 31 + 2 * 11
    whole = serve(honest)
    track.run(settings(whole.url, batch=1), "m", toy, tmp_path / "whole")
    assert tracked(out, toy) == tracked(tmp_path / "whole", toy)
    found = json.loads((out / "provenance.json").read_text())
    assert found["endpoint"] == {"url": served.url, "model": "m", "weights": "not a local file"}
    assert {name: file["path"] for name, file in found["inputs"].items()} == {"split": str(toy)}


def test_what_another_server_did_is_not_taken_up(toy, tmp_path, serve):
    dying = serve(lambda body, k: (400, "gone") if k >= 29 else honest(body, k))
    with pytest.raises(ValueError, match="gone"):
        track.run(settings(dying.url, batch=1), "m", toy, tmp_path / "set")
    other = serve(honest)
    track.run(settings(other.url, batch=1), "m", toy, tmp_path / "set")
    assert len(other.bodies) == 4 * 11


def test_without_the_openai_package_the_message_says_what_to_install(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "r1track.tracking.endpoint")
    monkeypatch.delattr("r1track.tracking.endpoint")
    with pytest.raises(ValueError, match=r"track\.endpoint\.url: needs the package openai; .*pip install openai"):
        asks("http://localhost:1/v1")
