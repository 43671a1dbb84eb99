"""Features of voxels from an encoder without a decoder, for masked pre-training and linear probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.models.described import describe
from pc3d.ops import gather

_PARTS = ("scene", "embed", "encode_voxels", "channels", "voxel_size", "signals")


class Level(Protocol):
    """One level of a prepared scene."""

    @property
    def parent(self) -> Tensor | None:
        """``(V,)`` int64, the row of the next coarser level that holds each voxel; None at the coarsest."""


class VoxelScene(Protocol):
    """A batch that a voxel encoder has prepared: its levels, finest first, and the finest voxel of each point."""

    @property
    def levels(self) -> Sequence[Level]:
        """Finest first."""

    @property
    def inverse(self) -> Tensor:
        """``(N,)`` int64."""


class VoxelEncoder(Protocol):
    """What the methods of scenes and :class:`UpcastFeatures` need of an encoder, besides ``config``.

    :class:`pc3d.models.SparseUNet`, :class:`pc3d.models.Swin3D` and :class:`pc3d.models.PointTransformerV3` have it, as
    may an encoder of your own. A class with a decoder names the modules that :meth:`embed` and :meth:`encode_voxels` do
    not use in a tuple ``decoder_only``, so that they are not trained where there is no decoder.

    Attributes:
        channels: width of each level, finest first.
        voxel_size: edge of a voxel of the finest level, in the units of the points.
        signals: what it reads, ``"xyz"``, ``"xyz_rgb"`` or ``"xyz_rgb_normal"``.
    """

    channels: Sequence[int]
    voxel_size: float
    signals: str

    def scene(self, batch: PointBatch) -> Any:
        """Prepare a batch: a :class:`VoxelScene`, whose finest voxels are those of :func:`pc3d.ops.voxelize`."""

    def embed(self, scene: Any) -> Tensor:
        """Features ``(V, channels[0])`` of the finest voxels, before the encoder's blocks."""

    def encode_voxels(self, scene: Any, features: Tensor) -> list[Tensor]:
        """Features of each level, finest first."""


def as_voxel_encoder(module: nn.Module) -> VoxelEncoder:
    """The module itself.

    Raises:
        TypeError: it does not encode voxels at several levels.
    """
    lacking = [name for name in _PARTS if not hasattr(module, name)]
    if lacking:
        name = type(module).__name__
        raise TypeError(
            f"encoder must be a SparseUNet, a Swin3D or a PointTransformerV3, got {name}; one of your own has the "
            f"parts of pc3d.models.VoxelEncoder, of which {name} lacks {', '.join(lacking)}"
        )
    return cast(VoxelEncoder, module)


def freeze_decoder(encoder: nn.Module, frozen: bool = True) -> None:
    """Freeze the modules of a voxel encoder that take no part without a decoder, or let them train again.

    Several processes that train would wait for their gradients for ever.

    Args:
        encoder: any module; of one without ``decoder_only`` nothing is changed.
        frozen: which of the two.

    Raises:
        ValueError: ``decoder_only`` names what is no module of the encoder.
    """
    for name in getattr(encoder, "decoder_only", ()):
        if not isinstance(module := getattr(encoder, name, None), nn.Module):
            raise ValueError(f"decoder_only of {type(encoder).__name__} names {name!r}, which is none of its modules")
        module.requires_grad_(not frozen)


def upcast(scene: VoxelScene, encoded: Sequence[Tensor]) -> Tensor:
    """The features of all levels on the finest voxels, finest first: each voxel next to those that contain it.

    This is the up-casting of Sonata (Wu et al., 2025, section 3). It has no parameters, so everything that is learnt is
    in the encoder.

    Args:
        scene: says which coarser voxel holds each one.
        encoded: ``(V_l, C_l)`` of each level, finest first.

    Returns:
        ``(V_0, sum of C_l)``.
    """
    carried = encoded[-1]
    for level, features in zip(reversed(scene.levels[:-1]), reversed(encoded[:-1]), strict=True):
        assert level.parent is not None  # only the coarsest level has none
        carried = torch.cat([features, gather(carried, level.parent)], dim=1)
    return carried


class UpcastFeatures(nn.Module):
    """A voxel encoder without its decoder as a backbone: features of all levels at every point.

    For fine-tuning with few labels, everything except the head can come from pre-training, as in Sonata (Wu et al.,
    2025).

    Args:
        encoder: a :class:`VoxelEncoder`, such as :class:`pc3d.models.SparseUNet`; its decoder, if any, is not changed.

    Raises:
        TypeError: not an encoder of voxels.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        voxels = as_voxel_encoder(encoder)
        self.encoder = encoder
        self.voxel_size, self.signals = voxels.voxel_size, voxels.signals
        self.feature_dim: int = sum(voxels.channels)
        self.config: dict[str, Any] = {"encoder": describe(encoder)}

    def train_encoder(self, trained: bool = True) -> None:
        """Make the encoder trainable, or not; its decoder, which takes no part, never."""
        self.encoder.requires_grad_(trained)
        freeze_decoder(self.encoder)

    def forward(self, batch: PointBatch) -> Tensor:
        """As :meth:`point_features`."""
        return self.point_features(batch)

    def point_features(self, batch: PointBatch) -> Tensor:
        """``(sum N, feature_dim)``, a row per point; points of one voxel have the same.

        Raises:
            ValueError: the batch lacks a field that the encoder reads.
        """
        voxels = as_voxel_encoder(self.encoder)
        scene = voxels.scene(batch)
        encoded = voxels.encode_voxels(scene, voxels.embed(scene))
        return gather(upcast(scene, encoded), scene.inverse)
