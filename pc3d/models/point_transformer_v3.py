"""Point Transformer V3: attention along space-filling curves through the voxels of scenes (Wu et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.data.types import PointBatch
from pc3d.models.voxel_backbone import VoxelInput, VoxelLevel, check_signals, voxelize_batch
from pc3d.models.voxel_features import upcast
from pc3d.nn.init import init_encoder_weights, init_token
from pc3d.nn.point_transformer_v3 import GridPool, GridUnpool, Norm, PTv3Block, batch_norm
from pc3d.nn.serialization import (
    SERIAL_ORDERS,
    SerialOrder,
    SerialPatches,
    serial_depth,
    serial_patches,
    serialize,
)
from pc3d.nn.sparse import Signals, SparseConv3d, num_signals, scene_of_rows
from pc3d.ops import KernelMap, gather, kernel_map, segment_reduce, voxelize_coords

Variant = Literal["ptv3", "sonata"]
STEM_KERNEL = 5
_HEAD_DIM = 16
_BY_LEVEL = ("channels", "depths", "num_heads", "decoder_channels", "decoder_depths", "decoder_num_heads")
"""Arguments with a number for each level: three of the encoder, then three of the decoder."""


class PTv3Level(NamedTuple):
    """The voxels of one level: everything that does not depend on features.

    Attributes:
        coords: ``(V, 3)`` int32, from the lowest corner of each scene.
        offsets: ``(B + 1,)`` int64.
        xyz: ``(V, 3)``.
        stride: edge of a voxel in voxels of the finest level.
        same: neighbours within the level.
        patches: of the curves that its blocks use in turn.
        parent: ``(V,)`` int64, the row of the next coarser level that holds each voxel; None at the coarsest.
    """

    coords: Tensor
    offsets: Tensor
    xyz: Tensor
    stride: int
    same: KernelMap
    patches: tuple[SerialPatches, ...]
    parent: Tensor | None


class PTv3Scene(NamedTuple):
    """A batch of scenes, ready for the network.

    Attributes:
        levels: finest first.
        inverse: ``(N,)`` int64, the finest voxel of each point.
        inputs: ``(V, 3 to 9)`` float32, what the stem reads.
        stem_map: neighbours of the stem's convolution; None for a stem without one.
    """

    levels: list[PTv3Level]
    inverse: Tensor
    inputs: Tensor
    stem_map: KernelMap | None


class PointTransformerV3(nn.Module):
    """Point Transformer V3: an encoder with attention in patches along curves through the voxels, and a decoder.

    Voxels are put into the order of a curve and cut into patches, within which they attend to one another. Each block
    of a level uses the next of the curves. In training, each level shuffles the curves, with PyTorch's default
    generator; in evaluation they keep their order. (The released code also shuffles them in evaluation, at pooled
    levels even with ``shuffle_orders=False``, so its results vary; without, they are these.) The released code takes
    the turns of its Hilbert curves from the largest scene of a batch. Here each scene has curves of its own, so its
    features depend on it alone. The defaults are the base model for ScanNet.

    Each voxel is represented by one of its points: the first in evaluation, a random one in training. Levels are
    counted from the lowest corner of a scene, so shifts by whole voxels change nothing. Coordinates are right-handed
    with z up.

    Args:
        channels: width of each level, finest first; as many levels as there are numbers.
        depths: blocks of each level.
        num_heads: heads of each level; by default one for 16 channels, as published.
        decoder_channels: width of each level but the coarsest in the decoder, finest first; none for no decoder. The
            features of points are then those of all levels (as :class:`UpcastFeatures`, and Sonata's linear probe).
        decoder_depths: blocks of each level in the decoder.
        decoder_num_heads: as ``num_heads``.
        patch_size: voxels that attend to one another.
        orders: the curves.
        voxel_size: edge of a voxel of the finest level, in the units of the points. Published: 0.02 m.
        signals: what the stem reads: colour and normal; with ``"xyz"`` the position in the voxel.
        variant: ``"ptv3"``: the stem is a convolution, with batch norm there and between levels. ``"sonata"``, as
            Sonata and Concerto (2025): a linear stem, which also reads the coordinates (in the units of the points,
            from the middle of the scene's bounding box and from its lowest point), and layer norm everywhere.
        unit_colors: the stem reads colours in [0, 1] instead of [-1, 1]. By default for ``"sonata"`` alone; Pointcept
            has them so in all of its models since version 1.6, but not in the published weights of PTv3.
        drop_path: stochastic depth, rising linearly from 0 in the encoder's first block to its last, and in the decoder
            from the finest level to the coarsest.

    Raises:
        ValueError: lists of different lengths, a size that is not positive, or a width that the heads do not divide.
    """

    decoder_only = ("upsamples", "decoder")

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 6, 2),
        num_heads: Sequence[int] | None = None,
        decoder_channels: Sequence[int] = (64, 64, 128, 256),
        decoder_depths: Sequence[int] = (2, 2, 2, 2),
        decoder_num_heads: Sequence[int] | None = None,
        patch_size: int = 1024,
        orders: Sequence[SerialOrder] = SERIAL_ORDERS,
        voxel_size: float = 0.02,
        signals: Signals = "xyz_rgb_normal",
        variant: Variant = "ptv3",
        unit_colors: bool | None = None,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        heads = _heads("num_heads", num_heads, channels)
        decoder_heads = _heads("decoder_num_heads", decoder_num_heads, decoder_channels)
        if not decoder_channels:
            decoder_depths, decoder_heads = (), []
        self.config: dict[str, Any] = {
            "channels": list(channels),
            "depths": list(depths),
            "num_heads": heads,
            "decoder_channels": list(decoder_channels),
            "decoder_depths": list(decoder_depths),
            "decoder_num_heads": decoder_heads,
            "patch_size": patch_size,
            "orders": list(orders),
            "voxel_size": voxel_size,
            "signals": signals,
            "variant": variant,
            "unit_colors": variant == "sonata" if unit_colors is None else unit_colors,
            "drop_path": drop_path,
        }
        _check_levels({name: self.config[name] for name in _BY_LEVEL})
        _check_choices(patch_size, orders, voxel_size, variant, drop_path)
        check_signals(signals)
        self.channels, self.voxel_size, self.signals = list(channels), voxel_size, signals
        self.patch_size, self.orders = patch_size, tuple(orders)
        self.variant, self.unit_colors = variant, self.config["unit_colors"]
        self.feature_dim = decoder_channels[0] if decoder_channels else sum(channels)
        used = zip_longest(depths, decoder_depths, fillvalue=0)
        self.num_curves = [min(len(orders), max(numbers)) for numbers in used]
        norm: Norm = batch_norm if variant == "ptv3" else nn.LayerNorm
        self._add_encoder(norm)
        self._add_decoder(norm)
        if variant == "sonata":
            self.apply(_init_weights)

    def _add_encoder(self, norm: Norm) -> None:
        channels, depths, heads, drop_path = (self.config[name] for name in (*_BY_LEVEL[:3], "drop_path"))
        self.stem = _stem(self.variant, self.signals, channels[0])
        self.stem_norm = norm(channels[0])
        self.levels = _blocks(channels, heads, _rates(drop_path, depths))
        self.downsamples = nn.ModuleList([GridPool(fine, coarse, norm) for fine, coarse in pairwise(channels)])

    def _add_decoder(self, norm: Norm) -> None:
        """The decoder, whose lists begin with the finest level, as those of the encoder."""
        channels, depths, heads, drop_path = (self.config[name] for name in (*_BY_LEVEL[3:], "drop_path"))
        coarser = [*channels[1:], self.channels[-1]]
        self.upsamples = nn.ModuleList(
            [GridUnpool(coarser[i], self.channels[i], width, norm) for i, width in enumerate(channels)]
        )
        falling = [rates[::-1] for rates in _rates(drop_path, depths)]
        self.decoder = _blocks(channels, heads, falling)

    @classmethod
    def base(cls, **changes: Any) -> PointTransformerV3:
        """The published base model (46.2 million parameters); ``changes`` are arguments of the class."""
        return cls(**changes)

    @classmethod
    def sonata(cls, **changes: Any) -> PointTransformerV3:
        """The encoder of Sonata and of Concerto's base model (108.5 million parameters), without weights.

        Concerto's large model has ``channels=(64, 128, 256, 512, 768)``. ``changes`` are arguments of the class.
        """
        arguments: dict[str, Any] = {
            "channels": (48, 96, 192, 384, 512),
            "depths": (3, 3, 3, 12, 3),
            "decoder_channels": (),
            "variant": "sonata",
        }
        return cls(**{**arguments, **changes})

    @classmethod
    def tiny(cls, **changes: Any) -> PointTransformerV3:
        """Three levels over 5 cm voxels, small enough to train on a CPU; ``changes`` are arguments of the class."""
        arguments: dict[str, Any] = {
            "channels": (32, 48, 96),
            "depths": (1, 2, 2),
            "decoder_channels": (32, 48),
            "decoder_depths": (1, 1),
            "patch_size": 128,
            "voxel_size": 0.05,
            "drop_path": 0.1,
        }
        return cls(**{**arguments, **changes})

    def forward(self, batch: PointBatch) -> Tensor:
        """As :meth:`point_features`."""
        return self.point_features(batch)

    def point_features(self, batch: PointBatch) -> Tensor:
        """Encode scenes, and decode them if there is a decoder.

        Args:
            batch: scenes of any number of points each.

        Returns:
            ``(sum N, feature_dim)``, a row per point; points of one voxel have the same features.

        Raises:
            ValueError: the batch lacks a field that the model reads, or a scene is too large.
        """
        scene = self.scene(batch)
        encoded = self.encode_voxels(scene, self.embed(scene))
        features = self.decode(scene, encoded) if len(self.decoder) else upcast(scene, encoded)
        return gather(features, scene.inverse)

    def encode(self, batch: PointBatch) -> list[VoxelLevel]:
        """Encode scenes, without decoder.

        Returns:
            The levels, finest first. Their coordinates count from the lowest corner of each scene. A coarse voxel's
            ``xyz`` is the mean over its children.

        Raises:
            ValueError: as :meth:`point_features`.
        """
        scene = self.scene(batch)
        features = self.encode_voxels(scene, self.embed(scene))
        return [
            VoxelLevel(level.coords, level.offsets, level.xyz, values, level.stride, level.parent)
            for level, values in zip(scene.levels, features, strict=True)
        ]

    @torch.no_grad()
    def scene(self, batch: PointBatch) -> PTv3Scene:
        """Voxels, neighbours and patches of a batch at all levels."""
        voxels = voxelize_batch(batch, self.voxel_size, self.signals, random_point=self.training)
        offsets, xyz = voxels.grid.offsets, batch.xyz[voxels.grid.point]
        coords = _from_lowest(voxels.grid.coords, offsets)
        depth = serial_depth(coords, offsets)
        levels: list[PTv3Level] = []
        for index, num_curves in enumerate(self.num_curves):
            same = kernel_map(coords, offsets=offsets)
            patches = self._patches(coords, offsets, depth, num_curves)
            stride = 2**index
            if index == len(self.num_curves) - 1:
                levels.append(PTv3Level(coords, offsets, xyz, stride, same, patches, None))
                break
            coarse, coarse_offsets, parent, _, _ = voxelize_coords(coords, 2, offsets=offsets)
            levels.append(PTv3Level(coords, offsets, xyz, stride, same, patches, parent))
            xyz = segment_reduce(xyz, parent, len(coarse), "mean")
            coords, offsets = coarse, coarse_offsets
            # PTv3 shortens the codes of the finest level, Sonata makes new ones, whose cubes may be twice as large.
            depth = (depth - 1).clamp(min=0) if self.variant == "ptv3" else serial_depth(coords, offsets)
        stem_map = None
        if self.variant == "ptv3":
            stem_map = kernel_map(levels[0].coords, offsets=levels[0].offsets, kernel_size=STEM_KERNEL)
        return PTv3Scene(levels, voxels.inverse, self._inputs(voxels, batch), stem_map)

    def embed(self, scene: PTv3Scene) -> Tensor:
        """The stem: features ``(V, C)`` of the finest voxels, before any attention."""
        inputs = scene.inputs.to(next(self.stem.parameters()).dtype)
        raw = self.stem(inputs) if scene.stem_map is None else self.stem(inputs, scene.stem_map)
        return F.gelu(self.stem_norm(raw))

    def encode_voxels(self, scene: PTv3Scene, features: Tensor) -> list[Tensor]:
        """Run the encoder on features of the finest voxels, as :meth:`embed` gives them or masked.

        Returns:
            The features ``(V, C)`` of each level after its blocks, finest first.
        """
        encoded: list[Tensor] = []
        for index, (level, blocks) in enumerate(zip(scene.levels, self.levels, strict=True)):
            if index > 0:
                features = self.downsamples[index - 1](features, scene.levels[index - 1].parent, len(level.coords))
            for number, block in enumerate(cast("nn.ModuleList", blocks)):
                features = block(features, level.same, level.patches[number % len(self.orders)])
            encoded.append(features)
        return encoded

    def decode(self, scene: PTv3Scene, encoded: Sequence[Tensor]) -> Tensor:
        """Run the decoder on the features of all levels; ``(V, feature_dim)`` of the finest voxels."""
        features = encoded[-1]
        for index in reversed(range(len(self.decoder))):
            level = scene.levels[index]
            features, skip = self.upsamples[index](features, encoded[index], level.parent)
            for number, block in enumerate(cast("nn.ModuleList", self.decoder[index])):
                # In PTv3's released code, from which its weights are, the convolution of a level's first block reads
                # the skip connection alone; Sonata's has the sum.
                convolved = skip if number == 0 and self.variant == "ptv3" else None
                features = block(features, level.same, level.patches[number % len(self.orders)], convolved)
        return features

    def _patches(self, coords: Tensor, offsets: Tensor, depth: Tensor, num_curves: int) -> tuple[SerialPatches, ...]:
        orders = list(self.orders)
        if self.training:
            orders = [orders[i] for i in torch.randperm(len(orders)).tolist()]
        return tuple(
            serial_patches(serialize(coords, offsets, depth, order), offsets, self.patch_size)
            for order in orders[:num_curves]
        )

    def _inputs(self, voxels: VoxelInput, batch: PointBatch) -> Tensor:
        columns = list(voxels.signals.split(3, dim=1)) if voxels.signals.shape[1] else []
        if self.unit_colors and self.signals != "xyz":
            columns[0] = (columns[0] + 1.0) / 2.0
        if self.variant == "sonata":
            columns.insert(0, _centred(batch)[voxels.grid.point].float())
        return torch.cat(columns or [voxels.grid.local], dim=1)


def _stem(variant: Variant, signals: Signals, width: int) -> nn.Module:
    if variant == "sonata":
        return nn.Linear(num_signals(signals), width)
    return SparseConv3d(max(num_signals(signals) - 3, 3), width, STEM_KERNEL)


def _blocks(channels: Sequence[int], heads: Sequence[int], rates: Sequence[Sequence[float]]) -> nn.ModuleList:
    return nn.ModuleList(
        [
            nn.ModuleList([PTv3Block(width, count, rate) for rate in of_level])
            for width, count, of_level in zip(channels, heads, rates, strict=True)
        ]
    )


def _rates(drop_path: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise from 0 over all blocks, of each level."""
    rates = iter(torch.linspace(0.0, drop_path, sum(depths), device="cpu").tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


@torch.no_grad()
def _init_weights(module: nn.Module) -> None:
    """The initial weights of Sonata's released code; those of PTv3 are PyTorch's."""
    init_encoder_weights(module)
    if isinstance(module, SparseConv3d):
        init_token(module.weight)


def _from_lowest(coords: Tensor, offsets: Tensor) -> Tensor:
    """Voxel coordinates that count from the lowest corner of each scene."""
    scene = scene_of_rows(offsets, len(coords))
    lowest = coords.new_zeros(len(offsets) - 1, 3).scatter_reduce(
        0, scene[:, None].expand(-1, 3), coords, "amin", include_self=False
    )
    return coords - lowest[scene]


def _centred(batch: PointBatch) -> Tensor:
    """Coordinates ``(N, 3)`` from the middle of each scene's bounding box, heights from its lowest point."""
    scene = scene_of_rows(batch.offsets, len(batch.xyz))
    into, ends = scene[:, None].expand(-1, 3), batch.xyz.new_zeros(len(batch.offsets) - 1, 3)
    low, high = (ends.scatter_reduce(0, into, batch.xyz, kind, include_self=False) for kind in ("amin", "amax"))
    middle = (low + high) / 2
    return batch.xyz - torch.cat([middle[:, :2], low[:, 2:]], dim=1)[scene]


def _heads(name: str, given: Sequence[int] | None, channels: Sequence[int]) -> list[int]:
    if given is not None:
        return list(given)
    odd = [width for width in channels if width % _HEAD_DIM]
    if odd:
        raise ValueError(
            f"{name}: a head has {_HEAD_DIM} channels by default, which {odd[0]} is no multiple of; set {name}"
        )
    return [width // _HEAD_DIM for width in channels]


def _check_levels(lists: dict[str, Sequence[int]]) -> None:
    channels = lists["channels"]
    if not channels:
        raise ValueError("channels must name the width of at least one level, got none")
    for name, values in lists.items():
        wanted = len(channels) - 1 if name.startswith("decoder") else len(channels)
        if len(values) != wanted and not (name.startswith("decoder") and not lists["decoder_channels"]):
            none = ", or none for no decoder" if name == "decoder_channels" else ""
            raise ValueError(f"{name} must have {wanted} numbers for {len(channels)} levels{none}, got {list(values)}")
        if any(value < 1 for value in values):
            raise ValueError(f"{name} must be at least 1, got {list(values)}")
    for prefix in ("", "decoder_"):
        for width, heads in zip(lists[f"{prefix}channels"], lists[f"{prefix}num_heads"], strict=False):
            if width % heads:
                raise ValueError(
                    f"{prefix}channels must be multiples of {prefix}num_heads, got {width} with {heads} heads"
                )


def _check_choices(patch_size: int, orders: Sequence[str], voxel_size: float, variant: str, drop_path: float) -> None:
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, got {patch_size}")
    if not orders or not set(orders) <= set(SERIAL_ORDERS):
        raise ValueError(f"orders must be some of {', '.join(SERIAL_ORDERS)}, got {list(orders)}")
    if not voxel_size > 0:
        raise ValueError(f"voxel_size must be positive, got {voxel_size}")
    if variant not in ("ptv3", "sonata"):
        raise ValueError(f"variant must be 'ptv3' or 'sonata', got {variant!r}")
    if not 0.0 <= drop_path < 1.0:
        raise ValueError(f"drop_path must lie in [0, 1), got {drop_path}")
