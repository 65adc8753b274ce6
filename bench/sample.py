"""How fast `sample` cuts pairs out of 1920x1080 frames, and a plain sampler beside it that cuts the same crops.

    python bench/sample.py [--pairs 2000] [--processes 2] [--rounds 2]

The plain sampler is one process and OpenCV: it decodes both frames of a pair in full, cuts the same crops and writes
them as JPEG of the same quality. It shrinks with INTER_AREA, so that crops are as free of aliasing as ours, or, quicker
and worse, with INTER_LINEAR. Samplers take turns, and the best round of each counts. Frames are drawn, with noise, so
that their files are as large as those of compressed video; targets are 150 to 750 pixels large, evenly in the logarithm
(a choice, not measured on a data set); crops are 336. Other work on the machine slows many processes more than one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil
import yaml

from r1track.core import config
from r1track.core.provenance import hardware
from r1track.data import shards, toy

WIDTH, HEIGHT, FRAMES, LENGTH = 1920, 1080, 40, 40
SIDES = (150, 750)  # of targets: sqrt(w * h)
SEVERAL = 8  # pairs per sequence, besides one
PLAIN = 400  # pairs of the plain sampler: it starts nothing that its first pairs would have to pay for


def write_data(root: Path, sequences: int) -> None:
    """A split of many sequences that share few frame files by links, and one of the first few of them."""
    rng = np.random.default_rng(0)
    (root / "frames").mkdir(parents=True)
    for k in range(FRAMES):
        frame = cv2.resize(toy.make_ground(rng), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / "frames" / f"{k}.jpg"), noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])
    for number in range(sequences):
        folder = root / "many" / f"Bench_{number:06d}"
        folder.mkdir(parents=True)
        for t in range(LENGTH):
            os.link(root / "frames" / f"{rng.integers(FRAMES)}.jpg", folder / f"{t + 1:08d}.jpg")
        side, stretch = np.exp(rng.uniform(*np.log(SIDES))), np.exp(rng.uniform(-0.25, 0.25))
        w, h = side * stretch, side / stretch
        corners = rng.uniform([0, 0], [WIDTH - w, HEIGHT - h], (LENGTH, 2))
        np.savetxt(folder / "groundtruth.txt", np.hstack([corners, np.tile([w, h], (LENGTH, 1))]), "%.2f", ",")
    names = [path.name for path in sorted((root / "many").iterdir())]
    (root / "few").mkdir()
    (root / "few" / "many").symlink_to("../many")
    (root / "few" / "list.txt").write_text("".join(f"many/{name}\n" for name in names[: 1 + sequences // SEVERAL]))
    (root / "many" / "list.txt").write_text("\n".join(names))


def plain(root: Path, cut: Path, out: Path, how: int) -> None:
    """The crops of the first pairs at `cut`, one pair after another, shrunk as OpenCV's `how` says."""
    from r1track.core import pairs

    out.mkdir(exist_ok=True)
    for k, row in enumerate(pairs.load(cut / "train").remove_columns("images").select(range(PLAIN))):
        for i, (t, (x, y, side)) in enumerate(zip(row["frames"], row["crops"], strict=True)):
            frame = cv2.imread(str(root / "many" / row["sequence"] / f"{t:08d}.jpg"))
            left, top, side = round(x), round(y), round(side)
            inside = frame[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
            beyond = (-top, top + side - HEIGHT, -left, left + side - WIDTH)
            window = cv2.copyMakeBorder(inside, *(max(0, v) for v in beyond), cv2.BORDER_CONSTANT)
            shown = cv2.resize(window, (row["size"], row["size"]), interpolation=how)
            cv2.imwrite(str(out / f"{k}-{i}.jpg"), shown, shards.JPEG)


def clock(work: Callable[[], object], count: int = 1) -> tuple[float, float]:
    """Wall seconds of the work for one of `count`, and processor's seconds, in this process and in those it started."""
    before, began = os.times(), time.perf_counter()
    work()
    wall, after = time.perf_counter() - began, os.times()
    return wall / count, (sum(after[:4]) - sum(before[:4])) / count


def entropy_share(root: Path) -> float:
    """The share of a full decode that is left when little but the entropy coding is undone: a grey image of 1/8."""
    data = [np.fromfile(path, np.uint8) for path in sorted((root / "frames").iterdir())]

    def seconds(mode: int) -> float:
        return min(clock(lambda: [cv2.imdecode(image, mode) for image in data])[0] for _ in range(5))

    return seconds(cv2.IMREAD_REDUCED_GRAYSCALE_8) / seconds(cv2.IMREAD_COLOR)


def peak_memory(settings: config.Settings, root: Path, out: Path, processes: int) -> float:
    """Most MiB that the command and its processes held together, pages that they share counted for each."""
    file = out.with_suffix(".yaml")
    file.write_text(
        yaml.safe_dump({"preset": settings.preset, "sample": settings.sample.model_dump(exclude_none=True)})
    )
    command = [sys.executable, "-m", "r1track", "sample", "--config", file, "--root", root, "--out", out]
    running, peak = psutil.Popen([*command, "--processes", str(processes)], stdout=subprocess.DEVNULL), 0
    while running.poll() is None:
        try:
            peak = max(peak, sum(p.memory_info().rss for p in (running, *running.children(recursive=True))))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.02)
    return peak / 2**20


def main() -> None:
    """Print the figures."""
    from r1track.data import sample  # not above: the processes that it starts import this file's modules, too

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    hardware()  # imports torch, once
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_data(root, round(args.pairs / 0.9))
        say(f"entropy decoding takes {entropy_share(root):.2f} of a full decode; {args.processes} processes")
        for each, split in ((1, "many"), (SEVERAL, "few")):
            chosen = {"pairs": args.pairs, "val_pairs": 1, "shard_rows": max(1, args.pairs // (4 * args.processes))}
            settings = config.resolve({"preset": "best", "sample": {**chosen, "per_template": 4}})
            rounds: list[list[tuple[float, float]]] = []
            for _ in range(args.rounds):
                work = lambda s=settings, r=root / split: sample.run(s, r, root / "pairs", args.processes)  # noqa: E731
                rounds.append([clock(work, args.pairs)])
                for how in (cv2.INTER_AREA, cv2.INTER_LINEAR):
                    cut = lambda h=how: plain(root, root / "pairs", root / "plain", h)  # noqa: E731
                    rounds[-1].append(clock(cut, PLAIN))
            best = np.array(rounds).min(0)
            (ours, smooth, rough), cpu = best[:, 0], ", ".join(f"{1e3 * seconds:.1f}" for seconds in best[:, 1])
            say(
                f"{each} per sequence: {1 / ours:.0f} pairs a second; plain {1 / smooth:.0f}, without smoothing "
                f"{1 / rough:.0f}: {smooth / ours:.2f} and {rough / ours:.2f} times. Processor time a pair: {cpu} ms. "
                f"100 000 in {100_000 * ours / 60:.0f} minutes"
            )
        peaks = []
        for many in (args.pairs // 3, args.pairs * 3):
            settings = config.resolve({"preset": "best", "sample": {"pairs": many, "shard_rows": 500}})
            peaks.append(
                f"{peak_memory(settings, root / 'few', root / 'out', args.processes):.0f} MiB for {many} pairs"
            )
        say("peak memory: " + ", ".join(peaks))


def say(line: str) -> None:
    """Print a line, at once."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
