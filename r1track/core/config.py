"""Configuration: the values of config.yaml over those of its preset over the defaults, as typed sections (schema.py).

A stage reads its settings from `results/<run>/config/<stage>.json`, which holds only what the stage depends on.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import BaseModel, PrivateAttr, ValidationError
from yaml.constructor import ConstructorError

from r1track.core import config_errors, files
from r1track.core.errors import UserError
from r1track.core.schema import Settings
from r1track.core.text import read_text

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent  # of the repository, where there is one: an installed package has none
PRESETS = PACKAGE / "presets"
NUMBER = re.compile(r"[-+]?(0|[1-9][\d_]*|[\d_]*\.[\d_]*([eE][-+]?\d+)?)")  # decimal, as it looks
# The sections that each stage depends on: what its file under results/<run>/config holds.
NEEDS = {
    "toy": ("toy",),
    "sample": ("seed", "task", "sample"),
    "train": ("seed", "model", "task", "train"),
    "merge": ("model", "task", "merge"),
    "track": ("model", "task", "track"),
    "score": ("score",),
    "vqa": ("model", "vqa"),
    "verdict": ("verdict",),
    "report": ("preset", "data", "report"),  # it lists the differences from the preset and from the paper's data
}
# The arm sft has a file of its own, with these fields of `train`: another reward does not train it again.
SFT = "train-sft"
SFT_FIELDS = {
    "backend", "quantize", "optimizer", "warmup", "weight_decay", "clip_norm", "max_tokens", "save_every", "eval_every",
    "eval_pairs", "keep", "report_to", "lora", "sft",
}  # fmt: skip
STAGE_FILES = (*NEEDS, SFT)


class ConfigError(UserError):
    """A configuration that cannot be used. The message has one line per fault: field, value, remedy."""


class SectionError(ConfigError, AttributeError):
    """A section was asked for that the configuration file of a stage does not hold."""


class StageSettings(Settings):
    """The settings in a stage's JSON file. Reading a section that is not in the file raises SectionError."""

    _path: Path = PrivateAttr()

    if not TYPE_CHECKING:  # or mypy would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name not in Settings.model_fields:
                return super().__getattr__(name)
            fault = f"has no section `{name}`, only {', '.join(self.__dict__)}"
            raise SectionError(f"{self._path}: {fault}; give the file of the stage that you run, or config.yaml")


def fields(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field, as dotted path and pydantic FieldInfo, depth first; without the sections themselves."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


MAPPINGS = ("data.sets", "vqa.sets", "track.extra")  # of names
SECTIONS = {path.rpartition(".")[0] for path, _ in fields()}


class Layer(NamedTuple):
    """The values that a file sets, or an option; field: the dotted field that an option changes."""

    source: str  # for messages
    values: dict[str, Any]
    field: str = ""


class _Loader(yaml.SafeLoader):
    """Refuses what YAML reads in silence as something else than it looks like, and what has no end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ConstructorError(None, None, "aliases are not read; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        value, lines = super().construct_object(node, deep), dict[str, int]()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if (name := str(key.value)) in lines:
                fault = f"`{name}` stands in line {lines[name]} already; make one of the two"
                raise ConstructorError(None, None, fault, key.start_mark)
            lines[name] = key.start_mark.line + 1
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (NUMBER.fullmatch(node.value) and abs(value) < 1e15):
            fault = f"{node.value} is read as {value}; write a decimal number below 1e15, or quotes around a text"
            raise ConstructorError(None, None, fault, node.start_mark)
        return value


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML document, None from an empty one. Raises UserError with `source`, its name, and the line."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, LookupError, AttributeError, ValueError, RecursionError) as error:  # some by odd tags
        mark, reason = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        reason = reason or getattr(error, "reason", None) or error  # the second of characters that YAML does not take
        raise UserError(f"{source}{f', line {mark.line + 1}' if mark else ''}: {reason}") from error


def read_layer(path: Path) -> Layer:
    """The values in a YAML or JSON file, {} from an empty one. Raises UserError, ConfigError for a missing file."""
    source = os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)
    if not path.is_file():
        raise ConfigError(f"{source}: no such configuration; give config.yaml or results/<run>/config/<stage>.json")
    values = files.read_json(path) if path.suffix == ".json" else parse_yaml(read_text(path), source)
    if not isinstance(values, dict | None):
        raise UserError(f"{source}: expected sections of `field: value`, found {type(values).__name__}")
    return Layer(source, values or {})


def parse_change(text: str, option: str = "-o") -> Layer:
    """A change such as `train.steps=9`: a dotted field, and a value as in YAML. Raises UserError for another form."""
    field, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{option} {text}: give a field and its value, as in {option} train.steps=9")
    values = parse_yaml(value, f"{option} {text}")
    for name in reversed(field.split(".")):
        values = {name: values}
    return Layer(f"{option} {text}", values, field)


def _merge(under: Any, over: dict[str, Any], field: str = "", prefix: str = "") -> dict[str, Any]:
    """`under` with the values of `over`, by section; MAPPINGS are replaced whole, but for a `field` below them."""
    merged = dict(under) if isinstance(under, dict) else {}
    for key, value in over.items():
        path = f"{prefix}{key}"
        if value is None and path in SECTIONS:  # a section of comments alone
            merged.setdefault(key, {})
        elif isinstance(value, dict) and (path not in MAPPINGS or field.startswith(f"{path}.")):
            merged[key] = _merge(merged.get(key), value, field, f"{path}.")
        else:
            merged[key] = value
    return merged


def _presets(name: Any, source: str, above: tuple[str, ...] = ()) -> list[Layer]:
    """The layers of a preset: its own, over that of the preset that it names. above: the presets that name it."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{source}: preset = {name!r}: no such file under r1track/presets/; take one of {known}")
    chain = (*above, name)
    if name in above:
        raise ConfigError(f"{source}: preset = {name!r}: a ring of presets, {' -> '.join(chain)}; break it")
    layer = read_layer(PRESETS / f"{name}.yaml")
    return [*(_presets(layer.values["preset"], layer.source, chain) if "preset" in layer.values else []), layer]


