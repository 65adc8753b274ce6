"""The authors' data sets: every form of row is sampled, trained on and asked about in the words of its authors.

The words are those of the public repository Wangbiao2/R1-Track at f585b82; the data sets themselves were not readable.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_rows import INSTRUCTION, PLAIN_5K, PLAIN_100K, THREE, data_set, png, row, sampled, settings, trained
from PIL import Image as Picture
from toys import toy_split

from r1track import plan
from r1track.core import config, files, models, prompts
from r1track.core import pairs as pairs_module
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.errors import UserError
from r1track.core.schema import Task
from r1track.core.sequences import Sequence, read_split
from r1track.preflight import data as data_lines
from r1track.tracking import track
from r1track.training import merge, train

pytestmark = pytest.mark.usefixtures("own_cache")
MARK = "<|vision_start|><|image_pad|><|vision_end|>"  # of an image, in Qwen's chat template


@pytest.mark.parametrize(("preset", "problem"), [("r1track-5k-hub", PLAIN_5K), ("r1track-100k-hub", PLAIN_100K)])
def test_a_preset_asks_in_tracking_byte_for_byte_what_its_data_set_asks(preset: str, problem: str) -> None:
    task = config.resolve({"preset": preset}).task
    question = prompts.question(task, [10.9, 20.2, 30.99, 40.0])
    assert prompts.flat(question) == problem
    assert question == prompts.unflat(problem)


@pytest.mark.parametrize(("preset", "problem"), [("r1track-5k-hub", PLAIN_5K), ("r1track-100k-hub", PLAIN_100K)])
def test_rows_of_336_pixels_and_mixed_sizes_are_sampled_and_each_arm_trains_a_step(
    preset: str, problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [336] * 16 if preset == "r1track-5k-hub" else [112, 224, 336, 84] * 4
    chosen = settings(preset, data_set(tmp_path / "data", [row(problem, size) for size in sizes]))
    rows = sampled(chosen, tmp_path / "pairs")
    assert set(rows["problem"]) == {problem}
    assert set(rows["size"]) <= set(sizes)
    assert "questions are not the one that the tracker asks" not in caplog.text
    processor = models.load_processor(models.TINY, chosen.model)
    (text,) = processor.apply_chat_template(train.with_prompts(rows, chosen.task)[:1]["prompt"], tokenize=False)
    assert problem.replace("<image>", MARK) in text
    trained(chosen, tmp_path / "pairs", tmp_path, "sft", "grpo")
    answers = train.with_answers(rows, chosen.task)["completion"]
    assert answers[0][0]["content"] == "[10,20,30,40]"


def clip_rows(sequence: Sequence, words: str, size: int = 84) -> list[dict[str, Any]]:
    """Questions about a clip in the words of a data set; the template is its first frame, cut as the tracker does."""
    crop = Crop.around(sequence.boxes[0], 4, size)
    corners = [crop.to_crop(xywh_to_xyxy(box)).clip(0, size).astype(int).tolist() for box in sequence.boxes]
    first, *others = [json.dumps(box, separators=(",", ":")) for box in corners]  # as R1-Track writes them
    template, *searches = [png(crop.cut(Picture.open(path).convert("RGB"))) for path in sequence.frames]
    problem = words.replace("[10,20,30,40]", first)
    both = zip(searches, others, strict=True)
    return [{"images": [template, search], "problem": problem, "answer": box} for search, box in both]


@pytest.mark.parametrize("arm", ["sft", "grpo"])
@pytest.mark.parametrize(("preset", "problem"), [("r1track-5k-hub", PLAIN_5K), ("r1track-100k-hub", PLAIN_100K)])
def test_the_processor_gets_in_tracking_byte_for_byte_the_text_that_it_got_in_training(
    preset: str, problem: str, arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = toy_split(tmp_path / "val", sequences=1, length=4)
    (sequence,) = read_split(split)
    rows = clip_rows(sequence, problem)
    chosen = settings(preset, data_set(tmp_path / "data", rows * 4), pairs=8, val_pairs=2)
    sampled(chosen, tmp_path / "pairs")
    texts: list[str] = []
    call = models.ImageProcessorOnly.__call__

    def listening(processor: Any, *args: Any, **named: Any) -> Any:
        texts.extend(named["text"] if named.get("images") else ())  # the answers of sft come alone
        return call(processor, *args, **named)

    monkeypatch.setattr(models.ImageProcessorOnly, "__call__", listening)
    trained(chosen, tmp_path / "pairs", tmp_path, arm)
    learnt = set(texts)
    texts.clear()
    model = "tiny"  # its answers to words that it does not know get no reward, so a step of grpo moves nothing
    if arm == "sft":
        model = str(tmp_path / "merged")
        merge.run(chosen, "tiny", tmp_path / arm / "adapter", None, tmp_path / "merged")
    track.run(chosen, model, split, tmp_path / "tracks")
    (asked,) = set(texts)
    assert len(texts) == len(rows)
    assert rows[0]["problem"].replace("<image>", MARK) in asked
    assert learnt == {asked}


def test_in_rows_of_three_images_the_words_say_which_is_the_search_region(tmp_path: Path) -> None:
    last, middle = THREE.format(2, 3), THREE.format(3, 2)
    data = data_set(tmp_path / "data", [row(last), row(middle), row("<image><image><image>Where is it?")] * 4)
    chosen = settings("r1track-100k-hub", data, val_pairs=0)
    rows = sampled(chosen, tmp_path / "pairs")
    rejected = files.read_json(tmp_path / "pairs" / "manifest.json")["splits"]["train"]["rejected"]
    assert rejected == {"the question does not say which image is the search region": 4}
    assert sorted(rows["problem"]) == sorted([last, middle] * 4)
    for pair in rows:
        reds = [np.asarray(image)[0, 0, 0] for image in pair["images"]]
        assert reds == ([0, 80, 40] if pair["problem"] == last else [0, 40, 80])  # template, search, other
    shown = train.with_prompts(rows, chosen.task)[:]["images"]
    assert {tuple(int(np.asarray(image)[0, 0, 0]) for image in images) for images in shown} == {(0, 40, 80)}
    trained(chosen, tmp_path / "pairs", tmp_path, "sft", "grpo")


def test_of_a_kept_question_the_search_region_is_the_last_image(tmp_path: Path) -> None:
    chosen = settings("r1track-100k-hub", data_set(tmp_path / "data", [row(THREE.format(3, 2))] * 8), val_pairs=0)
    sampled(chosen, tmp_path / "pairs")
    trained(chosen, tmp_path / "pairs", tmp_path, "grpo")
    examples = tmp_path / "grpo" / "adapter" / "examples"
    names = files.read_json(examples / "step-000000.json")["images"]
    reds = [int(np.asarray(Picture.open(examples / name))[0, 0, 0]) for name in names]
    assert np.abs(np.subtract(reds, [0, 80, 40])).max() < 8  # JPEG


@pytest.mark.parametrize(
    ("problem", "place"),
    [
        (PLAIN_5K, 1),
        (PLAIN_100K, 1),
        (THREE.format(2, 3), 2),
        (THREE.format(3, 2), 1),
        ("Locate the target in <image_2>, that has the box [1, 2, 3, 4] in <image_1>.", 1),
        ("The box [1, 2, 3, 4] in the second image: where is it in the First image?", 0),
        (prompts.flat(prompts.build([1, 2, 3, 4])), 1),
        (prompts.flat(prompts.build([1, 2, 3, 4], second_box=[1, 2, 3, 4], think=True)), 2),
        ("Box [1, 2, 3, 4] in the first image. The second image: the search region, cut as the first image.", 1),
        ("Re-locate the target [1,2,3,4] in <image_1> in <image_2>. <image_1> has 336 pixels.", 1),
        ("Its box is (1, 2, 3, 4) on the first frame. Where is it in frame 2?", 1),
        ("Compare the 1st image with the 2nd image.", 1),
        ("The first image and the second image are templates. Where is it in the last image?", 2),
        ("Given the first image, where is it in <image_1000000000>?", None),
        ("The first image shows the target. Where is it in the other image?", None),
        ("It is at [1, 2, 3, 4] of the first image. Where in the next image?", None),
        ("In the first image.", None),
        ("Where is it?", None),
        ("Find [1, 2, 3, 4] in <image_1>.", None),
        ("In the third image.", None),
    ],
)
def test_the_search_region_is_the_image_named_last_without_its_box(problem: str, place: int | None) -> None:
    assert prompts.search_place(problem, 3 if place == 2 else 2) == place


@pytest.mark.parametrize("word", ["<image_4>", "image 4", "image #4", "the fourth image", "the 4th image"])
def test_of_four_images_the_fourth_may_be_the_search_region(word: str, tmp_path: Path) -> None:
    problem = (
        f"<image><image><image><image>It has [1,2,3,4] in the first image, then second and third. Find it in {word}"
    )
    data = data_set(tmp_path / "data", [row(problem)] * 8)
    pairs = sampled(settings("r1track-100k-hub", data, val_pairs=0), tmp_path / "pairs")
    assert {tuple(int(np.asarray(image)[0, 0, 0]) for image in pair["images"]) for pair in pairs} == {(0, 120, 40, 80)}


def test_a_box_that_reaches_out_of_the_template_makes_no_other_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R1-Track does not clip the boxes of its crops."""
    data = data_set(tmp_path / "data", [row(PLAIN_5K.replace("[10,20,", "[-3,20,"))] * 8)
    sampled(settings("r1track-5k-hub", data), tmp_path / "pairs")
    assert "questions are not the one that the tracker asks" not in caplog.text


