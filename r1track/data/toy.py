"""The toy world: synthetic video sequences in the GOT-10k layout, so that the workflow runs without a download.

A target (a coloured shape) moves, turns and changes size over a textured, slowly panning background, among distractors
of its colour or its shape. In some sequences a grey panel covers it for a while. The same seed writes the same bytes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track as progress

from r1track.core.boxes import Array, clip
from r1track.core.folders import atomic_folder
from r1track.core.provenance import Provenance
from r1track.core.schema import Settings

WIDTH, HEIGHT = 192, 144
COLORS = {
    "red": (214, 40, 40), "green": (46, 160, 67), "blue": (40, 90, 214),
    "yellow": (240, 205, 40), "purple": (150, 60, 190), "white": (245, 245, 245),
}  # fmt: skip
PANEL_FRAMES = 9  # in which the panel slides over the target, without those in which it rests there
Frame = NDArray[np.uint8]


def _polar(angles: Array, radii: Array | float = 1.0) -> Array:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


A = 0.36  # half the width of a cross's arms
OUTLINES = {  # corner points of every shape, inside [-1, 1] x [-1, 1]
    "circle": _polar(np.linspace(0, 2 * np.pi, 28, endpoint=False)),
    "square": np.array([[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]]),
    "triangle": np.array([[0, -1], [1, 0.8], [-1, 0.8]]),
    "star": _polar(np.arange(10) * np.pi / 5 - np.pi / 2, np.where(np.arange(10) % 2 == 0, 1.0, 0.42)),
    "cross": np.array(
        [[-A, -1], [A, -1], [A, -A], [1, -A], [1, A], [A, A], [A, 1], [-A, 1], [-A, A], [-1, A], [-1, -A], [-A, -A]]
    ),
}
SHAPES = tuple(OUTLINES)


@dataclass
class Thing:
    """A coloured shape and its path over n frames: centre (n, 2) and size (n,) in pixels, angle (n,) in radians."""

    shape: str
    color: str
    aspect: float
    centre: Array
    size: Array
    angle: Array

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    def points(self, t: int) -> Array:
        """Corner points in frame t, shape (k, 2)."""
        stretch = np.array([math.sqrt(self.aspect), 1 / math.sqrt(self.aspect)])
        cos, sin = math.cos(self.angle[t]), math.sin(self.angle[t])
        turned = OUTLINES[self.shape] * stretch @ np.array([[cos, sin], [-sin, cos]])
        return turned * self.size[t] / 2 + self.centre[t]

    def draw(self, frame: Frame, t: int) -> None:
        color, corners = COLORS[self.color], [np.round(self.points(t) * 16).astype(np.int32)]
        cv2.fillPoly(frame, corners, color, cv2.LINE_AA, 4)
        cv2.polylines(frame, corners, True, [c // 3 for c in color], 1, cv2.LINE_AA, 4)


@dataclass
class World:
    """A clip of `length` frames: things[0] is the target; panel: the box x1, y1, x2, y2 that covers it, by frame."""

    length: int
    things: list[Thing]
    ground: Frame
    pan: Array
    panel: dict[int, list[int]]

    @property
    def description(self) -> str:
        return self.things[0].name

    def frame(self, t: int) -> Frame:
        """Frame t, RGB, shape (HEIGHT, WIDTH, 3)."""
        x, y = self.pan[t].astype(int)
        frame = np.ascontiguousarray(self.ground[y : y + HEIGHT, x : x + WIDTH])
        for thing in reversed(self.things):
            thing.draw(frame, t)
        if t in self.panel:
            x1, y1, x2, y2 = self.panel[t]
            cv2.rectangle(frame, (x1, y1), (x2 - 1, y2 - 1), (120, 120, 124), cv2.FILLED)
            cv2.rectangle(frame, (x1, y1), (x2 - 1, y2 - 1), (70, 70, 74), 1)
        return frame

    def box(self, t: int, thing: int = 0) -> Array:
        """The true box of a thing in frame t: x, y, w, h of the shape's bounding box, clipped to the image."""
        points = self.things[thing].points(t)
        x1, y1, x2, y2 = clip(np.concatenate([points.min(0), points.max(0)]), WIDTH, HEIGHT)
        return np.array([x1, y1, x2 - x1, y2 - y1])

    def visibility(self, t: int) -> float:
        """Fraction of the target's pixels that are inside the image and not behind the panel, in [0, 1]."""
        margin = 64
        mask = np.zeros((HEIGHT + 2 * margin, WIDTH + 2 * margin), np.uint8)
        cv2.fillPoly(mask, [np.round((self.things[0].points(t) + margin) * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
        whole = int(mask.sum())
        visible = mask[margin : margin + HEIGHT, margin : margin + WIDTH]
        if t in self.panel:
            x1, y1, x2, y2 = clip(self.panel[t], WIDTH, HEIGHT).astype(int)
            visible[y1:y2, x1:x2] = 0
        return int(visible.sum()) / whole


def make_ground(rng: np.random.Generator) -> Frame:
    """A textured background larger than the frame: two octaves of smooth noise and faint stripes on a dull colour."""
    height, width = HEIGHT + 24, WIDTH + 24
    texture = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((5, 26.0), (18, 12.0)):
        noise = rng.standard_normal((cells, cells + 1, 3)).astype(np.float32)
        noise = 0.35 * noise + 0.65 * noise.mean(2, keepdims=True)
        texture += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    angle, period = rng.uniform(0, np.pi), rng.uniform(9, 24)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    wave = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * 2 * np.pi / period)
    base = rng.uniform(55, 135) + rng.uniform(-14, 14, 3)
    return np.clip(texture + 6 * wave[..., None] + base, 20, 190).astype(np.uint8)


def _walk(rng: np.random.Generator, length: int, size: Array) -> Array:
    """A smooth random path that bounces off the border, in pixels, shape (length, 2); its speed grows with the size."""
    low = size.max() * 0.45
    position = rng.uniform([low, low], [WIDTH - low, HEIGHT - low])
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.10, 0.26)
    path = np.zeros((length, 2))
    velocity = speed * np.array([math.cos(heading), math.sin(heading)])
    for t in range(length):
        path[t] = position
        velocity = velocity + rng.normal(0, 0.035, 2)
        velocity *= min(1.0, 0.30 / max(1e-9, float(np.hypot(*velocity))))
        position = position + velocity * size[t]
        for axis, limit in enumerate((WIDTH, HEIGHT)):
            if not low <= position[axis] <= limit - low:
                velocity[axis] *= -1
                position[axis] = float(np.clip(position[axis], low, limit - low))
    return path


def make_thing(rng: np.random.Generator, length: int, shape: str, color: str) -> Thing:
    """A thing of this shape and colour, with a random path, size and rotation."""
    growth = np.exp(np.cumsum(rng.normal(0, 0.018, length)))
    size: Array = np.clip(rng.uniform(24, 40) * growth, 20, 46)
    spin = rng.normal(0, 0.03) if shape != "triangle" else 0.0
    angle: Array = rng.uniform(-0.25, 0.25) + spin * np.arange(length, dtype=np.float64)
    return Thing(shape, color, float(rng.uniform(0.8, 1.25)), _walk(rng, length, size), size, angle)


def distractor_kinds(rng: np.random.Generator, shape: str, color: str, count: int) -> list[tuple[str, str]]:
    """Shape and colour of distractors; a distractor has the target's colour or its shape, never both."""
    shapes, colors = [s for s in SHAPES if s != shape], [c for c in COLORS if c != color]
    draws = range(count)
    return [(str(rng.choice(shapes)), color) if rng.random() < 0.5 else (shape, str(rng.choice(colors))) for _ in draws]


def make(
    rng: np.random.Generator, length: int, distractors: int, panel: bool, ground: Frame | None = None, rest: int = 0
) -> World:
    """A random clip; its background is random too, unless one is given. rest: frames in which the panel rests."""
    shape, color = str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))
    kinds = [(shape, color), *distractor_kinds(rng, shape, color, distractors)]
    things = [make_thing(rng, length, s, c) for s, c in kinds]
    drift = np.cumsum(rng.normal(0, 0.8, (length, 2)), 0) + 12
    ground = make_ground(rng) if ground is None else ground
    boxes = _panel(rng, things[0], length, rest) if panel and length > PANEL_FRAMES + rest + 6 else {}
    return World(length, things, ground, np.clip(drift, 0, 23), boxes)


