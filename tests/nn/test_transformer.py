"""Transformer blocks against their formulas written out, and drop path."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pc3d.nn import Transformer, TransformerBlock, drop_path_scales


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def block_by_hand(block: TransformerBlock, x: Tensor, heads: int) -> Tensor:
    batch, length, width = x.shape
    normed = layer_norm(x, block.norm1)
    query, key, value = (normed @ block.attention.qkv.weight.T).split(width, dim=-1)
    out = torch.zeros_like(x)
    size = width // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) * size**-0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        out[..., part] = weights @ value[..., part]
    x = x + out @ block.attention.projection.weight.T + block.attention.projection.bias
    hidden = gelu(layer_norm(x, block.norm2) @ block.mlp[0].weight.T + block.mlp[0].bias)  # type: ignore[union-attr,operator]
    result: Tensor = x + hidden @ block.mlp[2].weight.T + block.mlp[2].bias  # type: ignore[union-attr,operator]
    assert result.shape == (batch, length, width)
    return result


@pytest.fixture
def stack() -> Transformer:
    torch.manual_seed(0)
    stack = Transformer(24, 3, 4, drop_path=0.4).double()
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.3)
    return stack


def test_a_stack_adds_the_position_before_every_block(stack: Transformer) -> None:
    x, position = torch.randn(2, 5, 24).double(), torch.randn(2, 5, 24).double()
    expected = x
    for block in stack.blocks:
        assert isinstance(block, TransformerBlock)
        expected = block_by_hand(block, expected + position, 4)
    torch.testing.assert_close(stack.eval()(x, position), expected, rtol=1e-10, atol=1e-10)


def test_position_can_be_added_once(stack: Transformer) -> None:
    once = Transformer(24, 3, 4, add_position="once").double().eval()
    once.load_state_dict(stack.state_dict())
    x, position = torch.randn(2, 5, 24).double(), torch.randn(2, 5, 24).double()
    torch.testing.assert_close(once(x, position), stack.eval()(x + position, torch.zeros_like(position)))


def test_layers_are_the_outputs_of_blocks(stack: Transformer) -> None:
    x, position = torch.randn(2, 5, 24).double(), torch.randn(2, 5, 24).double()
    last, kept = stack.eval().layers(x, position, keep=(0, 2))
    first_block = stack.blocks[0]
    torch.testing.assert_close(kept[0], first_block(x + position))
    assert torch.equal(kept[1], last)


def test_drop_path_rates_rise_linearly() -> None:
    assert Transformer(8, 5, 2, drop_path=0.1).drop_path_rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert Transformer(8, 1, 2, drop_path=0.1).drop_path_rates == [0.0]


def test_drop_path_scales_are_zero_or_the_inverse_of_keeping() -> None:
    rates = [0.0, 0.25, 0.5]
    scales = drop_path_scales(torch.rand(20000, 3, 2, generator=torch.Generator().manual_seed(0)), rates)
    assert scales.shape == (3, 2, 20000)
    for block, rate in enumerate(rates):
        values = scales[block].unique()
        assert torch.isin(values, torch.tensor([0.0, 1 / (1 - rate)])).all()
        dropped = (scales[block] == 0).double().mean()
        assert abs(dropped - rate) < 5 * math.sqrt(max(rate * (1 - rate), 1e-12) / 40000) + 1e-9


def test_a_dropped_sample_passes_through_untouched(stack: Transformer) -> None:
    x, position = torch.randn(3, 5, 24).double(), torch.zeros(3, 5, 24).double()
    scales = torch.ones(3, 2, 3).double()
    scales[:, :, 1] = 0
    result = stack.train()(x, position, scales)
    assert torch.equal(result[1], x[1])
    torch.testing.assert_close(result[[0, 2]], stack.eval()(x, position)[[0, 2]])
    torch.testing.assert_close(stack.eval()(x, position, scales), stack.eval()(x, position))


def test_training_without_scales_drops_at_random_and_evaluation_does_not(stack: Transformer) -> None:
    x, position = torch.randn(8, 5, 24).double(), torch.randn(8, 5, 24).double()
    assert not torch.equal(stack.train()(x, position), stack.train()(x, position))
    assert torch.equal(stack.eval()(x, position), stack.eval()(x, position))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 10, "depth": 1, "num_heads": 4}, "embed_dim=10, num_heads=4"),
        ({"embed_dim": 8, "depth": 0, "num_heads": 4}, "depth must be at least 1, got 0"),
        ({"embed_dim": 8, "depth": 1, "num_heads": 4, "drop_path": 1.0}, "drop_path must lie"),
        ({"embed_dim": 8, "depth": 1, "num_heads": 4, "add_position": "twice"}, "add_position.*'twice'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(**arguments)  # type: ignore[arg-type]
