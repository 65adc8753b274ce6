"""Configuration errors in plain words: path of the field, value, remedy."""

import difflib
import math
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

if typing.TYPE_CHECKING:
    from r1track.core.schema import Settings

PATCH = 28  # Qwen2.5-VL resizes images to multiples of this many pixels


def explain(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """One line per fault in values that do not fit `schema`."""
    lines = []
    for fault in error.errors():
        loc = fault["loc"][:-2] if "[key]" in fault["loc"] else fault["loc"]
        field = ".".join(map(str, loc))
        hidden = (dict, BaseModel, *((str, list) if "endpoint" in loc else ()))  # which may hold a key
        value = f" = {fault['input']!r}" if not isinstance(fault["input"], hidden) else ""
        lines.append(f"{field}{value}: {_remedy(fault, schema)}" if field else _remedy(fault, schema))
    return lines


def _remedy(fault: Any, schema: type[BaseModel]) -> str:
    value, kind = fault["input"], fault["type"]
    if kind == "extra_forbidden":
        known = _known(fault["loc"][:-1], schema)
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, 1)
        return f"unknown field; did you mean {near[0]!r}?" if near else f"unknown field; known here: {', '.join(known)}"
    if kind == "string_pattern_mismatch" and fault["loc"][-1] == "reward":
        return "no such reward; take 'paper' or 'iou', or name a function of your own as `module:function`"
    if kind == "string_pattern_mismatch":
        return "cannot name a folder; take a letter, digit or `_`, then up to 99 more, `-` and `.` too"
    if kind.endswith("_type") and value is None:
        return "nothing stands there; write a value, or leave the line out"
    if kind in ("model_type", "dict_type"):
        return "is a group of fields; write `name: value` below it, or {name: value} in its line"
    if kind == "list_type":
        return f"is a list; write [{value}]"
    if kind == "too_short":
        return "is empty; write at least one"
    if kind == "string_type":
        return f"YAML reads this as {type(value).__name__}; write a text, in quotes"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            return f"YAML reads this as text; write {_spelled(float(value))}"
        except ValueError:
            return "write a number, without quotes"
    return str(fault["msg"]).removeprefix("Value error, ")


def _spelled(number: float) -> str:
    """A number as YAML 1.1 needs it: with a point before the exponent."""
    mantissa, _, exponent = f"{number:e}".partition("e")
    digits = mantissa.rstrip("0")
    return f"{digits + '0' if digits.endswith('.') else digits}e{int(exponent)}"


def _known(path: tuple[Any, ...], schema: Any) -> list[str]:
    """Names of the fields below `path`, which may go through a dictionary of sections, such as vqa.sets."""
    for step in path:
        field = getattr(schema, "model_fields", {}).get(step)
        schema = field.annotation if field else (typing.get_args(schema) or (None,))[-1]
    return list(getattr(schema, "model_fields", {}))


def contradiction(settings: "Settings") -> str | None:
    """The first contradiction between two sections, with its remedy, or None.

    A crop size that the image processor would change is one: the pixels of the answer would not be those of the crop.
    """
    low, high = settings.model.min_pixels, settings.model.max_pixels
    if low > high:
        return f"model.min_pixels = {low}: above model.max_pixels = {high}; swap them"
    sides = [("task.size", settings.task.size), *(("sample.sizes", size) for size in settings.sample.sizes)]
    for field, size in sides:
        if size < PATCH or size % PATCH:
            return f"{field} = {size}: not a multiple of {PATCH}; take {max(PATCH, round(size / PATCH) * PATCH)}"
        if not low <= size * size <= high:
            return (
                f"{field} = {size}: {size * size} pixels are outside model.min_pixels..max_pixels = {low}..{high}; "
                f"take a size from {math.ceil(math.sqrt(low))} to {math.isqrt(high)}, or widen the limits"
            )
    if settings.merge.base == "dequantised" and settings.train.quantize == "none":
        return "merge.base = 'dequantised': nothing was quantised in training; take `original`, or train.quantize nf4"
    if "grpo" in settings.train.arms and settings.track.max_tokens < settings.train.max_tokens:
        return (
            f"track.max_tokens = {settings.track.max_tokens}: below train.max_tokens = {settings.train.max_tokens}, so "
            "that tracking would cut answers that training rewards; raise it, or lower train.max_tokens"
        )
    if settings.task.think and "sft" in settings.train.arms and settings.sample.hub is None:
        return (
            "train.arms: pairs hold no reasoning that sft could learn; leave sft out, set task.think to false, or let "
            "sample.hub name a data set with thoughts"
        )
    if settings.task.prompt is not None and settings.task.templates == 2:
        return "task.templates = 2: task.prompt has no place for a later template; take 1, or the question of r1track"
    return None
