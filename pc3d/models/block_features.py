"""An encoder of objects as a backbone for scenes: it encodes each block of a scene like an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.models.aligned import AlignedShapeEncoder, points_meant_for
from pc3d.models.described import describe
from pc3d.models.local_features import (
    LocalEncoder,
    TokenEncoder,
    describes_places,
    least_points,
    local_dim,
    local_features,
    three_layers,
    vector_only,
)
from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.ops import gather, interpolate, voxelize

_BLOCKS_AT_ONCE = 32
_KNOWN = ", ".join(kind.__name__ for kind in get_args(LocalEncoder))


class BlockFeatures(nn.Module):
    """Features for every point of a scene, from an encoder of objects.

    The scene is cut into cubes. As many points of each cube as the encoder is meant for are scaled into the unit sphere
    and encoded. The features are interpolated to all points of the cube from the three nearest positions, weighted by
    inverse squared distance (PointNet++, section 3.4). Together with the position in the cube, they pass through a
    linear layer, batch norm and ReLU. A cube with fewer points repeats them.

    Encoders with tokens (:class:`PointViT`, :class:`ViT3D`, :class:`OpenShapePointBERT`) give the outputs of three
    blocks at the centres of the groups, as in part segmentation (:class:`PointPartSegmenter`). Others give features of
    the points that they saw. :class:`PointNet` and :class:`DGCNN`: what their segmentation networks read, the features
    of each point together with the vector of the cube. :class:`OpenShapeSparseConv` and :class:`OpenShapeFCNN`: the
    features of the voxels around the point, of all levels. A class of your own: its ``local_features``
    (:class:`ObjectEncoder`).

    In evaluation mode, the coordinates alone determine which points of a cube the encoder sees, and in what order:
    features depend neither on the order of the points nor on the rest of the batch. In training, the points are drawn
    anew each time. PointNet's experiments with rooms use columns; the cubes, and the layers after the encoder, are
    ours.

    In training all cubes of a batch go through the encoder at once, so that batch norm sees all of them: memory grows
    with the number of cubes times ``num_points``. To save memory, use a smaller ``num_points``, larger cubes or smaller
    crops of scenes.

    Args:
        encoder: an encoder of objects; a :class:`PointViT` must have no class token. Of an
            :class:`AlignedShapeEncoder`, the inner encoder is used.
        block_size: edge of a cube, in the units of the points. A large scene is segmented as if it were seen whole
            where the ``context`` of :func:`pc3d.tasks.segment_scene`, 2 m, is at least that.
        feature_dim: width of the result.
        layers: which three blocks of an encoder with tokens, as in :class:`PointPartSegmenter`.
        num_points: points of a cube that the encoder sees. By default the number that the encoder is meant for; if it
            states none, required.

    Raises:
        TypeError: not an encoder of objects.
        ValueError: an encoder with class tokens or a random first centre, layers that it does not have, fewer points
            than it needs, or a size that is not positive.
    """

    def __init__(
        self,
        encoder: nn.Module,
        block_size: float = 1.0,
        feature_dim: int = 128,
        layers: Sequence[int] | None = None,
        num_points: int | None = None,
    ) -> None:
        super().__init__()
        inner = _inside(encoder)
        if not describes_places(inner):
            raise TypeError(
                f"BlockFeatures takes an encoder of objects, {_KNOWN}, or an ObjectEncoder of your own with "
                f"local_features(xyz) and local_dim; got {type(inner).__name__}"
            )
        inner = cast(Any, inner)
        if inner.config.get("num_cls_tokens"):
            raise ValueError(
                f"BlockFeatures needs an encoder with num_cls_tokens=0, got {inner.config['num_cls_tokens']}"
            )
        if inner.config.get("start") == "random":
            raise ValueError(
                "BlockFeatures needs an encoder with start='first', for the same features each time in evaluation: "
                "start='random' draws anew; weights of one fit the other"
            )
        if layers is not None and not isinstance(inner, TokenEncoder):
            raise ValueError(f"layers: a {type(inner).__name__} has no blocks to choose from, leave it out")
        points = _points_of(inner) if num_points is None else num_points
        if not block_size > 0 or feature_dim < 1 or points < 1:
            raise ValueError(
                f"block_size, feature_dim and num_points must be positive, got {block_size}, {feature_dim} and {points}"
            )
        if points < least_points(inner):
            raise ValueError(
                f"num_points must be at least {least_points(inner)}, what this {type(inner).__name__} needs of a cloud "
                f"(num_groups, group_size or k), got {points}"
            )
        self.encoder, self.block_size, self.feature_dim, self.num_points = inner, block_size, feature_dim, points
        self.layers = three_layers(inner, layers) if isinstance(inner, TokenEncoder) else None
        self.config: dict[str, Any] = {
            "encoder": describe(inner),
            "block_size": block_size,
            "feature_dim": feature_dim,
            "layers": None if self.layers is None else list(self.layers),
            "num_points": points,
        }
        self.propagation = nn.Sequential(
            nn.Linear(3 + local_dim(inner), feature_dim, bias=False), GlobalBatchNorm(feature_dim), nn.ReLU()
        )
        for module in vector_only(inner, self.layers):
            module.requires_grad_(False)

    @property
    def signals(self) -> str:
        """The fields that the encoder reads, such as ``xyz_rgb``."""
        return "xyz_rgb" if getattr(self.encoder, "reads_rgb", False) else "xyz"

    def train_encoder(self, trained: bool = True) -> None:
        """Make the encoder trainable, or not; what only its vector of a whole object needs, as blocks after the last
        chosen one, never.

        Several processes that train would wait for its gradients for ever.
        """
        self.encoder.requires_grad_(trained)
        for module in vector_only(self.encoder, self.layers):
            module.requires_grad_(False)

    def forward(self, batch: PointBatch) -> Tensor:
        """As :meth:`point_features`."""
        return self.point_features(batch)

    def point_features(self, batch: PointBatch) -> Tensor:
        """Encode scenes.

        Args:
            batch: scenes of any number of points each; a scene without points has no rows.

        Returns:
            ``(sum N, feature_dim)``, a row per point.

        Raises:
            ValueError: the encoder reads colours and the batch has none.
        """
        if self.signals == "xyz_rgb" and batch.rgb is None:
            raise ValueError(
                f"{type(self.encoder).__name__} reads colours, but this batch has no rgb: load scenes with rgb, or "
                "take an encoder that reads coordinates alone"
            )
        coords, _, block, _, count = voxelize(batch.xyz, self.block_size, offsets=batch.offsets)
        order = self._order(batch.xyz, block)
        offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
        corner = coords[block[order]].to(batch.xyz.dtype) * self.block_size
        # A cube of this edge lies in the unit sphere.
        local = ((batch.xyz[order] - corner) * 2 / self.block_size - 1).float() / 3**0.5
        rgb = batch.rgb[order].float() if self.signals == "xyz_rgb" and batch.rgb is not None else None
        # In training all at once: statistics of batch norm are those of the batch, and processes, which may have
        # different numbers of cubes, take part in as many of them.
        at_once = max(1, len(count)) if self.training else _BLOCKS_AT_ONCE
        carried = [
            self._carry(local, rgb, offsets[start : start + at_once + 1]) for start in range(0, len(count), at_once)
        ]
        of_points = torch.cat(carried) if carried else local.new_zeros(0, local_dim(self.encoder))
        joined: Tensor = self.propagation(torch.cat([local.to(of_points.dtype), of_points], dim=1))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return gather(joined, place)

    def _order(self, xyz: Tensor, block: Tensor) -> Tensor:
        """Rows by block; within one at random in training, else as if at random."""
        points = len(block)
        mixed = torch.randperm(points, device=block.device) if self.training else scattered(xyz).argsort(stable=True)
        return mixed[torch.argsort(block[mixed], stable=True)]

    def _carry(self, local: Tensor, rgb: Tensor | None, offsets: Tensor) -> Tensor:
        """Features of all points ``offsets[0]:offsets[-1]`` of a few blocks."""
        starts, count = offsets[:-1], offsets.diff()
        # Evenly spread over the block's points; the same one twice where there are too few.
        steps = torch.arange(self.num_points, device=offsets.device)
        seen = starts[:, None] + steps * count[:, None] // self.num_points
        features, places = local_features(self.encoder, local[seen], None if rgb is None else rgb[seen], self.layers)
        rows = local[int(offsets[0]) : int(offsets[-1])]
        groups = torch.arange(len(count) + 1, device=offsets.device) * places.shape[1]
        return interpolate(
            features.flatten(0, 1),
            places.flatten(0, 1),
            rows,
            offsets=groups,
            query_offsets=offsets - offsets[0],
            clamp=True,
        )


def scene_backbone(encoder: nn.Module) -> nn.Module:
    """Return any encoder as a backbone for scenes; an encoder of objects is wrapped in :class:`BlockFeatures`.

    Raises:
        TypeError: a module that computes no features of points.
        ValueError: an encoder of objects that :class:`BlockFeatures` refuses.
    """
    if hasattr(encoder, "point_features") and hasattr(encoder, "feature_dim"):
        return encoder
    if not describes_places(_inside(encoder)):
        raise TypeError(
            f"{type(encoder).__name__} is no backbone for scenes: it gives no features of points. Those that do are "
            f"SparseUNet, Swin3D and PointTransformerV3, UpcastFeatures around one of them, the encoders of objects "
            f"{_KNOWN}, any ObjectEncoder with local_features(xyz) and local_dim, and any module with "
            "point_features(batch) and feature_dim"
        )
    return BlockFeatures(encoder)


def scattered(xyz: Tensor) -> Tensor:
    """A number ``(N,)`` int64 for each point ``(N, 3)``, the same wherever the point stands, and else as if at random.

    A mixture of the bits of its coordinates in float32, by the multiplications and shifts of splitmix64.
    """
    bits = (xyz.float() + 0.0).contiguous().view(torch.int32).to(torch.int64)  # -0.0 becomes 0.0
    mixed = torch.zeros_like(bits[:, 0])
    for axis in range(3):
        mixed = (mixed ^ bits[:, axis]) * -0x40A7B892E31B1A47
        mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
        mixed = mixed ^ (mixed >> 31)
    return mixed


def _points_of(encoder: nn.Module) -> int:
    meant = points_meant_for(encoder)
    if meant is None:
        raise ValueError(
            f"num_points: {type(encoder).__name__} does not say how many it is meant for, so it must be given"
        )
    return meant


def _inside(encoder: nn.Module) -> nn.Module:
    return encoder.encoder if isinstance(encoder, AlignedShapeEncoder) else encoder
