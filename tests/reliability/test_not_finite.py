"""NaN and infinities: found where they enter, by name; a model whose logits are not finite is not used."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from toys import toy_pairs, toy_split
from typer.testing import CliRunner

from r1track.ability import kl, vqa
from r1track.cli import app
from r1track.core import config, files, generation, models, prompts
from r1track.core.errors import UserError
from r1track.core.pairs import load as open_pairs
from r1track.tracking import track
from r1track.training import train

NAMED = r": its logits are not finite, so its answers mean nothing; take other weights, or model\.dtype"
QUESTION = [prompts.ask("What shape is red?")]
IMAGE = [[Image.new("RGB", (84, 84), "red")]]


def settings(**train_values: Any) -> config.Settings:
    short = {"steps": 2, "prompts_per_step": 2, "group": 4, "micro_batch": 4, "quantize": "none", **train_values}
    sets = {"easy": {"items": 4, "max_tokens": 4}}
    values = {"preset": "demo", "sample": {"pairs": 24, "val_pairs": 4}, "train": short, "vqa": {"sets": sets}}
    return config.resolve(values)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data"), settings())


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_split(tmp_path_factory.mktemp("split") / "val", sequences=2, length=3)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose weights are all finite, and whose logits are not."""
    base = shutil.copytree(models.TINY, tmp_path_factory.mktemp("base") / "overflowing")
    weights = {name: value.float() for name, value in load_file(base / "model.safetensors").items()}
    weights["model.norm.weight"].fill_(3e38)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    return base


def test_logits_that_are_finite_or_forbidden_pass_and_others_do_not() -> None:
    model = torch.nn.Module()
    model.name_or_path = "somewhere"  # type: ignore[assignment]
    fine = torch.tensor([[1.0, -math.inf], [3e38, -3e38]])
    assert models.check_logits(model, fine) is fine
    for value in (math.nan, math.inf):
        for row, column in ((0, 0), (1, 1)):
            logits = fine.clone()
            logits[row, column] = value
            with pytest.raises(UserError, match=f"^somewhere{NAMED}"):
                models.check_logits(model, logits)
    with pytest.raises(UserError, match=f"^somewhere{NAMED}"):
        models.check_logits(model, torch.full((1, 2), -math.inf))


def test_every_way_to_generate_stops_and_names_the_model(overflowing: Path) -> None:
    loaded = models.load(str(overflowing), settings().model)
    with pytest.raises(UserError, match=f"^{overflowing}{NAMED}"):
        models.generate(loaded, QUESTION, IMAGE, max_tokens=4, batch=1)
    decoder = generation.Decoder(loaded, max_tokens=4)
    tracking = prompts.build([1, 2, 30, 40])
    prefixes = decoder.prefixes([tracking], IMAGE)
    with pytest.raises(UserError, match=f"^{overflowing}{NAMED}"):
        decoder.answers(tracking, prefixes, IMAGE[0])
    with pytest.raises(UserError, match=f"^{overflowing}{NAMED}"):
        kl.log_probabilities(loaded, kl.Probe("questions", QUESTION[0], IMAGE[0], "red"))


@pytest.mark.parametrize("reuse", [True, False])
def test_it_is_not_tracked_as_held(reuse: bool, overflowing: Path, split: Path, tmp_path: Path) -> None:
    chosen = settings()
    chosen = chosen.model_copy(update={"track": chosen.track.model_copy(update={"reuse": reuse})})
    with pytest.raises(UserError, match=f"^{overflowing}{NAMED}"):
        track.run(chosen, str(overflowing), split, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("logging_as_it_was")
def test_weights_of_nan_end_the_track_command_with_status_2(split: Path, tmp_path: Path) -> None:
    base = shutil.copytree(models.TINY, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    files.write_json(tmp_path / "track.json", config.stage_values(settings(), "track"))
    options = ("--config", "track.json", "--model", "base", "--out", "out", "--root")
    run = CliRunner().invoke(app, ["track", *(str(tmp_path / o) if o[0] != "-" else o for o in options), str(split)])
    assert run.exit_code == 2
    assert f"error: {base}: model.language_model.norm.weight holds NaN or infinity" in run.output
    assert not (tmp_path / "out").exists()


def test_it_is_asked_no_general_question(overflowing: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{overflowing}{NAMED}"):
        vqa.run(settings(), str(overflowing), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shared", [True, False])
def test_it_is_not_trained_by_reward(shared: bool, overflowing: Path, pairs: Path, tmp_path: Path) -> None:
    chosen = settings(shared_prefix=shared)
    with pytest.raises(UserError, match=f"^{overflowing}{NAMED}"):
        train.run(chosen, "grpo", str(overflowing), pairs, tmp_path / "scratch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_is_not_trained_on_answers(overflowing: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) and its gradient's norm .* at step 1"):
        train.run(settings(eval_every=0), "sft", str(overflowing), pairs, tmp_path / "scratch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("values", [[math.nan], [math.inf], [], [1.0, 2.0]])
@pytest.mark.parametrize("column", ["answer", "template_box"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_pair_whose_box_is_not_four_finite_numbers_is_named(
    cached: bool, column: str, values: list[float], pairs: Path, tmp_path: Path
) -> None:
    shard = next(iter((pairs / "train").glob("*.parquet")))
    table = pyarrow.parquet.read_table(shard)
    boxes = table[column].to_pylist()
    boxes[6][3:] = values
    place = table.column_names.index(column)
    table = table.set_column(place, table.schema.field(column), pyarrow.array(boxes, table.schema.field(column).type))
    pyarrow.parquet.write_table(table, tmp_path / "one.parquet")
    named = re.escape(f"{tmp_path}: {column} of pair 7 is {boxes[6]}; run `r1track sample` again")
    with pytest.raises(UserError, match=f"^{named}"):
        open_pairs(tmp_path, cache=tmp_path / "cache" if cached else None)


def test_an_unknown_visibility_is_no_fault(pairs: Path, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(next(iter((pairs / "train").glob("*.parquet"))))
    unknown = pyarrow.array([math.nan] * len(table), pyarrow.float64())
    table = table.set_column(table.column_names.index("visibility"), "visibility", unknown)
    pyarrow.parquet.write_table(table, tmp_path / "one.parquet")
    assert len(open_pairs(tmp_path)) == len(table)


def test_a_reward_that_is_not_finite_stops_and_names_the_answer_and_the_box(tmp_path: Path) -> None:
    reward = train.make_reward(settings(reward="paper"), tmp_path)
    answers = [[{"content": "[1, 2, 30, 40]"}]]
    with pytest.raises(UserError, match=r"the reward of '\[1, 2, 30, 40\]' for \[1.0, 2.0, inf, 4.0\] is nan; sample"):
        reward(answers, [[1]], [[1.0, 2.0, math.inf, 4.0]], lambda name, value: None, size=[84])
