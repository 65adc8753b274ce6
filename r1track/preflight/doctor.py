"""Doctor: whether the machine, the data and a configuration go together, checked before hours are spent.

Nothing is written, and no model is loaded: of weights that are here, names and shapes are read. Without `online`
nothing is asked of a network.
"""

import functools
import platform
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from r1track.core import config, files, hub, models
from r1track.core.errors import MissingFile, UserError
from r1track.core.provenance import ProvenanceRecord, hardware
from r1track.core.sequences import read_split
from r1track.preflight import data, memory
from r1track.preflight.findings import Line, line_if
from r1track.training import backend

CARD = 24e9  # bytes of the card that is planned for where there is none
PIXEL = 1.0  # bytes of a crop's pixel in the pairs: assumed


class Diagnosis(NamedTuple):
    """Of a run or variant the findings; the plans of its stages; for one above `budget` bytes, what makes it fit.

    fits: every stage fits; where there is no card, the tiny base need not.
    """

    lines: list[Line]
    plans: list[memory.StagePlan]
    remedies: dict[str, dict[str, float]]
    budget: float
    fits: bool

    @property
    def errors(self) -> bool:
        return any(line.state == "error" for line in self.lines)

    @property
    def well(self) -> bool:
        return self.fits and not self.errors


def _versions(extra: str) -> Iterator[Line]:
    """What is installed against what the package asks for; without the packages of `extra` only parts do not work."""
    python = Requirement("python" + metadata.metadata("r1track")["Requires-Python"])
    declared = [Requirement(text) for text in metadata.requires("r1track") or []]
    needed = [python, *(r for r in declared if r.marker is None or r.marker.evaluate({"extra": extra}))]
    yield Line("ok", "versions", f"{len(needed)} checked")
    for requirement in needed:
        name, wanted = requirement.name, requirement.specifier
        versions = (distribution.version for distribution in metadata.distributions(name=name))
        installed = platform.python_version() if requirement is python else next(versions, "missing")
        if installed == "missing" or not wanted.contains(installed, prereleases=True):
            remedy = f"`pip install '{name}{wanted}'`, or make the environment anew"
            finding = f"{installed}, not {wanted}; {remedy}"
            yield Line("warning" if requirement.marker else "error", name, finding)


def _changes(settings: config.Settings, variant: config.Layer) -> Iterator[Line]:
    """What a variant sets."""
    if settings.study.variants:
        fields = config.flat(variant.values).items()
        yield Line("ok", "changes", ", ".join(f"{field}: {value}" for field, value in fields) or "nothing")


def _card(settings: config.Settings) -> Iterator[Line]:
    dtype = settings.model.dtype
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        card = f"{torch.cuda.get_device_name()}, {total / 1e9:.1f} GB, {free / 1e9:.1f} free, CUDA {torch.version.cuda}"
        yield line_if(free > 0.9 * total, "card", card, "end what else runs there", "warning")
        able = dtype != "bfloat16" or torch.cuda.get_device_capability() >= (8, 0)
        yield line_if(able, "model.dtype", dtype, "it needs compute capability 8.0; take float16")
    else:
        cuda = torch.version.cuda
        remedy = f"torch is built for CUDA {cuda}, so look at the driver"
        remedy = remedy if cuda else "torch is built for CPUs: where there is a card, install environment.yml"
        yield line_if(not cuda and settings.model.base == "tiny", "card", "none", remedy, "warning")
    if not settings.train.arms:
        return
    try:
        kind = backend.choose(settings.train.backend)
        backend.check_versions(kind)
        trainers = ", ".join(f"{arm} by {backend.trainer_name(settings.train, arm)}" for arm in settings.train.arms)
        yield Line("ok", "train.backend", f"{settings.train.backend}, which is {kind} here; {trainers}")
    except UserError as error:
        yield Line("error", "train.backend", str(error))


