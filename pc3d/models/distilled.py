"""An encoder of points or voxels with a map into the feature space of an image tower."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.models.block_features import BlockFeatures
from pc3d.models.described import describe
from pc3d.models.voxel_features import UpcastFeatures, as_voxel_encoder, freeze_decoder


class DistilledEncoder(nn.Module):
    """A backbone with a projection (LayerNorm and a linear layer) of its point features into another space.

    As a backbone it returns its own features. The space serves to compare them with texts.

    Args:
        encoder: has ``point_features(batch)`` and ``feature_dim``.
        space_dim: width of the space.
        space: name of the tower whose dense features lie in this space (:func:`pc3d.image.load_image_tower`); empty if
            it is not the space of a tower.
        decoder: read ``point_features``. False reads the features of all levels of a voxel encoder without its decoder
            (:class:`UpcastFeatures`), and does not change the decoder.
        space_weights: SHA-256 of that tower's weights; empty if not known.

    Raises:
        TypeError: the encoder computes no features of points, or, without decoder, is not an encoder of voxels.
        ValueError: ``space_dim`` is below 1.
    """

    def __init__(
        self, encoder: nn.Module, space_dim: int, space: str = "", decoder: bool = True, space_weights: str = ""
    ) -> None:
        super().__init__()
        if decoder and not (hasattr(encoder, "point_features") and hasattr(encoder, "feature_dim")):
            raise TypeError(
                "encoder must have point_features(batch) and feature_dim, as SparseUNet, Swin3D, PointTransformerV3 "
                f"and BlockFeatures have; {type(encoder).__name__} has not"
            )
        if space_dim < 1:
            raise ValueError(f"space_dim must be at least 1, got {space_dim}")
        self.space_dim, self.space, self.decoder = space_dim, space, decoder
        self.encoder = encoder
        self.feature_dim = int(cast(Any, encoder).feature_dim) if decoder else sum(as_voxel_encoder(encoder).channels)
        self.config: dict[str, Any] = {
            "encoder": describe(encoder),
            "space_dim": space_dim,
            "space": space,
            "decoder": decoder,
        }
        self.space_weights = ""
        self.name_weights(space_weights)
        self.projection = nn.Sequential(nn.LayerNorm(self.feature_dim), nn.Linear(self.feature_dim, space_dim))
        if not decoder:
            freeze_decoder(encoder)

    def name_weights(self, weights: str) -> None:
        """Store the SHA-256 of the weights of the tower whose space this is."""
        self.space_weights = weights
        if weights:
            self.config["space_weights"] = weights

    @property
    def signals(self) -> str:
        """The fields that the encoder reads, such as ``xyz_rgb``."""
        return str(getattr(self.encoder, "signals", "xyz"))

    @property
    def voxel_size(self) -> float | None:
        """Edge of the encoder's finest voxels; None if it has no voxels."""
        size = getattr(self.encoder, "voxel_size", None)
        return None if size is None else float(cast(float, size))

    def forward(self, batch: PointBatch) -> Tensor:
        """As :meth:`point_features`."""
        return self.point_features(batch)

    def point_features(self, batch: PointBatch) -> Tensor:
        """The backbone's own features ``(sum N, feature_dim)``."""
        if not self.decoder:
            return UpcastFeatures(self.encoder).point_features(batch)
        features: Tensor = cast(Any, self.encoder).point_features(batch)
        return features

    def train_encoder(self, trained: bool = True) -> None:
        """Make what gives the features of points trainable, or not; the projection and what else takes no part, never.

        Several processes that train would wait for their gradients for ever.
        """
        self.projection.requires_grad_(False)
        inner = self.encoder if self.decoder else UpcastFeatures(self.encoder)
        inner.requires_grad_(trained)
        if isinstance(inner, UpcastFeatures | BlockFeatures):
            inner.train_encoder(trained)

    def in_space(self, features: Tensor) -> Tensor:
        """Features ``(N, feature_dim)`` as ``(N, space_dim)``, not normalised."""
        return torch.as_tensor(self.projection(features))
