"""Pixels of search regions: those of the image processor, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from r1track.core import models
from r1track.core.pixels import pixel_values
from r1track.core.schema import Settings


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("size", [(84, 84), (336, 336), (112, 56)])
def test_the_inputs_are_those_of_the_image_processor_bit_for_bit(size: tuple[int, int], count: int) -> None:
    processor = models.load_processor(models.TINY, Settings().model).image_processor
    rng = np.random.default_rng(3)
    images = [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)) for _ in range(count)]
    expected = processor(images=images, return_tensors="pt")
    made = pixel_values(images, processor, torch.device("cpu"))
    assert made.keys() == expected.keys()
    for name, values in expected.items():
        assert made[name].dtype == values.dtype
        assert torch.equal(made[name], values), name


def test_all_values_of_a_byte_are_tried_in_each_channel() -> None:
    processor = models.load_processor(models.TINY, Settings().model).image_processor
    ramp = np.arange(256, dtype=np.uint8).repeat(49).reshape(112, 112)
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], 2))
    made = pixel_values([image], processor, torch.device("cpu"))
    assert torch.equal(made["pixel_values"], processor(images=[image], return_tensors="pt")["pixel_values"])
    assert len(made["pixel_values"].unique()) == 3 * 256
