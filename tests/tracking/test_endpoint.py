"""Claims about tracking through a server: the requests, what a failure leads to, that the boxes are the same."""

import base64
import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import anyio
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from toys import brightest, toy_split
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from typer.testing import CliRunner

from r1track import cli, plan
from r1track.core import config, crops, models, prompts, schema
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.sequences import read_split
from r1track.tracking import endpoint, predictors, track

SIZE = 84
KEY = "sk-very-secret"
FORM = "Look: {search} Where is what {template} shows at {box}?"


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The client does not wait: `anyio.sleep` only adds its seconds to this list."""
    monkeypatch.delenv(endpoint.KEY, raising=False)
    seconds = []

    async def sleep(delay):
        seconds.append(delay)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return seconds


class Served:
    """A server: its URL, the bodies and headers of its requests, and how many were open at once at most."""

    def __init__(self, reply, known):
        self.bodies, self.headers, self.lock, self.open, self.most = [], [], threading.Lock(), 0, 0
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body leave together

            def send(self, status, text, extra=()):
                self.send_response(status)
                for name, value in (("Content-Length", len(text.encode())), *extra):
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(text.encode())

            def do_GET(self):
                listed = self.path == "/v1/models" and known is not None
                self.send(*((200, json.dumps({"data": [{"id": name} for name in known]})) if listed else (404, "none")))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with served.lock:
                    served.bodies.append(body)
                    served.headers.append({name.lower(): value for name, value in self.headers.items()})
                    k, served.open = len(served.bodies) - 1, served.open + 1
                    served.most = max(served.most, served.open)
                result = reply(body, k) if self.path == "/v1/chat/completions" else (404, "no such route")
                with served.lock:
                    served.open -= 1
                self.send(*(result if isinstance(result, tuple) else (200, chat(result))))

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    """Start a server that answers by a function of (request, how many came before): a text, or a status and more."""
    with ExitStack() as stack:

        def start(reply, known=("m",)):
            served = Served(reply, known)
            stack.callback(served.stop)
            return served

        yield start


def chat(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def pictures(body):
    parts = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    head = "data:image/png;base64,"
    assert all(part["image_url"]["url"].startswith(head) for part in parts)
    return [Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix(head)))) for part in parts]


def honest(body, k):
    return brightest(pictures(body))


def settings(url, batch=3, timeout=20.0, retries=4, concurrency=None, **changes):
    server = schema.Endpoint(url=url, timeout=timeout, retries=retries, concurrency=concurrency)
    return schema.Settings(
        task=schema.Task(size=SIZE), track=schema.Track(batch=batch, endpoint=server, **changes)
    )  # fmt: skip


def asks(url, questions=1, **changes):
    """Ask a server something directly: its answers."""
    adapted = predictors.settings_for(settings(url, **changes), "m")
    _, answer = predictors.load_predictor(adapted, "m")
    return answer([prompts.ask(f"number {k}") for k in range(questions)], [[Image.new("RGB", (56, 56))]] * questions, 9)


def tracked(out, root):
    names = [sequence.name for sequence in read_split(root)]
    return [(out / name / f"{name}_001.txt").read_bytes() for name in names]


def test_the_boxes_are_those_of_the_same_answers_given_here(toy, tmp_path, serve, answer_with):
    served = serve(honest)
    track.run(settings(served.url), "m", toy, tmp_path / "served")
    answer_with(lambda text, images: brightest(images))
    track.run(settings(None, reuse=False), "some/model", toy, tmp_path / "here")
    assert tracked(tmp_path / "served", toy) == tracked(tmp_path / "here", toy)
    assert len(set(tracked(tmp_path / "here", toy))) == 4
    assert len(served.bodies) == 4 * 11


def test_a_question_has_the_crops_pixel_for_pixel_in_the_order_of_the_prompt(toy, tmp_path, serve):
    served = serve(honest)
    track.run(settings(served.url, batch=1, max_tokens=17), "m", toy, tmp_path / "out")
    first = read_split(toy)[-1]
    crop = Crop.around(first.boxes[0], 4.0, SIZE)
    body = served.bodies[0]
    rest = {key: value for key, value in body.items() if key != "messages"}
    assert rest == {"model": "m", "temperature": 0, "max_tokens": 17, "frequency_penalty": 0}
    expected = prompts.build(crop.to_crop(xywh_to_xyxy(first.boxes[0])))[0]["content"]
    sent = body["messages"][0]["content"]
    assert [p["type"] for p in sent] == ["image_url" if p["type"] == "image" else "text" for p in expected]
    assert [p for p in sent if p["type"] == "text"] == [p for p in expected if p["type"] == "text"]
    for picture, frame in zip(pictures(body), first.frames[:2], strict=True):
        assert picture.format == "PNG"
        assert picture.tobytes() == crop.cut(Image.open(frame)).tobytes()


@pytest.mark.parametrize("side", [56, 84, 112, 336, 448, 560])
def test_crops_are_left_alone_by_a_server_with_the_limits_of_the_released_models(side):
    assert smart_resize(side, side, 28, 3136, 12845056) == (side, side)
    assert crops.processed_size((side, side), schema.Model()) == (side, side)


@pytest.mark.parametrize("size", [(192, 144), (640, 360), (1921, 1083)])
def test_a_whole_frame_is_sent_as_the_local_processor_shows_it(size, serve):
    served = serve(lambda body, k: "[]")
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    adapted = predictors.settings_for(settings(served.url), "m")
    _, answer = predictors.load_predictor(adapted, "m")
    predictors.ground(answer, [frame], ["dog"], adapted)
    (sent,) = pictures(served.bodies[0])
    show = models.load_processor(models.TINY, schema.Model()).image_processor
    wide = models.load_processor(models.TINY, schema.Model(max_pixels=12845056)).image_processor
    one, two = (p(images=[i], return_tensors="pt")["pixel_values"] for p, i in ((show, frame), (wide, sent)))
    assert torch.equal(one, two)


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


@pytest.mark.parametrize("known", [None, ["other"]])
def test_a_server_that_does_not_list_the_model_is_asked_one_token(known, serve):
    served = serve(lambda body, k: "yes", known=known)
    assert asks(served.url) == ["yes"]
    assert [body["max_tokens"] for body in served.bodies] == [1, 9]


def test_where_no_server_answers_the_run_stops_at_once(waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    begin = time.monotonic()
    with pytest.raises(ValueError, match=f"{url}/v1/: no server answers .*; start it, or correct the URL"):
        asks(url)
    assert time.monotonic() - begin < 5
    assert waits == []


def test_v1_is_added_where_the_address_names_a_machine_only(serve):
    served = serve(lambda body, k: "yes")
    assert asks(served.url.removesuffix("/v1")) == asks(served.url.removesuffix("v1")) == asks(served.url + "/")
    assert len(served.bodies) == 3


def test_all_questions_of_a_round_are_under_way_at_once(toy, tmp_path, serve):
    together = threading.Barrier(4, timeout=10)

    def reply(body, k):
        together.wait()  # fails unless four wait here
        return honest(body, k)

    served = serve(reply)
    track.run(settings(served.url, batch=4), "m", toy, tmp_path / "out")
    assert (served.most, len(served.bodies)) == (4, 44)


def test_no_more_are_under_way_than_is_allowed_and_answers_keep_their_order(serve):
    pause = threading.Event()

    def reply(body, k):
        pause.wait(0.05 / (k + 1))  # later ones are faster
        return body["messages"][0]["content"][1]["text"]

    served = serve(reply)
    assert asks(served.url, 12, batch=8, concurrency=3) == [f"number {k}" for k in range(12)]
    assert served.most == 3


def test_the_key_is_sent_and_stands_in_no_log_message_or_file(toy, tmp_path, serve, monkeypatch, caplog):
    monkeypatch.setenv(endpoint.KEY, KEY)
    served = serve(lambda body, k: (500, f"{KEY} is tired") if k == 1 else honest(body, k))
    with caplog.at_level(logging.DEBUG):
        track.run(settings(served.url), "m", toy, tmp_path / "out")
        served = serve(lambda body, k: (401, f"Incorrect API key provided: {KEY}"))
        with pytest.raises(ValueError, match=r"401 Incorrect API key provided: \*\*\*(.|\n)*OPENAI_API_KEY") as error:
            asks(served.url)
    assert {headers["authorization"] for headers in served.headers} == {f"Bearer {KEY}"}
    assert "*** is tired" in caplog.text
    assert KEY not in caplog.text + str(error.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_without_a_key_none_is_sent(serve):
    served = serve(lambda body, k: "yes")
    asks(served.url)
    assert "authorization" not in served.headers[0]


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


def test_a_third_party_model_is_asked_with_its_own_prompt_template_through_a_server(toy, tmp_path, serve):
    served = serve(lambda body, k: '```json\n[{"bbox_2d": [32, 32, 52, 52]}]\n```', known=["theirs"])
    extra = schema.Extra(model="theirs", prompt=FORM, max_tokens=99)
    track.run(settings(served.url, extra={"mine": extra}), "extra:mine", toy, tmp_path / "out")
    content = served.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    assert (served.bodies[0]["model"], served.bodies[0]["max_tokens"]) == ("theirs", 99)
    templates = {pictures(body)[1].tobytes() for body in served.bodies}
    assert len(templates) == 4 < len({pictures(body)[0].tobytes() for body in served.bodies})


def command(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_flag_names_the_server_for_track_and_for_video(toy, tmp_path, serve):
    served = serve(honest)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": {"size": SIZE}}))
    shared = ("--config", tmp_path / "config.yaml", "--model", "m", "--endpoint", served.url)
    assert command("track", *shared, "--root", toy, "--out", tmp_path / "out").exit_code == 0
    assert len(served.bodies) == 44
    frames = read_split(toy)[0].frames[0].parent
    drawn = command("video", frames, *shared, "--out", tmp_path / "drawn.mp4", "--box", "60,60,30,30")
    assert drawn.exit_code == 0
    assert len(served.bodies) == 44 + 11


def test_a_refusal_is_one_message_and_exit_code_2(toy, tmp_path, serve):
    served = serve(lambda body, k: (400, "no images here"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": {"size": SIZE}}))
    words = ("--config", tmp_path / "config.yaml", "--model", "m", "--root", toy, "--out", tmp_path / "out")
    stopped = command("track", *words, "--endpoint", served.url)
    assert stopped.exit_code == 2
    assert "error: " in stopped.output
    assert "no images here" in stopped.output
    assert "Traceback" not in stopped.output


def test_without_the_openai_package_the_message_says_what_to_install(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "r1track.tracking.endpoint")
    monkeypatch.delattr("r1track.tracking.endpoint")
    with pytest.raises(ValueError, match=r"track\.endpoint\.url: needs the package openai; .*pip install openai"):
        asks("http://localhost:1/v1")


def test_peers_and_the_workflow_take_no_server(toy, tmp_path):
    with pytest.raises(ValueError, match=r"track\.endpoint\.url: peer:static needs no server"):
        track.run(settings("http://host/v1"), "peer:static", toy, tmp_path / "out")
    with pytest.raises(config.ConfigError, match=r"track\.endpoint\.url: the workflow loads its models .* null"):
        plan.make_plan(config.resolve({"track": {"endpoint": {"url": "http://host/v1"}}}))


# Qwen2.5-VL's own processor has a video half that needs torchvision, whose wheel loads beside CUDA's torch only. So the
# server reads the tiny model's processor as this package does; all else is its own.
SERVE = """
import sys
from pathlib import Path
from transformers.cli.serve import Serve
from transformers.cli.serving.model_manager import ModelManager
from r1track.core import models, schema
limits = schema.Model(max_pixels=12845056)
ModelManager._load_processor = lambda self, name, gguf_file: models.load_processor(Path(name.split("@")[0]), limits)
Serve(sys.argv[1], device="cpu", dtype="float32", port=int(sys.argv[2]))
"""
MISSING = [name for name in ("fastapi", "openai", "uvicorn") if find_spec(name) is None]


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """The URL of `transformers serve` with the tiny model in float32."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    words = [sys.executable, "-c", SERVE, str(models.TINY), str(port)]
    process = subprocess.Popen(words, stdout=log.open("w"), stderr=subprocess.STDOUT)
    try:
        for _ in range(480):
            time.sleep(0.25)
            if process.poll() is not None:
                pytest.fail(f"transformers serve ended: {log.read_text()[-2000:]}")
            try:
                if urllib.request.urlopen(f"http://localhost:{port}/health", timeout=1).status == 200:
                    break
            except OSError:  # HTTP errors are among them
                continue
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)} (pip install -e .[dev])")
@pytest.mark.parametrize("start", ["box", "text"])
def test_the_tiny_model_behind_transformers_serve_gives_the_local_boxes(start, tmp_path, transformers_serve):
    root = toy_split(tmp_path / "val", sequences=2)
    resolved = config.resolve({"track": {"start": start}})
    assert resolved.model.dtype == "float32"
    track.run(resolved, "tiny", root, tmp_path / "here")
    served = schema.Endpoint(url=transformers_serve)
    resolved = resolved.model_copy(update={"track": resolved.track.model_copy(update={"endpoint": served})})
    track.run(resolved, str(models.TINY), root, tmp_path / "served")
    assert tracked(tmp_path / "served", root) == tracked(tmp_path / "here", root)
    assert len(set(tracked(tmp_path / "here", root))) == 2
    rows = [(tmp_path / "here" / s.name / f"{s.name}_status.csv").read_text() for s in read_split(root)]
    assert all(text.count(",ok,") > 5 for text in rows)
