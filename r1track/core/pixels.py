"""Pixels: what Qwen2.5-VL's image processor makes of search regions, computed for a batch where the model is.

The processor takes one image after another on the CPU. A search region has the model's size already, so that only its
values are scaled and its patches put in order: the result is the processor's own, bit for bit
(tests/core/test_pixels.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image


def pixel_values(images: Sequence[Image.Image], processor: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """The model's inputs `pixel_values`, (patches, values of each), and `image_grid_thw`, (images, 3).

    images: in RGB and of one size, which `processor`, an image processor, would not change.
    """
    patch, merge, (width, height) = processor.patch_size, processor.merge_size, images[0].size
    high, wide = height // patch, width // patch
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images])).to(device)
    # Images, then blocks of merge x merge patches by rows, the patches of a block by rows, then channels and pixels.
    blocks = stacked.view(len(images), high // merge, merge, patch, wide // merge, merge, patch, 3)
    patches = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3, patch**2)
    mean, std = (torch.tensor(side, device=device)[:, None] for side in (processor.image_mean, processor.image_std))
    values = patches.double().mul_(processor.rescale_factor).float().sub_(mean).div_(std)
    twice = values[:, :, None].expand(-1, -1, processor.temporal_patch_size, -1)  # a still image
    grid = torch.tensor([[1, high, wide]] * len(images), device=device)
    return {"pixel_values": twice.reshape(len(values), -1), "image_grid_thw": grid}
