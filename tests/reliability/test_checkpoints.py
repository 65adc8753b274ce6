"""Checkpoints: whatever happens to one, a training ends with the same adapter, and nothing foreign is deleted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import toy_pairs

from r1track.core import config, files
from r1track.core.errors import UserError
from r1track.training import checkpoints, progress, train, trl_patches

IDENTITY = {"arm": "sft"}
SAVED = [  # what TRL's trainer writes, and the manifest
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "manifest.json",
    "optimizer.pt", "processor_config.json", "rng_state.pth", "scheduler.pt", "tokenizer.json", "tokenizer_config.json",
    "trainer_state.json", "training_args.bin",
]  # fmt: skip


class Stopped(Exception):
    """Stands for a kill."""


def settings() -> config.Settings:
    sft = {"steps": 4, "batch": 4, "micro_batch": 4, "learning_rate": 1e-2}
    few = {"pairs": 24, "val_pairs": 4}
    train_values = {"arms": ["sft"], "quantize": "none", "save_every": 1, "sft": sft}
    return config.resolve({"preset": "demo", "sample": few, "train": train_values})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data"), settings())


def trained(folder: Path, pairs: Path) -> str:
    """Train in folder/scratch; the hash of the adapter."""
    train.run(settings(), "sft", "tiny", pairs, folder / "scratch", folder / "adapter")
    return files.hash_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return trained(tmp_path_factory.mktemp("whole"), pairs)


def stop_in(owner: Any, method: str, call: int, patch: pytest.MonkeyPatch) -> None:
    """Let a method raise Stopped when it is called for the `call`th time."""
    plain, calls = getattr(owner, method), iter(range(1, 100))

    def stopping(*args: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise Stopped
        return plain(*args, **named)

    patch.setattr(owner, method, stopping)


@pytest.fixture(scope="module")
def stopped(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was stopped before its fourth step: checkpoints 2 and 3 are there."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_in(progress.ProgressCallback, "on_step_begin", 4, patch)
        with pytest.raises(Stopped):
            trained(folder, pairs)
    assert sorted(path.name for path in folder.glob("scratch/checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_manifest_names_every_file_of_a_checkpoint(stopped: Path) -> None:
    for checkpoint in stopped.glob("scratch/checkpoint-*"):
        assert sorted(path.name for path in checkpoint.iterdir()) == SAVED
        assert files.read_json(checkpoint / "manifest.json").keys() == set(SAVED) - {"manifest.json"}


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_with_any_file_damaged_gives_way_to_the_one_before(
    name: str, damage: Callable[[Path], None], stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scratch = shutil.copytree(stopped / "scratch", tmp_path / "scratch")
    identity = files.read_json(scratch / "identity.json")
    assert checkpoints.prepare_scratch(scratch, identity, 4) == scratch / "checkpoint-3"
    damage(scratch / "checkpoint-3" / name)
    assert checkpoints.prepare_scratch(scratch, identity, 4) == scratch / "checkpoint-2"
    assert f"{scratch / 'checkpoint-3'}: deleted, as " in caplog.text
    if damage is not flip or name != "manifest.json":  # a flipped bit there makes another file's name or hash wrong
        assert f"as {name} is missing or not as it was saved" in caplog.text
    assert checkpoints.prepare_scratch(scratch, identity, 4) == scratch / "checkpoint-2"


@pytest.mark.parametrize("content", ["[]", "{}", "null", "[1]", '{"optimizer.pt": 1}', "{"])
def test_a_manifest_of_another_form_seals_nothing(content: str, stopped: Path, tmp_path: Path) -> None:
    scratch = shutil.copytree(stopped / "scratch", tmp_path / "scratch")
    (scratch / "checkpoint-3" / "manifest.json").write_text(content)
    identity = files.read_json(scratch / "identity.json")
    assert checkpoints.prepare_scratch(scratch, identity, 4) == scratch / "checkpoint-2"


@pytest.mark.parametrize(
    "damages",
    [
        {"checkpoint-3/optimizer.pt": cut},
        {"checkpoint-3/scheduler.pt": Path.unlink},
        {"checkpoint-3/adapter_model.safetensors": flip},
        {"checkpoint-3/manifest.json": Path.unlink, "checkpoint-2/rng_state.pth": cut},
        {"checkpoint-3": shutil.rmtree, "checkpoint-2": shutil.rmtree, "log.jsonl": cut},
    ],
    ids=lambda damages: " ".join(damages),
)
def test_a_training_gone_on_over_damaged_checkpoints_ends_with_the_same_adapter(
    damages: dict[str, Callable[[Path], None]], stopped: Path, pairs: Path, whole: str, tmp_path: Path
) -> None:
    scratch = shutil.copytree(stopped / "scratch", tmp_path / "scratch")
    for name, damage in damages.items():
        damage(scratch / name)
    assert trained(tmp_path, pairs) == whole
    steps = [json.loads(line)["step"] for line in (tmp_path / "adapter" / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (trl_patches.SFTTrainer, "_save_checkpoint"),
        (trl_patches.SFTTrainer, "_save_optimizer_and_scheduler"),
        (trl_patches.SFTTrainer, "_save_rng_state"),
        (checkpoints.Seal, "on_save"),
    ],
)
def test_a_training_stopped_while_it_saves_ends_with_the_same_adapter(
    owner: Any, method: str, pairs: Path, whole: str, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_in(owner, method, 3, patch)
        with pytest.raises(Stopped):
            trained(tmp_path, pairs)
    assert trained(tmp_path, pairs) == whole


def seal(checkpoint: Path) -> None:
    (checkpoint / "weights").write_text("1")
    files.write_json(checkpoint / "manifest.json", files.hashes(checkpoint))


def test_of_other_settings_only_what_a_training_wrote_is_deleted_and_the_log_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scratch = tmp_path / "scratch"
    assert checkpoints.prepare_scratch(scratch, IDENTITY, 6) is None
    for name in ("checkpoint-2", "checkpoint-2-copy", "checkpoint-best", "examples", "mine"):
        (scratch / name).mkdir()
    seal(scratch / "checkpoint-2")
    for name in ("log.jsonl", "notes.txt"):
        (scratch / name).write_text("1")
    assert checkpoints.prepare_scratch(scratch, IDENTITY, 6) == scratch / "checkpoint-2"
    assert checkpoints.prepare_scratch(scratch, {"arm": "grpo"}, 6) is None
    left = {path.name for path in scratch.iterdir()}
    assert left == {"checkpoint-2-copy", "checkpoint-best", "identity.json", "mine", "notes.txt"}
    assert (
        f"{scratch}: deleted, as they are of other settings or pairs: checkpoint-2, examples, log.jsonl" in caplog.text
    )


def test_a_link_in_the_scratch_folder_is_not_followed(tmp_path: Path) -> None:
    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    checkpoints.prepare_scratch(scratch, IDENTITY, 6)
    outside.mkdir()
    (outside / "data").touch()
    (scratch / "cache").symlink_to(outside)
    checkpoints.prepare_scratch(scratch, {"arm": "grpo"}, 6)
    assert not (scratch / "cache").exists()
    assert (outside / "data").exists()


@pytest.mark.parametrize("name", ["checkpoint-500", "log.jsonl", "examples", "cache", "runs", "README.md"])
def test_a_folder_with_files_that_look_like_a_trainings_is_refused_and_left_as_it_is(
    name: str, pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "scratch" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name}: no training of r1track wrote it; give another --scratch"):
        trained(tmp_path, pairs)
    assert [path.name for path in (tmp_path / "scratch").rglob("*")] == [name]


def test_the_checkpoint_of_the_last_step_is_left_out(tmp_path: Path) -> None:
    checkpoints.prepare_scratch(tmp_path, IDENTITY, 6)
    for step in (4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        seal(tmp_path / f"checkpoint-{step}")
    assert checkpoints.prepare_scratch(tmp_path, IDENTITY, 6) == tmp_path / "checkpoint-4"
    assert checkpoints.prepare_scratch(tmp_path, IDENTITY, 8) == tmp_path / "checkpoint-6"
    assert checkpoints.prepare_scratch(tmp_path, IDENTITY, 4) is None
