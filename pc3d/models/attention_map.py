"""Attention maps of a class token over the points of a cloud."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pc3d.models.point_vit import PointViT
from pc3d.models.vit3d import ViT3D
from pc3d.ops import gather, knn


class AttentionMap(NamedTuple):
    """Attention of the class token in the last block of an encoder, per head.

    Attributes:
        attention: ``(B, heads, T)`` to each token; sums to 1 together with the attention of the class token to itself.
        centers: ``(B, T, 3)`` centres of the tokens' groups.
        per_point: ``(B, heads, N)`` the attention to the token whose centre is nearest to each point.
    """

    attention: Tensor
    centers: Tensor
    per_point: Tensor

    def mask(self, share: float = 0.6) -> Tensor:
        """The points of the fewest tokens that together have a share of the attention, as DINO draws it.

        Args:
            share: of the attention to tokens, in (0, 1].

        Returns:
            ``(B, heads, N)`` bool.

        Raises:
            ValueError: a share out of range.
        """
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        falling = self.attention.sort(dim=-1, descending=True).values
        before = falling.cumsum(-1) - falling
        needed = before < share * falling.sum(-1, keepdim=True)
        least = falling.masked_fill(~needed, float("inf")).amin(-1, keepdim=True)
        return self.per_point >= least


@torch.no_grad()
def attention_map(encoder: PointViT | ViT3D, xyz: Tensor) -> AttentionMap:
    """Compute the attention maps of an encoder's class token, in evaluation mode.

    Args:
        encoder: one with a class token.
        xyz: ``(B, N, 3)``.

    Returns:
        The maps.

    Raises:
        TypeError: an encoder without attention.
        ValueError: an encoder without class token, or clouds that the encoder cannot process.
    """
    if not isinstance(encoder, PointViT | ViT3D):
        raise TypeError(f"an attention map needs a PointViT or a ViT3D, got {type(encoder).__name__}")
    was_training = encoder.training
    encoder.eval()
    try:
        attention, centers = encoder.cls_attention(xyz)
    finally:
        encoder.train(was_training)
    nearest = knn(centers, 1, query=xyz).index[..., 0]
    per_point = gather(attention.mT.contiguous(), nearest).mT
    return AttentionMap(attention, centers, per_point)


def save_attention_map(encoder: PointViT | ViT3D, xyz: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write the attention map of one cloud to an .npz file, for a viewer to colour its points with.

    The file holds ``xyz`` ``(N, 3)``, ``per_point`` ``(heads, N)``, ``attention`` ``(heads, T)`` and ``centers``
    ``(T, 3)``, all float32.

    Args:
        encoder: see :func:`attention_map`.
        xyz: ``(N, 3)``.
        path: must end in ``.npz``; an existing file is replaced.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, or more than one cloud.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {path}")
    if xyz.ndim != 2:
        raise ValueError(f"xyz must be one cloud (N, 3), got {tuple(xyz.shape)}")
    found = attention_map(encoder, xyz[None])
    arrays = {name: value[0].float().cpu().numpy() for name, value in found._asdict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, xyz=xyz.float().cpu().numpy(), **arrays)
    return path
