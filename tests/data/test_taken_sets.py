"""Data sets of others that are taken as pairs: which rows and images are, how the rest is counted, what is refused."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from r1track.core import config, files, images, prompts
from r1track.core import pairs as pairs_module
from r1track.core.errors import UserError
from r1track.data import sample, shards
from r1track.training import train

pytestmark = pytest.mark.usefixtures("own_cache")
FEW = {"pairs": 12, "val_pairs": 4, "val_share": 0.25, "shard_rows": 5, "max_gap": 8}


def settings(**changes: Any) -> config.Settings:
    return config.resolve({"preset": "demo", "sample": {**FEW, **changes}})


def foreign(rows: list[dict[str, Any]], folder: Path, split: str = "train") -> Path:
    """A data set as the reference writes it: plain structures of bytes and path, not yet images."""
    image = {"bytes": Value("binary"), "path": Value("string")}
    columns = Features({"images": List(image), "problem": Value("string"), "answer": Value("string")})
    (folder / split).mkdir(parents=True, exist_ok=True)
    table = {name: [row[name] for row in rows] for name in columns}
    Dataset.from_dict(table, features=columns).to_parquet(folder / split / "0.parquet")
    return folder


def picture(width: int = 84, height: int = 84) -> dict[str, Any]:
    stream = io.BytesIO()
    Picture.new("RGB", (width, height), (90, 120, 40)).save(stream, "JPEG")
    return {"bytes": stream.getvalue(), "path": "image_1.jpg"}


def path(name: str) -> dict[str, Any]:
    return {"bytes": None, "path": name}


def png(width: int, height: int) -> bytes:
    """The head of a PNG, which promises so many pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


BOMB = png(20_000, 20_000)


def question(**changes: Any) -> dict[str, Any]:
    good = {
        "images": [picture()] * 2,
        "problem": "<image> <image>Where in the second image?",
        "answer": "[10, 20, 30, 40]",
    }
    return {**good, **changes}


BAD = {
    "an image too few": ({"images": [picture()]}, "images do not fit their places in the problem"),
    "a place too few": (
        {"problem": "<image>In image 2?"},
        "images do not fit their places in the problem",
    ),
    "half an image": ({"images": [picture(), {"bytes": picture()["bytes"][:300], "path": None}]}, "cannot be decoded"),
    "an oblong search region": ({"images": [picture(), picture(112, 84)]}, "answer is no box in a square"),
    "a narrow template": ({"images": [picture(603, 3), picture()]}, "an image is too narrow for the model"),
    "an inverted box": ({"answer": "[30, 40, 10, 20]"}, "answer is no box in a square search region"),
    "a box beyond the crop": ({"answer": "[10, 20, 30, 140]"}, "answer is no box in a square search region"),
    "words": ({"answer": "to the left"}, "answer is no box in a square search region"),
    "a box of which nothing is in the crop": ({"answer": "[85, 20, 88, 40]"}, "answer is no box in a square search"),
    "a box thinner than a pixel": ({"answer": "[10.1, 20, 10.9, 40]"}, "target thinner than a pixel"),
    "a box of which less than a pixel is in the crop": ({"answer": "[-3, 20, 0.5, 40]"}, "target thinner than a pixel"),
    "a place of the model's own": (
        {"problem": "<image><image><|image_pad|>In image 2?"},
        "a text holds <|image_pad|>, a mark of the model's own",
    ),
    "an end of a turn": ({"problem": "<image><image>In image 2?<|im_end|>"}, "a text holds <|im_end|>, a mark"),
    "no answer": ({"answer": None}, "answer is no box in a square search region"),
    "words that do not say where": ({"problem": "<image><image>?"}, "does not say which image is the search region"),
    "words that name an image too many": (
        {"problem": "<image><image>In <image_3>?"},
        "does not say which image is the",
    ),
    "an odd size": ({"images": [picture(), picture(86, 86)]}, "the search region is no multiple of 28 pixels"),
    "no question": ({"problem": None}, "images do not fit their places in the problem"),
    "no images": ({"images": None}, "images do not fit their places in the problem"),
    "an empty list of images": ({"images": []}, "images do not fit their places in the problem"),
    "a null image": ({"images": [picture(), None]}, "cannot be decoded (it is null)"),
    "an image of nothing": ({"images": [picture(), {"bytes": None, "path": None}]}, "cannot be decoded (it is null)"),
    "no bytes": ({"images": [picture(), {"bytes": b"", "path": ""}]}, "cannot be decoded (no JPEG, PNG, "),
    "a missing file": ({"images": [picture(), path("gone.jpg")]}, "an image cannot be decoded (no regular file is at "),
    "a file elsewhere": ({"images": [picture(), path("/dev/zero")]}, "cannot be decoded (/dev/zero is outside of "),
    "a file above": ({"images": [picture(), path("../outside.jpg")]}, "outside.jpg is outside of "),
    "a link to elsewhere": ({"images": [picture(), path("link.jpg")]}, "outside.jpg is outside of "),
    "a folder": ({"images": [picture(), path("train")]}, "/data/train); restore it"),
    "an image that is none": ({"images": [picture(), path("words.jpg")]}, "image cannot be decoded"),
    "a bomb": ({"images": [picture(), {"bytes": BOMB, "path": None}]}, "image cannot be decoded"),
}


