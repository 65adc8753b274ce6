"""Views: what a tracker sees of one frame, and the functions that answer for a batch of frames.

In this folder a box in a frame is x, y, w, h in frame pixels; a box in a crop is x1, y1, x2, y2 in crop pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from r1track.core.boxes import Array, xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.prompts import Messages
from r1track.core.schema import Task


@dataclass(frozen=True, eq=False)
class Template:
    """A square crop around the target, and the target's box in it (x1, y1, x2, y2 in its pixels, shape (4,))."""

    image: Image.Image
    box: Array

    @classmethod
    def cut(cls, frame: Image.Image, box: Array, task: Task) -> "Template":
        """The template of a frame whose target has the given box: x, y, w, h in frame pixels, shape (4,)."""
        crop = Crop.around(box, task.template_factor, task.size)
        return cls(crop.cut(frame), crop.to_crop(xywh_to_xyxy(box)))


@dataclass(frozen=True)
class View:
    """What a tracker sees of one frame. Boxes are x, y, w, h in frame pixels, shape (4,).

    template: of the first frame. later: the template of a later frame, None where task.templates is 1. first_box: the
    box in the first frame. search: the search region, a square crop. crop: where `search` lies in the frame. true_box:
    for the oracle only; None for other trackers and where the target is absent. frame: the whole frame. first_frame:
    the whole first frame, in the first view of a sequence only.
    """

    template: Template
    later: Template | None
    first_box: Array
    search: Image.Image
    crop: Crop
    true_box: Array | None
    frame: Image.Image
    first_frame: Image.Image | None


Predict = Callable[[list[View]], list[str]]  # one answer text per view, with a box in pixels of its search region
Generate = Callable[[list[Messages], list[list[Image.Image]], int], list[str]]  # questions, images, most tokens