def _models(settings: config.Settings) -> Iterator[Line]:
    """The base, and the third-party models with their adapters: here, in the hub's cache, or to be downloaded."""
    base, revision = settings.model.base, settings.model.revision
    try:
        yield _weights("model.base", base, revision, 2 * memory.Model(settings).parameters)
    except MissingFile as error:
        yield Line("warning" if files.on_hub(base) else "error", "model.base", f"{error}; no stage is planned")
    for name, extra in settings.track.extra.items():
        field = f"track.extra.{name}"
        yield _weights(f"{field}.model", extra.model, extra.revision)
        if extra.adapter:
            yield _weights(f"{field}.adapter", extra.adapter, extra.adapter_revision, adapter=True)


def _weights(field: str, name: str, revision: str | None, size: int = 0, adapter: bool = False) -> Line:
    """Where the weights are that a field names; size: bytes of those on the hub, 0 where they are not known."""
    names = ("adapter_model.safetensors",) if adapter else ("model.safetensors", "model.safetensors.index.json")
    folder = files.resolve_path(name, revision, "adapter_config.json" if adapter else "config.json")
    title = f"{name}, {revision or 'newest'}" if files.on_hub(name) else name
    if any((folder / file).is_file() for file in names):
        try:
            models.check_adapter(folder) if adapter else models.check_weights(folder)
        except UserError as error:
            return Line("error", field, str(error))
        return Line("ok", field, f"{title}, {hub.folder_bytes(folder) / 1e9:.2f} GB here")
    if files.on_hub(name):
        download = f"{f'{size / 1e9:.1f} GB are' if size else 'it is'} to be downloaded"
        beforehand = f"`hf download {name}` or `r1track fetch` does it beforehand"
        return Line("warning", field, f"{title}; {download}; {beforehand}")
    return Line("error", field, f"{name}; no {' or '.join(names)} there; copy the weights")


def _reporter(settings: config.Settings) -> Iterator[Line]:
    name = settings.train.report_to
    if name != "none" and settings.train.arms:
        yield line_if(find_spec(name) is not None, "train.report_to", name, f"not installed; `pip install {name}`")


def _hours(settings: config.Settings, results: Path) -> Iterator[Line]:
    """For every arm its hours at the pace of a training run here on this card, whose settings may differ in steps."""
    here, steps = hardware(), {"sft": "train.sft.steps", "grpo": "train.steps"}
    place = here.gpu.name if here.gpu else here.cpu
    for arm in settings.train.arms:
        wanted = config.flat(config.stage_values(settings, config.stage_file("train", arm)))
        finding = f"not measured on {place}: no training with these settings, steps aside, in {results}/"
        for file in sorted(results.glob(f"*/adapters/{arm}/provenance.json")):
            record = files.read_record(file, ProvenanceRecord)
            done = config.flat(record.settings or {})
            differ = {name for name in done | wanted if done.get(name) != wanted.get(name)}
            same = (record.hardware.gpu or record.hardware.cpu) == (here.gpu or here.cpu)
            if same and differ <= {*steps.values()} and record.train_seconds:
                pace = record.train_seconds / done[steps[arm]]
                hours = pace * wanted[steps[arm]] / 3600
                finding = f"{hours:.2f} on {place}, at {pace:.3g} seconds per step as measured in {file.parent}"
        yield Line("ok", f"hours of train {arm}", finding)


def sizes(settings: config.Settings, model: memory.Model) -> dict[str, tuple[float, float]]:
    """Bytes that a run writes below results/ and below scratch/, by result; those of tracks and answers are few."""
    sample, task, arms = settings.sample, settings.task, settings.train.arms
    pairs = (sample.pairs + sample.val_pairs) * (task.templates + 1) * task.size**2 * PIXEL
    training = 2 * (model.adapter + model.optimiser) + pairs  # two checkpoints, and the pairs as they are read
    written = {"pairs": (pairs, 0.0)} | {f"adapters/{arm}": (0.0, training) for arm in arms}
    return written | {f"models/{arm}": (2.0 * model.parameters, 0.0) for arm in arms} if arms else {}