def _panel(rng: np.random.Generator, target: Thing, length: int, rest: int) -> dict[int, list[int]]:
    """The panel's box x1, y1, x2, y2 in whole pixels, by frame: it slides across the target, in a random direction.

    Half-way it moves with the target for `rest` more frames.
    """
    start, heading, boxes = int(rng.integers(4, length - PANEL_FRAMES - rest - 1)), rng.uniform(0, 2 * np.pi), {}
    middle = PANEL_FRAMES // 2
    for t, k in enumerate([*range(middle), *[middle] * rest, *range(middle, PANEL_FRAMES)], start):
        offset = 1.7 * (2 * k / (PANEL_FRAMES - 1) - 1)
        centre = target.centre[t] + np.array([math.cos(heading), math.sin(heading)]) * offset * target.size[t]
        corners = np.concatenate([centre - 0.72 * target.size[t], centre + 0.72 * target.size[t]])
        boxes[t] = [int(value) for value in np.round(corners)]
    return boxes


def write_sequence(folder: Path, world: World) -> None:
    """Write one clip as a GOT-10k sequence folder: frames, ground truth, labels, meta information, description."""
    folder.mkdir(parents=True)
    for t in range(world.length):
        Image.fromarray(world.frame(t)).save(folder / f"{t + 1:08d}.jpg", quality=92)
    cover = [math.floor(world.visibility(t) * 8 + 0.5) for t in range(world.length)]  # visible eighths
    boxes = [world.box(t) if eighths else np.full(4, -1.0) for t, eighths in enumerate(cover)]
    (folder / "groundtruth.txt").write_text("".join(",".join(f"{v:.4f}" for v in box) + "\n" for box in boxes))
    (folder / "absence.label").write_text("".join(f"{int(v == 0)}\n" for v in cover))
    (folder / "cover.label").write_text("".join(f"{v}\n" for v in cover))
    (folder / "cut_by_image.label").write_text("0\n" * world.length)
    target = world.things[0]
    (folder / "meta_info.ini").write_text(
        "[METAINFO]\nurl: toy\nbegin: 00:00:00\nend: 00:00:03\n"
        f"anno_fps: 10Hz\nobject_class: {target.shape}\nmotion_class: drift\nmajor_class: {target.color}\n"
        f"root_class: toy\nmotion_adverb: smoothly\nresolution: ({WIDTH}, {HEIGHT})\n"
    )
    (folder / "nlp.txt").write_text(f"{world.description}\n")


