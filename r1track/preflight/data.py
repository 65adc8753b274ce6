"""Data: the doctor's lines about splits, pairs and question sets."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from r1track.core import config, files, hub
from r1track.core.errors import UserError
from r1track.core.images import read_image
from r1track.core.sequences import Sequence, beyond_frame, read_split, start_fault
from r1track.preflight.findings import Line, State, line_if

MANY = 100  # pairs of a sequence from which training learns its target by heart: by judgement, not measured
LOOKED_AT, BEYOND = 20, 0.2  # sequences of a split, and the share of their boxes, that make a warning: by judgement


def splits(settings: config.Settings, read: Callable[[Path], list[Sequence]] = read_split) -> Iterator[Line]:
    """The splits, the pairs that are drawn from one of them, and what describes the targets of those that need it."""
    places = {f"data.sets.{name}": path for name, path in settings.data.sets.items()}
    arms, hub_set = settings.train.arms, settings.sample.hub
    if arms and not hub_set:
        places = {"data.train": settings.data.train, **places}
    if arms and hub_set and not files.on_hub(hub_set):
        remedy = "no such folder; give a folder, or the id of a data set on the hub"
        yield line_if(Path(hub_set).is_dir(), "sample.hub", hub_set, remedy)
    count, trained = settings.toy.train_sequences, set[Path]()
    for field, path in places.items():
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
    return line_if(described == len(sequences), field, finding, remedy, "warning" if described else "error")


def _pairs(pairs: int, sequences: int) -> Line:
    density = pairs / sequences
    finding = f"{pairs} from {sequences} sequences, {density:.3g} of each"
    return line_if(
        density <= MANY, "sample.pairs", finding, "that few targets are learnt by heart; take fewer", "warning"
    )


def sources(settings: config.Settings, ask: Callable[[hub.Source], Line] | None) -> Iterator[Line]:
    """Every data set: on the hub, in a folder, or a package. ask: of the hub, about data sets and models."""
    enough, stops = settings.verdict.min_items, settings.verdict.on_regression == "fail"
    for name, one in settings.vqa.sets.items():
        least = one.items if one.source == "easy-vqa" else one.fewest
        if settings.train.arms and least < enough:
            finding = f"{one.items}, of which {one.items - least} may be left out (max_unusable)"
            remedy = f"below verdict.min_items = {enough} the verdict is INVALID: ask more, or lower one of the others"
            state: State = "error" if one.items < enough and stops else "warning"
            yield Line(state, f"vqa.sets.{name}.items", f"{finding}; {remedy}")
        if one.source == "easy-vqa":
            remedy = "`pip install easy-vqa==1.0`"
            yield line_if(find_spec("easy_vqa") is not None, f"vqa.sets.{name}", "the package easy-vqa", remedy)
        elif not files.on_hub(one.source):
            remedy = "no such folder; correct the path, or name a data set on the hub"
            yield line_if(Path(one.source).is_dir(), f"vqa.sets.{name}", one.source, remedy)
    for source in hub.sources(settings):
        if ask:
            yield ask(source)
        elif source.kind == "dataset":
            cached = hub.cached_bytes(source) is not None
            yield line_if(cached, source.field, f"{source.title}, {hub.here(source)}", hub.REMEDY, "warning")


def ask_hub(source: hub.Source) -> Line:
    """What the hub says of a model or data set."""
    from r1track.preflight import online

    try:
        return Line("ok", source.field, f"{source.name} at {online.probe(source)}; {hub.here(source)}")
    except online.Unreachable as error:
        cached = hub.cached_bytes(source) is not None
        return Line("warning" if cached else "error", source.field, f"{hub.here(source)}; {error}")
    except UserError as error:
        return Line("error", source.field, str(error))