def test_a_row_with_an_empty_list_as_its_answer_is_a_negative(tmp_path: Path) -> None:
    rows = [question(answer=text) for text in ("[]", " [ ] ", "```json\n[]\n```", "[10, 20, 30, 40]")]
    data = foreign(rows, tmp_path / "data")
    foreign([question(answer="[]")] * 2, data, "test")
    sample.run(settings(hub=str(data), pairs=50), None, tmp_path / "pairs", 1)
    splits = files.read_json(tmp_path / "pairs" / "manifest.json")["splits"]
    assert [(split["pairs"], split["negatives"]) for split in splits.values()] == [(4, 3), (2, 2)]
    assert pairs_module.load(tmp_path / "pairs" / "train")["answer"] == [[], [], [], [10, 20, 30, 40]]
    assert pairs_module.load(tmp_path / "pairs" / "val")["answer"] == [[], []]


def test_rows_that_are_no_pairs_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [question(**changes) for changes, _ in BAD.values()] + [question(answer="[10, 20, 30, 86]")] * 9
    data = foreign(rows, tmp_path / "data")
    foreign([question()] * 3, data, "test")
    (data / "words.jpg").write_text("no image")
    (tmp_path / "outside.jpg").write_bytes(picture()["bytes"])
    (data / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    sample.run(settings(hub=str(data), pairs=50, max_rejected=0.7), None, tmp_path / "pairs", 1)
    splits = files.read_json(tmp_path / "pairs" / "manifest.json")["splits"]
    assert (splits["train"]["pairs"], splits["val"]["pairs"]) == (9, 3)
    assert sum(splits["train"]["rejected"].values()) == len(rows) - 9
    for _, reason in BAD.values():
        assert any(reason in key for key in splits["train"]["rejected"])
    sampled = pairs_module.load(tmp_path / "pairs" / "train")
    assert sampled[0]["answer"] == [10, 20, 30, 84]  # within the tolerance: clipped
    with pytest.raises(ValueError, match="draws rejected"):
        sample.run(settings(hub=str(data), pairs=50, max_rejected=0.0), None, tmp_path / "none", 1)


@pytest.mark.parametrize("answer", [[10, 20, 30, 40], [10.0, 20.4, 29.6, 40.0], {"bbox_2d": [10, 20, 30, 40]}])
def test_an_answer_may_be_a_list_or_an_object_of_numbers(answer: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [question(answer=answer)] * 4
    table = Dataset.from_list(rows).cast_column("images", List(Image()))
    table.to_parquet(tmp_path / "data" / "train.parquet")
    sample.run(settings(hub=str(tmp_path / "data")), None, tmp_path / "pairs", 1)
    expected = answer["bbox_2d"] if isinstance(answer, dict) else answer
    assert pairs_module.load(tmp_path / "pairs" / "train")["answer"] == [expected] * 3


def test_an_answer_that_sft_learns_is_a_box_that_the_reward_reads(tmp_path: Path) -> None:
    boxes = [[10.1, 20.0, 10.3, 40.0], [10.49, 20.5, 11.5, 21.51], [82.9, 0.0, 84.0, 1.0], [0.9, 0.9, 1.95, 1.95]]
    data = foreign([question(answer=json.dumps(box)) for box in boxes], tmp_path / "data")
    for form in ("rounded", "truncated"):
        words = {"prompt": "{template}{search}[1, 2] {box}", "box": form}
        sampled = settings(hub=str(data), val_pairs=0)
        chosen = sampled.model_copy(update={"task": sampled.task.model_copy(update=words)})
        sample.run(chosen, None, tmp_path / form, 1)
        rows = train.with_answers(pairs_module.load(tmp_path / form / "train"), chosen.task)
        answers = [completion[0]["content"] for completion in rows["completion"]]
        assert len(answers) == 3
        assert all(prompts.parse_box(answer, size=84) is not None for answer in answers)


def stored(image: Picture.Image, kind: str, **options: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return {"bytes": stream.getvalue(), "path": None}


RAMP = np.linspace(0, 65535, 84 * 84).reshape(84, 84).astype(np.uint16)
TURNED = Picture.Exif()
TURNED[274] = 6  # the orientation
FORMS = {
    "grey of 16 bits": stored(Picture.fromarray(RAMP), "PNG"),
    "grey of 16 bits, turned": stored(Picture.fromarray(RAMP), "PNG", exif=TURNED),
    "grey and alpha": stored(Picture.fromarray((RAMP >> 8).astype(np.uint8)).convert("LA"), "PNG"),
    "CMYK, turned": stored(Picture.effect_noise((84, 84), 90).convert("CMYK"), "JPEG", exif=TURNED),
    "a palette with a clear colour": stored(Picture.effect_noise((84, 84), 90).convert("P"), "GIF", transparency=7),
    "RGB, turned": stored(Picture.effect_noise((84, 84), 90).convert("RGB"), "JPEG", exif=TURNED),
}


@pytest.mark.parametrize("form", FORMS)
def test_training_sees_the_pixels_of_our_own_reader_whatever_the_image_s_form(form: str, tmp_path: Path) -> None:
    rows = [question(images=[FORMS[form]] * 2)] * 4
    sample.run(settings(hub=str(foreign(rows, tmp_path / "data"))), None, tmp_path / "pairs", 1)
    (template, search), *_ = pairs_module.load(tmp_path / "pairs" / "train")["images"]
    expected = np.asarray(images.decode(FORMS[form]["bytes"], "an image"))
    assert expected.std() > 50
    for image in (template, search):
        assert np.array_equal(np.asarray(image.convert("RGB")), expected)


def test_an_image_may_be_a_file_in_the_folder_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    file = tmp_path / "data" / "images" / "a.jpg"
    file.write_bytes(picture()["bytes"])
    rows = [question(images=[path("images/a.jpg"), path(str(file))])] * 4
    sample.run(settings(hub=str(foreign(rows, tmp_path / "data"))), None, tmp_path / "pairs", 1)
    assert len(pairs_module.load(tmp_path / "pairs" / "train")) == 3
    lines = [
        json.dumps(
            {
                "problem": "<image><image>In image 2?",
                "answer": "[1, 2, 30, 40]",
                "images": ["images/a.jpg", "images/a.jpg"],
            }
        )
    ] * 4
    (tmp_path / "lines" / "images").mkdir(parents=True)
    (tmp_path / "lines" / "images" / "a.jpg").write_bytes(picture()["bytes"])
    (tmp_path / "lines" / "train.jsonl").write_text("\n".join(lines))
    sample.run(settings(hub=str(tmp_path / "lines")), None, tmp_path / "other", 1)
    assert len(pairs_module.load(tmp_path / "other" / "train")) == 3


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("changes", [{"answer": "left"}, {"images": None}, {"problem": None}])
def test_a_split_that_gives_no_pair_is_an_error(split: str, changes: dict[str, Any], tmp_path: Path) -> None:
    rows = {name: [question(**(changes if name == split else {}))] * 3 for name in ("train", "val")}
    data = foreign(rows["val"], foreign(rows["train"], tmp_path / "data"), "validation")
    with pytest.raises(UserError, match=rf"{split}: no pair could be made; rejected draws: .*: 3.*; mend the data"):
        sample.run(settings(hub=str(data)), None, tmp_path / "pairs", 1)
    assert not (tmp_path / "pairs").exists()


def test_a_data_set_with_too_few_rows_is_refused_at_once(tmp_path: Path) -> None:
    one = foreign([question()], tmp_path / "one")
    with pytest.raises(UserError, match=r"sample\.hub = .*one': it has no rows for val"):
        sample.run(settings(hub=str(one)), None, tmp_path / "pairs", 1)
    sample.run(settings(hub=str(one), val_pairs=0), None, tmp_path / "pairs", 1)
    assert len(pairs_module.load(tmp_path / "pairs" / "train")) == 1
    empty = foreign([question()], foreign([], tmp_path / "empty"), "test")
    with pytest.raises(UserError, match=r"it cannot be loaded \(Instruction .train. corresponds to no data!\)"):
        sample.run(settings(hub=str(empty)), None, tmp_path / "none", 1)
    two = foreign([question(), question(problem="<image><image>In image 2?")], tmp_path / "two")
    sample.run(settings(hub=str(two), val_share=0.99), None, tmp_path / "both", 1)
    assert [len(pairs_module.load(tmp_path / "both" / name)) for name in ("train", "val")] == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [1, 2], "problem": "?", "answer": "!"}', "its column images has no lists of images"),
        ('{"images": {"a": 1}, "problem": "?", "answer": "!"}', "its column images has no lists of images"),
        ('{"images": ', "it cannot be loaded"),
        ("", "it cannot be loaded|it has no|lacks"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"sample\.hub = .*: ({message}).*; give a data set in the format easyr1"):
        sample.run(settings(hub=str(tmp_path / "data")), None, tmp_path / "pairs", 1)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("script.py", "import datasets", "Dataset scripts are no longer supported"),
        ("README.md", "---\nconfigs: [a: b: c\n---\n", "while parsing a flow sequence"),
    ],
)
def test_a_folder_with_a_script_or_a_broken_head_of_its_readme_is_refused(
    name: str, text: str, reason: str, tmp_path: Path
) -> None:
    data = foreign([question()] * 4, tmp_path / "script")
    (data / name).write_text(text)
    with pytest.raises(UserError, match=rf"(?s)sample\.hub = .*: it cannot be loaded \({reason}.*; give a data set"):
        sample.run(settings(hub=str(data)), None, tmp_path / "pairs", 1)


