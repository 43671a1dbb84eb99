"""Heads between an encoder and a self-supervised loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pc3d.nn import DistillationHead, GlobalBatchNorm, ProjectionHead


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_projection_is_its_layers_in_turn() -> None:
    torch.manual_seed(0)
    head, rows = ProjectionHead((5, 7, 6, 3), last_norm=True), torch.randn(11, 5)
    x = rows.double()
    linears = [layer for layer in head if isinstance(layer, nn.Linear)]
    for index, linear in enumerate(linears):
        x = x @ linear.weight.double().T
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        x = x.clamp(min=0) if index < 2 else x
    torch.testing.assert_close(head(rows).double(), x, rtol=1e-4, atol=1e-5)


def test_projections_have_the_parameters_of_the_published_ones() -> None:
    assert count(ProjectionHead((512, 2048, 256))) == 512 * 2048 + 2 * 2048 + 2048 * 256 + 256
    # MoCo v3: three layers, no bias before a norm, none in the last.
    three = count(ProjectionHead((384, 4096, 4096, 256), last_norm=True))
    assert three == 384 * 4096 + 4096 * 4096 + 4096 * 256 + 4 * 4096
    plain = ProjectionHead((4, 8, 2), norm=False)
    assert not any(isinstance(layer, GlobalBatchNorm) for layer in plain)
    assert count(plain) == 4 * 8 + 8 + 8 * 2 + 2
    # VICReg: no bias in the last.
    assert count(ProjectionHead((512, 64, 32, 16), last_bias=False)) == 512 * 64 + 64 * 32 + 32 * 16 + 2 * 64 + 2 * 32


def test_distillation_head_gives_cosines_with_prototypes() -> None:
    torch.manual_seed(0)
    head, features = DistillationHead(6, 5, hidden=8, bottleneck=4), torch.randn(9, 6)
    assert count(DistillationHead(512)) == (512 + 1) * 2048 + 2049 * 2048 + 2049 * 256 + 512 * 256
    x = features.double()
    for layer in head.mlp:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.double().T + layer.bias.double()
        else:
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    expected = torch.stack([F.cosine_similarity(x, prototype[None].double()) for prototype in head.prototypes], 1)
    torch.testing.assert_close(head(features).double(), expected, rtol=1e-5, atol=1e-6)


def test_prototypes_start_as_those_of_the_released_head() -> None:
    """Made after its initialisation has run, they keep PyTorch's: U[-1/16, 1/16] of 256, so 16 / sqrt(3 * 256) long."""
    torch.manual_seed(0)
    prototypes = DistillationHead(12, 512, hidden=8).prototypes.detach()
    assert prototypes.abs().max() <= 1 / 16
    assert float(prototypes.std()) == pytest.approx(1 / (16 * 3**0.5), rel=0.01)
    assert float(prototypes.norm(dim=1).mean()) == pytest.approx(3**-0.5, rel=0.01)


def test_prototypes_keep_unit_length_through_training() -> None:
    """Scaling a prototype changes no logit, so the lengths of the released weight norm are 1 whatever happens."""
    torch.manual_seed(0)
    head, features = DistillationHead(6, 5, hidden=8, bottleneck=4), torch.randn(9, 6)
    optimizer = torch.optim.SGD(head.parameters(), lr=10.0)
    for _ in range(5):
        optimizer.zero_grad()
        head(features).square().sum().backward()
        optimizer.step()
    before = head(features)
    assert before.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.prototypes.mul_(torch.tensor([[0.1], [2.0], [3.0], [5.0], [7.0]]))
    torch.testing.assert_close(head(features), before)


def test_bad_widths_are_refused() -> None:
    for dims in ((4,), (4, 0, 2)):
        with pytest.raises(ValueError, match="dims must be at least two positive widths"):
            ProjectionHead(dims)
    with pytest.raises(ValueError, match="num_prototypes must be at least 1, got 0"):
        DistillationHead(4, 0)
