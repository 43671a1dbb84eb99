"""Heads of texts: against a plain statement in float64, scenes apart from one another, gradients, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pc3d.nn import LanguageHead, TextHead

IN, K, C = 7, 4, 6


def head(**changes: Any) -> LanguageHead:
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 8, "num_heads": 2, "num_layers": 2, "context_size": 1.0, **changes}
    built = LanguageHead(IN, K, C, **options).double()
    built.text.copy_(torch.randn(K, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    with torch.no_grad():
        for parameter in built.parameters():  # norms that are not the identity, and a gamma that matters
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    return built


def points(seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Three scenes of 9, 0 and 5 points over some cubes of edge 1."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(14, IN, generator=generator, dtype=torch.float64)
    xyz = 4 * torch.rand(14, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.2]) - 1
    return features, xyz, torch.tensor([0, 9, 9, 14])


# ---- a plain statement -------------------------------------------------------------------------------------------


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def linear(x: Tensor, layer: Any) -> Tensor:
    return x @ layer.weight.T + layer.bias


def attention(query: Tensor, keys: Tensor, layer: nn.MultiheadAttention) -> Tensor:
    """Of ``(Q, D)`` to ``(L, D)``, head by head."""
    width = query.shape[1]
    assert layer.in_proj_weight is not None
    assert layer.in_proj_bias is not None
    parts = []
    for i, rows in enumerate((query, keys, keys)):
        block = slice(i * width, (i + 1) * width)
        parts.append(rows @ layer.in_proj_weight[block].T + layer.in_proj_bias[block])
    q, k, v = parts
    size, heads = width // layer.num_heads, []
    for h in range(layer.num_heads):
        column = slice(h * size, (h + 1) * size)
        weight = (q[:, column] @ k[:, column].T / math.sqrt(size)).exp()
        heads.append(weight / weight.sum(1, keepdim=True) @ v[:, column])
    return linear(torch.cat(heads, 1), layer.out_proj)


def erf_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def slow_texts(built: LanguageHead, visual: Tensor, xyz: Tensor) -> Tensor:
    """The refined texts of one scene."""
    cubes: dict[tuple[int, ...], list[int]] = {}
    for i, point in enumerate(xyz.tolist()):
        cubes.setdefault(tuple(math.floor(x / built.context_size) for x in point), []).append(i)
    assert len(cubes) > 2
    tokens = torch.stack([visual.mean(0), *(visual[members].mean(0) for members in cubes.values())])
    first, second, third = built.read_visual
    memory = norm(linear(norm(tokens, first), second), third)
    x = linear(norm(built.text, built.read_text[0]), built.read_text[1])
    for layer in built.decoder.layers:
        own = norm(x, layer.norm1)
        x = x + attention(own, own, layer.self_attn)
        x = x + attention(norm(x, layer.norm2), memory, layer.multihead_attn)
        x = x + linear(erf_gelu(linear(norm(x, layer.norm3), layer.linear1)), layer.linear2)
    return built.text + built.gamma * linear(norm(x, built.write_text[0]), built.write_text[1])


@torch.no_grad()
def test_texts_are_refined_by_what_the_scene_shows_and_points_compared_with_them() -> None:
    built, (features, xyz, offsets) = head().eval(), points()
    logits, auxiliary = built(features, xyz, offsets)
    visual = linear(features, built.visual)
    for scene, rows in ((0, slice(0, 9)), (2, slice(9, 14))):
        texts = slow_texts(built, visual[rows], xyz[rows])
        found = built.refined_texts(visual, xyz, offsets)[scene]
        torch.testing.assert_close(found, texts, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(texts, built.text, atol=1e-2)
        for i in range(rows.start, rows.stop):
            for k in range(K):
                cosine = float(visual[i] @ texts[k] / visual[i].norm() / texts[k].norm())
                # The score maps are float32, whatever the rest is.
                assert auxiliary[i, k].item() == pytest.approx(cosine / 0.07, rel=1e-5, abs=1e-5)
    expected = built.classifier(torch.cat([features, (auxiliary * 0.07).double()], dim=1))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_scenes_do_not_see_one_another() -> None:
    built, (features, xyz, offsets) = head().eval(), points()
    together = built(features, xyz, offsets)
    for start, stop in ((0, 9), (9, 14)):
        alone = built(features[start:stop], xyz[start:stop], torch.tensor([0, stop - start]))
        for one, both in zip(alone, together, strict=True):
            torch.testing.assert_close(one, both[start:stop], rtol=1e-5, atol=1e-5)


def test_a_gamma_of_zero_leaves_the_texts_as_they_are() -> None:
    built, (features, xyz, offsets) = head().eval(), points()
    with torch.no_grad():
        built.gamma.zero_()
        texts = built.refined_texts(built.visual(features), xyz, offsets)
    assert torch.equal(texts, built.text.expand(3, -1, -1))
    fresh = LanguageHead(IN, K, C)
    assert (fresh.gamma == 1e-4).all()
    assert isinstance(fresh.decoder, nn.TransformerDecoder)
    assert fresh.decoder.num_layers == 3


def test_gradients_reach_everything_but_the_texts() -> None:
    built, (features, xyz, offsets) = head(dropout=0.0).train(), points()
    features.requires_grad_()
    logits, auxiliary = built(features, xyz, offsets)
    assert "text" in built.state_dict()
    assert "text" not in dict(built.named_parameters())
    # Either loss alone reaches the decoder, through the score maps.
    for loss in (logits.square().sum(), auxiliary.square().sum()):
        built.zero_grad()
        loss.backward(retain_graph=True)
        for name in (
            "gamma",
            "visual.weight",
            "decoder.layers.0.multihead_attn.in_proj_weight",
            "read_visual.1.weight",
        ):
            gradient = dict(built.named_parameters())[name].grad
            assert gradient is not None
            assert gradient.abs().sum() > 0, name
    assert features.grad is not None
    assert (features.grad.abs().sum(1) > 0).all()


@torch.no_grad()
def test_no_points_give_no_logits() -> None:
    for offsets in (torch.tensor([0]), torch.tensor([0, 0])):
        logits, auxiliary = head().eval()(
            torch.zeros(0, IN, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64), offsets
        )
        assert logits.shape == auxiliary.shape == (0, K)


@torch.no_grad()
def test_a_text_head_is_scaled_cosines() -> None:
    torch.manual_seed(0)
    built = TextHead(IN, K, C, logit_scale=50.0).double()
    built.text.copy_(torch.randn(K, C, dtype=torch.float64))
    features = torch.randn(5, IN, dtype=torch.float64)
    logits = built(features)
    carried = linear(norm(features, built.projection[0]), built.projection[1])  # type: ignore[arg-type]
    for i in range(5):
        for k in range(K):
            dot = float(carried[i] @ built.text[k])
            assert logits[i, k].item() == pytest.approx(50 * dot / float(carried[i].norm() * built.text[k].norm()))


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="width a multiple of num_heads, got 2, 8 and 3"):
        head(num_heads=3)
    with pytest.raises(ValueError, match=r"context_size must be positive, got 0\.0"):
        head(context_size=0.0)
    with pytest.raises(ValueError, match=r"temperature must be positive, got -1"):
        head(temperature=-1)
