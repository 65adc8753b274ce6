"""Cards of adapters and merged models: what they say, and that their code gives the tracker's boxes."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from huggingface_hub import ModelCard
from peft import AutoPeftModel
from toys import toy_pairs, toy_split

from r1track.core import card, config, files, models, prompts
from r1track.core.provenance import Provenance
from r1track.core.records import MergeRecord
from r1track.core.sequences import Sequence, read_split
from r1track.tracking import track
from r1track.tracking.track_files import read_track
from r1track.training import merge, train

BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
HUB = "Qwen/Qwen2.5-VL-3B-Instruct"
SETTINGS = config.resolve(
    {
        "preset": "demo", "sample": {"pairs": 24, "val_pairs": 24},
        "train": {"steps": 4, "save_every": 2, "prompts_per_step": 2, "group": 4, "micro_batch": 4,
                  "learning_rate": 1e-3, "quantize": "none"},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter and its merged model."""
    top = tmp_path_factory.mktemp("cards")
    pairs, out = toy_pairs(top, SETTINGS), {kind: top / kind for kind in ("adapter", "model")}
    train.run(SETTINGS, "grpo", "tiny", pairs, top / "scratch", out["adapter"])
    merge.run(SETTINGS, "tiny", out["adapter"], None, out["model"])
    return out


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Sequence:
    return next(iter(read_split(toy_split(tmp_path_factory.mktemp("clips") / "val", sequences=1, length=8))))


def processor_without_torchvision(folder: str, **_: Any) -> Any:
    """AutoProcessor's, without the half for videos: torchvision's wheel loads beside CUDA's torch only."""
    return models.load_processor(models.TINY if folder == "tiny" else Path(folder), SETTINGS.model)


