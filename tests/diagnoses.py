"""What the doctor finds, as tests ask for it."""

from collections import namedtuple
from typing import Any

from r1track.core import config
from r1track.preflight import doctor

Usage = namedtuple("Usage", "total used free")


def examined(budget: float | None = None, **values: Any) -> doctor.Diagnosis:
    (diagnosis,) = doctor.examine(config.read_layers([], [config.Layer("config.yaml", values)]), budget).values()
    return diagnosis


def bad(found: doctor.Diagnosis) -> dict[str, tuple[str, str]]:
    return {subject: (state, finding) for state, subject, finding in found.lines if state != "ok"}
