"""Stopping: after SIGTERM or SIGINT a training saves at the end of its step; the same command goes on from there."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


class StopCallback(TrainerCallback):
    """Saves a checkpoint and stops when a signal was received, at a step from which a run can go on.

    rollout_steps: optimiser steps per rollout; no run goes on from the middle of one.
    """

    def __init__(self, rollout_steps: int):
        self.rollout_steps, self.received = rollout_steps, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.received and state.global_step % self.rollout_steps == 0:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the first signal in this block; the second one ends the process at once."""

        def note(number: int, _: Any) -> None:
            if self.received:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self.received = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
