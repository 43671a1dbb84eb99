"""The contrastive term of Point-CMAE, which makes features of tokens that both branches mask similar."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Contrast = Literal["same_token", "all_tokens"]
"""Which tokens are compared: the same token in both branches, or all tokens of a cloud."""


def token_contrast(
    first: Tensor,
    second: Tensor,
    both_masked: Tensor,
    *,
    contrast: Contrast = "same_token",
    denominator: Tensor | None = None,
) -> Tensor:
    """Mean cosine distance between the decoder features of two branches, over tokens that both branches mask.

    With features u and v divided by their norms, and the set C_b of tokens of cloud b that are masked in both branches:

    * ``"same_token"`` (the paper): ``sum_b sum_{i in C_b} (1 - u_bi . v_bi) / sum_b |C_b|``;
    * ``"all_tokens"`` (the released code): token i of C_b in the first branch is compared with *every* token j of
      the second, ``sum_b sum_{i in C_b} mean_j (1 - u_bi . v_bj) / sum_b |C_b|``, computed as
      ``1 - sum_b (sum_{i in C_b} u_bi) . (mean_j v_bj) / sum_b |C_b|``. The term is not symmetric in the two
      branches, and it is minimal if all tokens of a cloud are parallel. The released code also adds 1e-8 to every pair,
      which changes the value by 1e-8 and no gradient; this is left out.

    There is no temperature, no negatives and no stop-gradient.

    Args:
        first: ``(B, G, C)`` decoder features of the first branch, in the order of the tokens, before the final norm.
        second: ``(B, G, C)`` decoder features of the second branch.
        both_masked: ``(B, G)`` bool, True for tokens that both branches mask.
        contrast: the pairs to compare.
        denominator: scalar that replaces ``sum_b |C_b|``; with several processes, the mean of this sum over them
            (:func:`pc3d.nn.mean_over_processes`). Values below 1 are raised to 1, so clouds without common tokens give
            0, not NaN.

    Returns:
        Scalar in [0, 2], float32 or wider.

    Raises:
        ValueError: shapes that do not match, or an unknown ``contrast``.

    Source:
        Ren et al., Bringing Masked Autoencoders Explicit Contrastive Properties for Point Cloud Self-Supervised
        Learning, ACCV 2024.
    """
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(f"first and second must both be (B, G, C), got {tuple(first.shape)} and {tuple(second.shape)}")
    if both_masked.shape != first.shape[:2]:
        raise ValueError(f"both_masked must be {tuple(first.shape[:2])}, got {tuple(both_masked.shape)}")
    u, v = _unit(first), _unit(second)
    weight = both_masked.to(u.dtype)
    if contrast == "same_token":
        similarity = ((u * v).sum(-1) * weight).sum()
    elif contrast == "all_tokens":
        similarity = ((u * weight[..., None]).sum(1) * v.mean(1)).sum()
    else:
        raise ValueError(f'contrast must be "same_token" or "all_tokens", got {contrast!r}')
    count = weight.sum()
    denominator = (count if denominator is None else denominator).clamp(min=1)
    return (count - similarity) / denominator


@torch.no_grad()
def mean_token_cosine(features: Tensor) -> Tensor:
    """Mean cosine between different tokens of one cloud, to monitor how much decoder tokens share one direction.

    Args:
        features: ``(B, G, C)``, G at least 2.

    Returns:
        Scalar in [-1, 1]; 1 if all tokens of each cloud are parallel.
    """
    groups = features.shape[1]
    total = _unit(features).sum(1).square().sum(-1)  # |sum_i u_i|^2 = sum_ij u_i . u_j, of which G terms have i = j
    return ((total - groups) / (groups * (groups - 1))).mean()


def _unit(features: Tensor) -> Tensor:
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    return F.normalize(features, dim=-1, eps=1e-12)
