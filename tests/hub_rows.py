"""Rows of the authors' data sets in their words, those of the public repository Wangbiao2/R1-Track at f585b82."""

import io
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from r1track.core import config
from r1track.core import pairs as pairs_module
from r1track.data import sample
from r1track.training import train

PLAIN_5K = (
    "<image><image>Please identify the target specified by the bounding box [10,20,30,40] in the first image and "
    "locate it in the second image. \n Return the coordinates in [x_min,y_min,x_max,y_max] format."
)
PLAIN_100K = (
    "<image> <image>Given two images, you need to:\n"
    "1. Analyze and Identify the target object marked by bounding box [10,20,30,40] in <image_1>;\n"
    "2. Re-locate this target in <image_2>;\n"
    "3. Return [x_min, y_min, x_max, y_max] coordinates of the target in <image_2>."
)
INSTRUCTION = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. \n The "
    "reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in <answer> "
    "</answer> tags. "
)
THREE = (
    "<image> <image> <image>Given three images:\n1. The target is marked by bounding box [10,20,30,40] in <image_1> "
    "and by bounding box [5,6,50,60] in <image_{}>;\n2. Return its [x_min, y_min, x_max, y_max] in <image_{}>."
)
STEP = {"steps": 1, "warmup": 0.0, "save_every": 1, "prompts_per_step": 2, "group": 4, "micro_batch": 4,
        "learning_rate": 1e-3, "max_tokens": 16, "eval_every": 0,
        "sft": {"steps": 1, "batch": 4, "micro_batch": 2}}  # fmt: skip


def settings(preset: str, hub: Path, task: dict[str, Any] | None = None, **changes: Any) -> config.Settings:
    """A preset's question on the tiny model and a local data set; tracking as in the demo."""
    asked = config.resolve({"preset": preset}).task
    words = {"prompt": asked.prompt, "box": asked.box, **(task or {})}
    few = {"pairs": 12, "val_pairs": 4, "val_share": 0.25, "hub": str(hub), **changes}
    model = {"min_pixels": 784, "max_pixels": 336 * 336}
    return config.resolve({"preset": "demo", "task": words, "sample": few, "train": STEP, "model": model})


def png(image: Picture.Image) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": "image_1.jpg"}


def picture(size: int, colour: int) -> dict[str, Any]:
    return png(Picture.new("RGB", (size, size), (colour, 120, 40)))


def row(problem: str, size: int = 84, answer: str = "[10,20,30,40]") -> dict[str, Any]:
    images = [picture(size, 40 * k) for k in range(problem.count("<image>"))]
    return {"images": images, "problem": problem, "answer": answer}


def data_set(
    folder: Path, rows: list[dict[str, Any]], split: str = "train", names: tuple[str, str] = ("role", "content")
) -> Path:
    turns = {"messages": List({"role": Value("string"), "content": Value("string")})}
    texts = {"problem": Value("string"), "answer": Value("string")}
    features = Features({"images": List(Image()), **(turns if "messages" in rows[0] else texts)})
    table = Dataset.from_list(rows, features=features)
    if names != ("role", "content"):
        renamed = [[dict(zip(names, turn.values(), strict=True)) for turn in row["messages"]] for row in rows]
        table = table.remove_columns("messages").add_column("conversations", renamed)
    (folder / split).mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / split / "0.parquet")
    return folder


def sampled(chosen: config.Settings, out: Path) -> Dataset:
    sample.run(chosen, None, out, 1)
    return pairs_module.load(out / "train")


def trained(chosen: config.Settings, pairs: Path, folder: Path, *arms: str) -> None:
    for arm in arms:
        train.run(chosen, arm, "tiny", pairs, folder / arm / "scratch", folder / arm / "adapter")
        assert (folder / arm / "adapter" / "adapter_model.safetensors").is_file()
