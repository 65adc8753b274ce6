"""Lessons: the examples that the tiny base is trained on, drawn anew for every step.

- single objects, for the vision tower alone (tools/sight.py);
- easy-VQA's training questions (never its test questions);
- grounding: a named object to locate in a whole toy frame, in Qwen's own form of question and answer;
- tracking pairs cut from toy clips. In the last part of the training, a share of their answers (UNDECIDED) is the
  template's box instead of the target's. The greedy answer then copies the numbers in the prompt, as weak bases do, but
  the right answer still occurs among sampled answers, so GRPO has something to reinforce.

No clip of the splits toy/train and toy/val is among them: those use other random streams.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import easy_vqa
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiny_model import FRAME, SIZE

from r1track.core import prompts
from r1track.core.boxes import Array, xywh_to_xyxy
from r1track.core.crops import Crop, jitter_box
from r1track.data import toy

SINGLE = 56  # side of an image with a single object, in pixels
UNDECIDED = 0.55  # share of pair answers that repeat the template's box, in the last part


class SceneObject(NamedTuple):
    """An object in an image: its box, xyxy, in pixels of the image, and the indices of its colour and its shape."""

    box: Array
    color: int
    shape: int


def scene_object(thing: toy.Thing, box: Array) -> SceneObject:
    return SceneObject(box, list(toy.COLORS).index(thing.color), toy.SHAPES.index(thing.shape))


@dataclass(frozen=True)
class Item:
    """One supervised example: its images (RGB arrays of one common shape), its question and its answer."""

    images: list[NDArray[np.uint8]]
    question: prompts.Messages
    answer: str
    objects: list[SceneObject] = field(default_factory=list)  # in the last image; objects[0] is the target


class Lessons:
    """Draws training items; while `undecided` is true, the answers of some pairs are the template's box."""

    def __init__(self, seed: int):
        self.rng, self.undecided = np.random.default_rng(seed), False
        self.grounds = [toy.make_ground(self.rng) for _ in range(400)]
        questions, answers, ids = easy_vqa.get_train_questions()
        paths = easy_vqa.get_train_image_paths()
        self.photos = {i: np.asarray(Image.open(p).convert("RGB").resize((SIZE, SIZE), 3)) for i, p in paths.items()}
        self.questions = list(zip(questions, answers, ids, strict=True))

    def _world(self, length: int) -> toy.World:
        rng = self.rng
        ground = self.grounds[rng.integers(len(self.grounds))]
        return toy.make(rng, length, int(rng.integers(0, 4)), False, ground)

    def single(self) -> tuple[NDArray[np.uint8], SceneObject]:
        """An image (SINGLE, SINGLE, 3) of one object before a background, at about the scales of frames and crops."""
        rng = self.rng
        side = round(SINGLE / math.exp(rng.uniform(math.log(0.6), math.log(1.1))))
        ground = self.grounds[rng.integers(len(self.grounds))]
        x, y = rng.integers(0, ground.shape[1] - side), rng.integers(0, ground.shape[0] - side)
        canvas = np.ascontiguousarray(ground[y : y + side, x : x + side])
        thing = toy.make_thing(rng, 1, str(rng.choice(toy.SHAPES)), str(rng.choice(list(toy.COLORS))))
        thing.centre = side / 2 + rng.uniform(-1, 1, (1, 2)) * max(4, (side - thing.size[0]) / 2)
        thing.draw(canvas, 0)
        image = Image.fromarray(canvas).resize((SINGLE, SINGLE), Image.Resampling.BICUBIC)
        points = thing.points(0) * SINGLE / side
        return np.asarray(image), scene_object(thing, np.concatenate([points.min(0), points.max(0)]))

    def vqa(self) -> Item:
        """A question of easy-VQA's training split."""
        question, answer, photo = self.questions[self.rng.integers(len(self.questions))]
        return Item([self.photos[photo]], prompts.ask(question + prompts.SHORT), answer)

    def ground(self) -> Item:
        """A named object in a whole toy frame; its name is unique in the frame."""
        clip = self._world(1)
        names = [thing.name for thing in clip.things]
        chosen = int(self.rng.choice([i for i, name in enumerate(names) if names.count(name) == 1]))
        frame = Image.fromarray(clip.frame(0)).resize(FRAME, Image.Resampling.BICUBIC)
        scale = np.array(FRAME) / (toy.WIDTH, toy.HEIGHT)
        boxes = [xywh_to_xyxy(clip.box(0, i)) * np.tile(scale, 2) for i in range(len(clip.things))]
        objects = [scene_object(thing, box) for thing, box in zip(clip.things, boxes, strict=True)]
        answer = prompts.ground_answer(objects[chosen].box, names[chosen])
        objects.insert(0, objects.pop(chosen))
        return Item([np.asarray(frame)], prompts.ground(names[chosen]), answer, objects)

    def pair(self) -> Item:
        """Template and search region of one clip."""
        clip = self._world(12)
        first, second = self.rng.integers(0, clip.length, 2)
        box = clip.box(second)
        template = Crop.around(clip.box(first), 4, SIZE)
        shift = 0.3 if self.rng.random() < 0.7 else 0.8
        search = Crop.around(jitter_box(box, self.rng, shift=shift, scale=0.12), 4, SIZE)
        template_box = template.to_crop(xywh_to_xyxy(clip.box(first)))
        answer = np.clip(search.to_crop(xywh_to_xyxy(box)), 0, SIZE)
        if self.undecided and self.rng.random() < UNDECIDED:
            answer = template_box
        images = [np.asarray(c.cut(Image.fromarray(clip.frame(t)))) for c, t in ((template, first), (search, second))]
        boxes = [search.to_crop(xywh_to_xyxy(clip.box(second, i))) for i in range(len(clip.things))]
        objects = [scene_object(thing, box) for thing, box in zip(clip.things, boxes, strict=True)]
        return Item(images, prompts.build(template_box), prompts.numbers(answer), objects)
