"""Command `play`: a page on which a person starts the tracker, watches it, corrects it and takes the result away.

The page is served to this machine alone: another name of the host (DNS rebinding) and requests from other pages are
refused. A file that is uploaded gets a number for its name, in a temporary folder; what the browser calls it is shown,
never used as a path. Long work is a generator whose values are the lines of a response; a browser that goes away ends
it.
"""

import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel, Field, FiniteFloat
from rich.progress import track as progress

from r1track.core.config import PACKAGE
from r1track.core.errors import UserError, naming
from r1track.core.images import SUFFIXES
from r1track.core.schema import Settings
from r1track.tracking import predictors, video

try:
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.requests import ClientDisconnect
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as error:
    raise UserError("play: needs the packages of its extra; install them: `pip install 'r1track[play]'`") from error

log, HERE = logging.getLogger(__name__), Path(__file__).parent
ADDRESS, HOSTS = "127.0.0.1", ["127.0.0.1", "localhost"]
MOST_BYTES = 4 * 2**30  # of the frames that a person gave, with their copies for the page
SIDE = 1280  # pixels of the longer side of such a copy, at most
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Start(BaseModel):
    """Where tracking starts: the number of a frame from 0, and the target's box x, y, w, h in it or its description."""

    frame: int = Field(ge=0)
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    text: str = Field("", max_length=2000)


def line(step: video.Step) -> tuple[int, list[float], str]:
    """A frame of a track, as the page gets it."""
    return step.frame, step.box.round(3).tolist(), step.status


@dataclass
class Clip:
    """Frames that were read, and their track, by number of the frame. `shown` has a copy of each for the page."""

    source: Path
    shown: Path
    size: tuple[int, int]
    rate: float
    total: int = 0
    track: dict[int, video.Step] = field(default_factory=dict)

    @property
    def drawn(self) -> Path:
        return self.shown / "followed.mp4"

    def state(self) -> dict[str, Any]:
        steps = [line(step) for step in [*self.track.values()]]
        return {"id": self.shown.name, "size": self.size, "rate": self.rate, "total": self.total, "track": steps}


