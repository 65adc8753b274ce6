"""Doctor: whether the machine, the data and a configuration go together, checked before hours are spent.

Nothing is written, and no model is loaded: of weights that are here, names and shapes are read. Without `online`
nothing is asked of a network.
"""

import functools
import math
import platform
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Sequence as Series
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from packaging.requirements import Requirement

from r1track.core import config, files, hub, models
from r1track.core.errors import MissingFile, UserError
from r1track.core.images import read_image
from r1track.core.provenance import ProvenanceRecord, hardware
from r1track.core.sequences import Sequence, beyond_frame, read_split, start_fault
from r1track.preflight import memory
from r1track.training import backend

State = Literal["ok", "warning", "error"]
MANY = 100  # pairs of a sequence from which training learns its target by heart: by judgement, not measured
CARD = 24e9  # bytes of the card that is planned for where there is none
LOOKED_AT, BEYOND = 20, 0.2  # sequences of a split, and the share of their boxes, that make a warning: by judgement
PIXEL = 1.0  # bytes of a crop's pixel in the pairs: assumed


class Line(NamedTuple):
    """One finding about a subject, a field or a part of the machine; what is not `ok` says the remedy, too."""

    state: State
    subject: str
    finding: str


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


def _line(good: bool, subject: str, finding: str, remedy: str, otherwise: State = "error") -> Line:
    return Line("ok", subject, finding) if good else Line(otherwise, subject, f"{finding}; {remedy}")


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
        yield _line(free > 0.9 * total, "card", card, "end what else runs there", "warning")
        able = dtype != "bfloat16" or torch.cuda.get_device_capability() >= (8, 0)
        yield _line(able, "model.dtype", dtype, "it needs compute capability 8.0; take float16")
    else:
        cuda = torch.version.cuda
        remedy = f"torch is built for CUDA {cuda}, so look at the driver"
        remedy = remedy if cuda else "torch is built for CPUs: where there is a card, install environment.yml"
        yield _line(not cuda and settings.model.base == "tiny", "card", "none", remedy, "warning")
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


def _data(settings: config.Settings, read: Callable[[Path], list[Sequence]] = read_split) -> Iterator[Line]:
    """The splits, the pairs that are drawn from one of them, and what describes the targets of those that need it."""
    splits = {f"data.sets.{name}": path for name, path in settings.data.sets.items()}
    arms, hub_set = settings.train.arms, settings.sample.hub
    if arms and not hub_set:
        splits = {"data.train": settings.data.train, **splits}
    if arms and hub_set and not files.on_hub(hub_set):
        remedy = "no such folder; give a folder, or the id of a data set on the hub"
        yield _line(Path(hub_set).is_dir(), "sample.hub", hub_set, remedy)
    count, trained = settings.toy.train_sequences, set[Path]()
    for field, path in splits.items():
        if path.startswith("toy/"):
            yield Line("ok", field, f"{path}, drawn by the stage `toy`")
        else:
            try:
                sequences = read(Path(path))
                read_image(sequences[0].frames[0])
                yield from _annotation(field, path, sequences, settings)
            except (OSError, UserError) as error:
                yield Line("error", field, f"{error}; or let the field name another split")
                continue
            count, firsts = len(sequences), {one.frames[0].resolve(): one.name for one in sequences}
            if field == "data.train":
                trained = {place for place, name in firsts.items() if name not in settings.sample.exclude}
            elif shared := trained & firsts.keys():
                finding = f"{len(shared)} of its {count} sequences are in data.train, too, so their scores say little"
                yield Line("warning", field, f"{finding}; score on other ones")
        if field == "data.train":
            yield _pairs(settings.sample.pairs, round((1 - settings.sample.val_share) * count) or 1)


