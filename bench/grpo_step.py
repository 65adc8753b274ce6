"""Seconds per group and peak memory of a GRPO step: a group's prompt computed once, against the stock TRL trainer.

    PYTHONPATH=. python bench/grpo_step.py            # G = 4, 8, 16, without and with thinking
    PYTHONPATH=. python bench/grpo_step.py --quick    # G = 8 without thinking, within a minute
    PYTHONPATH=. python bench/grpo_step.py --profile  # G = 8 without thinking, and where the time goes
    ... --backend unsloth                             # over Unsloth's layers: on a card, or over the emulated one:
    FAKECARD=4090 PYTHONPATH=.:tests/card/site python bench/grpo_step.py --quick --backend unsloth

Prints `ratio G=8 think=false X`: stock over shared seconds per group. Over the emulated card that is the CPU's
arithmetic alone, and says nothing of a card's kernels. Both sides get the same random weights, pairs, seed and rewards
(drawn: random weights answer nothing), each in a process of its own, so that its peak memory is its.

Before that it prints `passes per answer rollout X`, until the last of 8 answers ends, and the rollout's seconds with
drafts and without, in turns: a model of 36 narrow layers draws boxes around the true ones (scripted.py). Qwen's tokens
come with `pip install --no-deps dashscope`.

The shape is smaller than the real one, but its prompt outweighs the rest as it does there: 8 text layers of width 512,
8 image layers of width 320, and the full 387 tokens of a question with two crops of 336 px. Answers have 20 tokens, as
a box has, or 160 with thinking (512 at most in training; on a CPU that would take an hour).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
ROLLOUT = "rollout, with its part of these"
ANSWER = {False: 20, True: 160}
console = Console(soft_wrap=True, highlight=False)


def settings_of(base: Path, backend: str, group: int, think: bool, shared: bool, steps: int) -> Any:
    from r1track.core.schema import Settings

    train = {
        "backend": backend, "quantize": "none", "shared_prefix": shared, "group": group, "micro_batch": group,
        "prompts_per_step": 1, "steps": steps, "max_tokens": ANSWER[think], "save_every": 1000, "keep_every": 1000,
    }  # fmt: skip
    values = {
        "model": {"base": str(base), "dtype": "float32"}, "task": {"think": think}, "train": train,
        "sample": {"pairs": 8, "val_pairs": 1, "max_gap": 8},
    }  # fmt: skip
    return Settings.model_validate(values)


def clocks() -> dict[str, list[float]]:
    """Clocks on the parts of a step; to be put on before a trainer is made."""
    from datasets import Image
    from measure import timed
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from r1track.training.trl_patches import GRPOTrainer

    return {
        "decoding images": timed(Image, "decode_example"),
        "processing images": timed(Qwen2VLImageProcessorPil, "__call__"),
        "vision tower": timed(modeling.Qwen2_5_VisionTransformerPretrainedModel, "forward"),
        "text layers, forward": timed(modeling.Qwen2_5_VLTextModel, "forward"),
        ROLLOUT: timed(GRPOTrainer, "_generate"),
        "the whole of a step's forward and backward": timed(GRPOTrainer, "training_step"),
    }


def peak_bytes() -> int:
    """Peak of this process so far: of the card's memory, or of the host's where there is none or it is emulated."""
    import torch

    card = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return card or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(place: Path, kind: str, group: int, think: bool, shared: bool, steps: int) -> dict[str, Any]:
    """Train for some steps in this process; the first is left out of the time, where there are more."""
    from r1track.training import backend

    backend.enter(kind, place / f"scratch-{shared}")
    from measure import enliven

    enliven()
    from r1track.training import progress, train

    settings, parts = settings_of(place / "base", kind, group, think, shared, steps), clocks()
    trainer = train.make_trainer(settings, "grpo", place / "base", place / "pairs", place / f"scratch-{shared}")
    trainer.add_callback(train.make_watch(settings, "grpo", place / f"scratch-{shared}"))
    before = peak_bytes()
    trainer.train()
    rows = progress.history(trainer.state.log_history)
    peak = peak_bytes()
    kept = slice(1 if steps > 1 else 0, None)
    return {
        "seconds": statistics.median(row["seconds"] for row in rows[kept]),
        "rollout": statistics.median(parts[ROLLOUT][kept]), "peak": peak, "grown": peak - before,
        "parts": {name: (sum(seconds) / steps, len(seconds) / steps) for name, seconds in parts.items()},
    }  # fmt: skip


def measured(place: Path, kind: str, group: int, think: bool, shared: bool, steps: int) -> dict[str, Any]:
    """The figures of one side, from a process of its own."""
    how = json.dumps([str(place), kind, group, think, shared, steps])
    found = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--child", how], capture_output=True, text=True
    )
    if found.returncode:
        raise SystemExit(found.stderr[-2000:])
    return json.loads(found.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def rollouts(place: Path, turns: int) -> None:
    """Print passes and seconds of rollouts with drafts and without, one prompt each; a side deviates by 6 px.

    To a pair without the target the answers are all `[]`.
    """
    from r1track.training import backend

    backend.enter("transformers", place / "scratch")
    import numpy as np
    import shapes
    import torch
    from measure import timed
    from scripted import CLOCK, Script

    from r1track.core import generation, prompts
    from r1track.training import train

    shapes.write_base("deep", place / "deep")
    settings = settings_of(place / "deep", "transformers", 8, False, True, 1)
    whole = settings.train.model_copy(update={"max_tokens": 32})
    settings = settings.model_copy(update={"train": whole})
    trainer = train.make_trainer(settings, "grpo", place / "deep", place / "pairs", place / "scratch")
    seconds = timed(trainer, "_generate", CLOCK)
    script = Script(trainer.model.get_base_model(), trainer.processing_class.tokenizer)
    decode, most, rng = generation.Decoder.decode, generation.DRAFT, np.random.default_rng(0)
    torch.manual_seed(0)
    figures: dict[int, list[tuple[int, float]]] = {0: [], most: []}
    for turn in range(turns):
        row = trainer.train_dataset[turn % len(trainer.train_dataset)]
        drawn = [prompts.numbers(rng.normal(row["answer"], 6).clip(0, row["size"])) for _ in range(8)]

        def told(decoder: Any, *args: Any, **named: Any) -> Any:
            script.say(drawn)  # noqa: B023
            return decode(decoder, *args, **named)

        generation.Decoder.decode = told  # type: ignore[method-assign]
        for generation.DRAFT, kept in figures.items():
            before = script.passes
            trainer._generate_and_score_completions([row] * 8)
            kept.append((script.passes - before, seconds[-1]))
    (plain, slow), (drafted, fast) = (
        (statistics.mean(n for n, _ in kept), statistics.median(s for _, s in kept)) for kept in figures.values()
    )
    gains = statistics.median(a / b for (_, a), (_, b) in zip(*figures.values(), strict=True))
    console.print(f"passes per answer rollout {drafted:.2f}, without drafts {plain:.2f}")
    console.print(f"rollout {fast:.2f} s, without drafts {slow:.2f} s, ratio {gains:.2f} ({CLOCK.__name__})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case, one step")
    parser.add_argument("--profile", action="store_true", help="one case, and where its time goes")
    parser.add_argument("--backend", default="transformers", choices=["transformers", "unsloth"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        place, *how = json.loads(chosen.child)
        print(json.dumps(child(Path(place), *how)))  # noqa: T201
        return
    cases = (
        [(8, False)]
        if chosen.quick or chosen.profile
        else [(4, False), (8, False), (16, False), (4, True), (8, True), (16, True)]
    )
    steps = 3 if not chosen.quick else 1 if chosen.backend == "transformers" else 2  # Unsloth's first is slow
    with tempfile.TemporaryDirectory() as folder:
        import shapes

        shapes.write_place(
            "middle", settings_of(Path(folder) / "base", "transformers", 8, False, True, 1), Path(folder)
        )
        rollouts(Path(folder), 5 if chosen.quick else 20)
        for group, think in cases:
            stock, ours = (
                measured(Path(folder), chosen.backend, group, think, shared, steps) for shared in (False, True)
            )
            for name, side in (("stock", stock), ("shared", ours)):
                console.print(
                    f"  {name}: {side['seconds']:.2f} s per group, {side['rollout']:.2f} of them the rollout; "
                    f"peak {side['peak'] / 1e9:.2f} GB, {side['grown'] / 1e9:.2f} above the loaded model"
                )
                for part, (seconds, calls) in side["parts"].items() if chosen.profile else ():
                    console.print(f"    {seconds:8.3f} s in {calls:6.1f} calls per step: {part}")
            console.print(f"ratio G={group} think={str(think).lower()} {stock['seconds'] / ours['seconds']:.2f}")


if __name__ == "__main__":
    main()
