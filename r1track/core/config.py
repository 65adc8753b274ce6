"""Configuration: a user's values over a preset's over the defaults, as typed sections (schema.py).

A user edits `config.yaml`. Its values win over those of the preset that it names, and these over the defaults in
schema.py. A stage reads its settings from `results/<run>/config/<stage>.json`, which holds only what the
stage depends on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PrivateAttr, ValidationError

from r1track.core import config_errors, files
from r1track.core.errors import UserError
from r1track.core.schema import Settings

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent  # of the repository, where there is one: an installed package has none
PRESETS = PACKAGE / "presets"
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


class ConfigError(UserError):
    """A configuration that cannot be used. The message has one line per fault: field, value, remedy."""


class SectionError(ConfigError, AttributeError):
    """A section was asked for that the configuration file of a stage does not hold."""


class StageSettings(Settings):
    """The settings in a stage's JSON file. Reading a section that is not in the file raises SectionError."""

    _path: Path = PrivateAttr()

    @classmethod
    def of(cls, settings: Settings, path: Path) -> "StageSettings":
        """The sections of `settings` that were set in the file at `path`, without the defaults of the others."""
        sections = {name: getattr(settings, name) for name in settings.model_fields_set}
        part = cls.model_construct(**sections)
        part._path = path
        for name in cls.model_fields.keys() - sections.keys():
            del part.__dict__[name]
        return part

    if not TYPE_CHECKING:  # or mypy would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name not in Settings.model_fields:
                return super().__getattr__(name)
            raise SectionError(
                f"{self._path}: has no section `{name}`, only {', '.join(self.__dict__)}; "
                "give the file of the stage that you run, or config.yaml"
            )


def fields(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field, as dotted path and pydantic FieldInfo, depth first; without the sections themselves."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


SECTIONS = {name for path, _ in fields() for name in path.split(".")[:-1]}


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`under` with the values of `over`, section by section; only `sets` is replaced as a whole."""
    merged = dict(under)
    for key, value in over.items():
        if value is None and key in SECTIONS:  # a section of comments alone
            merged.setdefault(key, {})
        elif isinstance(value, dict) and key != "sets":
            merged[key] = _merge(under.get(key) or {}, value)
        else:
            merged[key] = value
    return merged


def _preset(name: str, source: str) -> dict[str, Any]:
    """The values of a preset, over those of the preset that it names, if any."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in PRESETS.glob("*.yaml"))
        raise ConfigError(f"{source}: preset = {name!r}: no such file under r1track/presets/; take one of {known}")
    values = files.read_yaml(path)
    return _merge(_preset(values["preset"], str(path)) if "preset" in values else {}, values)


def _validated(value: dict[str, Any], source: str) -> Settings:
    try:
        return Settings.model_validate(value)
    except ValidationError as error:
        lines = config_errors.explain(error, Settings)
        raise ConfigError(f"{source}: cannot be used\n" + "\n".join(f"  {line}" for line in lines)) from None


def resolve(values: dict[str, Any], source: str = "config.yaml") -> Settings:
    """Settings from a user's values, over those of the preset that they name, over the defaults.

    Raises ConfigError with a line per fault. source: name of the file, for messages.
    """
    settings = _validated(_merge(_preset(values.get("preset", "demo"), source), values), source)
    fault = config_errors.contradiction(settings)
    if fault:
        raise ConfigError(f"{source}: cannot be used\n  {fault}")
    return settings.model_copy(update={"run": settings.run or settings.preset})


def load(path: Path) -> Settings:
    """Settings from a YAML file that a person edits, or StageSettings from a stage's resolved JSON file.

    Raises ConfigError when the file is missing or cannot be used, UserError when it is not YAML or JSON.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file; give config.yaml or results/<run>/config/<stage>.json")
    if path.suffix == ".json":
        return StageSettings.of(_validated(files.read_json(path), str(path)), path)
    return resolve(files.read_yaml(path), str(path))


def stage_values(settings: Settings, stage: str) -> dict[str, Any]:
    """The sections that a stage depends on: the content of results/<run>/config/<stage>.json."""
    sections = {name: getattr(settings, name) for name in NEEDS[stage]}
    return {name: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for name, v in sections.items()}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dictionary of dotted paths; empty sections are dropped."""
    paths: dict[str, Any] = {}
    for name, value in values.items():
        paths |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return paths
