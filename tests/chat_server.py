"""A server of OpenAI's form that answers as a test says, and what a tracker asks it."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image
from toys import brightest

from r1track.core import prompts, schema
from r1track.core.sequences import read_split
from r1track.tracking import predictors

SIZE = 84


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
