"""A hub on 127.0.0.1: models and data sets as the Hugging Face hub serves them, for tests of what downloads them."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATH = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?(?:/.*)?$")
FILE = re.compile(r"^/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Mirror:
    """Repositories by kind and id: the folder with the files of each; those that are gated; the requests so far."""

    repositories: dict[tuple[str, str], Path]
    gated: set[str] = field(default_factory=set)
    url: str = ""
    requests: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    mirror: Mirror
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _folder(self, kind: str, name: str, revision: str | None) -> Path | None:
        """The files of a repository; None after an answer that says why there are none."""
        folder = self.mirror.repositories.get((kind, name))
        if folder is None:
            self._send(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif revision not in (None, "main", COMMIT):
            self._send(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            return None
        return folder

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.mirror.requests.append(f"{self.command} {path}")
        if match := FILE.match(path):
            return self._file("datasets" if match[1] else "models", match[2], match[3], match[4])
        match = PATH.match(path)
        if not match:
            return self._send(404)
        kind, name, question, revision = match.groups()
        if (folder := self._folder(kind, name, revision)) is None:
            return None
        entries = [(file.relative_to(folder).as_posix(), file) for file in sorted(folder.rglob("*")) if file.is_file()]
        if question in ("tree", "paths-info"):
            listing: Any = [
                {"type": "file", "path": entry, "size": file.stat().st_size, "oid": sha1(file.read_bytes()).hexdigest()}
                for entry, file in entries
            ]
            inside = path.split(f"/{question}/{revision}", 1)[1].strip("/")
            listing = [entry for entry in listing if entry["path"].startswith(inside)]
        else:
            siblings = [{"rfilename": entry, "size": file.stat().st_size} for entry, file in entries]
            listing = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "gated": False, "tags": []}
        return self._send(200, json.dumps(listing).encode(), Content_Type="application/json")

    def _file(self, kind: str, name: str, revision: str, entry: str) -> None:
        if (folder := self._folder(kind, name, revision)) is None:
            return None
        if name in self.mirror.gated:
            return self._send(403, X_Error_Code="GatedRepo", X_Error_Message="Access to it is restricted")
        file = folder / entry
        if not file.is_file():
            return self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content = file.read_bytes()
        headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if match := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._send(206, content[start : end + 1], **headers)
        return self._send(200, content, **headers)


@contextmanager
def serving(mirror: Mirror) -> Iterator[Mirror]:
    """Serve the repositories at `mirror.url` until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"mirror": mirror}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