def _annotation(field: str, path: str, sequences: list[Sequence], settings: config.Settings) -> Iterator[Line]:
    """What `sample` or `track` would stop at, and boxes that are hardly x, y, w, h in pixels of their frames."""
    yield Line("ok", field, f"{path}, {len(sequences)} sequences")
    faults = [fault for one in sequences if (fault := start_fault(one, Path(path)))]
    if field == "data.train":
        short = (one.name for one in sequences if len(one.boxes) < 2 and one.name not in settings.sample.exclude)
        remedy = "a pair needs two frames with a box each; name the sequence in sample.exclude"
        faults = [f"{path}/{name}: {remedy}" for name in short]
    elif settings.track.start_of(field.removeprefix("data.sets.")) == "text":
        faults = []
        yield _texts(field, sequences)
    if faults:
        yield Line("error", field, f"{faults[0]} ({len(faults)} of {len(sequences)} sequences)")
    some = sequences[:: -(-len(sequences) // LOOKED_AT)]
    beyond = np.concatenate([beyond_frame(sequence) for sequence in some])
    if beyond.sum() > BEYOND * len(beyond):
        finding = f"{beyond.mean():.0%} of the boxes in {len(some)} sequences reach beyond their frames"
        yield Line("warning", field, f"{finding}; a line is x,y,w,h: left, top, width, height, not two corners")


def _texts(field: str, sequences: list[Sequence]) -> Line:
    """How many of the sequences that are tracked from a text have one."""
    described = sum(sequence.text is not None for sequence in sequences)
    finding = f"{described} of {len(sequences)} sequences have a description, from which tracking starts"
    if not described:
        finding += ": AO would be 0"
    remedy = "write it to nlp.txt in the sequence's folder, or set track.start to `box`"
    return _line(described == len(sequences), field, finding, remedy, "warning" if described else "error")


def _pairs(pairs: int, sequences: int) -> Line:
    density = pairs / sequences
    finding = f"{pairs} from {sequences} sequences, {density:.3g} of each"
    return _line(
        density <= MANY, "sample.pairs", finding, "that few targets are learnt by heart; take fewer", "warning"
    )


def _sources(settings: config.Settings, ask: Callable[[hub.Source], Line] | None) -> Iterator[Line]:
    """Every data set: on the hub, in a folder, or a package. ask: of the hub, about data sets and models."""
    enough, stops = settings.verdict.min_items, settings.verdict.on_regression == "fail"
    for name, one in settings.vqa.sets.items():
        unusable = 0 if one.source == "easy-vqa" else one.max_unusable
        least = math.ceil(round((1 - unusable) * one.items, 6))
        if settings.train.arms and least < enough:
            finding = f"{one.items}, of which {one.items - least} may be left out (max_unusable)"
            remedy = f"below verdict.min_items = {enough} the verdict is INVALID: ask more, or lower one of the others"
            state: State = "error" if one.items < enough and stops else "warning"
            yield Line(state, f"vqa.sets.{name}.items", f"{finding}; {remedy}")
        if one.source == "easy-vqa":
            remedy = "`pip install easy-vqa==1.0`"
            yield _line(find_spec("easy_vqa") is not None, f"vqa.sets.{name}", "the package easy-vqa", remedy)
        elif not files.on_hub(one.source):
            remedy = "no such folder; correct the path, or name a data set on the hub"
            yield _line(Path(one.source).is_dir(), f"vqa.sets.{name}", one.source, remedy)
    for source in hub.sources(settings):
        if ask:
            yield ask(source)
        elif source.kind == "dataset":
            cached = hub.cached_bytes(source) is not None
            yield _line(cached, source.field, f"{source.title}, {hub.here(source)}", hub.REMEDY, "warning")


def _ask_hub(source: hub.Source) -> Line:
    from r1track.preflight import online

    try:
        return Line("ok", source.field, f"{source.name} at {online.probe(source)}; {hub.here(source)}")
    except online.Unreachable as error:
        cached = hub.cached_bytes(source) is not None
        return Line("warning" if cached else "error", source.field, f"{hub.here(source)}; {error}")
    except UserError as error:
        return Line("error", source.field, str(error))


def _reporter(settings: config.Settings) -> Iterator[Line]:
    name = settings.train.report_to
    if name != "none" and settings.train.arms:
        yield _line(find_spec(name) is not None, "train.report_to", name, f"not installed; `pip install {name}`")


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
        yield _line(size < free, f"{name}/", finding, "make room, or link it to another disk")


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


def examine(layers: Series[config.Layer], budget: float | None = None, online: bool = False) -> dict[str, Diagnosis]:
    """Look at everything, for each variant of a study, or for the run; by name. budget: bytes of the card, else of the
    one here, else CARD.

    online: open every model and data set on the hub by its id and revision, and read one row.
    """
    cuda = torch.cuda.is_available()
    budget = budget or (torch.cuda.get_device_properties(0).total_memory if cuda else CARD)
    versions = list(_versions("gpu" if cuda else "cpu"))
    read, ask = functools.cache(read_split), functools.cache(_ask_hub) if online else None  # once for all variants

    def diagnose(variant: Series[config.Layer]) -> Diagnosis:
        try:
            settings = config.combine(variant)
        except UserError as error:
            return Diagnosis([*versions, Line("error", "configuration", str(error))], [], {}, budget, True)
        lines = [*versions, *_changes(settings, variant[-1]), *_card(settings), *_models(settings)]
        lines += [*_data(settings, read), *_sources(settings, ask), *_reporter(settings)]
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
