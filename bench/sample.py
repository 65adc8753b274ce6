"""How fast `sample` cuts pairs out of 1920x1080 frames, beside a plain sampler that cuts the same crops in the same run.

    python bench/sample.py [--sequences 300] [--processes 2] [--rounds 3]

The plain sampler is one process and OpenCV: it decodes both frames of a pair in full, cuts the pair's crops out of them
with one bilinear warp each (no antialiasing) and writes them as JPEG. Frames are drawn, with noise, so that their JPEG
files are about as large as those of real video; targets are 120 to 600 pixels large, crops 336. The two samplers take
turns, and the best of each counts.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from r1track import config, cuts, pairs, sample
from r1track.crops import Crop
from r1track.toy import world

WIDTH, HEIGHT, FRAMES, LENGTH = 1920, 1080, 40, 80
SIDES = (150, 750)  # of targets: sqrt(w * h) in pixels, drawn evenly in its logarithm
SEVERAL = 8  # pairs per sequence, besides one


def write_data(root: Path, sequences: int) -> float:
    """A split of many sequences that share few frame files by links; returns the frames' mean size in bytes."""
    rng = np.random.default_rng(0)
    shared = root.parent / "frames"
    shared.mkdir(parents=True)
    for k in range(FRAMES):
        frame = cv2.resize(world.make_ground(rng), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        frame += rng.normal(0, 3, frame.shape).astype(np.int16)
        cv2.imwrite(str(shared / f"{k}.jpg"), np.clip(frame, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])
    names = [f"Bench_{number:06d}" for number in range(sequences)]
    for name in names:
        (root / name).mkdir(parents=True)
        for t in range(LENGTH):
            os.link(shared / f"{rng.integers(FRAMES)}.jpg", root / name / f"{t + 1:08d}.jpg")
        side, aspect = np.exp(rng.uniform(*np.log(SIDES))), np.exp(rng.uniform(-0.5, 0.5))
        w, h = side * aspect**0.5, side / aspect**0.5
        corners = rng.uniform([0, 0], [WIDTH - w, HEIGHT - h], (LENGTH, 2))
        np.savetxt(root / name / "groundtruth.txt", np.hstack([corners, np.tile([w, h], (LENGTH, 1))]), "%.2f", ",")
    (root / "list.txt").write_text("\n".join(names))
    return sum(path.stat().st_size for path in shared.iterdir()) / FRAMES


def plain(root: Path, cut: Path, out: Path) -> int:
    """The same crops as those of the shards at `cut`, one pair after another; returns how many pairs."""
    out.mkdir(exist_ok=True)
    rows = pairs.load(cut / "train").remove_columns("images")
    for k, row in enumerate(rows):
        for i, (t, (x, y, side)) in enumerate(zip(row["frames"], row["crops"], strict=True)):
            frame = cv2.imread(str(root / row["sequence"] / f"{t:08d}.jpg"))
            step = Crop(x, y, side, row["size"]).side / row["size"]
            matrix = np.array([[step, 0, x + step / 2 - 0.5], [0, step, y + step / 2 - 0.5]])
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            shown = cv2.warpAffine(frame, matrix, (row["size"], row["size"]), flags=flags)
            cv2.imwrite(str(out / f"{k}-{i}.jpg"), shown, cuts.JPEG)
    return len(rows)


def clock(work: Callable[[], object]) -> float:
    """Wall seconds of the work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def entropy_share(root: Path) -> float:
    """The share of a full decode that is left when only the entropy coding is undone (a grey image of 1/8)."""
    data = [np.fromfile(path, np.uint8) for path in sorted((root.parent / "frames").iterdir())]
    modes = (cv2.IMREAD_COLOR, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    full, least = (
        min(clock(lambda mode=mode: [cv2.imdecode(d, mode) for d in data]) for _ in range(5)) for mode in modes
    )
    return least / full


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "train"
        size = write_data(root, args.sequences)
        print(
            f"{args.sequences} sequences of {WIDTH}x{HEIGHT} frames, {size / 1024:.0f} KiB each; {args.processes} processes"
        )
        print(f"entropy decoding: {entropy_share(root):.2f} of a full decode")
        for each in (1, SEVERAL):
            wanted = round(0.9 * args.sequences) * each
            settings = config.resolve(
                {"preset": "r1track-5k", "sample": {"pairs": wanted, "val_pairs": 1, "exclude": {}, "shard_rows": 100}}
            )
            ours, theirs = [], []
            for _ in range(args.rounds):
                ours.append(clock(lambda s=settings: sample.run(s, root, folder / "pairs", processes=args.processes)))
                theirs.append(clock(lambda: plain(root, folder / "pairs", folder / "plain")))
            fast, slow = wanted / min(ours), wanted / min(theirs)
            print(f"{each} per sequence: {fast:.1f} pairs/s, plain {slow:.1f}: {fast / slow:.2f} times;", end=" ")
            print(f"100 000 pairs in {100_000 / fast / 60:.0f} min")
        peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(f"peak memory: {peaks[0]:.0f} MiB here, {peaks[1]:.0f} MiB in the largest of the other processes")


if __name__ == "__main__":
    main()
