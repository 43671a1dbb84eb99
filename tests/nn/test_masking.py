"""Masks: how many, where, and how they split the tokens."""

from __future__ import annotations

import pytest
import torch

from pc3d.nn import block_mask, check_mask, num_masked, random_mask, split_mask


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_random_masks_hide_exactly_38_of_64_and_two_of_them_share_at_least_12() -> None:
    first, second = random_mask(noise(2000, 64), 0.6), random_mask(noise(2000, 64, seed=1), 0.6)
    assert first.sum(1).unique().tolist() == [38]
    assert second.sum(1).unique().tolist() == [38]
    shared = (first & second).sum(1)
    assert shared.min() >= 12
    # Hypergeometric: mean 38 * 38 / 64, variance 38 * (38/64) * (26/64) * (26/63) = 3.78, of 2000 draws.
    assert abs(shared.double().mean() - 38 * 38 / 64) < 5 * (3.78 / 2000) ** 0.5
    assert not torch.equal(first, second)


def test_every_token_is_masked_equally_often() -> None:
    often = random_mask(noise(4000, 64), 0.6).double().mean(0)
    share = 38 / 64
    assert (often - share).abs().max() < 5 * (share * (1 - share) / 4000) ** 0.5


def test_block_masks_hide_the_nearest_centres_of_the_seed() -> None:
    centers = noise(5, 20, 3)
    seeds = torch.tensor([0.0, 0.26, 0.5, 0.74, 0.9999])
    mask = block_mask(centers, seeds, 0.45)
    for b in range(5):
        seed = int(seeds[b] * 20)
        squared = [float(((centers[b, i] - centers[b, seed]) ** 2).sum()) for i in range(20)]
        nearest = sorted(range(20), key=lambda i: (squared[i], i))[:9]
        assert sorted(mask[b].nonzero().flatten().tolist()) == sorted(nearest)


def test_block_masks_break_ties_by_index() -> None:
    mask = block_mask(torch.zeros(1, 8, 3), torch.zeros(1), 0.5)
    assert mask.tolist() == [[True] * 4 + [False] * 4]


def test_split_lists_visible_and_masked_tokens_ascending() -> None:
    mask = random_mask(noise(7, 16), 0.3)
    visible, masked = split_mask(mask, 4)
    for b in range(7):
        assert visible[b].tolist() == [i for i in range(16) if not mask[b, i]]
        assert masked[b].tolist() == [i for i in range(16) if mask[b, i]]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, 0.01, float("nan")])
def test_ratios_that_hide_nothing_or_everything_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        num_masked(16, ratio)


def test_supplied_masks_are_checked() -> None:
    good = torch.tensor([[True, False, True], [False, True, True]])
    assert check_mask(good, 2, 3) == 2
    with pytest.raises(TypeError, match=r"bool tensor.*float32"):
        check_mask(good.float(), 2, 3)
    with pytest.raises(ValueError, match=r"shape \(2, 4\), got \(2, 3\)"):
        check_mask(good, 2, 4)
    with pytest.raises(ValueError, match="between 1 and 2"):
        check_mask(torch.tensor([[True, False, True], [False, True, False]]), 2, 3)
    with pytest.raises(ValueError, match="3 of 3 masked"):
        check_mask(torch.ones(2, 3, dtype=torch.bool), 2, 3)
