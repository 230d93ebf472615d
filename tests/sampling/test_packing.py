"""Packed weights: the same products up to rounding, on wide layers of few rows alone, and nothing stays behind."""

import pytest
import torch
from torch import nn

from tests.tiny import tiny_generator
from vapi_core.models.llamagen.generator import Generator, GeneratorConfig
from vapi_core.sampling import packing
from vapi_core.sampling.packing import FAST_ROWS, LEAST_WIDTH, MOST_ROWS, can_pack, packed_linears
from vapi_core.sampling.sampler import SamplingConfig, generate

WIDE, WIDER = LEAST_WIDTH, LEAST_WIDTH + 64
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch cannot pack")


def is_packed(layer: nn.Module) -> bool:
    return "forward" in vars(layer)


def wide_generator() -> Generator:
    return Generator(GeneratorConfig(dim=WIDE, layers=1, heads=8, grid=2, codebook_size=WIDER, classes=3)).eval()


@needs_packing
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, FAST_ROWS - 1, FAST_ROWS, MOST_ROWS])
@torch.no_grad()
def test_products_are_the_same_up_to_rounding(rows, bias, dtype):
    if not can_pack(dtype):
        pytest.skip("this CPU has no such products")
    layer = nn.Linear(WIDE, WIDER, bias).to(dtype)
    x = torch.randn(rows, 1, WIDE, dtype=dtype)
    plain = layer(x)
    with packed_linears(layer, rows):
        assert is_packed(layer)
        packed = layer(x)
    assert packed.shape == plain.shape and packed.dtype == dtype
    torch.testing.assert_close(packed, plain, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])


@needs_packing
@torch.no_grad()
def test_weights_that_have_changed_are_packed_anew():
    layer, x = nn.Linear(WIDE, WIDER), torch.randn(3, WIDE)
    with packed_linears(layer, 3):
        layer(x)
    layer.weight.mul_(2)
    with packed_linears(layer, 3):
        packed = layer(x)
    torch.testing.assert_close(packed, layer(x), atol=1e-4, rtol=1e-4)


@needs_packing
def test_layers_are_plain_again_behind_an_error():
    layer = nn.Linear(WIDE, WIDER)
    with pytest.raises(KeyError), packed_linears(layer, 1):
        raise KeyError
    assert not is_packed(layer)
    assert layer(torch.randn(1, WIDE)).requires_grad


@pytest.mark.parametrize(
    ("layer", "rows"),
    [
        (nn.Linear(WIDE, WIDER), MOST_ROWS + 1),
        (nn.Linear(WIDE, WIDE - 1), 1),
        (nn.Linear(WIDE, WIDER, dtype=torch.float64), 1),
        (nn.Linear(WIDE, WIDER, device="meta"), 1),
        (nn.Embedding(WIDE, WIDER), 1),
    ],
    ids=["many rows", "narrow", "float64", "another device", "no linear layer"],
)
def test_other_layers_stay_plain(layer, rows):
    with packed_linears(layer, rows):
        assert not is_packed(layer)


def test_under_autocast_layers_stay_plain():
    layer = nn.Linear(WIDE, WIDER)
    with torch.autocast("cpu", torch.bfloat16), packed_linears(layer, 1):
        assert not is_packed(layer)


def test_a_pytorch_without_the_operators_draws_with_plain_layers(monkeypatch):
    monkeypatch.setattr(packing, "can_pack", lambda dtype: False)
    layer = nn.Linear(WIDE, WIDER)
    with packed_linears(layer, 1):
        assert not is_packed(layer)


@needs_packing
@pytest.mark.parametrize("held", [True, False])
def test_weights_are_packed_where_a_quarter_of_the_free_memory_holds_them_once_more(monkeypatch, held):
    model = nn.Sequential(nn.Linear(WIDE, WIDER), nn.Linear(WIDER, WIDE))
    size = 2 * 4 * WIDE * WIDER  # bytes
    monkeypatch.setattr(packing, "free_bytes", lambda device: 4 * size - (not held))
    with packed_linears(model, 1):
        assert [is_packed(layer) for layer in model] == [held, held]


@needs_packing
@pytest.mark.parametrize(("generator", "packs"), [(wide_generator(), True), (tiny_generator(), False)])
def test_a_wide_generator_decodes_with_packed_layers(generator, packs):
    seen = []
    generator.output.register_forward_hook(lambda layer, *_: seen.append(is_packed(layer)))
    uniforms = torch.rand(2, generator.config.length, generator=torch.Generator().manual_seed(0))
    tokens = generate(generator, torch.tensor([0, 1]), uniforms, SamplingConfig(guidance_scale=1.5))
    assert seen == [False] + [packs] * (generator.config.length - 1)  # the prefill comes before
    assert tokens.max() < generator.config.codebook_size
