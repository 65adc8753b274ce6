"""Section: the base of the configuration's groups of fields, and the types that several of them have."""

import re
from os.path import expanduser
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from r1track.core.errors import UserError

NAME = r"^\w[\w.-]{0,99}$"  # of a folder or file of results; hidden ones are those of results that are not complete
Name = Annotated[str, Field(pattern=NAME)]
Schedule = Literal["constant_with_warmup", "linear", "cosine"]
Layout = Literal["auto", "got10k", "otb", "lasot", "tnl2k", "vot", "vot-flat", "nfs", "trackingnet", "uav123"]
Arm = Literal["sft", "grpo"]
Peer = Literal["static", "template", "oracle", "csrt"]
BoxForm = Literal["rounded", "truncated"]
Percent = Annotated[float, Field(ge=0, le=100)]
Layer = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# In a text it would be read as the place of an image, or as the end of a turn.
MODEL_MARK = re.compile(r"<\|(?:vision_\w+|image_pad|video_pad|im_start|im_end|endoftext)\|>")


def without_marks(text: str) -> str:
    """The text. Raises UserError where it holds a mark of the model's own."""
    if mark := MODEL_MARK.search(text):
        raise UserError(f"a text holds {mark[0]}, a mark of the model's own; take it out")
    return text


def _holds_question(prompt: str) -> str:
    if "{question}" not in prompt:
        raise ValueError(f"prompt {prompt!r} has no place {{question}}; write it where the question belongs")
    return prompt


def _holds_places(prompt: str) -> str:
    for place in ("{template}", "{search}", "{box}"):
        if prompt.count(place) != 1:
            raise ValueError(f"prompt {prompt!r} must hold {place} once; write it where it belongs")
    return prompt


def _names_something(place: str) -> str:
    if not place.strip():
        raise ValueError("names nothing, and would mean the working folder; give a path or a hub id")
    return place


Place = Annotated[str, AfterValidator(_names_something), AfterValidator(expanduser)]  # a path, or a hub id
Around = Annotated[str, AfterValidator(_holds_question), AfterValidator(without_marks)]  # a text around a question
Prompt = Annotated[str, AfterValidator(_holds_places), AfterValidator(without_marks)]  # a tracking question


class Section(BaseModel):
    """A group of fields: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
