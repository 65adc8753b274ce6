"""The files of a configuration: what YAML would misread is refused, what wins over what, and whom an error names."""

import random
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from r1track.core import config, schema
from r1track.core.errors import UserError

MISREAD = {
    "a section twice": ("train:\n  steps: 9\n\ntrain:\n  group: 4\n", 4, "`train` stands in line 1 already"),
    "a field twice": ("seed: 1\ntrain:\n  steps: 9\n  group: 8\n  steps: 3\n", 5, "`steps` stands in line 3 already"),
    "a set twice": ("data: {sets: {a: x,\n  a: y}}\n", 2, "`a` stands in line 1 already"),
    "octal": ("toy:\n  length: 010\n", 2, "010 is read as 8; write a decimal number"),
    "hexadecimal": ("seed: 0x1F\n", 1, "0x1F is read as 31"),
    "binary": ("seed: 0b11\n", 1, "0b11 is read as 3"),
    "sexagesimal": ("track:\n  endpoint:\n    timeout: 1:30\n", 3, "1:30 is read as 90"),
    "sexagesimal with a point": ("verdict: {margin: 1:30.5}\n", 1, "1:30.5 is read as 90.5"),
    "infinite": ("train:\n  clip_norm: .inf\n", 2, ".inf is read as inf"),
    "not a number": ("train:\n  clip_norm: .NaN\n", 2, ".NaN is read as nan"),
    "infinite by its exponent": ("verdict:\n  margin: 1.0e+999\n", 2, "1.0e+999 is read as inf"),
    "too large": ("seed: 1000000000000000\n", 1, "write a decimal number below 1e15"),
    "not YAML": ("train:\n  arms: [grpo\nseed: 1\n", 3, "expected ',' or ']'"),
    "code": ("seed: !!python/object/apply:os.getcwd []\n", 1, "could not determine a constructor for the tag"),
    "an alias": ("seed: &one 1\ntoy: {seed: *one}\n", 2, "aliases are not read; write the value out"),
    "an alias without end": ("train: &all\n  lora: *all\n", 2, "aliases are not read"),
}


@pytest.mark.parametrize("fault", MISREAD)
def test_what_yaml_would_misread_is_refused_with_file_line_and_reason(fault: str, tmp_path: Path) -> None:
    text, line, reason = MISREAD[fault]
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        config.load(tmp_path / "mine.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/mine.yaml, line {line}: "), caught.value
    assert reason in str(caught.value)


@pytest.mark.parametrize("value", ["!!int x", "!!bool x", "!!timestamp x", "!!float ''", "2024-99-99", "[" * 3000])
def test_a_value_that_breaks_the_library_is_refused_by_file(value: str) -> None:
    with pytest.raises(UserError, match=r"^mine\.yaml"):
        config.parse_yaml(f"seed: {value}\n", "mine.yaml")


def test_values_that_look_like_what_they_are_are_read() -> None:
    text = "a: 1_000\nb: -0.5\nc: 1.0e-6\nd: '010'\ne: '1:30'\nf: yes\ng: ~\nh: .5\ni: 0\nj: [1]\n"
    values = {"a": 1000, "b": -0.5, "c": 1e-6, "d": "010", "e": "1:30", "f": True, "g": None, "h": 0.5, "i": 0}
    assert config.parse_yaml(text, "x") == {**values, "j": [1]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("run: größe\n", encoding=encoding)
    assert config.load(tmp_path / "mine.yaml").run == "größe"


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("run: größe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.yaml: byte 7 is no UTF-8; save the file as UTF-8"):
        config.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["- train\n", "steps\n", "9\n"])
def test_a_file_without_sections_is_refused(text: str, tmp_path: Path) -> None:
    for name in ("mine.yaml", "train.json"):
        (tmp_path / name).write_text(text if name == "mine.yaml" else '["train"]')
        with pytest.raises(UserError, match=rf"{name}: expected sections of `field: value`"):
            config.load(tmp_path / name)


