"""Document: writes `config.yaml`, `docs/configuration.md` and tables in other pages from the configuration's model.

`python tools/document.py` (or `make docs`) writes them; tests fail while they differ from the model.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from r1track.core.config import NEEDS, PRESETS, ROOT, Settings, resolve
from r1track.core.files import write_text
from r1track.reporting import paper

HEAD = """\
preset: demo
# A line below that starts with `#` and a field shows the field's default: to change it, delete `# ` and the value, and
# write your own. Presets (r1track/presets/*.yaml) change some defaults; what stands here wins over the preset, and a
# file given with --configfile wins over this one. docs/configuration.md has the same as tables, with types and presets.
# Every section stands here once, so write a field of yours among its lines: a second `train:` is refused.
"""
PAGE = """\
# Configuration

*Generated from the model in `r1track/core/schema.py` by `make docs`; edit the model, not this page.*

`config.yaml` has one section per stage. A value is taken from the first of these that sets it: a file given with
`--configfile`, `config.yaml`, the preset that it names, the default below; `r1track config` prints every value and
where it comes from. In paths, `~` is your home. Unknown fields, fields given twice, wrong types and values that
contradict each other are refused before anything runs, with the file that brings them in. A changed value reruns the
stages that read its section, and the stages that depend on those. The column *presets* shows the values that the
presets set.
"""


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _item(annotation: Any) -> type[BaseModel] | None:
    """The section type of a dictionary of named sections, such as vqa.sets."""
    return _section(get_args(annotation)[-1]) if get_origin(annotation) is dict else None


def _yaml(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def _default(info: Any) -> Any:
    return info.get_default(call_default_factory=True, validated_data={})


def _lines(section: type[BaseModel], indent: str, mark: str) -> Iterator[str]:
    for name, info in section.model_fields.items():
        if inner := _section(info.annotation):
            yield f"{indent}{name}:  # {info.description}"
            yield from _lines(inner, indent + "  ", mark)
        elif (item := _item(info.annotation)) and _default(info):
            yield f"{indent}# {name}:  # {info.description}"
            for key in _default(info):
                yield f"{indent}#   {key}:"
                yield from _lines(item, f"{indent}#     ", "")
        else:
            yield f"{indent}{mark}{name}: {_yaml(_default(info))}  # {info.description}"


def config_yaml() -> str:
    """The text of config.yaml: the preset, and every other field as a comment with its default and documentation."""
    parts = [HEAD]
    for name, info in Settings.model_fields.items():
        if section := _section(info.annotation):
            body = "\n".join(_lines(section, "  ", "# "))
            parts.append(f"\n# {section.__doc__}\n{name}:\n{body}\n")
        elif name != "preset":
            parts.append(f"# {name}: {_yaml(_default(info))}  # {info.description}\n")
    return "".join(parts)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (list, dict):
        inner = _type(get_args(annotation)[-1])
        return f"list of {inner}" if get_origin(annotation) is list else f"{inner.removesuffix(' by name')} by name"
    if get_args(annotation):
        return " or ".join("null" if arg is type(None) else _type(arg) for arg in get_args(annotation))
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Any": "value"}
    return names[annotation.__name__]


def _limits(info: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥"}
    limits = [f"{sign} {getattr(m, key)}" for m in info.metadata for key, sign in signs.items() if hasattr(m, key)]
    return "".join(f", {limit}" for limit in limits)


def _set_by(presets: dict[str, Any], path: tuple[str, ...]) -> str:
    lines = []
    for name, value in presets.items():
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            lines.append(f"{name}: `{_yaml(value)}`")
    return "<br>".join(lines)


def _table(section: type[BaseModel], path: tuple[str, ...], presets: dict[str, Any]) -> str:
    rows = ["| field | default | type | presets | meaning |", "|---|---|---|---|---|"]
    below = []
    for name, info in section.model_fields.items():
        if inner := _section(info.annotation) or _item(info.annotation):
            steps = (*path, name) if _section(info.annotation) else (*path, name, next(iter(_default(info)), "NAME"))
            below.append(f"\n### {inner.__doc__}\n\n{_table(inner, steps, presets)}")
        else:
            kind = _type(info.annotation) + _limits(info)
            cells = f"`{_yaml(_default(info))}` | {kind} | {_set_by(presets, (*path, name))} | {info.description}"
            rows.append(f"| `{name}` | {cells} |".replace("\\n", "⏎"))
    return "\n".join([*rows, *below]) + "\n"


def reference() -> str:
    """The text of docs/configuration.md."""
    presets = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(PRESETS.glob("*.yaml"))}
    parts = [PAGE]
    general = {name: info for name, info in Settings.model_fields.items() if not _section(info.annotation)}
    rows = [f"| `{n}` | `{_yaml(_default(i))}` | {_type(i.annotation)} | {i.description} |" for n, i in general.items()]
    parts.append("\n## Top level\n\n| field | default | type | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    for name, info in Settings.model_fields.items():
        if section := _section(info.annotation):
            stages = [stage for stage, needs in NEEDS.items() if name in needs]
            handed = " The workflow hands the folders to the other stages." if name == "data" else ""
            read = f"Read by: {', '.join(stages) or 'the workflow'}.{handed}"
            parts.append(f"\n## {section.__doc__}\n\n{read}\n\n{_table(section, (name,), presets)}")
    return "".join(parts)


def memory_table() -> str:
    """The table in docs/memory.md: GB at the peak of every stage, planned for the full sizes."""
    from r1track.preflight import memory  # here, since it brings torch

    rows = []
    for base, quantize in ((base, quantize) for base in memory.PUBLISHED for quantize in ("nf4", "none")):
        train = {"arms": ["sft", "grpo"], "quantize": quantize}
        plans = memory.plan(resolve({"preset": "r1track-5k", "model": {"base": base}, "train": train}))
        cells = [f"{plan.peak[0] / 1e9:.1f} ({plan.peak[1]})" for plan in plans]
        weights = "NF4" if quantize == "nf4" else "bf16"
        rows.append(f"| {memory.PUBLISHED[base]} | {weights} | {' | '.join(cells)} | not measured |")
    head = ["base", "weights in training", *(plan.stage for plan in plans), "measured on a card"]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]) + "\n"


def preset_table() -> str:
    """The table in README.md and docs/training.md: the memory and time planned for each preset for a card."""
    from r1track.preflight import memory

    rows = ["| preset | model | pairs | arms | peak memory, planned | hours on an RTX 3090, planned | measured |"]
    rows.append("|---|---|---|---|---|---|---|")
    presets = (
        "r1track-5k",
        "r1track-5k-hub",
        "r1track-5k-think",
        "r1track-100k",
        "r1track-100k-hub",
        "best",
        "best-7b",
    )
    for name in presets:
        settings = resolve({"preset": name})
        plans = memory.plan(settings)
        peak, hours = max(plan.peak[0] for plan in plans) / 1e9, sum(plan.hours for plan in plans)
        model, arms = memory.PUBLISHED[settings.model.base], ", then ".join(settings.train.arms)
        rows.append(f"| `{name}` | {model} | {settings.sample.pairs} | {arms} | {peak:.0f} GB | {hours:.0f} | no |")
    return "\n".join(rows) + "\n"


def deviation_table() -> str:
    """The table in docs/deviations.md: settings that differ from the paper's, and the presets that have them."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(path.stem for path in PRESETS.glob("*.yaml")):
        for row in paper.departures(resolve({"preset": name}).model_dump(mode="json")):
            cells = (f"`{row.field}`", _yaml(row.paper), _yaml(row.here), f"`{row.source}`")
            rows.setdefault(cells, []).append(f"`{name}`")
    lines = [f"| {' | '.join(cells)} | {', '.join(names)} |" for cells, names in sorted(rows.items())]
    return "\n".join(["| setting | the paper | here | source | presets |", "|---" * 5 + "|", *lines]) + "\n"


def _put(page: Path, start: str, table: str) -> None:
    """Replace the table in a page that begins with `start`."""
    old = re.compile(rf"(?<=\n\n){re.escape(start)}.*?\n(?=\n)", re.DOTALL)
    write_text(page, old.sub(lambda _: table, page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    _put(ROOT / "docs" / "memory.md", "| base |", memory_table())
    for page in (ROOT / "README.md", ROOT / "docs" / "training.md"):
        _put(page, "| preset |", preset_table())
    _put(ROOT / "docs" / "deviations.md", "| setting |", deviation_table())
    write_text(ROOT / "config.yaml", config_yaml())
    write_text(ROOT / "docs" / "configuration.md", reference())