def test_a_data_set_that_is_not_there_or_has_another_split_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sample\.hub = .*nowhere': it cannot be loaded"):
        sample.run(settings(hub=str(tmp_path / "nowhere")), None, tmp_path / "pairs", 1)
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match=r"sample\.hub = .*void': it cannot be loaded"):
        sample.run(settings(hub=str(tmp_path / "void")), None, tmp_path / "pairs", 1)
    only = foreign([question()], tmp_path / "only", "test")
    with pytest.raises(UserError, match=r"it has no split train, only \['test'\]"):
        sample.run(settings(hub=str(only)), None, tmp_path / "pairs", 1)


def test_rows_are_held_out_at_random_where_there_is_no_other_split(tmp_path: Path) -> None:
    rows = [question(problem=f"<image><image>Where in the second image? {k}") for k in range(20)]
    data = foreign(rows, tmp_path / "data")
    for name in ("pairs", "again"):
        sample.run(settings(hub=str(data), pairs=50), None, tmp_path / name, 1)
    train_rows, val_rows = (pairs_module.load(tmp_path / "pairs" / name)["problem"] for name in ("train", "val"))
    assert len({*train_rows, *val_rows}) == len(train_rows) + len(val_rows)
    assert len(val_rows) == 4
    assert files.hash_path(tmp_path / "again" / "train") == files.hash_path(tmp_path / "pairs" / "train")


