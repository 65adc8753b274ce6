"""Image cache: the images of a rollout, each processed once and, where the vision tower is frozen, encoded once.

TRL processes an image once per completion, and runs the vision tower on it for the rollout, the reference and the loss.
During a rollout the cache takes the place of the image processor and returns an image's number instead of its pixels,
one row per patch, so that the trainer can split it like pixels. Before the tower the number is replaced by the image.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from transformers import BatchFeature
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import BaseModelOutputWithPooling

from r1track.core.models import ImageProcessorOnly, is_frozen

DIGIT = 128  # a number has two digits, so that every 16-bit float holds them exactly: up to 16384 images


class CachedImage(NamedTuple):
    pixels: torch.Tensor  # as the processor gives them: (patches, features)
    grid: torch.Tensor  # (3,)


class ImageCache:
    """Takes the place of the image processor while it is open, and of the vision tower's forward for good."""

    def __init__(self, processor: ImageProcessorOnly, tower: Any):
        self.processor, self.process = processor, processor.image_processor
        self.tower, self.encode = tower, tower.forward
        self.frozen = is_frozen(tower)
        self.numbers: dict[bytes, int] = {}  # by the image's content: the trainer copies images
        self.images: list[CachedImage] = []
        self.features: dict[int, torch.Tensor] = {}
        tower.forward = self.forward

    @contextmanager
    def open(self) -> Iterator[None]:
        """Return numbers in the block, from 0 again."""
        for store in (self.numbers, self.images, self.features):
            store.clear()
        self.processor.image_processor = self
        try:
            yield
        finally:
            self.processor.image_processor = self.process

    def __getattr__(self, name: str) -> Any:  # whatever else an image processor is asked for
        return getattr(self.process, name)

    def __call__(self, images: Any, **options: Any) -> BatchFeature:
        """As the image processor, with pixel_values (patches, 2): the digits of the number of the patch's image."""
        flat: Any = make_flat_list_of_images(images)
        keys = [sha256(repr(image.size).encode() + image.tobytes()).digest() for image in flat]
        if new := {key: image for key, image in zip(keys, flat, strict=True) if key not in self.numbers}:
            processed = self.process(list(new.values()), **{**options, "return_tensors": "pt"})
            grids = processed["image_grid_thw"]
            self.numbers |= zip(new, itertools.count(len(self.images)), strict=False)
            self.images += map(CachedImage, processed["pixel_values"].split(grids.prod(-1).tolist()), grids)
        numbers = [self.numbers[key] for key in keys]
        grids = torch.stack([self.images[n].grid for n in numbers])
        digits = torch.tensor([divmod(n, DIGIT) for n in numbers], dtype=torch.float32)
        return BatchFeature({"pixel_values": digits.repeat_interleave(grids.prod(-1), 0), "image_grid_thw": grids})

    def forward(self, digits: torch.Tensor, grid_thw: torch.Tensor, **options: Any) -> Any:
        """The vision tower's forward pass, on numbers or on pixels; a frozen tower encodes a numbered image once."""
        if digits.shape[1] != 2:
            return self.encode(digits, grid_thw=grid_thw, **options)
        firsts = grid_thw.prod(-1).cumsum(0) - grid_thw.prod(-1)
        numbers = [int(DIGIT * high + low) for high, low in digits[firsts].tolist()]
        if not self.frozen:
            return self._encoded(numbers, digits, options)
        if new := [n for n in dict.fromkeys(numbers) if n not in self.features]:
            with torch.no_grad():
                features = self._encoded(new, digits, options).pooler_output
            tokens = [len(self.images[n].pixels) // self.tower.spatial_merge_size**2 for n in new]
            self.features.update(zip(new, features.split(tokens), strict=True))
        output: Any = torch.cat([self.features[n] for n in numbers])
        return BaseModelOutputWithPooling(pooler_output=output)

    def _encoded(self, numbers: list[int], like: torch.Tensor, options: dict[str, Any]) -> Any:
        grids = torch.stack([self.images[n].grid for n in numbers]).to(like.device)
        return self.encode(torch.cat([self.images[n].pixels for n in numbers]).to(like), grid_thw=grids, **options)