def _disk(who: str, written: Collection[tuple[float, float]]) -> Iterator[Line]:
    """Whether there is room for it; written: bytes below results/ and below scratch/."""
    below = dict(zip(("results", "scratch"), map(sum, zip(*written, strict=True)), strict=True)) if written else {}
    near = {name: files.standing_above(Path(name, "run")) for name in below}
    for name, place in near.items():
        size = sum(below[other] for other in near if near[other].stat().st_dev == place.stat().st_dev)
        free = shutil.disk_usage(place).free
        finding = f"{who} writes {size / 1e9:.1f} GB to its disk, {free / 1e9:.1f} are free"
        yield line_if(size < free, f"{name}/", finding, "make room, or link it to another disk")


def totals(runs: int, made: Iterable[tuple[str, config.Settings]]) -> list[Line]:
    """Hours and disk of a whole study; made: each result that is made once, and the settings that it is made with."""
    hours, trainings, written = 0.0, 0, []
    for result, settings in made:
        kind, _, arm = result.partition("/")
        size = sizes(settings, memory.Model(settings)).get(result)
        written += [size] if size else []
        if kind == "adapters":
            hours += next(plan.hours for plan in memory.plan(settings) if plan.stage == f"train {arm}")
            trainings += 1
    finding = f"{runs} runs with {trainings} trainings, together about {hours:.1f} hours on an RTX 3090"
    return [Line("ok", "study", f"{finding}; what several runs share is counted once"), *_disk("the study", written)]


def unused(shared: Path, needed: Collection[str]) -> list[Line]:
    """Shared results that are neither among `needed`, folders in `shared`, nor linked into the folder of any run."""
    sizes = dict[str, int]()
    for folder in sorted(shared.glob("*")):
        results = [part for part in folder.glob("[!.]*") if part.name not in ("config", "logs", "benchmarks")]
        stats = [file.stat() for part in results for file in part.rglob("*") if file.is_file()]
        if folder.name not in needed and stats and all(stat.st_nlink == 1 for stat in stats):
            sizes[str(folder)] = sum(stat.st_size for stat in stats)
    finding = f"{len(sizes)} results that no run needs or holds, {sum(sizes.values()) / 1e9:.2f} GB"
    remedy = f"to free the space, `rm -r {' '.join(sizes)}`"
    return [Line("warning", f"{shared}/", f"{finding}; {remedy}")] if sizes else []


def examine(layers: Sequence[config.Layer], budget: float | None = None, online: bool = False) -> dict[str, Diagnosis]:
    """Look at everything, for each variant of a study, or for the run; by name. budget: bytes of the card, else of the
    one here, else CARD.

    online: open every model and data set on the hub by its id and revision, and read one row.
    """
    cuda = torch.cuda.is_available()
    budget = budget or (torch.cuda.get_device_properties(0).total_memory if cuda else CARD)
    versions = list(_versions("gpu" if cuda else "cpu"))
    read, ask = functools.cache(read_split), functools.cache(data.ask_hub) if online else None  # once for all variants

    def diagnose(variant: Sequence[config.Layer]) -> Diagnosis:
        try:
            settings = config.combine(variant)
        except UserError as error:
            return Diagnosis([*versions, Line("error", "configuration", str(error))], [], {}, budget, True)
        lines = [*versions, *_changes(settings, variant[-1]), *_card(settings), *_models(settings)]
        lines += [*data.splits(settings, read), *data.sources(settings, ask), *_reporter(settings)]
        plans = list[memory.StagePlan]()
        with suppress(MissingFile):  # of a base whose shape is not known, as `_models` says
            model, plans = memory.Model(settings), memory.plan(settings)
            lines += _disk("a run", sizes(settings, model).values())
        lines += _hours(settings, Path("results"))
        large = [plan.stage for plan in plans if plan.peak[0] > budget]
        fits = not large or (settings.model.base == "tiny" and not cuda)
        return Diagnosis(lines, plans, {s: memory.remedies(settings, s, budget) for s in large}, budget, fits)

    try:
        variants = config.variants(layers)
    except UserError:  # `diagnose` words it
        variants = {"": [*layers]}
    return {name: diagnose(variant) for name, variant in variants.items()}