def test_an_instruction_to_think_stands_around_the_question_where_the_configuration_says(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", [row(PLAIN_5K)] * 16)
    preset = str(config.resolve({"preset": "r1track-5k-hub"}).task.prompt)
    think = {"think": True, "prompt": INSTRUCTION + preset}
    chosen = settings("r1track-5k-hub", data, think, hub_prompt=INSTRUCTION + "{question}")
    rows = sampled(chosen, tmp_path / "pairs")
    assert set(rows["problem"]) == {INSTRUCTION + PLAIN_5K}
    assert prompts.pattern(chosen.task).fullmatch(rows["problem"][0])
    trained(chosen, tmp_path / "pairs", tmp_path, "grpo")
    with pytest.raises(UserError, match="sft needs pairs with a column `thought`"):
        train.with_answers(rows, chosen.task)


@pytest.mark.parametrize("split", ["val", "validation", "dev", "test"])
def test_a_held_out_split_is_known_by_each_of_its_names(split: str, tmp_path: Path) -> None:
    data_set(tmp_path / "data", [row(PLAIN_5K)] * 6)
    data_set(tmp_path / "data", [row(PLAIN_5K, answer="[1,2,3,4]")] * 3, split)
    assert len(sampled(settings("r1track-5k-hub", tmp_path / "data"), tmp_path / "pairs")) == 6
    assert pairs_module.load(tmp_path / "pairs" / "val")["answer"] == [[1, 2, 3, 4]] * 3


def test_rows_are_drawn_from_the_whole_of_a_split_by_the_seed(tmp_path: Path) -> None:
    """Rows stand by size, as the generator writes them; 20 of 60 are all from one size once in 10^15 draws."""
    data_set(tmp_path / "data", [row(PLAIN_100K, size) for size in (84, 112, 140) for _ in range(20)])
    drawn = []
    for k, seed in enumerate((0, 0, 1)):
        chosen = settings("r1track-100k-hub", tmp_path / "data", pairs=20, val_pairs=10)
        sampled(chosen.model_copy(update={"seed": seed}), tmp_path / str(k))
        splits = [pairs_module.load(tmp_path / str(k) / name)["size"] for name in ("train", "val")]
        assert [len(set(sizes)) for sizes in splits] == [3, 3]
        drawn.append(files.hash_path(tmp_path / str(k) / "train"))
    assert drawn[0] == drawn[1]


def test_questions_in_other_words_than_the_trackers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data_set(tmp_path / "data", [row(PLAIN_5K)] * 4 + [row(PLAIN_100K)] * 8)
    sampled(settings("r1track-5k-hub", tmp_path / "data", val_pairs=0), tmp_path / "pairs")
    assert "train: 8 of 12 questions are not the one that the tracker asks, which is task.prompt" in caplog.text


def test_a_search_region_that_the_processor_would_resize_is_refused_before_training(tmp_path: Path) -> None:
    chosen = settings("r1track-5k-hub", data_set(tmp_path / "data", [row(PLAIN_5K, 448)] * 12))
    sampled(chosen, tmp_path / "pairs")
    with pytest.raises(UserError, match=r"448 x 448 pixels is resized by .* = 784\.\.112896"):
        train.run(chosen, "grpo", "tiny", tmp_path / "pairs", tmp_path / "scratch", tmp_path / "adapter")


def test_a_change_of_any_file_with_rows_reruns_the_stage_that_reads_the_folder(tmp_path: Path) -> None:
    """Of a folder alone Snakemake sees no more than that a name in it was added or removed."""
    (tmp_path / "mine" / "train" / "images").mkdir(parents=True)
    for name in ("README.md", "train/metadata.jsonl", "train/images/1.png", "train/.hidden.json"):
        (tmp_path / "mine" / name).touch()
    rows = [str(tmp_path / "mine" / name) for name in ("README.md", "train/metadata.jsonl")]
    sets = {"own": {"source": str(tmp_path / "mine")}, "twice": {"source": str(tmp_path / "mine")}}
    sets |= {"easy-vqa": {"source": "easy-vqa"}, "hub": {"source": "some/set"}}
    values = {"preset": "demo", "sample": {"hub": str(tmp_path / "mine")}, "vqa": {"sets": sets}}
    made = plan.make_plan(config.resolve(values))
    assert made.pair_sources == made.question_sources == rows
    assert plan.make_plan(config.resolve({"preset": "demo"})).question_sources == []


@pytest.mark.parametrize("preset", ["r1track-5k-hub", "r1track-100k-hub"])
def test_the_presets_need_no_training_split(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "GOT-10k" / "val" / "GOT-10k_Val_000001").mkdir(parents=True)
    (tmp_path / "data" / "GOT-10k" / "val" / "list.txt").write_text("GOT-10k_Val_000001\n")
    made = plan.make_plan(config.resolve({"preset": preset}))
    assert (made.train, made.pair_sources) == (None, [])
    local = {"preset": preset, "sample": {"hub": str(tmp_path / "mine")}}
    with pytest.raises(UserError, match=r"sample\.hub = .*mine': no such folder"):
        plan.make_plan(config.resolve(local))
    settings = config.resolve({"preset": preset})
    states = {line[1]: line[0] for line in [*data_lines.splits(settings), *data_lines.sources(settings, None)]}
    assert states["sample.hub"] == "warning"  # to be downloaded
    assert "data.train" not in states
    assert ("error", "sample.hub") in {line[:2] for line in data_lines.splits(config.resolve(local))}
    (tmp_path / "mine").mkdir()
    assert plan.make_plan(config.resolve(local)).pair_sources == [str(tmp_path / "mine")]


def test_a_question_of_ones_own_is_asked_in_training_on_cut_pairs_too() -> None:
    task = Task(prompt="{template}At {box}. Where in {search}?", box="truncated")
    assert prompts.flat(prompts.question(task, [1.9, 2, 30, 40])) == "<image>At [1,2,30,40]. Where in <image>?"
    with pytest.raises(ValueError, match="before"):
        Task(prompt="{search}{template}{box}")
    with pytest.raises(UserError, match="has no place for a later template"):
        config.resolve({"task": {"prompt": task.prompt, "templates": 2}})
