"""Formats: what is exported for other tools, and what is taken back from an export, each used for one training step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, load_dataset

from r1track.core import config, files, prompts, schema
from r1track.core import pairs as pairs_module
from r1track.data import formats, sample, toy
from r1track.training import train

pytestmark = pytest.mark.usefixtures("own_cache")
FEW = {"pairs": 12, "val_pairs": 4, "val_share": 0.25, "shard_rows": 5, "max_gap": 8}
STEP = {"steps": 1, "save_every": 1, "prompts_per_step": 2, "group": 4, "micro_batch": 4, "learning_rate": 1e-3,
        "sft": {"steps": 1, "batch": 4, "micro_batch": 2}}  # fmt: skip


def settings(task: dict[str, Any] | None = None, **changes: Any) -> config.Settings:
    return config.resolve({"preset": "demo", "task": task or {}, "sample": {**FEW, **changes}, "train": STEP})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "train"
    toy.write_split(folder, "train", sequences=6, length=16, seed=4)
    return folder


@pytest.fixture(scope="module")
def pairs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    sample.run(settings(), root, out, 1, ["easyr1", "sharegpt"])
    return out


def loaded(folder: Path) -> DatasetDict:
    return load_dataset(str(folder))


def trained(pairs: Path, folder: Path, arm: str) -> None:
    train.run(settings(), arm, "tiny", pairs, folder / "scratch", folder / "adapter")
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_a_question_in_one_text_is_the_same_question(tmp_path: Path) -> None:
    for second in (None, [3.0, 4.0, 50.0, 60.0]):
        built = prompts.build([1.0, 2.0, 30.0, 40.0], second_box=second)
        flat = prompts.flat(built)
        assert flat.count("<image>") == (2 if second is None else 3)
        assert prompts.unflat(flat) == built
    kinds = [part["type"] for part in prompts.unflat("<image> <image>Where is <image_1>?")[0]["content"]]
    assert kinds == ["image", "text", "image", "text"]


def test_our_shards_train(pairs: Path, tmp_path: Path) -> None:
    trained(pairs, tmp_path, "grpo")


def test_easyr1_holds_images_questions_and_answers_in_the_order_of_their_places(pairs: Path, tmp_path: Path) -> None:
    splits = loaded(pairs.with_name("pairs-easyr1"))
    ours = pairs_module.load(pairs / "train")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 12, "validation": 4}
    for row, exported in zip(ours, splits["train"], strict=True):
        assert set(exported) == {"images", "problem", "answer"}
        assert exported["problem"] == prompts.flat(prompts.build(row["template_box"]))
        box = prompts.parse_box(exported["answer"], size=84)
        assert np.allclose(box, row["answer"], atol=0.5)
        for mine, other in zip(row["images"], exported["images"], strict=True):
            assert np.array_equal(np.asarray(mine), np.asarray(other))


def test_a_third_image_is_exported_between_the_two(root: Path, tmp_path: Path) -> None:
    sample.run(settings({"templates": 2}, max_gap=12), root, tmp_path / "pairs", 1, ["easyr1"])
    ours, exported = pairs_module.load(tmp_path / "pairs" / "train"), loaded(tmp_path / "pairs-easyr1")
    rows = [k for k, row in enumerate(ours) if row["second_box"]]
    assert rows
    for k in rows:
        assert exported["train"][k]["problem"].count("<image>") == 3
        for mine, other in zip((0, 2, 1), range(3), strict=True):
            shown = ours[k]["images"][mine], exported["train"][k]["images"][other]
            assert np.array_equal(*map(np.asarray, shown))


def test_questions_for_thinking_are_exported_where_no_answer_is_learnt(root: Path, tmp_path: Path) -> None:
    for form in ("easyr1", "sharegpt"):
        sample.run(settings({"think": True}), root, tmp_path / "pairs", 1, [form])
    easy = loaded(tmp_path / "pairs-easyr1")["train"][0]["problem"]
    messages = loaded(tmp_path / "pairs-sharegpt")["train"][0]["messages"]
    assert "<think>" in easy
    assert all("<think>" not in message["content"] for message in messages)


def test_an_easyr1_export_is_taken_as_a_hub_data_set_and_trains_for_one_step(pairs: Path, tmp_path: Path) -> None:
    chosen = settings(hub=str(pairs.with_name("pairs-easyr1")))
    sample.run(chosen, None, tmp_path / "taken")
    ours, taken = (pairs_module.load(folder / "train") for folder in (pairs, tmp_path / "taken"))
    assert len(taken) == 12
    assert len(pairs_module.load(tmp_path / "taken" / "val")) == 4
    for mine, theirs in zip(ours, taken, strict=True):
        assert theirs["answer"] == [float(np.floor(v + 0.5)) for v in mine["answer"]]
        assert theirs["problem"] == prompts.flat(prompts.build(mine["template_box"]))
        assert theirs["size"] == 84
        assert theirs["template_box"] is theirs["sequence"] is None
    manifest = files.read_json(tmp_path / "taken" / "manifest.json")
    assert manifest["hub"] == str(pairs.with_name("pairs-easyr1"))
    assert manifest["revision"] is None
    trained(tmp_path / "taken", tmp_path, "grpo")


def test_a_sharegpt_export_trains_for_one_step(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = pairs.with_name("pairs-sharegpt")
    info = files.read_json(export / "dataset_info.json")
    assert {name: info[name]["file_name"] for name in info} == {"r1track_train": "train", "r1track_val": "val"}
    assert all((export / entry["file_name"]).is_dir() for entry in info.values())
    columns = info["r1track_train"]["columns"]
    tags = info["r1track_train"]["tags"]

    def with_answers(pairs: Dataset, task: schema.Task) -> Dataset:
        rows = loaded(export)["train"]
        turns = [row[columns["messages"]] for row in rows]
        assert all([turn[tags["role_tag"]] for turn in row] == ["user", "assistant"] for row in turns)
        prompt = [prompts.unflat(row[0][tags["content_tag"]]) for row in turns]
        done = [[{"role": "assistant", "content": row[1][tags["content_tag"]]}] for row in turns]
        return rows.select_columns(["images"]).add_column("prompt", prompt).add_column("completion", done)

    monkeypatch.setattr(train, "with_answers", with_answers)
    trained(pairs, tmp_path, "sft")


def test_columns_of_the_forms_are_images_to_datasets(pairs: Path, tmp_path: Path) -> None:
    for form, columns in formats.COLUMNS.items():
        rows = loaded(pairs.with_name(f"pairs-{form}"))["train"]
        assert rows.features == Features(columns)
        assert rows.features["images"] == List(Image())
