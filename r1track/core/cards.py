"""Cards: a card of its own for each process of a machine with several, where no scheduler has shared them out."""

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TextIO

from r1track.core.files import open_locked

log = logging.getLogger(__name__)
_locks = list[TextIO]()  # open until the process ends: then the kernel gives the card back, however it ends


def present() -> list[str]:
    """Numbers of the cards of this machine."""
    return [file.name.removeprefix("nvidia") for file in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def take_card(cards: Sequence[str] | None = None) -> None:
    """Let this process see one card that no other process of this user has taken; wait while there is none.

    cards: their numbers; by default all of this machine. Nothing happens with fewer than two, and where
    CUDA_VISIBLE_DEVICES is set, as schedulers do. Call it before anything starts CUDA.
    """
    numbers = cards or present()
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None or len(numbers) < 2:
        log.debug("CUDA_VISIBLE_DEVICES is %s", given)
        return
    for attempt in count():
        for card in numbers:
            try:
                _locks.append(open_locked(Path(tempfile.gettempdir(), f"r1track-{os.getuid()}-card-{card}.lock")))
            except BlockingIOError:
                continue
            os.environ |= {"CUDA_VISIBLE_DEVICES": card, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            log.info("card %s", card)
            return
        if not attempt:
            log.warning("all %d cards are taken by other processes of r1track; waiting for one", len(numbers))
        time.sleep(1)
