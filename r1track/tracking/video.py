"""Command `video`: follow one target through a video file or a folder of images, and draw it on a copy.

Frames are decoded as they are needed, three times: to count them, to track, and to draw. There is no live window, since
the OpenCV that is installed has none; there is a preview picture.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track as progress

from r1track.core import files
from r1track.core.boxes import Array, area, clip, xywh_to_xyxy
from r1track.core.crops import fits
from r1track.core.errors import MissingFile, UserError
from r1track.core.images import LARGEST, SUFFIXES, is_image, read_image
from r1track.core.schema import Settings
from r1track.core.sequences import Sequence
from r1track.core.text import numbers
from r1track.tracking import predictors
from r1track.tracking.motion import UNSEEN, clip_and_widen
from r1track.tracking.track import rounds
from r1track.tracking.views import Generate, Predict

RATE = Fraction(25)  # frames per second where the input gives none, as a folder does
COLUMNS, ROWS, WIDTH = 4, 3, 320  # frames in a row and in a column of the preview, and pixels of a frame's width


class Step(NamedTuple):
    """A frame of a track: its number from 0, the box x, y, w, h in pixels of the frame, and the status."""

    frame: int
    box: Array
    status: str


def by_number(path: PurePath) -> tuple[str, str]:
    """The key that sorts frames by the numbers in their names, whatever their suffix: 2.jpeg before 10.jpg."""
    return re.sub(r"\d+", lambda number: number[0].zfill(20), path.stem), path.name


def frames(video: Path, first: int = 0) -> Iterator[tuple[Image.Image, Fraction]]:
    """The frames of a video file or of a folder from number `first` on, upright, each with the frames per second.

    Raises UserError, with file and remedy, for what cannot be decoded.
    """
    if video.is_dir():
        for path in sorted(filter(is_image, video.iterdir()), key=by_number)[first:]:
            yield read_image(path, upright=True), RATE
        return
    try:  # as FFmpeg gets the bytes of this file and no protocol, a playlist can name neither files nor addresses
        with video.open("rb") as data, av.open(data, "r", options={"protocol_whitelist": "none"}) as container:
            stream = next((stream for stream in container.streams.video if stream.codec_context), None)
            if stream is None:  # or none of a kind that FFmpeg knows
                raise UserError(f"{video}: has no video stream; give a video or a folder of images")
            if stream.width * stream.height > LARGEST:
                raise UserError(f"{video}: {stream.width} x {stream.height} pixels are too many; give a smaller copy")
            for frame in islice(container.decode(stream), first, None):
                yield frame.to_image().rotate(frame.rotation, expand=True), stream.average_rate or RATE
    except av.FFmpegError as error:
        raise UserError(f"{video}: cannot be decoded ({error.strerror}); give a whole video or a folder") from error


def track_from(video: Path, first: int, total: int, box: Array, predict: Predict, settings: Settings) -> Iterator[Step]:
    """The track from frame `first`, where the target is at `box`, to the last of the `total` frames, as it grows."""
    yield Step(first, box, "init")
    n, images = total - first, (image for image, _ in frames(video, first))
    none = np.zeros(n, bool)
    sequence = Sequence(video.stem, (video,) * n, box[None], none, np.full(n, np.nan), none, {}, None)
    for (live,) in rounds([sequence] if n > 1 else [], predict, settings, read=lambda *_: next(images)):
        yield Step(first + len(live.boxes) - 1, live.boxes[-1], live.statuses[-1])


def draw(track: dict[int, Step], total: int, video: Path, out: Path, preview: Path | None = None) -> Iterator[int]:
    """Write the frames of `video` with the boxes of its track to `out`, and some as one picture to `preview`.

    track: by number of the frame; yields each of the `total` numbers.
    """
    first, rate = next(frames(video))
    size = first.width + first.width % 2, first.height + first.height % 2  # the codec needs even sides
    height, count = round(WIDTH * size[1] / size[0]), min(total, COLUMNS * ROWS)
    sheet = Image.new("RGB", (min(COLUMNS, count) * WIDTH, -(-count // COLUMNS) * height))
    picks = np.linspace(0, total - 1, count).round().astype(int).tolist()
    with files.atomic_file(out) as temp_path, av.open(str(temp_path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, width=size[0], height=size[1], pix_fmt="yuv420p")
        for t, (image, _) in enumerate(frames(video)):
            if t in track:
                colour = (255, 160, 0) if track[t].status in UNSEEN else (60, 255, 60)
                corners = xywh_to_xyxy(track[t].box).tolist()
                ImageDraw.Draw(image).rectangle(corners, outline=colour, width=max(2, image.width // 200))
            image = image.crop((0, 0, *size))  # a frame of another size than the first is cut or padded
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
            if t in picks:
                row, column = divmod(picks.index(t), COLUMNS)
                sheet.paste(image.resize((WIDTH, height)), (column * WIDTH, row * height))
            yield t
        container.mux(stream.encode())
    if preview:
        with files.atomic_file(preview) as temp_path:
            sheet.save(temp_path, "JPEG")


def table(steps: Iterable[Step]) -> str:
    """The track as the CSV file holds it: frame (from 1), x, y, w, h, status."""
    rows = [f"{t + 1},{','.join(f'{v:.3f}' for v in box)},{status}\n" for t, box, status in steps]
    return "".join(["frame,x,y,w,h,status\n", *rows])


def parse_box(text: str) -> list[float]:
    """The four numbers of a box, as a line of groundtruth.txt holds them. Raises UserError for anything else."""
    try:
        x, y, w, h = (value for value in numbers(text) if math.isfinite(value))
    except ValueError:
        raise UserError(f"--box {text!r}: no four numbers; give a box as x,y,w,h") from None
    return [x, y, w, h]


def given_box(box: Collection[float], frame: Image.Image, settings: Settings) -> Array:
    """The box x, y, w, h that tracking starts from, cropped to the frame. UserError for one that is no part of it."""
    x, y, w, h = box
    if not (min(w, h) > 0 and area(clip(xywh_to_xyxy((x, y, w, h)), *frame.size)) > 0):
        raise UserError(f"--box {[*box]}: no part of the first frame, {frame.width} x {frame.height}; give x,y,w,h")
    return clip_and_widen(xywh_to_xyxy((x, y, w, h)), frame.size, settings.track.min_side)


def described_box(text: str, frame: Image.Image, generate: Generate | None, settings: Settings, model: str) -> Array:
    """The box x, y, w, h of the described target. Raises UserError when the model cannot read, or finds none."""
    if generate is None or not fits(frame.size):
        reason = f"{frame.size} pixels are too narrow for the model" if generate else f"{model} cannot read"
        raise UserError(f"--text {text!r}: {reason}; give --box")
    ((answer, box),) = predictors.ground(generate, [frame], [text], settings)
    if box is None:
        raise UserError(f"--text {text!r}: no box in the answer {answer!r}; describe it in other words, or give --box")
    return box


def no_frames(video: Path) -> MissingFile:
    """The error about an input without frames."""
    return MissingFile(f"{video}: no frames; give a video, or a folder of images ({', '.join(SUFFIXES)})")


def run(settings: Settings, video: Path, model: str, out: Path, start: list[float] | str, preview: Path | None) -> None:
    """Track the target through `video`; write the drawn video to `out` (.mp4) and the boxes to a CSV file beside it.

    start: the box x, y, w, h in pixels of the first frame, or a description. model: as for `track`. preview: a JPEG
    file. Raises UserError, with file and remedy, for an input or a start that cannot be used.
    """
    csv_file = out.with_suffix(".csv")
    if out.suffix != ".mp4":
        raise UserError(f"--out {out}: not an .mp4 file; name one")
    for path in (out, csv_file, *([preview] if preview else [])):
        files.check_file(path)
        if video.is_dir() and path.resolve().parent == video.resolve():
            raise UserError(f"{path}: lies among the frames; give a name elsewhere")
    if preview and preview.resolve() in (out.resolve(), csv_file.resolve()):
        raise UserError(f"--preview {preview}: is written by --out already; give another name")
    if preview and preview.suffix not in (".jpg", ".jpeg"):
        raise UserError(f"--preview {preview}: not a .jpg file; name one")
    total = sum(1 for _ in progress(frames(video), "counting")) if video.is_dir() or video.is_file() else 0
    if not total:
        raise no_frames(video)
    settings, (first, _) = predictors.settings_for(settings, model), next(frames(video))
    box = None if isinstance(start, str) else given_box(start, first, settings)
    predict, generate = predictors.load_predictor(settings, model)
    if box is None:
        box = described_box(str(start), first, generate, settings, model)
    steps = track_from(video, 0, total, box, predict, settings)
    track = {step.frame: step for step in progress(steps, f"tracking {video.name}", total)}
    for _ in progress(draw(track, total, video, out, preview), "drawing", total):
        pass
    files.write_text(csv_file, table(track.values()))
