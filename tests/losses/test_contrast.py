"""The contrastive term against its sums written out, and its identities."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from pc3d.losses import mean_token_cosine, token_contrast

KINDS: tuple[Literal["same_token", "all_tokens"], ...] = ("same_token", "all_tokens")


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, 9, 5, generator=generator, dtype=torch.float64)
    second = torch.randn(3, 9, 5, generator=generator, dtype=torch.float64)
    return first, second, torch.rand(3, 9, generator=generator) < 0.4


def cosine(a: Tensor, b: Tensor) -> float:
    return float(sum(a * b) / (sum(a * a) ** 0.5 * sum(b * b) ** 0.5))


def by_hand(first: Tensor, second: Tensor, both: Tensor, contrast: str) -> float:
    total, count = 0.0, 0
    for b in range(len(first)):
        for i in range(first.shape[1]):
            if both[b, i]:
                count += 1
                others = [i] if contrast == "same_token" else range(first.shape[1])
                total += sum(1 - cosine(first[b, i], second[b, j]) for j in others) / len(others)
    return total / count


@pytest.mark.parametrize("contrast", KINDS)
def test_it_is_the_sum_over_pairs(
    contrast: Literal["same_token", "all_tokens"], inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    value = token_contrast(*inputs, contrast=contrast)
    assert value.item() == pytest.approx(by_hand(*inputs, contrast), abs=1e-12)
    assert 0 <= value <= 2


@pytest.mark.parametrize("contrast", KINDS)
def test_gradients(contrast: Literal["same_token", "all_tokens"], inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, both = inputs

    def function(a: Tensor, b: Tensor) -> Tensor:
        return token_contrast(a, b, both, contrast=contrast)

    assert torch.autograd.gradcheck(function, (first.requires_grad_(), second.requires_grad_()))


def test_same_token_vanishes_for_equal_features_and_all_tokens_for_parallel_ones_only(
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    first, _, both = inputs
    assert token_contrast(first, 3 * first, both).item() == pytest.approx(0, abs=1e-12)
    assert token_contrast(first, first, both, contrast="all_tokens") > 0.1
    parallel = torch.ones(3, 9, 5).double() * torch.rand(3, 9, 1).double() + 0.0
    assert token_contrast(parallel, parallel, both, contrast="all_tokens").item() == pytest.approx(0, abs=1e-12)
    assert token_contrast(first, -first, both).item() == pytest.approx(2)


def test_only_same_token_treats_the_branches_alike(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, both = inputs
    torch.testing.assert_close(token_contrast(first, second, both), token_contrast(second, first, both))
    one, other = (token_contrast(*pair, both, contrast="all_tokens") for pair in ((first, second), (second, first)))
    assert abs(one - other) > 1e-6


def test_no_common_token_gives_zero_and_a_zero_gradient(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, both = inputs
    first.requires_grad_()
    for contrast in KINDS:
        value = token_contrast(first, second, torch.zeros_like(both), contrast=contrast)
        (gradient,) = torch.autograd.grad(value, first)
        assert value == 0
        assert gradient.abs().max() == 0


def test_shares_of_two_processes_average_to_the_whole(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, both = inputs
    denominator = both.sum() / 2  # the mean of the two processes' counts
    for contrast in KINDS:
        shares = [
            token_contrast(first[part], second[part], both[part], contrast=contrast, denominator=denominator)
            for part in (slice(0, 1), slice(1, 3))
        ]
        torch.testing.assert_close(torch.stack(shares).mean(), token_contrast(first, second, both, contrast=contrast))


def test_half_precision_is_compared_in_float32(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, both = inputs
    assert token_contrast(first.bfloat16(), second.bfloat16(), both).dtype == torch.float32


def test_mean_token_cosine_is_the_mean_over_different_tokens(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    features = inputs[0]
    pairs = [cosine(cloud[i], cloud[j]) for cloud in features for i in range(9) for j in range(9) if i != j]
    assert mean_token_cosine(features).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert mean_token_cosine(torch.ones(2, 4, 3).double()).item() == pytest.approx(1)


def test_bad_arguments_are_refused(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, both = inputs
    with pytest.raises(ValueError, match=r"both be \(B, G, C\)"):
        token_contrast(first, second[:, :4], both)
    with pytest.raises(ValueError, match=r"both_masked must be \(3, 9\), got \(3, 4\)"):
        token_contrast(first, second, both[:, :4])
    with pytest.raises(ValueError, match="'none'"):
        token_contrast(first, second, both, contrast="none")  # type: ignore[arg-type]
