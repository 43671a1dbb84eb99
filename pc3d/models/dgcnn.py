"""DGCNN as a backbone of self-supervised methods."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pc3d.models.object_encoder import ObjectEncoder, check_clouds, reset_layers
from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.shared_mlp import EdgeConv, SharedMLP

WIDTHS = (64, 64, 128, 256)
_MIXED_DIM = 1024


class DGCNN(ObjectEncoder):
    """DGCNN: four edge convolutions, each over the nearest neighbours in the features of the previous one.

    The widths are 64, 64, 128 and 256. The concatenated outputs go through a shared layer 512→1024. Maximum and mean
    over the cloud give 2048 features, and a linear layer with batch norm gives C. Features do not depend on the order
    of the points.

    Args:
        embed_dim: C.
        k: neighbours of each point; 20 for clouds of 1,024 points, 40 for 2,048.
        num_points: points per cloud that the encoder is meant for. It changes no computation; it is stored with the
            weights.

    Raises:
        ValueError: a size below 1.

    Source:
        Dynamic Graph CNN (Wang et al., 2019), section 4.1, up to the first fully connected layer, without dropout.
    """

    pooling = "max and mean over points"
    vector_only = ("linear", "norm")
    local_dim = sum(WIDTHS) + _MIXED_DIM

    def __init__(self, embed_dim: int = 512, k: int = 20, num_points: int = 1024) -> None:
        super().__init__()
        for name, value in (("embed_dim", embed_dim), ("k", k)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.config = {"embed_dim": embed_dim, "k": k, "num_points": num_points}
        self.embed_dim, self.k = embed_dim, k
        self.edges = nn.ModuleList(
            EdgeConv(before, after, k) for before, after in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)
        )
        self.mix = SharedMLP((sum(WIDTHS), _MIXED_DIM), negative_slope=0.2)
        self.linear = nn.Linear(2 * _MIXED_DIM, embed_dim, bias=False)
        self.norm = GlobalBatchNorm(embed_dim)

    def reset_parameters(self) -> None:
        """Fresh weights, as PyTorch initialises linear layers."""
        self.apply(reset_layers)

    def forward(self, xyz: Tensor) -> Tensor:
        """Features of every point, ``(B, N, 3)`` to ``(B, N, 1024)``; N at least k."""
        mixed: Tensor = self.mix(self._edge_features(xyz))
        return mixed

    def local_features(self, xyz: Tensor) -> Tensor:
        """The features of every point that its segmentation network reads (section 4.3 and figure 3).

        There, three edge convolutions are concatenated, and the category is known; here all four are, and no category
        is known.

        Args:
            xyz: ``(B, N, 3)``, N at least k.

        Returns:
            ``(B, N, 512 + 1024)``: the outputs of the edge convolutions, and the maximum over the cloud of the shared
            layer that follows them.
        """
        edges = self._edge_features(xyz)
        whole: Tensor = self.mix(edges).amax(1, keepdim=True)
        return torch.cat([edges, whole.expand(-1, xyz.shape[1], -1)], dim=2)

    def _edge_features(self, xyz: Tensor) -> Tensor:
        """The outputs of the edge convolutions, ``(B, N, 512)``."""
        check_clouds(xyz, self.k, "k")
        features, found = xyz.to(next(self.parameters()).dtype), []
        for layer in self.edges:
            features = layer(features)
            found.append(features)
        return torch.cat(found, dim=2)

    def encode(self, xyz: Tensor, pooling: str = "max+mean") -> Tensor:
        """One feature vector per cloud, ``(B, N, 3)`` to ``(B, C)``; always from the concatenated maximum and mean."""
        points = self.forward(xyz)
        features: Tensor = self.norm(self.linear(torch.cat([points.amax(1), points.mean(1)], dim=1)))
        return features
