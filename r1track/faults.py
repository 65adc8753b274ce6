"""Faults: what is wrong with a configuration, in a person's words: the field's path, the value, the remedy."""

import difflib
import typing
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """One line per fault of a value that `schema` refused."""
    lines = []
    for fault in error.errors():
        field = ".".join(map(str, fault["loc"]))
        shown = f" = {fault['input']!r}" if not isinstance(fault["input"], dict | BaseModel) else ""
        lines.append(f"{field}{shown}: {_remedy(fault, schema)}" if field else _remedy(fault, schema))
    return lines


def _remedy(fault: Any, schema: type[BaseModel]) -> str:
    value, kind = fault["input"], fault["type"]
    if kind == "extra_forbidden":
        known = _known(fault["loc"][:-1], schema)
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, 1)
        return f"unknown field; did you mean {near[0]!r}?" if near else f"unknown field; known here: {', '.join(known)}"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            return f"YAML reads this as text; write {_spelled(float(value))}"
        except ValueError:
            return "write a number, without quotes"
    return str(fault["msg"]).removeprefix("Value error, ")


def _spelled(number: float) -> str:
    """A number as YAML 1.1 reads it: with a point in front of the exponent."""
    mantissa, _, exponent = f"{number:e}".partition("e")
    digits = mantissa.rstrip("0")
    return f"{digits + '0' if digits.endswith('.') else digits}e{int(exponent)}"


def _known(path: tuple[Any, ...], schema: Any) -> list[str]:
    """Names of the fields below `path`; a name in a dictionary of sections is the person's own."""
    for step in path:
        field = getattr(schema, "model_fields", {}).get(step)
        schema = field.annotation if field else (typing.get_args(schema) or (None,))[-1]
    return list(getattr(schema, "model_fields", {}))