@dataclass
class Session:
    """What the page shows and does; `turn` is locked while something runs."""

    folder: Path
    settings: Settings
    model: str
    predictor: predictors.Predictor
    turn: Lock = field(default_factory=Lock)
    names: dict[Path, str] = field(default_factory=dict)  # of uploaded files, as the browser calls them
    written: int = 0
    clip: Clip | None = None
    stopping: Callable[[], bool] = lambda: False

    def clear(self) -> None:
        """Forget the clip, and the files that were uploaded."""
        self.clip, self.names, self.written = None, {}, 0
        for path in self.folder.iterdir():
            shutil.rmtree(path)

    async def store(self, name: str, parts: AsyncIterator[bytes]) -> None:
        """Write an uploaded file. Its name says only whether it is an image, and its place among the others."""
        suffix = PurePosixPath(name).suffix.lower()
        path = self.folder / "uploads" / f"{len(self.names):08}{suffix if suffix in SUFFIXES else '.file'}"
        path.parent.mkdir(exist_ok=True)
        self.names[path] = name
        with path.open("xb") as stream:
            async for part in parts:
                self.spend(len(part))
                stream.write(part)

    def spend(self, count: int) -> None:
        """Count bytes that are written. Raises UserError when they are too many."""
        self.written += count
        if self.written > MOST_BYTES:
            raise UserError(f"more than {MOST_BYTES / 2**30:g} GiB with the copies for this page; give a shorter part")

    def uploaded(self) -> Path:
        """The video that was uploaded, or the folder of the images, in the order of their numbers."""
        if len(self.names) == 1 and (path := next(iter(self.names))).suffix not in SUFFIXES:
            return path
        folder = self.folder / "images"
        folder.mkdir(exist_ok=True)
        order = sorted(self.names.items(), key=lambda item: video.by_number(PurePosixPath(item[1])))
        self.names = {path.replace(folder / f"{n:08}{path.suffix}"): name for n, (path, name) in enumerate(order)}
        return folder

    def read(self, given: Path | None = None) -> Generator[Any]:
        """Read what was given or uploaded: a line with the number of each frame, and one about the clip."""
        source = given or self.uploaded()
        shown, clip = self.folder / secrets.token_hex(8), None
        shown.mkdir()
        for t, (image, rate) in enumerate(video.frames(source) if source.is_dir() or source.is_file() else ()):
            clip = clip or Clip(source, shown, image.size, float(rate))
            image = image.crop((0, 0, *clip.size))  # as in the drawn video
            image.thumbnail((SIDE, SIDE))
            image.save(shown / f"{t}.jpg", quality=88)
            self.spend((shown / f"{t}.jpg").stat().st_size)
            clip.total = t + 1
            yield clip.total
        if clip is None:
            raise video.no_frames(source)
        self.clip = clip
        yield clip.state()

    def track(self, start: Start) -> Generator[Any]:
        """Track from a frame on; a line for each. Later boxes than the start are forgotten, earlier ones stay."""
        clip = self.open_clip()
        if start.frame >= clip.total:
            raise UserError(f"frame {start.frame}: the last one is {clip.total - 1}")
        image, _ = next(video.frames(clip.source, start.frame))
        if start.box:
            box = video.given_box(start.box, image, self.settings)
        else:
            box = video.described_box(start.text, image, self.predictor.generate, self.settings, self.model)
        clip.track = {t: step for t, step in clip.track.items() if t < start.frame}
        for step in video.track_from(clip.source, start.frame, clip.total, box, self.predictor.predict, self.settings):
            clip.track[step.frame] = step
            yield line(step)

    def draw(self) -> Generator[Any]:
        """Write the video with its boxes; a line with the number of each frame."""
        clip = self.open_clip()
        for t in video.draw(clip.track, clip.total, clip.source, clip.drawn):
            yield t + 1

    def open_clip(self) -> Clip:
        if self.clip is None:
            raise UserError("no frames are open; choose a video or a folder")
        return self.clip

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block in which nothing else runs. Raises UserError when something does; a full disk is one, too."""
        if not self.turn.acquire(blocking=False):
            raise UserError("something is running already; stop it first, or wait")
        try:
            with naming(self.folder):
                yield
        finally:
            self.turn.release()

    def words(self, error: UserError) -> str:
        """What the page says of an error: files by the names that the browser gave them, no options."""
        message = str(error)
        for path, name in self.names.items():
            message = message.replace(str(path), name)
        message = message.replace(str(self.folder / "images"), "these files")
        return message.replace("--text ", "").replace("--box", "a box")

    async def lines(self, work: Generator[Any]) -> AsyncIterator[str]:
        """The values of `work` as lines of JSON, then how it ended: {} if it is complete, or the error."""
        end: dict[str, str] = {}
        try:
            with self.alone(), closing(work):
                while (value := await run_in_threadpool(next, work, None)) is not None:
                    if self.stopping():
                        raise UserError("the server is ending")
                    yield json.dumps(value) + "\n"
        except UserError as error:
            end["error"] = self.words(error)
        yield json.dumps(end) + "\n"


def make_app(session: Session) -> FastAPI:
    """The page and what it asks for."""
    app = FastAPI(openapi_url=None)
    templates = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    reads = session.predictor.generate is not None
    values = {"model": session.model, "url": session.settings.track.endpoint.url, "reads": reads, "most": MOST_BYTES}
    page = templates.get_template("play.html.j2").render(values)

    def stream(work: Generator[Any]) -> Response:
        return StreamingResponse(session.lines(work), media_type="application/x-ndjson")

    @app.exception_handler(UserError)
    async def refuse(_: Request, error: UserError) -> Response:
        return JSONResponse({"error": session.words(error)}, 400)

    @app.get("/")
    async def index() -> Response:
        return HTMLResponse(page)

    @app.get("/assets/{name}")
    async def asset(name: Literal["page.css", "play.css", "play.js"]) -> Response:
        return FileResponse(PACKAGE / "reporting" / name if name == "page.css" else HERE / name)

    @app.get("/state")
    async def state() -> Response:
        return JSONResponse(session.clip and session.clip.state())

    @app.get("/frames/{clip}/{number}")
    async def frame(clip: str, number: int) -> Response:
        if (shown := session.open_clip().shown).name != clip or not (shown / f"{number}.jpg").is_file():
            raise UserError("no such frame")
        return FileResponse(shown / f"{number}.jpg", headers={"Cache-Control": "max-age=86400"})

    @app.get("/followed.csv")
    async def boxes() -> Response:
        headers = {"Content-Disposition": 'attachment; filename="followed.csv"'}
        return Response(video.table([*session.open_clip().track.values()]), media_type="text/csv", headers=headers)

    @app.get("/followed.mp4")
    async def drawn() -> Response:
        return FileResponse(session.open_clip().drawn, filename="followed.mp4")

    @app.post("/clear")
    async def clear() -> None:
        with session.alone():
            session.clear()

    @app.post("/upload")
    async def upload(name: str, request: Request) -> None:
        with session.alone(), suppress(ClientDisconnect):  # which leaves a part, until the page clears it
            await session.store(name, request.stream())

    @app.post("/read")
    async def read() -> Response:
        return stream(session.read())

    @app.post("/track")
    async def track(start: Start) -> Response:
        return stream(session.track(start))

    @app.post("/draw")
    async def draw() -> Response:
        return stream(session.draw())

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.add_middleware(guard)
    return app


def guard(app: ASGIApp) -> ASGIApp:
    """The app, with HEADERS in every response; what other pages post is refused."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "http" and scope["method"] != "GET":
            sent = Headers(scope=scope)
            if sent.get("origin") != f"http://{sent.get('host')}":  # browsers add it to whatever a page posts
                return await Response("not sent by this page", 403)(scope, receive, send_guarded)
        await app(scope, receive, send_guarded)

    return guarded


def run(settings: Settings, model: str, source: Path | None, port: int) -> None:
    """Serve the page on this machine until Ctrl-C, with the frames of `source` if it is given. port: 0 is any.

    Raises UserError for a port that is taken, and for a model or frames that cannot be read.
    """
    settings = predictors.settings_for(settings, model)
    try:
        listener = socket.create_server((ADDRESS, port))
    except OSError as error:
        raise UserError(
            f"--port {port}: {os.strerror(error.errno or 0)}; give another one, or 0 for any that is free"
        ) from error
    with listener, TemporaryDirectory(prefix="r1track-play-") as folder:
        session = Session(Path(folder).resolve(), settings, model, predictors.load_predictor(settings, model))
        if source:
            for _ in progress(session.read(source), "reading"):
                pass
        app = make_app(session)
        config = uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=3)
        server = uvicorn.Server(config)
        session.stopping = lambda: server.should_exit
        log.info("open http://%s:%d in a browser; Ctrl-C ends it", ADDRESS, listener.getsockname()[1])
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
