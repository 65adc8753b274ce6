"""Views: what a tracker sees of a frame, and what answers a batch of them."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from r1track.core.boxes import Array, xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.schema import Task


@dataclass(frozen=True, eq=False)
class Template:
    """A square crop around the target, and the target's corners in its pixels."""

    image: Image.Image
    box: Array

    @classmethod
    def cut(cls, frame: Image.Image, box: Array, task: Task) -> "Template":
        """The template of a frame in which the target has `box`, x, y, w, h in image pixels."""
        crop = Crop.around(box, task.template_factor, task.size)
        return cls(crop.cut(frame), crop.to_crop(xywh_to_xyxy(box)))


@dataclass(frozen=True)
class View:
    """What a tracker sees of one frame.

    later: the template of a later frame, where there is one. search: a square crop. first: the first frame's box, x, y,
    w, h in its pixels. crop: where in the frame `search` lies. truth: the true corners in the frame,
    given to the oracle alone, None where the target is absent. frame: the whole of it. opening: the whole first frame,
    in a sequence's first view alone.
    """

    template: Template
    later: Template | None
    first: Array
    search: Image.Image
    crop: Crop
    truth: Array | None
    frame: Image.Image
    opening: Image.Image | None


Ask = Callable[[list[View]], list[str]]  # one answer text per view