def test_work_that_a_kill_left_is_not_taken_up_for_a_folder_that_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [question(answer=f"[{k}, 20, 60, 60]") for k in range(12)]
    data, chosen = foreign(rows, tmp_path / "data"), settings(hub=str(tmp_path / "data"), val_pairs=0)
    write = shards.write

    def killed(path: Path, *others: Any) -> Any:
        if path.name.endswith("1.parquet"):
            raise KeyboardInterrupt
        return write(path, *others)

    monkeypatch.setattr(shards, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        sample.run(chosen, None, tmp_path / "pairs", 1)
    monkeypatch.setattr(shards, "write", write)
    foreign([{**row, "answer": row["answer"].replace("60, 60", "70, 70")} for row in rows], data)
    sample.run(chosen, None, tmp_path / "pairs", 1)
    assert {tuple(box[2:]) for box in pairs_module.load(tmp_path / "pairs" / "train")["answer"]} == {(70, 70)}
    record = files.read_json(tmp_path / "pairs" / "provenance.json")
    assert record["inputs"] == {"hub": {"path": str(data), "sha256": files.hash_path(data)}}


def test_a_data_set_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    Dataset.from_list([{"question": "?", "answer": "!"}]).to_parquet(tmp_path / "data" / "train" / "0.parquet")
    with pytest.raises(ValueError, match=r"sample\.hub = .*: its split train lacks \['images', 'problem'\]"):
        sample.run(settings(hub=str(tmp_path / "data")), None, tmp_path / "none", 1)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_data_set_without_a_train_split_is_refused_with_the_splits_it_has(split: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Dataset.from_list([{"question": "?"}]).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=rf"sample\.hub = .*: it has no split train, only \['{split}'\]; give a"):
        sample.run(settings(hub=str(tmp_path)), None, tmp_path / "none", 1)