def _steps(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The values after each layer."""
    empty: dict[str, Any] = {}
    return [*accumulate(layers, lambda under, layer: _merge(under, layer.values, layer.field), initial=empty)][1:]


def origins(layers: Sequence[Layer]) -> dict[str, str]:
    """The layer from which each value comes, by dotted path; a default has none."""
    sources: dict[str, str] = {}
    for layer, values in zip(layers, _steps(layers), strict=True):
        sources |= dict.fromkeys(flat(layer.values), layer.source)
        sources = {path: sources[path] for path in flat(values)}
    return sources


def described(layers: Sequence[Layer]) -> Iterator[str]:
    """A line for every field, with its value and, as a comment, the layer from which it comes."""
    sources = origins(layers)
    for field, value in flat(combine(layers).model_dump()).items():
        line = yaml.safe_dump([value], default_flow_style=True, width=10**6)[1:-2]
        text = json.dumps(value) if isinstance(value, str) else line
        yield f"{field}: {text}  # {sources.get(field, 'default')}"


def _faults(values: dict[str, Any], whole: bool) -> list[str]:
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        return config_errors.explain(error, Settings)
    contradiction = config_errors.contradiction(settings) if whole else None
    return [contradiction] if contradiction else []


def combine(layers: Sequence[Layer], whole: bool = True) -> Settings:
    """Settings from layers, of which the last wins; whole: every section. ConfigError: a line per fault, by layer."""
    steps = _steps(layers)
    blamed: dict[str, list[str]] = {}
    for fault in _faults(steps[-1], whole):
        first = next(k for k, values in enumerate(steps) if fault in _faults(values, whole))
        blamed.setdefault(layers[first].source, []).append(f"  {fault}")
    if blamed:
        raise ConfigError("\n".join("\n".join([f"{name}: cannot be used", *lines]) for name, lines in blamed.items()))
    settings = Settings.model_validate(steps[-1])
    return settings.model_copy(update={"run": settings.run or settings.preset}) if whole else settings


def variants(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers of each variant of a study, by its name; without variants those of the run, by the run's name.

    Raises ConfigError where the layers cannot be used; whether a variant can, `combine` says.
    """
    settings = combine(layers)
    changes = settings.study.variants or {settings.run: {}}
    return {name: [*layers, Layer(f"study.variants.{name}", values)] for name, values in changes.items()}


def resolve(values: dict[str, Any], source: str = "config.yaml") -> Settings:
    """Settings from a user's values over their preset's. source: name of the file. Raises ConfigError as `combine`."""
    return combine(read_layers([], [Layer(source, values)]))


def workflow_files(given: Sequence[Path], repository: Path = ROOT) -> list[Path]:
    """The files that the workflow reads: the config.yaml of the working folder, else of the repository, then those."""
    own = [file for file in (Path("config.yaml"), repository / "config.yaml") if file.is_file()][:1]
    return [*(own if given != [Path("config.yaml")] else []), *given]


def read_layers(paths: Sequence[Path], changes: Sequence[Layer] = ()) -> list[Layer]:
    """The layers of files and changes, the last of which wins, over those of the preset that the last of them names."""
    layers = [*map(read_layer, paths), *changes]
    naming = [layer for layer in layers if "preset" in layer.values]
    return [*(_presets(naming[-1].values["preset"], naming[-1].source) if naming else _presets("demo", "")), *layers]


def workflow_layers(file: Path | None, changes: Sequence[str] | None) -> list[Layer]:
    """The layers that the workflow reads with `--configfile FILE`, and changes over them (see `parse_change`).

    file: None for the changes alone.
    """
    return read_layers(workflow_files([file]) if file else [], [parse_change(text) for text in changes or ()])


def load(path: Path | None, changes: Sequence[str] | None = None) -> Settings:
    """Settings from a YAML file that a person edits, or StageSettings from a stage's resolved JSON file.

    path: None for the defaults, without a preset. changes: see `parse_change`. Raises ConfigError when the file is
    missing or cannot be used, UserError when it is not YAML or JSON.
    """
    over = [parse_change(text) for text in changes or ()]
    if path is None:
        return combine([Layer("", {}), *over])
    if path.suffix != ".json":
        return combine(read_layers([path], over))
    layer = read_layer(path)
    whole = combine([layer, *over], whole=False)
    settings = StageSettings.model_construct(**{name: getattr(whole, name) for name in layer.values})
    settings._path = path
    for name in StageSettings.model_fields.keys() - layer.values.keys():
        del settings.__dict__[name]
    return settings


def stage_file(stage: str, arm: str | None = None) -> str:
    """The name in STAGE_FILES of the settings that a stage reads; arm: which one `train` trains."""
    return SFT if (stage, arm) == ("train", "sft") else stage


def stage_values(settings: Settings, name: str) -> dict[str, Any]:
    """The sections that a stage depends on: the content of results/<run>/config/<name>.json, a name of STAGE_FILES."""
    fields = SFT_FIELDS if name == SFT else None
    sections = {key: getattr(settings, key) for key in NEEDS["train" if name == SFT else name]}
    values = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in sections.items()}
    return values | {"train": {k: v for k, v in values["train"].items() if k in fields}} if fields else values


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dictionary of dotted paths; empty sections are dropped."""
    paths: dict[str, Any] = {}
    for name, value in values.items():
        paths |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return paths
