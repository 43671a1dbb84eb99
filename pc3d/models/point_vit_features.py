"""PointViT as a backbone for scenes: one block of the scene after the other is an object to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.models.part_segmentation import center_features, three_layers
from pc3d.models.point_vit import PointViT
from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.ops import gather, interpolate, voxelize

_BLOCKS_AT_ONCE = 32


class PointViTFeatures(nn.Module):
    """Features for every point of a scene, from an encoder of objects.

    The scene is cut into cubes. Of each, as many points as the encoder is meant for, scaled into the unit sphere, go
    through the encoder; the outputs of three of its blocks are carried from the patch centres to all points of the cube
    as in part segmentation (:class:`PointPartSegmenter`), joined by the place in the cube, and go through a linear
    layer, batch norm and ReLU. A cube with fewer points repeats them. Colours are not read.

    Args:
        encoder: an encoder without class token.
        block_size: edge of a cube, in the units of the points.
        feature_dim: width of the result.
        layers: which three blocks, as :class:`PointPartSegmenter`.

    Raises:
        ValueError: an encoder with class tokens, layers that it does not have, or a size that is not positive.
    """

    def __init__(
        self,
        encoder: PointViT,
        block_size: float = 1.0,
        feature_dim: int = 128,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if encoder.config["num_cls_tokens"]:
            raise ValueError(
                f"PointViTFeatures needs an encoder with num_cls_tokens=0, got {encoder.config['num_cls_tokens']}"
            )
        if not block_size > 0 or feature_dim < 1:
            raise ValueError(f"block_size and feature_dim must be positive, got {block_size} and {feature_dim}")
        self.encoder, self.block_size, self.feature_dim = encoder, block_size, feature_dim
        self.layers = three_layers(encoder, layers)
        self.config: dict[str, Any] = {
            "encoder": encoder.config,
            "block_size": block_size,
            "feature_dim": feature_dim,
            "layers": list(self.layers),
        }
        self.propagation = nn.Sequential(
            nn.Linear(3 + 3 * encoder.embed_dim, feature_dim, bias=False), GlobalBatchNorm(feature_dim), nn.ReLU()
        )

    @classmethod
    def from_config(cls, encoder: dict[str, Any], **arguments: Any) -> PointViTFeatures:
        """Build it with fresh weights from :attr:`config`."""
        return cls(PointViT(**encoder), **arguments)

    def forward(self, batch: PointBatch) -> Tensor:
        """As :meth:`point_features`."""
        return self.point_features(batch)

    def point_features(self, batch: PointBatch) -> Tensor:
        """Encode scenes.

        Args:
            batch: scenes of any number of points each; a scene without points has no rows.

        Returns:
            ``(sum N, feature_dim)``, a row per point.
        """
        coords, _, block, _, count = voxelize(batch.xyz, self.block_size, offsets=batch.offsets)
        # In training the points that the encoder sees are drawn anew each time.
        points = torch.arange(len(block), device=block.device)
        shuffled = torch.randperm(len(block), device=block.device) if self.training else points
        order = shuffled[torch.argsort(block[shuffled], stable=True)]
        offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
        corner = coords[block[order]].to(batch.xyz.dtype) * self.block_size
        # A cube of this edge lies in the unit sphere.
        local = ((batch.xyz[order] - corner) * 2 / self.block_size - 1).float() / 3**0.5
        carried = [
            self._carry(local, offsets[start : start + _BLOCKS_AT_ONCE + 1])
            for start in range(0, len(count), _BLOCKS_AT_ONCE)
        ]
        of_points = torch.cat(carried) if carried else local.new_zeros(0, 3 * self.encoder.embed_dim)
        joined: Tensor = self.propagation(torch.cat([local.to(of_points.dtype), of_points], dim=1))
        place = torch.empty_like(order)
        place[order] = points
        return gather(joined, place)

    def _carry(self, local: Tensor, offsets: Tensor) -> Tensor:
        """Features of all points ``offsets[0]:offsets[-1]`` of a few blocks."""
        num_points = int(self.encoder.config["num_points"])
        starts, count = offsets[:-1], offsets.diff()
        # Evenly spread over the block's points; the same one twice where there are too few.
        steps = torch.arange(num_points, device=offsets.device)
        xyz = local[starts[:, None] + steps * count[:, None] // num_points]
        at_centers, centers = center_features(self.encoder, xyz, self.layers)
        rows = local[int(offsets[0]) : int(offsets[-1])]
        groups = torch.arange(len(count) + 1, device=offsets.device) * centers.shape[1]
        return interpolate(
            at_centers.flatten(0, 1),
            centers.flatten(0, 1),
            rows,
            offsets=groups,
            query_offsets=offsets - offsets[0],
        )