def write_split(folder: Path, split: str, *, sequences: int, length: int, seed: int, rest: int = 0) -> None:
    """Write `folder/list.txt` and a folder per sequence, which has a generator of its own: seed, split, its number."""
    with atomic_folder(folder, "toy") as out:
        names = [f"Toy_{split.capitalize()}_{number:06d}" for number in range(1, sequences + 1)]
        for number, name in enumerate(progress(names, f"toy {split}")):
            rng = np.random.default_rng([seed, {"train": 1, "val": 2}[split], number])
            distractors, panel = int(rng.integers(0, 4)), bool(rng.random() < 0.35)
            write_sequence(out / name, make(rng, length, distractors, panel, rest=rest))
        (out / "list.txt").write_text("".join(f"{name}\n" for name in names))


def run(settings: Settings, out: Path) -> None:
    """Write the splits `out/train` and `out/val` and the provenance of both."""
    provenance, toy = Provenance("toy", {}), settings.toy
    with atomic_folder(out, "toy") as folder:
        for split, sequences in (("train", toy.train_sequences), ("val", toy.val_sequences)):
            write_split(folder / split, split, sequences=sequences, length=toy.length, seed=toy.seed, rest=toy.rest)
        provenance.write(folder / "provenance.json", seed=toy.seed)
