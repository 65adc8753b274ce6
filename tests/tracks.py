"""Tracks that a test writes by hand, and the figures of their score file."""

import numpy as np

from r1track.tracking import score

SIZE = (100, 80)


def scored(tracks, root, draws):
    """The figures of a score file."""
    return score.score(tracks, root, draws).as_json()


def write_track(tracks, name, boxes, seconds=None, status=None):
    folder = tracks / name
    folder.mkdir(parents=True)
    np.savetxt(folder / f"{name}_001.txt", boxes, fmt="%.3f", delimiter=",")
    if seconds is not None:
        np.savetxt(folder / f"{name}_time.txt", seconds, fmt="%.8f")
    if status is not None:
        lines = [f"{t},{s},\n" for t, s in enumerate(status, 1)]
        (folder / f"{name}_status.csv").write_text("frame,status,answer\n" + "".join(lines))
