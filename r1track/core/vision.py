"""Vision: Qwen2.5-VL's image tower in fewer and faster calls, with transformers' own weights and results.

Most layers of the tower attend within windows of 8 x 8 patches, the others within an image. Without flash attention,
transformers attends to one after another: to 32 crops of 336 px in 8192 calls, which take a card longer than all the
arithmetic. Here all windows of one size are one call. Patches are embedded by a convolution whose windows do not
overlap, which is a product of matrices; as such it takes a third of the time on a CPU, and torch has versions in which
the convolution is far slower still on a card (transformers' issue 45750).
"""

from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling


class PatchProduct(modeling.Qwen2_5_VisionPatchEmbed):
    """The embedding of patches."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: (patches, values of each) -> (patches, width)."""
        if not isinstance(self.proj, torch.nn.Conv3d):  # an adapter is on it
            return super().forward(hidden_states)
        weight = self.proj.weight
        return linear(hidden_states.to(weight.dtype), weight.flatten(1))


class WindowAttention(modeling.Qwen2_5_VLVisionAttention):
    """An attention layer."""

    def forward(
        self, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: Any = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        """hidden_states: (patches, width); cu_seqlens: the first patch of each window, and the number of patches."""
        queries, keys, values = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        queries, keys = modeling.apply_rotary_pos_emb_vision(queries, keys, *position_embeddings)
        seen = torch.empty_like(values)
        for patches in _windows(cu_seqlens):
            q, k, v = (part[patches].transpose(1, 2) for part in (queries, keys, values))
            seen[patches] = scaled_dot_product_attention(q, k, v, scale=self.scaling).transpose(1, 2)
        projected: torch.Tensor = self.proj(seen.flatten(1))
        return projected


def _windows(cu_seqlens: Any) -> list[torch.Tensor]:
    """Of each size of window its patches, (windows, patches), sorted once: the layers of a pass get the same tensor."""
    if not hasattr(cu_seqlens, "windows"):
        starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
        steps = torch.arange(int(lengths.max()), device=starts.device)
        sizes = lengths.unique().tolist()
        cu_seqlens.windows = [starts[lengths == size, None] + steps[:size] for size in sizes]
    windows: list[torch.Tensor] = cu_seqlens.windows
    return windows


def fewer_calls(tower: Any) -> None:
    """Let an image tower embed patches by one product, and attend to all windows of one size at once."""
    tower.patch_embed.__class__ = PatchProduct
    for block in tower.blocks:
        block.attn.__class__ = WindowAttention
