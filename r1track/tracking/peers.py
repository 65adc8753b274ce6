"""Peers: simple trackers to compare a model with.

A peer answers in text, as a model does: a box x1, y1, x2, y2 in pixels of the search region, or NO_ANSWER, after which
the tracker keeps the last box. The same parser and the same rules of motion follow.
"""

from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from r1track.core import prompts
from r1track.core.boxes import clip, xywh_to_xyxy
from r1track.core.errors import UserError
from r1track.tracking.views import Predict, Template, View

NO_ANSWER = ""


def static(view: View) -> str:
    """No answer to any view: the first box stays for the whole sequence."""
    return NO_ANSWER


def template(view: View) -> str:
    """Where the target of the first frame correlates best (OpenCV's TM_CCOEFF_NORMED). Its size in the frame stays."""
    x1, y1, x2, y2 = (int(v) for v in np.round(clip(view.template.box, *view.template.image.size)))
    width, height = (max(1, round(float(side) * view.crop.scale)) for side in view.first_box[2:])
    if x2 <= x1 or y2 <= y1 or max(width, height) > view.crop.size:
        return NO_ANSWER
    patch = cv2.resize(_gray(view.template.image)[y1:y2, x1:x2], (width, height), interpolation=cv2.INTER_AREA)
    correlation = cv2.matchTemplate(_gray(view.search), patch, cv2.TM_CCOEFF_NORMED)
    _, _, _, (left, top) = cv2.minMaxLoc(correlation)
    right, bottom = np.array([left, top]) + view.first_box[2:] * view.crop.scale
    return str([round(float(v), 3) for v in (left, top, right, bottom)])


def oracle(view: View) -> str:
    """The true box, rounded to whole pixels of the search region: the best possible answer in the model's form."""
    if view.true_box is None:
        return NO_ANSWER
    corners = view.crop.to_crop(xywh_to_xyxy(view.true_box))
    return prompts.numbers(clip(corners, view.crop.size, view.crop.size))


_csrt: WeakKeyDictionary[Template, Any] = WeakKeyDictionary()  # OpenCV's trackers, by the template of the sequence


def csrt(view: View) -> str:
    """OpenCV's CSRT with its default settings. It keeps a state per sequence and sees whole frames."""
    try:
        if view.first_frame is not None:
            tracker = cv2.TrackerCSRT.create()  # type: ignore[attr-defined,unused-ignore]
            tracker.init(_bgr(view.first_frame), [round(float(v)) for v in view.first_box])
            _csrt[view.template] = tracker
        success, box = _csrt[view.template].update(_bgr(view.frame))
    except (cv2.error, KeyError):  # `init` refuses targets of a pixel or two; `update` without it crashes the process
        return NO_ANSWER
    return str(view.crop.to_crop(xywh_to_xyxy(box)).round(3).tolist()) if success else NO_ANSWER


def _bgr(image: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L"))


PEERS = {"static": static, "template": template, "oracle": oracle, "csrt": csrt}


def find(name: str) -> Predict:
    """The peer of the given name, as a function of a batch of views. Raises UserError for an unknown name."""
    if name not in PEERS:
        raise UserError(f"peer:{name}: no such peer; take one of {', '.join('peer:' + known for known in PEERS)}")
    return lambda views: list(map(PEERS[name], views))