def layer(name: str, text: str) -> config.Layer:
    return config.Layer(name, config.parse_yaml(text, name))


def combine(*layers: config.Layer) -> config.Settings:
    return config.combine(config.read_layers([], layers))


def test_sets_of_a_later_file_replace_those_of_an_earlier_one_and_other_fields_are_merged() -> None:
    first = layer("a", "data: {sets: {one: toy/val}}\nvqa: {sets: {mine: {items: 9}}}\nsample: {exclude: {x: bad}}")
    second = layer("b", "data: {sets: {two: toy/val}}\nvqa: {sets: {other: {}}}\nsample: {exclude: {y: bad}}\nseed: 3")
    settings = combine(first, second)
    assert settings.data.sets == {"two": "toy/val"}
    assert list(settings.vqa.sets) == ["other"]
    assert settings.sample.exclude == {"x": "bad", "y": "bad"}
    assert settings.seed == 3
    assert combine(first, layer("c", "seed: 1")).data.sets == {"one": "toy/val"}


def test_a_field_that_is_called_as_a_section_is_none() -> None:
    extra = "track: {extra: {mine: {model: a/b}}}"
    with pytest.raises(UserError, match=r"track\.extra\.mine\.model = None"):
        combine(layer("a", extra), layer("b", "track: {extra: {mine: {model: }}}"))


