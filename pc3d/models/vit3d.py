"""ViT3D: the vision transformer for point clouds of DCGLR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.models.object_encoder import ObjectEncoder, check_clouds, reset_layers
from pc3d.models.point_vit import EncoderOutput, Pooling, pool
from pc3d.nn import PositionEmbedding, Transformer, init_encoder_weights, init_token
from pc3d.nn._checks import as_read_by
from pc3d.nn.shared_mlp import SharedMLP
from pc3d.ops import farthest_point_sample, gather, knn


class ViT3D(ObjectEncoder):
    """The 3D-ViT of DCGLR: groups of embedded points as tokens, a class token, and a pre-norm transformer.

    Every point goes through shared layers 3→D→D. Farthest point sampling takes ``ceil(n / k)`` of n points as the
    centres of groups of their k nearest points. With f the features of the points, ``concat(f_j - f_c, f_c)`` goes
    through 2D→C→C, and the maximum over the group is a token. The number of tokens is therefore proportional to the
    number of points, and a part of an object is divided as finely as the whole. The position of a token is known only
    from the features of its points, unless ``position`` adds more.

    The paper (Fu et al., 2022, arXiv 2202.04241) states only that it is a variant of ViT whose last attention shows
    local structures. Everything else here follows the patch transformer in the released code of POS-BERT, by the same
    first author. The defaults are its large size, 17,158,080 parameters; with ``embed_dim=192, depth=4, num_heads=4``
    it is the base size, 1,255,424.

    Args:
        embed_dim: token width C.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over C.
        group_size: k, points per group, and points per token.
        point_dim: D, width of a point's features.
        num_points: points per cloud that the encoder is meant for. It changes no computation; it is stored with the
            weights.
        drop_path: stochastic depth of the last block, rising linearly from 0 in the first.
        position: ``"mlp"`` adds an embedding of the groups' centres before the first block. Not in the released code.

    Raises:
        ValueError: a size below 1, a width that the heads do not divide, or an unknown ``position``.
    """

    def __init__(
        self,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        group_size: int = 32,
        point_dim: int = 64,
        num_points: int = 1024,
        drop_path: float = 0.0,
        position: Literal["none", "mlp"] = "none",
    ) -> None:
        super().__init__()
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "group_size": group_size, "point_dim": point_dim}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if position not in ("none", "mlp"):
            raise ValueError(f'position must be "none" or "mlp", got {position!r}')
        self.config = {
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "group_size": group_size,
            "point_dim": point_dim,
            "num_points": num_points,
            "drop_path": drop_path,
            "position": position,
        }
        self.embed_dim, self.group_size = embed_dim, group_size
        self.points = SharedMLP((3, point_dim, point_dim))
        self.groups = SharedMLP((2 * point_dim, embed_dim, embed_dim))
        self.position = PositionEmbedding(embed_dim) if position == "mlp" else None
        self.cls_token = nn.Parameter(torch.empty(1, embed_dim))
        self.transformer = Transformer(
            embed_dim,
            depth,
            num_heads,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path,
            add_position="once",
            qkv_bias=True,
            norm_eps=1e-6,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh weights: the transformer is initialised as in DINO, the layers before it as in PyTorch."""
        self.apply(reset_layers)
        self.transformer.apply(init_encoder_weights)
        init_token(self.cls_token)

    def forward(self, xyz: Tensor) -> EncoderOutput:
        """Encode clouds.

        Args:
            xyz: ``(B, N, 3)``, N at least ``group_size``.

        Returns:
            Tokens ``(B, T, C)``, the centres of their groups ``(B, T, 3)`` and the class token ``(B, 1, C)``, with
            T = ceil(N / group_size).
        """
        sequence, position, centers = self._sequence(xyz)
        encoded = self.norm(self.transformer(sequence, position))
        return EncoderOutput(encoded[:, 1:], centers, encoded[:, :1])

    def encode(self, xyz: Tensor, pooling: Pooling = "cls") -> Tensor:
        """One feature vector per cloud.

        Args:
            xyz: ``(B, N, 3)``, N at least ``group_size``.
            pooling: ``"cls"``, the class token, or one of the tokens as in :meth:`PointViT.encode`.

        Returns:
            ``(B, C)``, ``(B, 2C)`` or ``(B, 3C)``.

        Raises:
            ValueError: an unknown pooling.
        """
        return pool(self.forward(xyz), pooling)

    def cls_attention(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the class token in the last block.

        Args:
            xyz: ``(B, N, 3)``.

        Returns:
            Attention to the groups, ``(B, heads, T)``, without the class token's own, and their centres ``(B, T, 3)``.
        """
        sequence, position, centers = self._sequence(xyz)
        return self.transformer.last_attention(sequence, position)[:, :, 0, 1:], centers

    def group_layers(self, xyz: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """The group tokens after several blocks.

        Args:
            xyz: ``(B, N, 3)``, N at least ``group_size``.
            layers: ascending numbers of blocks, from 0.

        Returns:
            For each block its tokens through the final norm, ``(B, T, C)``, without the class token, and the groups'
            centres ``(B, T, 3)``.
        """
        sequence, position, centers = self._sequence(xyz)
        _, kept = self.transformer.layers(sequence, position, keep=layers)
        return [self.norm(tokens)[:, 1:] for tokens in kept], centers

    def _sequence(self, xyz: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Class token and groups ``(B, 1 + T, C)``, their position or None, and the groups' centres."""
        check_clouds(xyz, self.group_size, "group_size")
        with torch.autocast(xyz.device.type, enabled=False):
            xyz = as_read_by(self, xyz)
            index = farthest_point_sample(xyz, math.ceil(xyz.shape[1] / self.group_size))
            centers = gather(xyz, index)
            neighbors = knn(xyz, self.group_size, query=centers).index
        features = self.points(xyz)
        of_center = gather(features, index)[:, :, None]
        members = gather(features, neighbors)
        joined = torch.cat([members - of_center, of_center.expand_as(members)], dim=-1)
        tokens = self.groups(joined).amax(2)
        cls = self.cls_token.to(tokens.dtype).expand(xyz.shape[0], 1, -1)
        position = None if self.position is None else F.pad(self.position(centers), (0, 0, 1, 0))
        return torch.cat([cls, tokens], dim=1), position, centers
