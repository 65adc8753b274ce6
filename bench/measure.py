"""Measure: what one case does, with the project's own stages, and which figures it leaves."""

import json
import logging
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import TRAINING, Case

from r1track.core import files
from r1track.core.provenance import git_commit, hardware, versions
from r1track.core.schema import Settings
from r1track.preflight import memory

log = logging.getLogger(__name__)
Figures = dict[str, Any]
WARM_UP = 2  # steps


def make_settings(case: Case, base: Path) -> Settings:
    """The configuration of a case: the project's defaults, fewer steps, and on a rehearsal everything small."""
    train: dict[str, Any] = {
        "backend": case.backend, "quantize": "nf4" if case.precision == "nf4" else "none", "save_every": 1000,
        "shared_prefix": case.variant != "stock", "graphs": case.variant == "graphs",
        "arms": ["sft" if case.kind == "sft" else "grpo"],
        "group": 8, "prompts_per_step": 8, "micro_batch": 8, "steps": 5, "max_tokens": 32,
        "sft": {"steps": 6, "learning_rate": 1e-4},  # a merge needs an adapter that has moved
    }  # fmt: skip
    values: dict[str, Any] = {
        "model": {"base": str(base)}, "task": {"think": case.kind == "think"},
        "sample": {"pairs": 96, "val_pairs": 16, "max_gap": 8}, "train": train,
        "merge": {"check_pairs": 16, "min_agreement": 0.0},  # random weights: near ties in every answer
        "track": {"batch": 16, "max_tokens": 32, "graphs": case.variant == "graphs"},
    }  # fmt: skip
    if case.kind == "think":
        train.update(steps=4, max_tokens=512)
    if case.shape == "tiny":
        values["model"].update(min_pixels=7056, max_pixels=9408)
        values["task"]["size"] = 84
        values["sample"].update(pairs=12, val_pairs=4)
        train.update(group=2, prompts_per_step=2, micro_batch=4, steps=3, max_tokens=8)
        train["sft"].update(steps=3, batch=4, micro_batch=4)
        values["merge"]["check_pairs"] = 2
    return Settings.model_validate(values)


