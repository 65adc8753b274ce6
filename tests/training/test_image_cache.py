"""The image cache: an image is decoded, processed and encoded once per rollout, and what is learned stays the same."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_shared_prefix import apart_and_size, loss_and_gradients, moved_trainer, settings, step_of
from toys import toy_pairs, varied_pairs, with_pixels

from r1track.core import models
from r1track.training import image_cache


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return varied_pairs(toy_pairs(folder, settings(), sequences=4), folder / "mixed", rows=4, later="some")


def fetched(trainer: Any) -> list[Any]:
    """A generation batch as the data loader fetches it: all rows of all groups at once."""
    rows = range(len(trainer.train_dataset))
    return list(trainer.train_dataset.__getitems__([k for k in rows for _ in range(trainer.num_generations)]))


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many images are decoded, processed and encoded from here on."""
    counts = Counter[str]()

    def count(owner: Any, name: str, label: str, of: Any) -> None:
        real = getattr(owner, name)

        def each(self: Any, *args: Any, **named: Any) -> Any:
            counts[label] += of(*args, **named)
            return real(self, *args, **named)

        monkeypatch.setattr(owner, name, each)

    from datasets import Image
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Processor

    count(Image, "decode_example", "decoded", lambda *args, **named: 1)
    count(Processor, "__call__", "processed", lambda images, **named: len(images))
    count(Tower, "forward", "encoded", lambda pixels, grid_thw, **named: len(grid_thw))
    return counts


def test_every_image_is_decoded_processed_and_encoded_once_for_rollout_reference_and_loss(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted(monkeypatch)
    trainer = moved_trainer(settings(beta=0.05), models.TINY, pairs, tmp_path)
    rows = fetched(trainer)
    images = len({image.tobytes() for row in rows for image in row["images"]})
    assert images < sum(len(row["images"]) for row in rows) / trainer.num_generations
    counts.clear()
    rows = fetched(trainer)
    inputs = trainer._prepare_inputs(rows)
    loss_and_gradients(trainer, inputs)
    assert counts == {"decoded": images, "processed": images, "encoded": images}
    trainer._generate_and_score_completions(fetched(trainer))  # the next rollout looks anew
    assert counts == {"decoded": 2 * images, "processed": 2 * images, "encoded": 2 * images}


def test_a_tower_that_learns_gets_the_stock_paths_gradients(pairs: Path, tmp_path: Path) -> None:
    lora = {"vision": True, "rank": 4, "alpha": 8}
    trainer = moved_trainer(settings(quantize="none", lora=lora), models.TINY, pairs, tmp_path, by=0.1)
    inputs = step_of(trainer, fetched(trainer))
    ours, stock = (loss_and_gradients(trainer, each)[1] for each in (inputs, with_pixels(trainer, inputs)))
    tower = {name: grad for name, grad in stock.items() if ".visual." in name}
    apart, size = apart_and_size(ours, tower)
    assert apart <= 1e-5 * size
    assert size > 1e-6


def test_numbers_survive_sixteen_bit_floats() -> None:
    numbers = torch.tensor([divmod(n, image_cache.DIGIT) for n in range(image_cache.DIGIT**2)], dtype=torch.float32)
    for kind in (torch.bfloat16, torch.float16):
        high, low = numbers.to(kind).float().T
        assert torch.equal(high * image_cache.DIGIT + low, torch.arange(image_cache.DIGIT**2).float())


def test_outside_a_rollout_processor_and_tower_work_on_pixels(pairs: Path, tmp_path: Path) -> None:
    trainer = moved_trainer(settings(quantize="none"), models.TINY, pairs, tmp_path)
    row, loaded = trainer.train_dataset[0], models.Loaded(trainer.model, trainer.processing_class, torch.device("cpu"))
    before = models.generate(loaded, [row["prompt"]], [row["images"]], max_tokens=8, batch=1)
    trainer._prepare_inputs(fetched(trainer))
    assert models.inputs(loaded, [row["prompt"]], [row["images"]])["pixel_values"].shape[1] == 1176
    assert models.generate(loaded, [row["prompt"]], [row["images"]], max_tokens=8, batch=1) == before
