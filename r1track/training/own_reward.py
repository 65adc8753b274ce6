"""Own reward: `train.reward: module:function`, a reward from outside this package (docs/training.md shows one)."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from r1track.core import prompts
from r1track.core.boxes import Array
from r1track.core.errors import UserError

LARGEST = 1e9  # of a reward; the trainer squares it in float32


class Answer(NamedTuple):
    """What the function is given: one answer to the question of a pair. It returns the reward, a finite number."""

    text: str
    box: Array | None  # x1, y1, x2, y2 as the tracker's parser reads them, in pixels of the search crop; None: no box
    absent: bool  # whether the answer is `[]`: that the target is not there
    target: list[float]  # the true x1, y1, x2, y2 there; empty where the target is not there
    size: int  # side of the crop in pixels
    think: bool  # task.think
    tokens: int  # length of the answer
    pair: dict[str, Any]  # the pair's other columns, by the names of core/pairs.py `PairRow`: template_box, gap, ...


def source(reward: str) -> Path | None:
    """The file of the function that `train.reward` names, relative to the working folder where it is in it; None for
    the package's own rewards. Raises UserError where there is no such module, or a package around it is faulty.
    """
    module, own, _ = reward.partition(":")
    if not own:
        return None
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(module)  # which imports the packages around it
    except (Exception, SystemExit) as error:
        if not isinstance(error, ModuleNotFoundError) or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"train.reward = {reward!r}: its import fails: {_fault(error)}; correct the file"
            ) from error
        spec = None
    if spec is None or not spec.has_location or spec.origin is None:  # a folder, or a module that is in no file
        place = f"neither {module.replace('.', '/')}.py in {here} nor an installed module"
        raise UserError(f"train.reward = {reward!r}: {place}; correct the name, or put the file there")
    file = Path(spec.origin)
    return Path(os.path.relpath(file)) if file.is_relative_to(here) else file


def load(reward: str) -> Callable[[Answer], float]:
    """The function that `train.reward` names, with its value checked.

    Raises UserError, also when it is called, for a module or function that cannot be used, an error in it, and a value
    that is not a finite number up to LARGEST; the message names function and file.
    """
    (module, _, name), file = reward.partition(":"), source(reward)
    where = f"train.reward = {reward!r} ({file})"
    try:
        function = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: its import fails: {_fault(error)}; correct the file") from error
    if not callable(function):
        raise UserError(f"{where}: there is no function `{name}`; correct the name")

    def checked(answer: Answer) -> float:
        try:
            value = function(answer)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{where}: {_fault(error)}, for the answer {answer.text!r}; correct the function"
            ) from error
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not abs(value) <= LARGEST:  # NaN is not
            remedy = f"return a finite number, {LARGEST:g} at most"
            raise UserError(f"{where}: returned {value!r} for the answer {answer.text!r}; {remedy}")
        return float(value)

    return checked


def _fault(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"


def try_on(reward: str, pairs: list[dict[str, Any]], think: bool) -> None:
    """Give the function a right answer to each pair, a readable one that is wrong, and one without a box."""
    function = load(reward)
    for pair in pairs:
        right, wrong = prompts.numbers(pair["answer"]), prompts.numbers([0, 0, pair["size"] / 4, pair["size"] / 4])
        for text in (right, wrong, "no box"):
            text = prompts.thoughtful("", text) if think else text
            function(answer_of(text, pair["answer"], pair, think, len(text)))


def answer_of(text: str, target: list[float], pair: dict[str, Any], think: bool, tokens: int) -> Answer:
    """An answer to a pair. pair: its columns; `answer` and `images` are left out of what the function gets."""
    size, box = int(pair["size"]), prompts.parse_box(text, size=pair["size"], think=think)
    others = {name: value for name, value in pair.items() if name not in ("answer", "images", "size")}
    absent = prompts.denies(text, think=think)
    return Answer(text, box, absent, list(target), size, think, tokens, others)
