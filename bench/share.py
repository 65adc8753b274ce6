"""Share: hold this process to a part of the card, so that a large card measures what a smaller one would do."""

from typing import Any

import torch


def hold_to(limit: float) -> None:
    """Let torch's allocator take `limit` GB (1e9 bytes) at most, and `mem_get_info` tell of these alone.

    Unsloth sizes its buffers by `mem_get_info`: call this before it is imported. Without a card nothing happens.
    """
    if not torch.cuda.is_available():
        return
    most = int(limit * 1e9)
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / torch.cuda.get_device_properties(0).total_memory))
    tell = torch.cuda.mem_get_info

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        free, total = tell(device)
        return max(0, min(free, most - torch.cuda.memory_reserved(device))), min(total, most)

    torch.cuda.mem_get_info = torch.cuda.memory.mem_get_info = mem_get_info  # type: ignore[assignment]
