"""Doctor: whether the machine, the data and a configuration go together, checked before hours are spent.

Nothing is written or downloaded, and no model is loaded: of weights that are here, names and shapes are read.
"""

import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement
from rich.table import Table

from r1track.core import config, files, models
from r1track.core.errors import UserError
from r1track.core.images import read_image
from r1track.core.sequences import read_split
from r1track.preflight import memory
from r1track.training import backend

Line = tuple[str, str, str]  # `ok`, `warning` or `error`; the subject; the finding, and the remedy
CARD = 24e9  # bytes of the card that is planned for where there is none
PIXEL = 1.0  # bytes of a crop's pixel in the pairs: assumed


class Diagnosis(NamedTuple):
    """The findings; the plans of the stages; for a stage that does not fit `budget` bytes, what would make it fit.

    well: there is no error and every stage fits; where there is no card, the tiny base need not.
    """

    lines: list[Line]
    plans: list[memory.StagePlan]
    remedies: dict[str, dict[str, float]]
    budget: float
    well: bool


def _line(good: bool, subject: str, finding: str, remedy: str, otherwise: str = "error") -> Line:
    return ("ok", subject, finding) if good else (otherwise, subject, f"{finding}; {remedy}")


def _versions(extra: str) -> Iterator[Line]:
    """What is installed against what the package asks for; without the packages of `extra` only parts do not work."""
    python = Requirement("python" + metadata.metadata("r1track")["Requires-Python"])
    declared = [Requirement(text) for text in metadata.requires("r1track") or []]
    needed = [python, *(r for r in declared if r.marker is None or r.marker.evaluate({"extra": extra}))]
    yield "ok", "versions", f"{len(needed)} checked"
    for requirement in needed:
        name, wanted = requirement.name, requirement.specifier
        versions = (distribution.version for distribution in metadata.distributions(name=name))
        installed = platform.python_version() if requirement is python else next(versions, "missing")
        if installed == "missing" or not wanted.contains(installed, prereleases=True):
            remedy = f"`pip install '{name}{wanted}'`, or make the environment anew"
            yield "warning" if requirement.marker else "error", name, f"{installed}, not {wanted}; {remedy}"


def _card(settings: config.Settings) -> Iterator[Line]:
    dtype = settings.model.dtype
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        card = f"{torch.cuda.get_device_name()}, {total / 1e9:.1f} GB, {free / 1e9:.1f} free, CUDA {torch.version.cuda}"
        yield _line(free > 0.9 * total, "card", card, "end what else runs there", "warning")
        able = dtype != "bfloat16" or torch.cuda.get_device_capability() >= (8, 0)
        yield _line(able, "model.dtype", dtype, "it needs compute capability 8.0; take float16")
    else:
        driver = f"torch is built for CUDA {torch.version.cuda}, so look at the driver"
        yield _line(torch.version.cuda is None, "card", "none", driver, "warning")
    try:
        kind = backend.choose(settings.train.backend)
        backend.check_versions(kind)
        trainers = ", ".join(f"{arm} by {backend.trainer_name(settings.train, arm)}" for arm in settings.train.arms)
        yield "ok", "train.backend", f"{settings.train.backend}, which is {kind} here; {trainers}"
    except UserError as error:
        yield "error", "train.backend", str(error)


def _base(settings: config.Settings, model: memory.Model) -> Line:
    base, names = settings.model.base, ("model.safetensors", "model.safetensors.index.json")
    folder = files.resolve_path(base, settings.model.revision)
    if any((folder / name).is_file() for name in names):
        try:
            models.check_weights(folder)
        except UserError as error:
            return "error", "model.base", str(error)
        return "ok", "model.base", base
    if not files.on_hub(base):
        return "error", "model.base", f"{base}; no {' or '.join(names)} there; copy the weights"
    download = f"{2e-9 * model.parameters:.1f} GB are to be downloaded; `hf download {base}` does it beforehand"
    return "warning", "model.base", f"{base}; {download}"


def _data(settings: config.Settings) -> Iterator[Line]:
    splits = {"data.train": settings.data.train} | {f"data.sets.{n}": path for n, path in settings.data.sets.items()}
    for field, path in splits.items():
        if path.startswith("toy/"):
            yield "ok", field, f"{path}, drawn by the stage `toy`"
            continue
        try:
            sequences = read_split(Path(path))
            read_image(sequences[0].frames[0])
            yield "ok", field, f"{path}, {len(sequences)} sequences"
        except (OSError, UserError) as error:
            yield "error", field, f"{error}; or let the field name another split"


def _disk(settings: config.Settings, model: memory.Model) -> Iterator[Line]:
    sample, task, arms = settings.sample, settings.task, len(settings.train.arms)
    pairs = (sample.pairs + sample.val_pairs) * (task.templates + 1) * task.size**2 * PIXEL
    written = {"results": 2 * arms * model.parameters + pairs, "scratch": 2 * (model.adapter + model.optimiser) + pairs}
    near = {name: next(p for p in (Path(name).absolute(), *Path.cwd().parents) if p.exists()) for name in written}
    for name, place in near.items():
        size = sum(written[other] for other in near if near[other].stat().st_dev == place.stat().st_dev)
        free = shutil.disk_usage(place).free
        finding = f"a run writes {size / 1e9:.1f} GB to its disk, {free / 1e9:.1f} are free"
        yield _line(size < free, f"{name}/", finding, "make room, or link it to another disk")


def examine(file: Path, budget: float | None = None, changes: list[str] | None = None) -> Diagnosis:
    """Look at everything; budget: bytes of the card, else of the one here, else CARD; changes: to `file`'s values."""
    cuda = torch.cuda.is_available()
    budget = budget or (torch.cuda.get_device_properties(0).total_memory if cuda else CARD)
    lines = list(_versions("gpu" if cuda else "cpu"))
    try:
        settings = config.load(file, changes)
        model, plans = memory.Model(settings), memory.plan(settings)
    except UserError as error:
        return Diagnosis([*lines, ("error", "configuration", str(error))], [], {}, budget, False)
    lines += [*_card(settings), _base(settings, model), *_data(settings), *_disk(settings, model)]
    large = [plan.stage for plan in plans if plan.peak[0] > budget]
    fits = not large or (settings.model.base == "tiny" and not cuda)
    well = fits and all(state != "error" for state, _, _ in lines)
    return Diagnosis(lines, plans, {stage: memory.remedies(settings, stage, budget) for stage in large}, budget, well)


def peaks(diagnosis: Diagnosis) -> Table:
    """For every stage the terms of its peak memory, in GB."""
    table, plans, budget = Table("GB at the peak (~ estimated)"), diagnosis.plans, diagnosis.budget
    for plan in plans:
        table.add_column(plan.stage, justify="right")
    moments = [plan.moments[plan.peak[1]] for plan in plans]
    for term in dict.fromkeys(term for terms in moments for term in terms):
        cells = (f"{terms[term] / 1e9:.2f}" if term in terms else "" for terms in moments)
        table.add_row(f"~ {term}" if term in memory.ESTIMATES else term, *cells)
    table.add_section()
    table.add_row("together", *(f"{plan.peak[0] / 1e9:.2f}" for plan in plans), style="bold")
    table.add_row("moment", *(plan.peak[1] for plan in plans))
    table.add_row(f"into {budget / 1e9:.1f} GB", *("fits" if plan.peak[0] <= budget else "too large" for plan in plans))
    return table
