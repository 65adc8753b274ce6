"""Command `video`: follow one target through a video file or a folder of images, and draw it on a copy.

Frames are decoded as they are needed, three times: to count them, to track, and to draw. There is no live window, since
the OpenCV that is installed has none; there is a preview picture.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from rich.progress import Progress
from rich.progress import track as progress

from r1track.core import files
from r1track.core.boxes import area, clip, xywh_to_xyxy
from r1track.core.crops import fits
from r1track.core.errors import MissingFile, UserError
from r1track.core.images import LARGEST, SUFFIXES, is_image, read_image
from r1track.core.schema import Settings
from r1track.core.sequences import Sequence
from r1track.core.text import numbers
from r1track.tracking import predictors
from r1track.tracking.motion import UNSEEN, clip_and_widen
from r1track.tracking.track import follow
from r1track.tracking.track_files import Track

RATE = Fraction(25)  # frames per second where the input gives none, as a folder does
COLUMNS, ROWS, WIDTH = 4, 3, 320  # frames in a row and in a column of the preview, and pixels of a frame's width


def frames(video: Path) -> Iterator[tuple[Image.Image, Fraction]]:
    """The frames of a video file or of a folder (2.jpg before 10.jpg), upright, each with the frames per second.

    Raises UserError, with file and remedy, for what cannot be decoded.
    """
    if video.is_dir():
        for path in sorted(filter(is_image, video.iterdir()), key=lambda path: (len(path.name), path.name)):
            yield read_image(path, upright=True), RATE
        return
    try:  # without the option, a playlist could name addresses in the network
        with av.open(str(video), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise UserError(f"{video}: has no video stream; give a video or a folder of images")
            stream = container.streams.video[0]
            if stream.width * stream.height > LARGEST:
                raise UserError(f"{video}: {stream.width} x {stream.height} pixels are too many; give a smaller copy")
            for frame in container.decode(stream):
                yield frame.to_image().rotate(frame.rotation, expand=True), stream.average_rate or RATE
    except av.FFmpegError as error:
        raise UserError(f"{video}: cannot be decoded ({error.strerror}); give a whole video or a folder") from error


def _draw(track: Track, video: Path, out: Path, preview: Path | None) -> None:
    """Write the frames of `video` with the boxes of its track to `out`, and some as one picture to `preview`."""
    total, (first, rate) = len(track.boxes), next(frames(video))
    size = first.width + first.width % 2, first.height + first.height % 2  # the codec needs even sides
    height, count = round(WIDTH * size[1] / size[0]), min(total, COLUMNS * ROWS)
    sheet = Image.new("RGB", (min(COLUMNS, count) * WIDTH, -(-count // COLUMNS) * height))
    picks = np.linspace(0, total - 1, count).round().astype(int).tolist()
    with files.atomic_file(out) as temp_path, av.open(str(temp_path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, width=size[0], height=size[1], pix_fmt="yuv420p")
        for t, (image, _) in enumerate(progress(frames(video), "drawing", total)):
            colour = (255, 160, 0) if track.statuses[t] in UNSEEN else (60, 255, 60)
            corners = xywh_to_xyxy(track.boxes[t]).tolist()
            ImageDraw.Draw(image).rectangle(corners, outline=colour, width=max(2, image.width // 200))
            image = image.crop((0, 0, *size))  # a frame of another size than the first is cut or padded
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
            if t in picks:
                row, column = divmod(picks.index(t), COLUMNS)
                sheet.paste(image.resize((WIDTH, height)), (column * WIDTH, row * height))
        container.mux(stream.encode())
    if preview:
        with files.atomic_file(preview) as temp_path:
            sheet.save(temp_path, "JPEG")


def parse_box(text: str) -> list[float]:
    """The four numbers of a box, as a line of groundtruth.txt holds them. Raises UserError for anything else."""
    try:
        x, y, w, h = (value for value in numbers(text) if math.isfinite(value))
    except ValueError:
        raise UserError(f"--box {text!r}: no four numbers; give a box as x,y,w,h") from None
    return [x, y, w, h]


def run(settings: Settings, video: Path, model: str, out: Path, start: list[float] | str, preview: Path | None) -> None:
    """Track the target through `video`; write the drawn video to `out` (.mp4) and the boxes to a CSV file beside it.

    start: the box x, y, w, h in pixels of the first frame, or a description. model: as for `track`. preview: a JPEG
    file. Raises UserError, with file and remedy, for an input or a start that cannot be used.
    """
    table = out.with_suffix(".csv")
    if out.suffix != ".mp4":
        raise UserError(f"--out {out}: not an .mp4 file; name one")
    if preview and preview.resolve() in (out.resolve(), table.resolve()):
        raise UserError(f"--preview {preview}: is written by --out already; give another name")
    for path in (out, table, *([preview] if preview else [])):
        files.check_file(path)
        if video.is_dir() and path.resolve().parent == video.resolve():
            raise UserError(f"{path}: lies among the frames; give a name elsewhere")
    total = sum(1 for _ in progress(frames(video), "counting")) if video.is_dir() or video.is_file() else 0
    if not total:
        raise MissingFile(f"{video}: no frames; give a video, or a folder of images ({', '.join(SUFFIXES)})")
    settings, (first, _) = predictors.settings_for(settings, model), next(frames(video))
    if not isinstance(start, str) and not (min(start[2:]) > 0 and area(clip(xywh_to_xyxy(start), *first.size)) > 0):
        raise UserError(f"--box {start}: no part of the first frame, {first.width} x {first.height}; give x,y,w,h")
    predict, generate = predictors.load_predictor(settings, model)
    if isinstance(start, str):
        if generate is None or not fits(first.size):
            reason = f"{first.size} pixels are too narrow for the model" if generate else f"{model} cannot read"
            raise UserError(f"--text {start!r}: {reason}; give --box")
        ((answer, box),) = predictors.ground(generate, [first], [start], settings)
        if box is None:
            raise UserError(
                f"--text {start!r}: no box in the answer {answer!r}; describe it in other words, or give --box"
            )
    else:
        box = clip_and_widen(xywh_to_xyxy(start), first.size, settings.track.min_side)
    none = np.zeros(total, bool)
    sequence = Sequence(video.stem, (video,) * total, box[None], none, np.full(total, np.nan), none, {}, None)
    images = (image for image, _ in frames(video))
    with Progress() as bar:
        tick = partial(bar.advance, bar.add_task(f"tracking {video.name}", total=total - 1))
        (track,) = follow([sequence], predict, settings, tick=tick, read=lambda *_: next(images))
    _draw(track, video, out, preview)
    boxes = [",".join(f"{v:.3f}" for v in box) for box in track.boxes]
    rows = [f"{t},{box},{status}\n" for t, (box, status) in enumerate(zip(boxes, track.statuses, strict=True), 1)]
    files.write_text(table, "".join(["frame,x,y,w,h,status\n", *rows]))
