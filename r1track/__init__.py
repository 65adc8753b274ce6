"""r1track: Qwen2.5-VL becomes a visual single-object tracker by GRPO, on one card, with proof of what it did."""
