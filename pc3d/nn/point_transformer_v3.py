"""Layers of Point Transformer V3: attention along curves, pooling, unpooling (Wu et al., 2024; Sonata, 2025).

Where papers and released code differ, these layers follow the code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.serialization import SerialPatches
from pc3d.nn.sparse import SparseConv3d
from pc3d.ops import KernelMap, gather, segment_reduce

Norm = Callable[[int], nn.Module]
"""Makes the normalisation of so many channels."""


def batch_norm(channels: int) -> nn.Module:
    """The batch norm of Point Transformer V3: epsilon 1e-3, momentum 0.01."""
    return GlobalBatchNorm(channels, eps=1e-3, momentum=0.01)


class SerialAttention(nn.Module):
    """Multi-head self-attention within the patches of a curve.

    Args:
        embed_dim: C.
        num_heads: H, each C / H wide.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim)

    def forward(self, features: Tensor, patches: SerialPatches) -> Tensor:
        """Map ``(V, C)`` to ``(V, C)``."""
        qkv = self.qkv(features)
        mixed = [self._attend(qkv, patches.full, None)]
        if len(patches.short):
            sees = (patches.short >= 0)[:, None, None, :]
            mixed.append(self._attend(qkv, patches.short, sees))
        result: Tensor = self.projection(gather(torch.cat(mixed), patches.slot))
        return result

    def _attend(self, qkv: Tensor, rows: Tensor, sees: Tensor | None) -> Tensor:
        """Results ``(P * K, C)`` of patches ``(P, K)``, of which ``sees`` says what is there."""
        width = qkv.shape[1] // 3
        heads = gather(qkv, rows).view(*rows.shape, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        return mixed.transpose(1, 2).reshape(-1, width)


class PTv3Block(nn.Module):
    """``x + position(x)``, then ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    The position comes from a 3x3x3 sparse convolution, a linear layer and layer norm (xCPE in the paper).

    Args:
        embed_dim: C.
        num_heads: attention heads.
        drop_path: probability of dropping attention or MLP, drawn separately for each voxel and branch.
    """

    def __init__(self, embed_dim: int, num_heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.position = SparseConv3d(embed_dim, embed_dim, bias=True)
        self.position_linear = nn.Linear(embed_dim, embed_dim)
        self.position_norm = nn.LayerNorm(embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attention = SerialAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), nn.GELU(), nn.Linear(4 * embed_dim, embed_dim))

    def forward(
        self, features: Tensor, same: KernelMap, patches: SerialPatches, convolved: Tensor | None = None
    ) -> Tensor:
        """Map ``(V, C)`` to ``(V, C)``.

        Args:
            features: ``(V, C)``.
            same: neighbours within the level.
            patches: of the level.
            convolved: what the convolution reads instead of the features.
        """
        position = self.position(features if convolved is None else convolved, same)
        features = features + self.position_norm(self.position_linear(position))
        features = features + self._thin(self.attention(self.norm1(features), patches))
        return features + self._thin(self.mlp(self.norm2(features)))

    def _thin(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        kept = torch.rand(len(branch), 1, device=branch.device) < keep
        return branch * (kept / keep).to(branch.dtype)


class GridPool(nn.Module):
    """A linear layer, the maximum over the voxels within each coarser one, normalisation, GELU.

    Args:
        in_channels: width of the finer level.
        out_channels: width of the coarser one.
        norm: makes the normalisation.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.norm = norm(out_channels)

    def forward(self, features: Tensor, parent: Tensor, num_voxels: int) -> Tensor:
        """Map ``(V, in_channels)`` to ``(num_voxels, out_channels)``, given the coarser voxel of each row."""
        pooled = segment_reduce(self.linear(features), parent, num_voxels, "max")
        return F.gelu(self.norm(pooled))


class GridUnpool(nn.Module):
    """Features of the finer level plus those of the coarser voxel around each, both after linear layer, norm and GELU.

    Args:
        coarse_channels: width of the coarser level.
        skip_channels: width of the finer level in the encoder.
        out_channels: width of the result.
        norm: makes the normalisations.
    """

    def __init__(self, coarse_channels: int, skip_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.coarse = nn.Sequential(nn.Linear(coarse_channels, out_channels), norm(out_channels), nn.GELU())
        self.skip = nn.Sequential(nn.Linear(skip_channels, out_channels), norm(out_channels), nn.GELU())

    def forward(self, coarse: Tensor, skip: Tensor, parent: Tensor) -> tuple[Tensor, Tensor]:
        """Join two levels.

        Args:
            coarse: ``(V', C')`` features of the coarser level.
            skip: ``(V, C)`` features of the finer level.
            parent: ``(V,)`` the coarser voxel of each row.

        Returns:
            ``(V, out_channels)``, and its part from the finer level alone.
        """
        carried: Tensor = self.skip(skip)
        return carried + gather(self.coarse(coarse), parent), carried
