"""Peers: simple trackers that answer a frame's question in the model's place, so that its score has company.

They go the model's way: what they answer is text, read by the same parser and moved by the same rules.
"""

from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from r1track.core import prompts
from r1track.core.boxes import clip, xywh_to_xyxy
from r1track.tracking.views import Ask, Template, View

SILENT = ""  # no answer: the tracker holds the last box


def static(view: View) -> str:
    """Never answers, so that the first box is held, exactly, for ever."""
    return SILENT


def template(view: View) -> str:
    """Where the target's pixels of the first frame correlate best (TM_CCOEFF_NORMED), at the first frame's scale."""
    x1, y1, x2, y2 = (int(v) for v in np.round(clip(view.template.box, *view.template.image.size)))
    width, height = (max(1, round(float(side) * view.crop.scale)) for side in view.first[2:])
    if x2 <= x1 or y2 <= y1 or max(width, height) > view.crop.size:
        return SILENT
    patch = cv2.resize(_gray(view.template.image)[y1:y2, x1:x2], (width, height), interpolation=cv2.INTER_AREA)
    match = cv2.matchTemplate(_gray(view.search), patch, cv2.TM_CCOEFF_NORMED)
    _, _, _, (left, top) = cv2.minMaxLoc(match)
    box = np.array([left, top, left + view.first[2] * view.crop.scale, top + view.first[3] * view.crop.scale])
    return str([round(float(v), 3) for v in box])


def oracle(view: View) -> str:
    """The true box in whole pixels of the search crop: the best that any answer in this form can reach."""
    if view.truth is None:
        return SILENT
    return prompts.numbers(clip(view.crop.to_crop(view.truth), view.crop.size, view.crop.size))


_csrt: WeakKeyDictionary[Template, Any] = WeakKeyDictionary()  # OpenCV's trackers, by the sequence's template


def csrt(view: View) -> str:
    """OpenCV's CSRT with its own settings: it keeps a state per sequence and sees whole frames."""
    try:
        if view.opening is not None:
            tracker = cv2.TrackerCSRT.create()  # type: ignore[attr-defined,unused-ignore]
            tracker.init(_bgr(view.opening), [round(float(v)) for v in view.first])
            _csrt[view.template] = tracker
        found, box = _csrt[view.template].update(_bgr(view.frame))
    except (cv2.error, KeyError):  # it refuses targets of a pixel or two, and crashes if it is asked none the less
        return SILENT
    return str(view.crop.to_crop(xywh_to_xyxy(box)).round(3).tolist()) if found else SILENT


def _bgr(image: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L"))


PEERS = {"static": static, "template": template, "oracle": oracle, "csrt": csrt}


def find(name: str) -> Ask:
    """The peer of that name, for a batch of views. Raises ValueError for an unknown name."""
    if name not in PEERS:
        raise ValueError(f"peer:{name}: no such peer; take one of {', '.join('peer:' + known for known in PEERS)}")
    peer = PEERS[name]
    return lambda views: [peer(view) for view in views]
