"""A hostile server: whatever it does, a question ends in time, in little memory, with no key in what is said of it.

Each kind of hostility is a function that writes to the connection after it has read the request.
"""

import gzip
import itertools
import json
import logging
import socket
import socketserver
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from toys import toy_split
from typer.testing import CliRunner

from r1track import cli
from r1track.core import prompts, schema
from r1track.core.errors import UserError
from r1track.core.sequences import read_split
from r1track.tracking import endpoint, score, track
from r1track.tracking.track_files import read_track

KEY = "sk-very/secret+0"
SECONDS = 1.0  # the time-out of a try
SLACK = 4.0  # seconds, for a machine that does other work
MEMORY = 200e6
BOX = "[36, 36, 48, 48]"

Act = Callable[[socket.socket], Any]


def head(length: int | None = None, status: str = "200 OK", *lines: str) -> bytes:
    lengths = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"HTTP/1.1 {status}", *lengths, *lines, "Connection: close", "", ""]).encode()


def says(body: str | bytes, status: str = "200 OK", *lines: str) -> Act:
    content = body.encode() if isinstance(body, str) else body
    return lambda connection: connection.sendall(head(len(content), status, *lines) + content)


def chat(content: Any) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


def drips(first: bytes, drop: bytes, pause: float = 0.02) -> Act:
    """Sends a start, and then the same bytes for ever, until the other side closes the connection."""

    def act(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(drop)
            time.sleep(pause)

    return act


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def deep(depth: int = 500_000) -> str:
    return "[" * depth


CHUNKED, BLOCK = "Transfer-Encoding: chunked", b"x" * 65536
PACKED = gzip.compress(b" " * 300_000_000, 1)[:1_000_000]
MALFORMED, TIME, BROKEN = "not an answer in OpenAI's form", "ReadTimeout", "the last try ended with Re"
HOSTILE: dict[str, tuple[Act, str]] = {  # what the server does, and what the error says; "" for an unreadable answer
    "a byte now and then": (drips(head(10**6), b" "), TIME),
    "a head without end, slowly": (drips(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"), TIME),
    "a head without end": (drips(b"HTTP/1.1 200 OK\r\n", b"X-A: aaaaaaaa\r\n" * 4096, 0), BROKEN),
    "endless 100 Continue": (drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0), TIME),
    "chunks for ever": (drips(head(None, "200 OK", CHUNKED), b"1\r\n \r\n"), TIME),
    "silence": (lambda connection: time.sleep(2), TIME),
    "500 MB announced": (drips(head(500_000_000), BLOCK, 0), "a response of more than 1048576 bytes"),
    "500 MB in chunks": (drips(head(None, "200 OK", CHUNKED), b"10000\r\n" + BLOCK + b"\r\n", 0), "more than 1048576"),
    "500 MB of an error": (drips(head(500_000_000, "500 Oh"), BLOCK, 0), "more than 1048576"),
    "a packed bomb": (says(PACKED, "200 OK", "Content-Encoding: gzip"), MALFORMED),
    "a closed connection": (lambda connection: None, BROKEN),
    "a reset connection": (resets, BROKEN),
    "noise": (lambda connection: connection.sendall(bytes(range(256)) * 64), BROKEN),
    "the request again": (lambda connection: connection.sendall(f"Bearer {KEY}\r\n\r\n".encode()), BROKEN),
    "less than announced": (lambda connection: connection.sendall(head(900) + chat(BOX).encode()), BROKEN),
    "a length that is none": (lambda connection: connection.sendall(head(None, "200 OK", "Content-Length: -1"))
                              , BROKEN),
    "half of the JSON": (says(chat(BOX)[:40]), MALFORMED),
    "deep JSON": (says(deep()), MALFORMED),
    "deep JSON in an error": (says(deep(), "400 Bad"), "refused with 400"),
    "a number of a million digits": (says("9" * 1_000_000), MALFORMED),
    "HTML": (says("<html>welcome</html>"), MALFORMED),
    "another form": (says('{"choices": {"0": 1}}'), MALFORMED),
    "an encoding that unpacks": (says("x", "400 Bad", "Content-Type: text/plain; charset=zlib"), "refused with 400"),
    "a redirect to itself": (says("", "302 Found", "Location: /v1/chat/completions"), "refused with 302 /v1/chat"),
    "a redirect to elsewhere": (says("", "307 Found", f"Location: http://127.0.0.9/?k={KEY}"), r"127.0.0.9/\?k=\*\*\*"),
    "another protocol": (says("", "101 Switching", "Upgrade: x"), BROKEN),
    "a status that is none": (says("", "999 Odd"), "ended with 999"),
    "a wait of nan": (says("", "429 Busy", "Retry-After: nan"), "ended with 429"),
    "a wait of -5": (says("", "503 Busy", "Retry-After: -5"), "ended with 503"),
    "a wait of 1e999": (says("", "429 Busy", "Retry-After: 1e999"), "ended with 429"),
    "a wait until the year 99999": (says("", "429 Busy", "Retry-After: Fri, 31 Dec 99999 23:59:59 GMT"), "with 429"),
    "the key in an error": (says(json.dumps({"error": {"message": f"no key {KEY}"}}), "401 No"), r"no key \*\*\*"),
    "the key as a status": (says("", f"401 {KEY}"), "refused with 401"),
    "the key as PHP writes it": (says('"sk-very\\/secret+0"', "401 No"), r"401 \"\*\*\*\""),
    "orders to a terminal": (says("\x1b[31mred\x07\r\nnext", "400 Bad"), "400 .\\[31mred. next"),
    "an answer of 300 kB": (says(chat("[1, 2, 3, 4]" + " " * 300_000)), ""),
    "half a character": (says(chat("\ud800" + BOX)), ""),
    "a list for a text": (says(chat([10, 20, 60, 70])), ""),
    "an object for a text": (says(chat({"bbox_2d": [10, 20, 60, 70]})), ""),
    "no text": (says(chat(None)), ""),
}  # fmt: skip


class Server(socketserver.ThreadingTCPServer):
    """A server whose list of models and whose answers are written by functions."""

    daemon_threads, allow_reuse_address, request_queue_size = True, True, 64

    def __init__(self, answers: Iterator[Act], models: Act):
        self.requests: list[bytes] = []
        served = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(20)
                with suppress(OSError):
                    if served.read(self.request).startswith(b"GET"):
                        models(self.request)
                    else:
                        next(answers)(self.request)

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def read(self, connection: socket.socket) -> bytes:
        stream = connection.makefile("rb")
        lines = list(iter(stream.readline, b"\r\n"))
        length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")), 0)
        self.requests.append(b"".join([*lines, stream.read(length)]))
        return lines[0]


LISTED = says(json.dumps({"data": [{"id": "m"}]}))


@contextmanager
def serving(*answers: Act, models: Act = LISTED) -> Iterator[Server]:
    """A server that gives these answers in turn, again and again."""
    with Server(itertools.cycle(answers), models) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY, KEY)


def settings(url: str, **changes: Any) -> schema.Settings:
    server = schema.Endpoint(url=url, **{"timeout": SECONDS, "retries": 0, **changes})
    model, task = schema.Model(base="m"), schema.Task(size=84)
    return schema.Settings(model=model, task=task, track=schema.Track(batch=4, endpoint=server))


def asks(url: str, **changes: Any) -> str:
    (answer,) = endpoint.connect(settings(url, **changes))([prompts.ask("?")], [[Image.new("RGB", (56, 56))]], 32)
    return answer


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Fails when the block takes longer, or when more than MEMORY was in use in it, the server's own included."""
    tracemalloc.start()
    begin = time.monotonic()
    try:
        yield
        assert time.monotonic() - begin < seconds + SLACK
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_answer_is_unreadable_or_one_error_in_time_and_in_little_memory(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    act, message = HOSTILE[kind]
    with serving(act) as server, caplog.at_level(logging.DEBUG, "r1track"), bounded(SECONDS):
        if message:
            with pytest.raises(UserError, match=message) as error:
                asks(server.url)
            said = str(error.value)
            assert server.url in said
            assert len(said) < 1000
            assert all(character.isprintable() or character == "\n" for character in said)
        else:
            assert asks(server.url) == ""
            said = ""
    assert len(server.requests) == 2  # the list of models and the question
    assert KEY in server.requests[1].decode()
    assert KEY not in said + caplog.text


LISTS: dict[
    str, tuple[Act, bool]
] = {  # what the server does in place of its list, and whether it is asked all the same
    "a byte now and then": (drips(head(10**6), b" "), False),
    "endless 100 Continue": (drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0), False),
    "500 MB": (drips(head(500_000_000), BLOCK, 0), False),
    "a closed connection": (lambda connection: None, False),
    "deep JSON": (says(deep()), True),
    "names that are none": (says(json.dumps({"data": [{"id": [KEY, None]}, {"id": {}}]})), True),
    "a list of lists": (says('{"data": [[]]}'), True),
    "an error": (says(deep(), "500 Oh"), True),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_hostile_list_of_models_ends_too(kind: str) -> None:
    act, goes_on = LISTS[kind]
    with serving(says(chat("hello")), models=act) as server, bounded(SECONDS):
        if goes_on:
            assert asks(server.url) == "hello"
        else:
            with pytest.raises(UserError, match=f"{server.url}/: no server answers .*; start it, or correct the URL"):
                asks(server.url)


def test_a_server_that_never_reads_the_question_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as deaf, bounded(SECONDS):
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        with pytest.raises(UserError, match="no server answers"):
            asks(url)


def test_each_try_has_its_own_time() -> None:
    slow, begin = drips(head(10**6), b" "), time.monotonic()
    with serving(slow, slow, says(chat("in the end"))) as server:
        assert asks(server.url, retries=2) == "in the end"
    assert len(server.requests) == 4
    assert 2 * SECONDS < time.monotonic() - begin < 2 * SECONDS + 2 + SLACK  # waits of .5 and 1 s at most


def test_an_answer_may_be_as_long_as_its_tokens_and_no_longer() -> None:
    for length, expected in ((32 * 256, 32 * 256), (32 * 256 + 1, 0)):
        with serving(says(chat("a" * length))) as server:
            assert len(asks(server.url)) == expected


def test_tracks_of_unreadable_answers_are_held_counted_and_scored(tmp_path: Path) -> None:
    root = toy_split(tmp_path / "val", sequences=1, length=12)
    bad = [act for act, message in HOSTILE.values() if not message]
    odd = [says(chat(text)) for text in ("a\rb", "\r", "\x00", '",\n"', f"{KEY} it is", "\u2028\x85")]
    with serving(says(chat(BOX)), *bad, *odd[: 10 - len(bad)], *odd) as server:
        track.run(settings(server.url), "m", root, tmp_path / "tracks")
    (sequence,) = read_split(root)
    statuses = read_track(tmp_path / "tracks", sequence.name).statuses
    assert statuses == ["init", "ok"] + ["held"] * 10
    score.run(tmp_path / "tracks", root, tmp_path / "scores.json", 100)
    assert json.loads((tmp_path / "scores.json").read_text())["status"] == {"ok": 1, "held": 10}


SECRETS = [
    "http://me:hun/ter2@host/v1", "http://me:hun#ter2@host/v1", "http://me:hun?ter2@host/v1", "http://me:hunter2@host",
    "http://host/v1?api_key=hunter2", "http://host/v1#hunter2", "http://host\n/hunter2", "http://host:hunter2/v1",
    "http://host/hunter2 v1", f"http://host/{KEY}/v1", "hunter2://host", "http://\\hunter2@host", "http://:hunter2@host",
    "http://me:hunter2@host/v1", "localhost:8000", "/v1", "ftp://host/v1", "http://",
]  # fmt: skip


@pytest.mark.parametrize("url", SECRETS)
def test_an_address_that_may_hold_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="give http://HOST:PORT/v1, without password, key") as error:
        asks(url)
    assert not {"hun", "ter2", KEY} & {part for part in ("hun", "ter2", KEY) if part in str(error.value)}


@pytest.mark.parametrize("value", ["sk-very\nsecret", "sk-very secret", "sk-very\x00secret"[:7] + "\x7f", "sk-véry"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY, value)
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds a line break or another character") as error:
        asks("http://127.0.0.1:9/v1")
    assert "sk-v" not in str(error.value)


def test_a_key_of_three_characters_is_no_secret_and_hides_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY, "10")
    with serving(says(chat(BOX))) as server:
        assert asks(server.url) == BOX


def command(folder: Path, *words: str) -> str:
    """All that `r1track --log FILE track` prints, and the file."""
    line = ["--log", str(folder / "log.txt"), "track", "--out", str(folder / "out"), *words]
    done = CliRunner().invoke(cli.app, line, env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code in (0, 2), done.output
    return done.output + (folder / "log.txt").read_text()


@pytest.mark.usefixtures("logging_as_it_was")
def test_the_key_is_in_no_terminal_log_provenance_or_result(tmp_path: Path) -> None:
    """The server repeats it wherever it can: as an answer, as an error, as a model's name, instead of a response."""
    logging.getLogger("httpx2").setLevel(logging.DEBUG)  # as OPENAI_LOG=debug does
    root = toy_split(tmp_path / "val", sequences=1, length=6)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": {"size": 84}, "track": {"endpoint": {"retries": 0}}}))
    words = ("--config", str(tmp_path / "config.yaml"), "--model", "m", "--root", str(root))
    names = says(json.dumps({"data": [{"id": f"{KEY}"}]}))
    telling = says(chat(f"<think>{KEY}</think>{BOX}"))
    refusing = says(json.dumps({"error": {"message": f"no key {KEY}"}}), "401 No")
    for name, acts, models, rest in (
        ("told", [telling], names, ()),
        ("refused", [telling, refusing], LISTED, ()),
        ("unknown", [refusing], names, ()),
        ("broken", [HOSTILE["the request again"][0]], LISTED, ()),
        ("address", [telling], LISTED, ("--endpoint", f"http://127.0.0.1:9/v1?api_key={KEY}")),
    ):
        (tmp_path / name).mkdir()
        with serving(*acts, models=models) as server:
            told = command(tmp_path / name, *words, "--endpoint", server.url, *rest)
        assert KEY not in told
        assert "sk-very" not in told
        assert ("***" in told) is (name in ("refused", "unknown", "broken"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if path.name == "provenance.json" and "told" in str(path)]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
