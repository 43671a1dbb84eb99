"""A plain U-Net of sparse convolutions, as a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.models.voxel_backbone import VoxelLevel, check_signals, voxelize_batch
from pc3d.nn.init import init_encoder_weights
from pc3d.nn.sparse import ConvNormReLU, ResidualBlock, Signals, num_signals
from pc3d.ops import KernelMap, gather, kernel_map, segment_reduce


class UNetLevel(NamedTuple):
    """The voxels of one level and their neighbours.

    Attributes:
        coords: ``(V, 3)`` int32.
        offsets: ``(B + 1,)`` int64.
        xyz: ``(V, 3)``.
        stride: edge of a voxel in voxels of the finest level.
        same: neighbours within the level.
        down: voxels of the next coarser level and the eight children that each reads; None at the coarsest.
        parent: ``(V,)`` int64, the row of the next coarser level that holds each voxel; None at the coarsest.
    """

    coords: Tensor
    offsets: Tensor
    xyz: Tensor
    stride: int
    same: KernelMap
    down: KernelMap | None
    parent: Tensor | None


class UNetScene(NamedTuple):
    """A batch of scenes, ready for the network: levels (finest first), voxel of each point, and the stem's input."""

    levels: list[UNetLevel]
    inverse: Tensor
    inputs: Tensor


class SparseUNet(nn.Module):
    """A sparse U-Net: residual 3x3x3 convolutions, 2x2x2 down-sampling and back (small form of Choy et al., 2019).

    Args:
        channels: width of each level, finest first.
        blocks: residual blocks of each level of the encoder; the decoder has one a level.
        voxel_size: edge of a voxel of the finest level, in the units of the points.
        signals: what the stem reads besides the position in the voxel.

    Raises:
        ValueError: lists of different lengths, or a size that is not positive.
    """

    decoder_only = ("upsamples", "decoder")

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 128),
        blocks: Sequence[int] = (1, 1, 2, 2),
        voxel_size: float = 0.05,
        signals: Signals = "xyz_rgb",
    ) -> None:
        super().__init__()
        check_signals(signals)
        if not channels or min(channels) < 1:
            raise ValueError(f"channels must be one or more positive widths, got {list(channels)}")
        if len(blocks) != len(channels) or min(blocks) < 1:
            raise ValueError(
                f"blocks must be {len(channels)} positive numbers, as many as channels; got {list(blocks)}"
            )
        if not voxel_size > 0:
            raise ValueError(f"voxel_size must be positive, got {voxel_size}")
        self.config: dict[str, Any] = {
            "channels": list(channels),
            "blocks": list(blocks),
            "voxel_size": voxel_size,
            "signals": signals,
        }
        self.channels, self.voxel_size, self.signals = list(channels), voxel_size, signals
        self.feature_dim = channels[0]
        self.stem = ConvNormReLU(num_signals(signals), channels[0])
        self.levels = nn.ModuleList(
            [
                nn.ModuleList([ResidualBlock(width, width) for _ in range(count)])
                for width, count in zip(channels, blocks, strict=True)
            ]
        )
        steps = range(len(channels) - 1)
        self.downsamples = nn.ModuleList([ConvNormReLU(channels[i], channels[i + 1], 2) for i in steps])
        self.upsamples = nn.ModuleList(
            [ConvNormReLU(channels[i + 1], channels[i], 2, transposed=True) for i in reversed(steps)]
        )
        self.decoder = nn.ModuleList([ResidualBlock(2 * channels[i], channels[i]) for i in reversed(steps)])
        self.apply(init_encoder_weights)

    def forward(self, batch: PointBatch) -> Tensor:
        """As :meth:`point_features`."""
        return self.point_features(batch)

    def point_features(self, batch: PointBatch) -> Tensor:
        """Encode and decode scenes.

        Args:
            batch: scenes of any number of points each.

        Returns:
            ``(sum N, feature_dim)``, a row per point; points of one voxel have the same features.

        Raises:
            ValueError: the batch lacks a field that the model reads.
        """
        scene = self.scene(batch)
        features = self.decode(scene, self.encode_voxels(scene, self.embed(scene)))
        return gather(features, scene.inverse)

    def encode(self, batch: PointBatch) -> list[VoxelLevel]:
        """Encode scenes, without decoder.

        Returns:
            The levels, finest first. A coarse voxel's ``xyz`` is the mean over its children.

        Raises:
            ValueError: the batch lacks a field that the model reads.
        """
        scene = self.scene(batch)
        features = self.encode_voxels(scene, self.embed(scene))
        return [
            VoxelLevel(level.coords, level.offsets, level.xyz, values, level.stride, level.parent)
            for level, values in zip(scene.levels, features, strict=True)
        ]

    @torch.no_grad()
    def scene(self, batch: PointBatch) -> UNetScene:
        """Voxels and kernel maps of a batch at all levels."""
        voxels = voxelize_batch(batch, self.voxel_size, self.signals, random_point=self.training)
        coords, offsets = voxels.grid.coords, voxels.grid.offsets
        xyz = batch.xyz[voxels.grid.point]
        levels: list[UNetLevel] = []
        for index in range(len(self.levels)):
            same = kernel_map(coords, offsets=offsets)
            stride = 2**index
            if index == len(self.levels) - 1:
                levels.append(UNetLevel(coords, offsets, xyz, stride, same, None, None))
                break
            down = kernel_map(coords, offsets=offsets, kernel_size=2, stride=2)
            parent = down.reverse.amax(1).long()  # one of the eight slots names it, the others are -1
            levels.append(UNetLevel(coords, offsets, xyz, stride, same, down, parent))
            coords, offsets = down.coords, down.offsets
            xyz = segment_reduce(xyz, parent, coords.shape[0], "mean")
        return UNetScene(levels, voxels.inverse, voxels.features())

    def embed(self, scene: UNetScene) -> Tensor:
        """The stem: features ``(V, C)`` of the finest voxels."""
        features: Tensor = self.stem(scene.inputs, scene.levels[0].same)
        return features

    def encode_voxels(self, scene: UNetScene, features: Tensor) -> list[Tensor]:
        """Run the encoder on features of the finest voxels; the features ``(V, C)`` of each level, finest first."""
        encoded = []
        for index, level in enumerate(scene.levels):
            if index > 0:
                features = self.downsamples[index - 1](features, scene.levels[index - 1].down)
            for block in self.levels[index]:  # type: ignore[attr-defined]
                features = block(features, level.same)
            encoded.append(features)
        return encoded

    def decode(self, scene: UNetScene, encoded: Sequence[Tensor]) -> Tensor:
        """Run the decoder on the features of all levels; ``(V, feature_dim)`` of the finest voxels."""
        features = encoded[-1]
        steps = reversed(range(len(encoded) - 1))
        for up, block, index in zip(self.upsamples, self.decoder, steps, strict=True):
            level = scene.levels[index]
            raised = up(features, level.down)
            features = block(torch.cat([encoded[index], raised], dim=1), level.same)
        return features