def timed(owner: Any, name: str, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Put a clock on a method; the list grows by the seconds of every call, the card's work included."""
    method: Callable[..., Any] = getattr(owner, name)
    seconds: list[float] = []

    @wraps(method)
    def clocked(*args: Any, **named: Any) -> Any:
        wait()
        began = clock()
        result = method(*args, **named)
        wait()
        seconds.append(clock() - began)
        return result

    setattr(owner, name, clocked)
    return seconds


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def enliven() -> None:
    """Draw rewards at random: random weights answer nothing readable, so that no group would have a gradient."""
    from r1track.training import rewards

    rng = np.random.default_rng(0)

    def score(*args: Any, **named: Any) -> rewards.Parts:
        value = float(rng.random())
        return rewards.Parts(total=value, valid=1.0, iou=value, giou=value, format=0.0, length=0.0)

    rewards.score = score


def prompt_tokens(settings: Settings, place: Path) -> int:
    """Tokens of the first pair's question, images included."""
    from r1track.core import models, prompts
    from r1track.core.pairs import load, questions

    pairs = load(place / "pairs" / "train").select([0])
    processor = models.load_processor(place / "base", settings.model)
    asked: Any = questions(pairs, settings.task)
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    images = prompts.places(pairs[0]["images"], pairs[0]["problem"])
    return int(processor(text=text, images=images, return_tensors="pt")["input_ids"].shape[1])


def training(case: Case, settings: Settings, place: Path, work: Path) -> Figures:
    """Steps of an arm. Medians leave the first WARM_UP out: kernels are compiled in them."""
    from r1track.training import train, trl_patches

    enliven()
    rollouts = timed(trl_patches.GRPOTrainer, "_generate")
    (arm,) = settings.train.arms
    train.run(settings, arm, str(place / "base"), place / "pairs", work / "scratch", work / "adapter")
    record = files.read_json(work / "adapter" / "provenance.json")
    backend = record["backend"]
    if backend != case.backend:
        raise ValueError(f"the training's provenance names the backend {backend}, not {case.backend}")
    rows = [json.loads(line) for line in (work / "adapter" / "log.jsonl").read_text().splitlines()]
    step = statistics.median(row["seconds"] for row in rows[WARM_UP:])
    figures: Figures = {
        "seconds_per_step": step, "first_step_seconds": rows[0]["seconds"], "trainer": record["trainer"],
        "step_seconds": [row["seconds"] for row in rows], "prompt_tokens": prompt_tokens(settings, place),
    }  # fmt: skip
    if arm == "sft":
        return {**figures, "samples_per_second": settings.train.sft.batch / step}
    answers = settings.train.group * settings.train.prompts_per_step
    length = _mean(rows[WARM_UP:], "length")
    generating = statistics.median(rollouts[WARM_UP:])
    speed = answers * length / generating if length else None
    return {
        **figures, "seconds_per_group": step / settings.train.prompts_per_step, "answer_tokens": length,
        "rollout_seconds": generating, "tokens_per_second": speed,
        "frac_reward_zero_std": _mean(rows[WARM_UP:], "frac_reward_zero_std"),
    }  # fmt: skip


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return statistics.mean(values) if values else None


def tracking(settings: Settings, place: Path, work: Path) -> Figures:
    """64 frames of 16 sequences side by side; the median leaves the first round out, which also warms up."""
    from r1track.tracking import track

    track.run(settings, str(place / "base"), place / "toy" / "val", work / "tracks")
    seconds = [float(line) for file in work.glob("tracks/*/*_time.txt") for line in file.read_text().split()[2:]]
    return {
        "frames": files.read_json(work / "tracks" / "provenance.json")["frames"],
        "frames_per_second": 1 / statistics.median(seconds), "prompt_tokens": prompt_tokens(settings, place),
    }  # fmt: skip


def merging(case: Case, settings: Settings, scratch: Path, work: Path) -> Figures:
    """The adapter of the SFT case of the same precision; the merged weights are deleted again."""
    from r1track.training import merge

    place, adapter = case.place(scratch), case.after[-1].work(scratch) / "adapter"
    merge.run(settings, str(place / "base"), adapter, place / "pairs", work / "merged")
    size = sum(path.stat().st_size for path in (work / "merged").glob("*.safetensors"))
    shutil.rmtree(work / "merged")
    return {"merged_bytes": size}


def loading(settings: Settings, place: Path) -> Figures:
    """The weights on the card (in memory, without one)."""
    from r1track.core import models

    began = time.perf_counter()
    model = models.load_weights(place / "base", getattr(torch, settings.model.dtype), settings.train.quantize)
    wait()
    seconds = time.perf_counter() - began
    return {"load_seconds": seconds, "weight_bytes": sum(p.nbytes for p in model.parameters())}


def building(case: Case, settings: Settings, place: Path) -> Figures:
    import shapes

    shapes.write_place(case.shape, settings, place)
    shards = list((place / "base").glob("*.safetensors"))
    return {"shards": len(shards), "base_bytes": sum(path.stat().st_size for path in shards)}


def peaks() -> Figures:
    """Peak memory of this process so far: what tensors took, and what the allocator held for them; or the host's."""
    if not torch.cuda.is_available():
        return {"peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"peak_allocated_bytes": allocated, "peak_reserved_bytes": reserved}


def planned(case: Case, settings: Settings) -> float | None:
    """The peak in bytes that preflight.memory plans for the stage, None where it plans none; the context left out."""
    stage = f"train {settings.train.arms[0]}" if case.kind in TRAINING else case.kind
    return next((plan.peak[0] - memory.CONTEXT for plan in memory.plan(settings) if plan.stage == stage), None)


def attempt(case: Case, settings: Settings, scratch: Path) -> Figures:
    """The figures of a case."""
    place, work = case.place(scratch), case.work(scratch)
    match case.kind:
        case "build":
            return building(case, settings, place)
        case "load":
            return loading(settings, place)
        case "track":
            return tracking(settings, place, work)
        case "merge":
            return merging(case, settings, scratch, work)
        case _:
            return training(case, settings, place, work)


def outcome(error: Exception) -> dict[str, str]:
    """How a case that failed is recorded."""
    text = str(error).strip().splitlines()[0][:300] if str(error).strip() else "no message"
    status = "out of memory" if "out of memory" in text else "failed"
    return {"status": status, "reason": f"{type(error).__name__}: {text}"}


def run(case: Case, scratch: Path, limit: float) -> dict[str, Any]:
    """Measure a case in this process, on a card held to `limit` GB (1e9 bytes); its record, also when it fails."""
    began, work = time.perf_counter(), case.work(scratch)
    shutil.rmtree(work, ignore_errors=True)  # a checkpoint of an earlier run would be gone on from
    work.mkdir(parents=True)
    settings = make_settings(case, case.place(scratch) / "base")
    figures: Figures = {"limit_gb": limit} if torch.cuda.is_available() and case.kind != "build" else {}
    files.hash_path = files.hash_file = lambda path: "not hashed"  # every stage would read all the weights once more
    result: dict[str, Any] = {"status": "measured", "reason": None}
    try:
        figures.update(attempt(case, settings, scratch))
    except Exception as error:
        log.exception("%s", case.key)
        result = outcome(error)
    try:
        result["planned_bytes"] = planned(case, settings)
    except Exception:  # a plan that fails costs no measurement
        log.exception("%s: no plan", case.key)
        result["planned_bytes"] = None
    return {
        **result, "figures": {**figures, **peaks(), "wall_seconds": time.perf_counter() - began},
        "settings": settings.model_dump(mode="json", exclude_defaults=True, exclude={"model": {"base"}}),
        "commit": git_commit(), "versions": versions(), "hardware": hardware().model_dump(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