def run_code(folder: Path, sequence: Sequence, last: np.ndarray, t: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the code of a card answers about frame t, and the box that it reads, run in the folder."""
    monkeypatch.chdir(folder)
    if find_spec("torchvision") is None:
        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", processor_without_torchvision)
    common, plain, vllm = BLOCK.findall((folder / "README.md").read_text())
    compile(vllm, "vllm", "exec")
    shown = {
        '"00000001.jpg"': str(sequence.frames[0]), '"00000002.jpg"': str(sequence.frames[t]),
        "(10, 20, 30, 40)": sequence.boxes[0].tolist(), "), box\n": f"), {last.tolist()}\n",
    }  # fmt: skip
    for old, new in shown.items():
        assert old in common
        common = common.replace(old, repr(new) if old[0] != ")" else str(new))
    names: dict[str, Any] = {}
    exec(common, names)
    exec(plain.replace('"tiny"', repr(str(models.TINY))), names)
    return names["answer"], names["read"](names["answer"])


def test_the_code_of_both_cards_gives_the_answers_and_boxes_of_the_tracker(
    folders: dict[str, Path], sequence: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track.run(SETTINGS, str(folders["model"]), sequence.frames[0].parents[1], tmp_path / "tracks")
    tracked = read_track(tmp_path / "tracks", sequence.name)
    assert len(set(tracked.answers[1:])) > 2
    for t in (1, 4, 7):
        for folder in folders.values():
            answer, box = run_code(folder, sequence, tracked.boxes[t - 1], t, monkeypatch)
            assert answer == tracked.answers[t]
            assert tracked.statuses[t] == "ok"
            assert np.allclose(box, tracked.boxes[t], atol=1e-3)


def test_auto_classes_open_what_is_written(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models.TINY.parent)  # the adapter names its base as it was given, `tiny`
    opened = AutoPeftModel.from_pretrained(folders["adapter"])
    assert isinstance(opened.get_base_model(), transformers.Qwen2_5_VLForConditionalGeneration)
    assert any("lora_B" in name and weight.any() for name, weight in opened.named_parameters())
    if find_spec("torchvision"):
        processor = transformers.AutoProcessor.from_pretrained(folders["model"])
        assert processor.image_processor.size["longest_edge"] == 27440


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_card_says_what_was_done_and_names_no_path(folders: dict[str, Path], kind: str) -> None:
    text = (folders[kind] / "README.md").read_text()
    for words in ("| base | `tiny` |", "24 pairs of", "such as `Toy_Train_", "grpo, 4 steps, LoRA of rank 16"):
        assert words in text, words
    assert card.PENDING in text
    question = prompts.build([0, 0, 0, 0])[0]["content"]
    for part in (question[1]["text"].replace("[0, 0, 0, 0]", "{box}"), question[3]["text"]):
        assert f"`{part}`" in text
    for word in (str(folders[kind].parent), "/tmp", str(models.TINY), str(Path.home()), "More Information Needed"):
        assert word not in text
    data = ModelCard.load(folders[kind] / "README.md").data.to_dict()
    assert data["library_name"] == ("peft" if kind == "adapter" else "transformers")
    assert data["pipeline_tag"] == "image-text-to-text"
    assert "base_model" not in data, "tiny is no name on the hub"
    assert str(folders[kind].parent) not in (folders["adapter"] / "adapter_config.json").read_text()


LICENCE = "license: other\nlicense_name: qwen-research\nlicense_link: https://example.org/LICENSE\n"


def written(folder: Path, kind: Any, model: str, manifest: dict[str, Any], **values: Any) -> ModelCard:
    """The card of a model over a base on the hub, whose own card has a licence."""
    files.write_text(folder / "base" / "README.md", f"---\n{LICENCE}---\n")
    files.write_json(folder / "manifest.json", manifest)
    settings = config.stage_values(config.resolve({"preset": "r1track-5k", **values}), "train")
    card.write(folder, kind, settings, "grpo", model, "c0ffee", folder / "base", folder / "manifest.json")
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_base_commit_licence_and_terms_of_the_data_are_named(kind: str, tmp_path: Path) -> None:
    manifest = {"splits": {"train": {"pairs": 5000, "sequences": ["GOT-10k_Train_000001"]}}}
    made = written(tmp_path, kind, HUB, manifest)
    data = made.data.to_dict()
    assert data["base_model"] == HUB
    assert data["base_model_relation"] == ("adapter" if kind == "adapter" else "finetune")
    assert (data["license"], data["license_name"]) == ("other", "qwen-research")
    assert data["license_link"] == "https://example.org/LICENSE"
    assert f"`{HUB}` at commit `c0ffee`" in made.text
    assert "qwen-research (https://example.org/LICENSE)" in made.text
    assert "GOT-10k. Its terms hold" in made.text
    assert made.text.count('revision = "Qwen/Qwen2.5-VL-3B-Instruct", "c0ffee"') == (2 if kind == "adapter" else 0)


def test_pairs_of_the_hub_are_named_by_their_id_and_reasoning_is_asked_for(tmp_path: Path) -> None:
    manifest = {"hub": "WangBiao/R1-Track-5k", "revision": None, "splits": {"train": {"pairs": 7}}}
    made = written(tmp_path, "model", HUB, manifest, task={"think": True})
    assert "7 pairs of the data set `WangBiao/R1-Track-5k`" in made.text
    common, *_ = BLOCK.findall(made.text)
    names: dict[str, Any] = {}
    exec(common.partition("first, box =")[0], names)
    image = transformers.image_utils.PIL.Image.new("RGB", (90, 60))
    messages, _, read = names["question"](image, (10, 20, 30, 40), image, (10, 20, 30, 40))
    assert messages[0]["content"][3]["text"].endswith("as <answer>[x1, y1, x2, y2]</answer>.")
    side = np.ceil(np.sqrt(1200) * 4)
    box = read("<think>It is 7 wide.</think><answer>[0, 0, 336, 168]</answer>")
    assert np.allclose(box, (25 - side / 2, 40 - side / 2, side, side / 2))


OWN = ("{template} {search}Find {box}.", "Find what is at {box} of {template} in {search}")


@pytest.mark.parametrize("form", ["rounded", "truncated"])
@pytest.mark.parametrize("prompt", OWN)
def test_the_code_asks_the_question_of_the_configuration(prompt: str, form: str, tmp_path: Path) -> None:
    task = {"prompt": prompt, "box": form}
    settings = config.resolve({"preset": "r1track-5k", "task": task})
    text = written(tmp_path, "model", HUB, {}, task=task).text
    names: dict[str, Any] = {}
    exec(BLOCK.findall(text)[0].partition("first, box =")[0], names)
    first, frame = (transformers.image_utils.PIL.Image.new("RGB", (90, 60), color) for color in ("red", "blue"))
    messages, images, _ = names["question"](first, (10.4, 20, 30, 40), frame, (10, 20, 30, 40))
    side = np.ceil(np.sqrt(1200) * 4)
    x, y = 10.4 - (25.4 - side / 2), 20 - (40 - side / 2)
    box = np.array([x, y, x + 30, y + 40]) * 336 / side
    assert messages == prompts.question(settings.task, box)
    assert [image.getpixel((168, 168)) for image in images] == [(255, 0, 0), (0, 0, 255)]


def test_a_model_over_a_merged_one_names_the_base_of_both(tmp_path: Path) -> None:
    sft = tmp_path / "models" / "sft"
    record = MergeRecord(update_kept=1, pairs=0, base=HUB, onto="original")
    files.write_json(sft / "merge.json", record.model_dump())
    Provenance("merge", {"model": HUB}).write(sft / "provenance.json")
    known = files.read_json(sft / "provenance.json")
    files.write_json(sft / "provenance.json", {**known, "base": "c0ffee"})
    made = written(tmp_path, "adapter", str(sft), {"splits": {"train": {"pairs": 7, "sequences": ["a-1"]}}})
    assert f"`{HUB}` at commit `c0ffee`" in made.text
    assert "| trained from | the model `sft` of the same run" in made.text
    assert str(tmp_path) not in made.text
    assert "GOT-10k" not in made.text
