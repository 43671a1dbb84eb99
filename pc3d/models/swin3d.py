"""Swin3D: a U-Net of window attention over the voxels of indoor scenes (Yang et al., 2023, arXiv 2304.06906)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pc3d.data.types import PointBatch
from pc3d.models.voxel_backbone import VoxelLevel, check_signals, voxelize_batch
from pc3d.nn.init import init_encoder_weights
from pc3d.nn.sparse import ConvNormReLU, Signals, VoxelGrid, num_signals
from pc3d.nn.swin3d import (
    SIGNAL_DIVISOR,
    DownSample,
    SwinBlock,
    UpSample,
    WindowContext,
    coarsen,
    down_neighbors,
    window_context,
)
from pc3d.ops import KernelMap, gather, kernel_map


class SwinLevel(NamedTuple):
    """The voxels of one level: everything that does not depend on features.

    Attributes:
        grid: the voxels; ``grid.point`` is the row in the batch of each one's representative point.
        position: ``(V, 3)`` float32 representative points in voxels of the finest level.
        stride: edge of a voxel in voxels of the finest level.
        contexts: windows and signals, plain and (where a second block needs them) shifted.
        parent: ``(V,)`` row of the next coarser level that holds each voxel; None at the coarsest.
        neighbors: ``(V', 16)`` rows of this level nearest to each voxel of the next coarser one; None at the coarsest.
    """

    grid: VoxelGrid
    position: Tensor
    stride: int
    contexts: tuple[WindowContext, ...]
    parent: Tensor | None
    neighbors: Tensor | None


class SwinScene(NamedTuple):
    """A batch of scenes, ready for the network.

    Attributes:
        levels: finest first.
        inverse: ``(N,)`` int64, the finest voxel of each point.
        inputs: ``(V, 3 to 9)`` float32, what the stem reads: colour, normal, position in the voxel.
        stem_map: neighbours of the stem's convolution.
        xyz: ``(N, 3)`` the points.
    """

    levels: list[SwinLevel]
    inverse: Tensor
    inputs: Tensor
    stem_map: KernelMap
    xyz: Tensor


class Swin3D(nn.Module):
    """Swin3D: an encoder with window attention over voxels, and a light decoder back to the finest voxels.

    A 3x3x3 sparse convolution maps colour, normal and position in the voxel to the first width. Each level is a stack
    of window attention blocks; every second one has shifted windows. The defaults are Swin3D-S for ScanNet.

    Each voxel is represented by one of its points: the first in evaluation mode, a random one in training. Windows are
    anchored at the origin of the coordinates, as published. Coordinates are right-handed with z up.

    Args:
        channels: width of each level, finest first; as many levels as there are numbers.
        depths: attention blocks of each level.
        num_heads: heads of each level; by default 8 channels a head on the first level and 16 on the others, as
            published.
        window_sizes: edge of a window in voxels of each level; by default 5 on the first level and 7 on the others.
        down_strides: how many voxels along an axis become one, between levels; by default 3 (ScanNet) and then 2.
            Published for S3DIS: 2 everywhere.
        voxel_size: edge of a voxel of the finest level, in the units of the points. Published: 0.02 m (ScanNet), 0.04
            m (S3DIS).
        signals: what the stem reads and the attention tables encode.
        decoder_attention: an attention block after each up-sampling step, as published for segmentation. The published
            parameter counts do not include it.
        drop_path: stochastic depth of the encoder's last block, rising linearly from 0 in its first.
        decoder_drop_path: of each block of the decoder.
        checkpointing: recompute the activations of the blocks in the backward pass instead of storing them.

    Raises:
        ValueError: lists of different lengths, a size that is not positive, or a width that the heads do not divide.
    """

    decoder_only = ("upsamples",)

    def __init__(
        self,
        channels: Sequence[int] = (48, 96, 192, 384, 384),
        depths: Sequence[int] = (2, 4, 9, 4, 4),
        num_heads: Sequence[int] | None = None,
        window_sizes: Sequence[int] | None = None,
        down_strides: Sequence[int] | None = None,
        voxel_size: float = 0.02,
        signals: Signals = "xyz_rgb_normal",
        decoder_attention: bool = True,
        drop_path: float = 0.3,
        decoder_drop_path: float = 0.1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        levels = len(channels)
        heads = [c // (8 if i == 0 else 16) for i, c in enumerate(channels)] if num_heads is None else list(num_heads)
        windows = [5, *[7] * (levels - 1)] if window_sizes is None else list(window_sizes)
        strides = [3, *[2] * (levels - 2)][: levels - 1] if down_strides is None else list(down_strides)
        _check_levels(channels, depths, heads, windows, strides)
        check_signals(signals)
        if not voxel_size > 0:
            raise ValueError(f"voxel_size must be positive, got {voxel_size}")
        for name, rate in (("drop_path", drop_path), ("decoder_drop_path", decoder_drop_path)):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {rate}")
        self.config: dict[str, Any] = {
            "channels": list(channels),
            "depths": list(depths),
            "num_heads": heads,
            "window_sizes": windows,
            "down_strides": strides,
            "voxel_size": voxel_size,
            "signals": signals,
            "decoder_attention": decoder_attention,
            "drop_path": drop_path,
            "decoder_drop_path": decoder_drop_path,
            "checkpointing": checkpointing,
        }
        self.channels, self.voxel_size, self.signals = list(channels), voxel_size, signals
        self.checkpointing = checkpointing
        self.depths, self.window_sizes, self.down_strides = list(depths), windows, strides
        self.feature_dim = channels[0]
        self.decoder_attention = decoder_attention
        self.stem = ConvNormReLU(num_signals(signals), channels[0])
        rates = iter(torch.linspace(0.0, drop_path, sum(depths), device="cpu").tolist())

        def block(level: int, rate: float) -> SwinBlock:
            return SwinBlock(channels[level], heads[level], windows[level], signals, rate)

        self.levels = nn.ModuleList(
            [nn.ModuleList([block(level, next(rates)) for _ in range(depths[level])]) for level in range(levels)]
        )
        self.downsamples = nn.ModuleList([DownSample(channels[i], channels[i + 1]) for i in range(levels - 1)])
        self.upsamples = nn.ModuleList(
            [
                UpSample(channels[i + 1], channels[i], block(i, decoder_drop_path) if decoder_attention else None)
                for i in reversed(range(levels - 1))
            ]
        )
        self.apply(init_encoder_weights)

    @classmethod
    def small(cls, **changes: Any) -> Swin3D:
        """Swin3D-S (23.6 million parameters without decoder attention); ``changes`` are arguments of the class."""
        return cls(**changes)

    @classmethod
    def large(cls, **changes: Any) -> Swin3D:
        """Swin3D-L (60.8 million parameters without decoder attention); ``changes`` are arguments of the class."""
        return cls(**{"channels": (80, 160, 320, 640, 640), **changes})

    @classmethod
    def tiny(cls, **changes: Any) -> Swin3D:
        """Three levels over 5 cm voxels, small enough to train on a CPU; ``changes`` are arguments of the class."""
        arguments: dict[str, Any] = {
            "channels": (24, 48, 96),
            "depths": (1, 2, 2),
            "down_strides": (2, 2),
            "voxel_size": 0.05,
            "drop_path": 0.1,
        }
        return cls(**{**arguments, **changes})

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
            The levels, finest first, with the features after their blocks.

        Raises:
            ValueError: the batch lacks a field that the model reads.
        """
        scene = self.scene(batch)
        features = self.encode_voxels(scene, self.embed(scene))
        return [
            VoxelLevel(g.coords, g.offsets, scene.xyz[g.point], values, level.stride, level.parent)
            for level, values in zip(scene.levels, features, strict=True)
            for g in [level.grid]
        ]

    @torch.no_grad()
    def scene(self, batch: PointBatch) -> SwinScene:
        """Voxels, windows and neighbours of a batch at all levels."""
        voxels = voxelize_batch(batch, self.voxel_size, self.signals, random_point=self.training)
        grid, signals = voxels.grid, voxels.signals / SIGNAL_DIVISOR
        position, stride = grid.position(), 1
        levels = []
        for index, window_size in enumerate(self.window_sizes):
            contexts = tuple(
                window_context(grid, signals, window_size, shifted=shifted)
                for shifted in ((False, True) if self.depths[index] > 1 else (False,))
            )
            if index == len(self.down_strides):
                levels.append(SwinLevel(grid, position, stride, contexts, None, None))
                break
            factor = self.down_strides[index]
            coarser = coarsen(grid, signals, factor, stride)
            coarse_position = position[coarser.grid.point]
            neighbors = down_neighbors(position, coarse_position, grid.offsets, coarser.grid.offsets)
            levels.append(SwinLevel(grid, position, stride, contexts, coarser.parent, neighbors))
            grid = coarser.grid._replace(point=grid.point[coarser.grid.point])
            signals, position, stride = coarser.signals, coarse_position, stride * factor
        finest = voxels.grid
        stem_map = kernel_map(finest.coords, offsets=finest.offsets)
        return SwinScene(levels, voxels.inverse, voxels.features(), stem_map, batch.xyz)

    def embed(self, scene: SwinScene) -> Tensor:
        """The stem: features ``(V, C)`` of the finest voxels, before any attention."""
        features: Tensor = self.stem(scene.inputs, scene.stem_map)
        return features

    def encode_voxels(self, scene: SwinScene, features: Tensor) -> list[Tensor]:
        """Run the encoder on features of the finest voxels, as :meth:`embed` gives them or masked.

        Returns:
            The features ``(V, C)`` of each level after its blocks, finest first.
        """
        encoded = []
        for index, level in enumerate(scene.levels):
            if index > 0:
                features = self.downsamples[index - 1](features, scene.levels[index - 1].neighbors)
            for number, block in enumerate(cast("nn.ModuleList", self.levels[index])):
                features = self._run(block, features, level.contexts[number % 2])
            encoded.append(features)
        return encoded

    def decode(self, scene: SwinScene, encoded: Sequence[Tensor]) -> Tensor:
        """Run the decoder on the features of all levels; ``(V, feature_dim)`` of the finest voxels."""
        features = encoded[-1]
        for step, index in zip(self.upsamples, reversed(range(len(encoded) - 1)), strict=True):
            coarse, fine = scene.levels[index + 1], scene.levels[index]
            positions, offsets = (coarse.position, fine.position), (coarse.grid.offsets, fine.grid.offsets)
            features = step(features, encoded[index], positions, offsets)
            if step.block is not None:
                features = self._run(step.block, features, fine.contexts[0])  # type: ignore[arg-type]
        return features

    def _run(self, block: nn.Module, features: Tensor, context: WindowContext) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            kept: Tensor = checkpoint(block, features, context, use_reentrant=False)
            return kept
        result: Tensor = block(features, context)
        return result


def _check_levels(
    channels: Sequence[int], depths: Sequence[int], heads: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> None:
    if not channels:
        raise ValueError("channels must name the width of at least one level, got none")
    for name, values, wanted in (
        ("depths", depths, len(channels)),
        ("num_heads", heads, len(channels)),
        ("window_sizes", windows, len(channels)),
        ("down_strides", strides, len(channels) - 1),
    ):
        if len(values) != wanted:
            raise ValueError(f"{name} must have {wanted} numbers for {len(channels)} levels, got {list(values)}")
    for name, values, low in (
        ("channels", channels, 1),
        ("depths", depths, 1),
        ("num_heads", heads, 1),
        ("window_sizes", windows, 1),
        ("down_strides", strides, 2),
    ):
        if any(value < low for value in values):
            raise ValueError(f"{name} must be at least {low}, got {list(values)}")
