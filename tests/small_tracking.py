"""Settings of a tracker of small crops, and the boxes that it writes."""

import numpy as np

from r1track.core import config, schema

SIZE = 84


def settings(batch=3, size=SIZE, think=False, **changes):
    return config.Settings(
        task=schema.Task(size=size, think=think), track=schema.Track(batch=batch, reuse=False, **changes)
    )


def boxes(out, name):
    return np.loadtxt(out / name / f"{name}_001.txt", delimiter=",")
