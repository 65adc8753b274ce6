"""How much faster questions are answered in batches than one at a time, and whether the answers are the same.

    python bench/vqa.py [--model tiny] [--items 500] [--batch 64] [--config config.yaml]

Asks the first question set of the configuration's vqa section twice, and prints items per second and their ratio.
"""

import argparse
import sys
import time
from pathlib import Path

from r1track.ability import questions, vqa
from r1track.core import config, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--config", type=Path, default=Path("config.yaml"))
    args = parser.parse_args()
    settings = config.load(args.config)
    name, spec = next(iter(settings.vqa.sets.items()))
    items = questions.load(name, spec.model_copy(update={"items": args.items}), settings.vqa.seed, settings.model)
    loaded = models.load(args.model, settings.model)
    rates, answers = {}, {}
    for batch in (args.batch, 1):
        start = time.perf_counter()
        rows = vqa.ask(loaded, f"{batch} at a time", items, spec.max_tokens, batch)
        rates[batch] = len(rows) / (time.perf_counter() - start)
        answers[batch] = [row.filtered_resps for row in rows]
        sys.stdout.write(f"{batch} at a time: {rates[batch]:.1f} items/s\n")
    same = sum(a == b for a, b in zip(answers[args.batch], answers[1], strict=True))
    sys.stdout.write(f"ratio {rates[args.batch] / rates[1]:.1f}; {same} of {len(items)} answers are the same\n")


if __name__ == "__main__":
    main()
