"""The image tower: transformers' results, in fewer calls."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from r1track.core import config, models, vision

# Patches of images: of 336 px (nine equal windows), and others whose windows at the border are smaller.
SIZES = {"crops": [(24, 24)] * 3, "images": [(24, 24), (10, 22), (4, 4)]}


@pytest.fixture
def tower() -> Any:
    small = Qwen2_5_VLVisionConfig(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=16, fullatt_block_indexes=[1]
    )
    small._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return modeling.Qwen2_5_VisionTransformerPretrainedModel(small)


def features(tower: Any, sizes: list[tuple[int, int]]) -> torch.Tensor:
    """What the tower makes of given pixels."""
    patches = sum(high * wide for high, wide in sizes)
    pixels = torch.linspace(-1, 1, patches * 1176).view(patches, 1176).sin()
    seen: torch.Tensor = tower(pixels, grid_thw=torch.tensor([[1, *size] for size in sizes])).last_hidden_state
    return seen


def look(tower: Any, sizes: list[tuple[int, int]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What the tower makes of given pixels, and the gradients of the first weights of each part."""
    seen = features(tower, sizes)
    tower.zero_grad()
    seen.square().sum().backward()
    weights = [tower.patch_embed.proj.weight, *(block.attn.qkv.weight for block in tower.blocks)]
    return seen.detach(), [weight.grad.clone() for weight in weights]


@pytest.mark.parametrize("kind", SIZES)
def test_features_and_gradients_are_those_of_transformers(kind: str, tower: Any) -> None:
    wanted, gradients = look(tower, SIZES[kind])
    vision.fewer_calls(tower)
    ours, our_gradients = look(tower, SIZES[kind])
    assert torch.allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    for one, other in zip(our_gradients, gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * other.abs().max())
        assert other.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_embedded_without_a_convolution(dtype: torch.dtype, tower: Any) -> None:
    pixels = torch.linspace(-1, 1, 50 * 1176).view(50, 1176).sin()
    embedded = tower.patch_embed.to(dtype)(pixels).detach()
    vision.fewer_calls(tower)
    tower.patch_embed.proj.forward = None  # is not called
    assert torch.allclose(tower.patch_embed(pixels), embedded, atol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert tower.patch_embed(pixels).dtype == dtype


def test_an_adapter_on_any_layer_of_the_tower_works_in_it(tower: Any) -> None:
    """`proj` names the embedding of patches, too: a convolution, on which PEFT puts an adapter as well."""
    adapter = LoraConfig(r=4, target_modules=["proj", "qkv", "gate_proj"], init_lora_weights=False)
    tower = inject_adapter_in_model(adapter, tower)
    plain = features(tower, SIZES["images"])
    adapters = [weight for name, weight in tower.named_parameters() if "lora_B" in name]
    assert len(adapters) == 1 + 3 * len(tower.blocks)
    vision.fewer_calls(tower)
    ours = features(tower, SIZES["images"])
    assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-5)
    for weight in adapters:
        with torch.no_grad():
            weight.mul_(-3)
        assert not torch.allclose(features(tower, SIZES["images"]), ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "calls"), [("crops", 2), ("images", 4 + 3)])
def test_one_call_attends_to_all_windows_of_a_size(
    kind: str, calls: int, tower: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows have 8 x 8, 2 x 8, 8 x 6, 2 x 6 or 4 x 4 patches here; two of these sizes are 16."""
    sizes, attend = [], vision.scaled_dot_product_attention
    monkeypatch.setattr(
        vision, "scaled_dot_product_attention",
        lambda q, *rest, **named: sizes.append(q.shape[2]) or attend(q, *rest, **named),
    )  # fmt: skip
    vision.fewer_calls(tower)
    look(tower, SIZES[kind])
    assert len(sizes) == calls


def test_loaded_models_have_such_a_tower() -> None:
    loaded = models.load("tiny", config.resolve({}).model)
    assert {type(block.attn) for block in loaded.model.model.visual.blocks} == {vision.WindowAttention}
    assert type(loaded.model.model.visual.patch_embed) is vision.PatchProduct
