"""Masks of tokens: random masks, block masks, and their conversion to index lists.

A mask is ``(B, G)`` bool, True where a token is masked. The functions are pure: the caller draws the random
numbers (:class:`pc3d.nn.SampleRandom`, or ``torch.rand`` with a generator), so masks are reproducible and stay on the
device.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MaskType = Literal["random", "block"]
"""How masked patches are chosen."""


def num_masked(num_tokens: int, mask_ratio: float) -> int:
    """``int(mask_ratio * num_tokens)``, rounded down as in the Point-MAE family (38 of 64 at 0.6).

    Raises:
        ValueError: the ratio is outside of (0, 1), or leaves no masked or no visible token.
    """
    if not 0.0 < mask_ratio < 1.0:
        raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {mask_ratio}")
    count = int(mask_ratio * num_tokens)
    if not 0 < count < num_tokens:
        raise ValueError(
            f"mask_ratio {mask_ratio} masks {count} of {num_tokens} tokens; at least one must be masked and one visible"
        )
    return count


def random_mask(noise: Tensor, mask_ratio: float) -> Tensor:
    """Mask the same number of tokens in each cloud, every subset equally likely.

    Args:
        noise: ``(B, G)`` independent uniform numbers; the tokens with the lowest numbers are masked.
        mask_ratio: share of tokens to mask.

    Returns:
        ``(B, G)`` bool with exactly ``int(mask_ratio * G)`` True per row.
    """
    count = num_masked(noise.shape[1], mask_ratio)
    chosen = noise.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, chosen, True)


def block_mask(centers: Tensor, noise: Tensor, mask_ratio: float) -> Tensor:
    """Mask one contiguous region: a random centre and the centres nearest to it.

    Args:
        centers: ``(B, G, 3)`` patch centres.
        noise: ``(B,)`` uniform numbers in [0, 1) that choose the seed centre.
        mask_ratio: share of tokens to mask.

    Returns:
        ``(B, G)`` bool with exactly ``int(mask_ratio * G)`` True per row; of equally distant centres, those
        with the lowest indices.
    """
    num_tokens = centers.shape[1]
    count = num_masked(num_tokens, mask_ratio)
    seed = (noise * num_tokens).long().clamp_(max=num_tokens - 1)
    seed_center = centers.gather(1, seed[:, None, None].expand(-1, 1, 3))
    nearest = (centers - seed_center).square().sum(-1).argsort(dim=1, stable=True)[:, :count]
    return torch.zeros(centers.shape[:2], dtype=torch.bool, device=centers.device).scatter_(1, nearest, True)


def split_mask(mask: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Index lists of the visible and the masked tokens, each ascending.

    Args:
        mask: ``(B, G)`` bool with ``num_masked`` True in every row (:func:`check_mask` verifies it).
        num_masked: M.

    Returns:
        Visible ``(B, G - M)`` and masked ``(B, M)`` token indices, int64.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : mask.shape[1] - num_masked], order[:, mask.shape[1] - num_masked :]


def check_mask(mask: Tensor, batch_size: int, num_tokens: int) -> int:
    """Check a mask that a user supplied, and count its masked tokens per cloud.

    Raises:
        TypeError: the mask is not bool.
        ValueError: a wrong shape, rows with different numbers of masked tokens, or no visible or no masked token.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor (True = masked), got {mask.dtype}")
    if mask.shape != (batch_size, num_tokens):
        raise ValueError(f"mask must have shape ({batch_size}, {num_tokens}), got {tuple(mask.shape)}")
    counts = sorted(set(mask.sum(1).tolist()))
    if len(counts) != 1:
        raise ValueError(
            f"every row of mask must mask the same number of tokens, got between {counts[0]} and {counts[-1]}"
        )
    if not 0 < counts[0] < num_tokens:
        raise ValueError(f"mask must leave a masked and a visible token, got {counts[0]} of {num_tokens} masked")
    return int(counts[0])