def test_third_party_models_of_a_preset_are_replaced_as_a_whole_and_changed_one_by_one_by_options(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.yaml").write_text("track: {extra: {a: {model: x/a}, b: {model: x/b}}}\n")
    extra = config.load(tmp_path / "mine.yaml", ["track.extra.a.think=true"]).track.extra
    assert {name: (model.model, model.think) for name, model in extra.items()} == {
        "a": ("x/a", True),
        "b": ("x/b", False),
    }
    assert [*config.load(tmp_path / "mine.yaml", ["track.extra={c: {model: x/c}}"]).track.extra] == ["c"]


def test_a_change_by_option_sets_that_field_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {steps: 5}\n")
    changes = ["train.steps=9", "train.learning_rate=1.0e-6", "vqa.sets.easy-vqa.items=20", "sample.sizes=[84, 112]"]
    settings = config.load(tmp_path / "mine.yaml", changes)
    assert (settings.train.steps, settings.train.learning_rate, settings.sample.sizes) == (9, 1e-6, [84, 112])
    assert (settings.vqa.sets["easy-vqa"].items, settings.vqa.sets["easy-vqa"].max_tokens) == (20, 8)
    assert settings.train.group == config.resolve({}).train.group
    assert list(config.load(tmp_path / "mine.yaml", ["vqa.sets={a: {}}"]).vqa.sets) == ["a"]
    assert config.load(tmp_path / "mine.yaml", ["preset=r1track-5k"]).task.size == 336


def test_an_option_changes_the_file_of_a_stage_too_but_gives_it_no_section(tmp_path: Path) -> None:
    (tmp_path / "track.json").write_text('{"track": {"batch": 2}}')
    settings = config.load(tmp_path / "track.json", ["track.min_side=9.0", "train.steps=9"])
    assert (settings.track.batch, settings.track.min_side) == (2, 9.0)
    with pytest.raises(config.SectionError, match="has no section `train`"):
        settings.train  # noqa: B018


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.steps", "-o train.steps: give a field and its value, as in -o train.steps=9"),
        ("train.stps=9", "-o train.stps=9: cannot be used\n  train.stps = 9: unknown field; did you mean 'steps'?"),
        ("train.steps=x", "-o train.steps=x: cannot be used\n  train.steps = 'x': write a number"),
        ("train.steps=010", "-o train.steps=010, line 1: 010 is read as 8"),
        ("train.steps=[", "-o train.steps=[, line 1: "),
        ("=9", "-o =9: cannot be used"),
    ],
)
def test_a_wrong_change_is_named_as_it_was_typed(change: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(UserError) as caught:
        config.load(tmp_path / "mine.yaml", [change])
    assert str(caught.value).startswith(message)


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of presets: `low` is whole, `high` stands on it and is wrong."""
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "demo.yaml").write_text((config.PRESETS / "demo.yaml").read_text())
    (folder / "low.yaml").write_text("preset: demo\ntrain: {steps: 70}\n")
    (folder / "high.yaml").write_text("preset: low\ntrain: {group: 7}\n")
    monkeypatch.setattr(config, "PRESETS", folder)
    return folder


def fault(*layers: config.Layer) -> str:
    with pytest.raises(config.ConfigError) as caught:
        combine(*layers)
    return str(caught.value)


def test_an_error_names_the_file_with_which_it_came_in(presets: Path) -> None:
    message = fault(layer("config.yaml", "preset: high\nseed: 1"), layer("second.yaml", "seed: x\nscore: {draws: 5}"))
    at_fault = [line.removesuffix(": cannot be used") for line in message.splitlines() if not line.startswith(" ")]
    assert at_fault == ["second.yaml", f"{presets}/high.yaml"]
    assert message.splitlines()[-1].startswith("  train: micro_batch 128 does not divide group")
    # the preset's pixels and the file's size do not fit: it came with the file
    assert fault(layer("config.yaml", "preset: low"), layer("second.yaml", "task: {size: 336}")).startswith(
        "second.yaml"
    )
    # the first file alone is faulty, the second mends it
    assert combine(layer("a", "train: {start: sft}"), layer("b", "train: {arms: [sft, grpo]}")).train.start == "sft"


@pytest.mark.parametrize("ring", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_ring_of_presets_is_refused_with_the_ring(ring: list[str], presets: Path) -> None:
    for name, named in zip(ring, [*ring[1:], ring[0]], strict=True):
        (presets / f"{name}.yaml").write_text(f"preset: {named}\n")
    message = fault(layer("config.yaml", "preset: a"))
    assert message.startswith(
        f"{presets}/{ring[-1]}.yaml: preset = 'a': a ring of presets, {' -> '.join([*ring, 'a'])}; break"
    )


@pytest.mark.parametrize("preset", ["nope", "../presets/demo", "5", "[demo]", "''", "~"])
def test_a_preset_that_is_none_is_refused_by_the_file_that_names_it(preset: str, presets: Path) -> None:
    assert fault(layer("second.yaml", f"preset: {preset}")).startswith("second.yaml: preset = ")


def test_every_value_has_the_file_or_option_it_comes_from(presets: Path) -> None:
    layers = config.read_layers(
        [], [layer("config.yaml", "preset: low\ntrain: {lora: {rank: 4}}\nvqa: {sets: {a: {items: 3}}}"),
             layer("b.yaml", "vqa: {sets: {a: {}}}"), config.parse_change("seed=4")]
    )  # fmt: skip
    sources = config.origins(layers)
    assert sources["train.steps"] == f"{presets}/low.yaml"
    assert sources["train.group"] == f"{presets}/demo.yaml"
    assert sources["train.lora.rank"] == "config.yaml"
    assert sources["seed"] == "-o seed=4"
    assert not {"vqa.sets.a.items", "train.weight_decay"} & sources.keys(), "replaced as a whole, and a default"


def test_a_tilde_is_the_home_folder_in_every_field_that_holds_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    text = "model: {base: ~/m}\ndata: {train: ~/t, sets: {a: ~/v}}\nsample: {hub: ~/h}\n"
    settings = combine(layer("a", text + "track: {extra: {x: {model: ~/e}}}\nvqa: {sets: {q: {source: ~/q}}}"))
    places = [settings.model.base, settings.data.train, settings.data.sets["a"], settings.sample.hub]
    places += [settings.track.extra["x"].model, settings.vqa.sets["q"].source]
    assert places == [f"/home/someone/{name}" for name in "mtvheq"]


PLACES = ["model.base", "data.train", "data.sets.a", "sample.hub", "track.extra.x.model", "track.extra.x.adapter",
          "vqa.sets.q.source"]  # fmt: skip


def test_every_field_that_holds_a_path_is_among_those_that_are_tried_here() -> None:
    sections = [one for one in vars(schema).values() if isinstance(one, type) and issubclass(one, schema.Section)]
    kinds = [pair for one in sections for pair in get_type_hints(one, include_extras=True).items()]
    validator, *_ = schema.Place.__metadata__
    paths = {name for name, kind in kinds if repr(validator) in repr(kind)}
    assert paths == {"base", "train", "sets", "hub", "model", "adapter", "source"}


@pytest.mark.parametrize("field", PLACES)
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_path_is_refused_by_the_name_of_its_field(field: str, value: str) -> None:
    assert fault(config.parse_change(f"{field}='{value}'")).endswith(
        f"  {field} = {value!r}: names nothing, and would mean the working folder; give a path or a hub id"
    )


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "../a", "", "-x", "a b", "a\n", "x" * 101, ".a.1.part"])
@pytest.mark.parametrize("field", ["run", "data.sets", "vqa.sets"])
def test_a_name_that_cannot_be_a_folder_of_results_is_refused(field: str, name: str) -> None:
    values: dict[str, Any] = {"run": {"run": name}, "data.sets": {"data": {"sets": {name: "toy/val"}}}}
    values["vqa.sets"] = {"vqa": {"sets": {name: {}}}}
    if (field, name) == ("run", ""):
        pytest.skip("the run is named after its preset")
    assert f"{field} = {name!r}: cannot name a folder" in fault(config.Layer("mine.yaml", values[field]))


def test_numbers_that_are_not_finite_are_refused_wherever_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"train": {"learning_rate": Infinity}}')
    with pytest.raises(config.ConfigError, match=r"train\.learning_rate = inf: .*finite"):
        config.load(tmp_path / "train.json")
    with pytest.raises(config.ConfigError, match=r"verdict\.margin = nan: .*finite"):
        config.resolve({"verdict": {"margin": float("nan")}})


SPLICES = ("\n", "  ", ": ", "- ", "#", "{", "}", "[", "]", "&a ", "*a", "!!int ", "'", '"', "\t", "null", "~",
           "1e9999", "010", ".nan", "train:\n", "sets:", "? ", "| ", "%", "---\n", "<<: ", "9" * 5000, "\x00", "é",
           "\u2028")  # fmt: skip


def mutated(text: str, draw: random.Random) -> bytes:
    """A text with one to four of its pieces lost, doubled, swapped for another, or with something put in."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        piece = text[start : start + draw.choice((1, 3, 20, 200))]
        rest = text[start + len(piece) :]
        text = text[:start] + draw.choice(("", piece * 2, draw.choice(SPLICES), draw.choice(SPLICES) + piece)) + rest
    data = text.encode()
    return data if draw.random() < 0.9 else data.replace(b"e", bytes([draw.randrange(256)]), 3)


def test_three_thousand_damaged_files_are_read_or_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [path.read_text() for path in sorted(config.PRESETS.glob("*.yaml"))]
    texts.append(yaml.safe_dump(config.Settings().model_dump(mode="json"), sort_keys=False))
    blocks = [block for text in texts for block in re.split(r"\n(?=\w)", text) if len(block) < 2000]
    monkeypatch.setattr(config, "PRESETS", tmp_path)
    read, messages, draw = 0, dict[str, Path](), random.Random(17)
    for k in range(3000):
        file = tmp_path / ("demo.yaml" if k % 3 == 0 else "mine.yaml")
        (tmp_path / "demo.yaml").write_text("train: {micro_batch: 8}\n")
        file.write_bytes(mutated("\n".join(draw.sample(blocks, 2)), draw))
        try:
            config.combine(config.read_layers([file] if file.stem == "mine" else []))
            read += 1
        except UserError as error:
            messages[f"{k}: {error}"] = file
    assert [message for message, file in messages.items() if str(file) not in message] == []
    assert min(read, len(messages)) > 300
