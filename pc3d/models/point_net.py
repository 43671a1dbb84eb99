"""PointNet as a backbone of self-supervised methods."""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d.models.object_encoder import ObjectEncoder, check_clouds, reset_layers
from pc3d.nn.shared_mlp import SharedMLP

_LOCAL_DIM, _LOCAL_LAYERS = 64, 6  # after two of the shared layers, each with its norm and ReLU


class PointNet(ObjectEncoder):
    """PointNet: shared layers 3→64→64→64→128→C for every point, then the maximum over the cloud.

    It has no input and feature transforms, as usual in the self-supervised literature (STRL, Huang et al., 2021;
    POS-BERT, Fu et al., 2022). Features do not depend on the order of the points. Clouds may have any number of points.

    Args:
        embed_dim: C.
        num_points: points per cloud that the encoder is meant for. It changes no computation; it is stored with the
            weights.

    Raises:
        ValueError: a width below 1.

    Source:
        PointNet (Qi et al., 2017), section 4.2.
    """

    pooling = "max over points"

    def __init__(self, embed_dim: int = 512, num_points: int = 1024) -> None:
        super().__init__()
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be at least 1, got {embed_dim}")
        self.config = {"embed_dim": embed_dim, "num_points": num_points}
        self.embed_dim, self.local_dim = embed_dim, _LOCAL_DIM + embed_dim
        self.mlp = SharedMLP((3, 64, 64, 64, 128, embed_dim))

    def reset_parameters(self) -> None:
        """Fresh weights, as PyTorch initialises linear layers."""
        self.apply(reset_layers)

    def forward(self, xyz: Tensor) -> Tensor:
        """Features of every point, ``(B, N, 3)`` to ``(B, N, C)``."""
        check_clouds(xyz, 1, "num_points")
        features: Tensor = self.mlp(xyz.to(next(self.parameters()).dtype))
        return features

    def local_features(self, xyz: Tensor) -> Tensor:
        """The features of every point that its segmentation network reads (section 4.2 and figure 2).

        Args:
            xyz: ``(B, N, 3)``.

        Returns:
            ``(B, N, 64 + C)``: the features after the second shared layer beside the vector of the whole cloud.
        """
        check_clouds(xyz, 1, "num_points")
        batch, points, _ = xyz.shape
        local = self.mlp.layers[:_LOCAL_LAYERS](xyz.to(next(self.parameters()).dtype).reshape(-1, 3))
        whole = self.mlp.layers[_LOCAL_LAYERS:](local).view(batch, points, self.embed_dim).amax(1, keepdim=True)
        return torch.cat([local.view(batch, points, local.shape[-1]), whole.expand(-1, points, -1)], dim=2)

    def encode(self, xyz: Tensor, pooling: str = "max") -> Tensor:
        """One feature vector per cloud, ``(B, N, 3)`` to ``(B, C)``; always the maximum over the points."""
        return self.forward(xyz).amax(1)
