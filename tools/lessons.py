"""Lessons: what the tiny base is taught, drawn anew for every step.

- easy-VQA's training questions (its test questions are never seen);
- a named object to be found in a whole toy frame, in Qwen's grounding form;
- tracking pairs cut from toy clips. In the last part of the training a share of their answers (UNDECIDED) repeats the
  template's box instead of the target's. A greedy answer then copies the prompt's numbers, as weak bases do, while the
  right answer stays among the samples: something for GRPO to find.

No clip of the splits toy/train and toy/val is among them: those have random streams of their own.
"""

from dataclasses import dataclass, field

import easy_vqa
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from r1track import prompts
from r1track.boxes import Array, xywh_to_xyxy
from r1track.crops import Crop, drift
from r1track.toy import world
from r1track.toy.base import FRAME, SIZE

UNDECIDED = 0.55  # share of pair answers that repeat the template's box, in the last part
UNDECIDED_FROM = 0.88  # where the last part begins, in shares of the training
ALONE_UNTIL, ONE_UNTIL = 0.12, 0.3  # no distractor, then at most one, then at most three, in shares of the training


@dataclass(frozen=True)
class Item:
    """One supervised example: its images (RGB arrays of one common shape), its question and its answer."""

    images: list[NDArray[np.uint8]]
    question: prompts.Messages
    answer: str
    objects: list[Array] = field(default_factory=list)  # corners of what is in the last image; objects[0] is the target


class Lessons:
    """Draws training items; `progress` in [0, 1] decides how hard they are."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.grounds = [world.make_ground(self.rng) for _ in range(400)]
        questions, answers, ids = easy_vqa.get_train_questions()
        paths = easy_vqa.get_train_image_paths()
        self.photos = {i: np.asarray(Image.open(p).convert("RGB").resize((SIZE, SIZE), 3)) for i, p in paths.items()}
        self.questions = list(zip(questions, answers, ids, strict=True))

    def _world(self, progress: float, length: int) -> world.World:
        most = 0 if progress < ALONE_UNTIL else 1 if progress < ONE_UNTIL else 3
        rng = self.rng
        ground = self.grounds[rng.integers(len(self.grounds))]
        return world.make(rng, length, int(rng.integers(0, most + 1)), False, ground)

    def vqa(self, progress: float) -> Item:
        """A question of easy-VQA's training split."""
        question, answer, photo = self.questions[self.rng.integers(len(self.questions))]
        return Item([self.photos[photo]], prompts.ask(question + prompts.SHORT), answer)

    def ground(self, progress: float) -> Item:
        """A named object in a whole toy frame; any object whose kind is there once may be asked for."""
        clip = self._world(progress, 1)
        names = [thing.name for thing in clip.things]
        chosen = int(self.rng.choice([i for i, name in enumerate(names) if names.count(name) == 1]))
        frame = Image.fromarray(clip.frame(0)).resize(FRAME, Image.Resampling.BICUBIC)
        seen = [xywh_to_xyxy(clip.box(0, i)) * (FRAME[0] / world.WIDTH) for i in range(len(clip.things))]
        answer = prompts.ground_answer(seen[chosen], names[chosen])
        seen.insert(0, seen.pop(chosen))
        return Item([np.asarray(frame)], prompts.ground(names[chosen]), answer, seen)

    def pair(self, progress: float) -> Item:
        """Template and search region of one clip; late in the training some answers repeat the template's box."""
        clip = self._world(progress, 12)
        first, second = self.rng.integers(0, clip.length, 2)
        box = clip.box(second)
        template = Crop.around(clip.box(first), 4, SIZE)
        shift = 0.3 if self.rng.random() < 0.7 else 0.8
        search = Crop.around(drift(box, self.rng, shift=shift, scale=0.12), 4, SIZE)
        given = template.to_crop(xywh_to_xyxy(clip.box(first)))
        answer = np.clip(search.to_crop(xywh_to_xyxy(box)), 0, SIZE)
        if progress >= UNDECIDED_FROM and self.rng.random() < UNDECIDED:
            answer = given
        images = [np.asarray(c.cut(Image.fromarray(clip.frame(t)))) for c, t in ((template, first), (search, second))]
        seen = [search.to_crop(xywh_to_xyxy(clip.box(second, i))) for i in range(len(clip.things))]
        return Item(images, prompts.build(given), prompts.numbers(answer), seen)
