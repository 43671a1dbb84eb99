"""Layers whose weights are shared by all points: PointNet's shared MLP and DGCNN's edge convolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.ops import gather, knn


class SharedMLP(nn.Module):
    """Linear layer without bias, batch norm and (leaky) ReLU for each width, applied to each point separately.

    Point networks often write this as convolutions of kernel size 1 (PointNet, Qi et al., 2017).

    Args:
        dims: widths from input to output.
        negative_slope: slope of the leaky ReLU; 0 for ReLU.
    """

    def __init__(self, dims: Sequence[int], negative_slope: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(dims):
            activation = nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()
            layers += [nn.Linear(before, after, bias=False), GlobalBatchNorm(after), activation]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(..., C_in)`` to ``(..., C_out)``."""
        mapped: Tensor = self.layers(features.reshape(-1, features.shape[-1]))
        return mapped.view(*features.shape[:-1], mapped.shape[-1])


class EdgeConv(nn.Module):
    """Edge convolution: the maximum over the edges from each point to its k nearest points, itself included.

    ``max_j leaky_relu(norm(W concat(x_j - x_i, x_i)))``, with nearest neighbours in feature space.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        k: number of neighbours.

    Source:
        Dynamic Graph CNN (Wang et al., 2019), section 3.1 and equation 8.
    """

    def __init__(self, in_features: int, out_features: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.linear = nn.Linear(2 * in_features, out_features, bias=False)
        self.norm = GlobalBatchNorm(out_features)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, N, C_in)`` to ``(B, N, C_out)``; N at least k."""
        neighbors = nearest_features(features, self.k)
        # W (x_j - x_i, x_i) = A x_j + (B - A) x_i with W = (A, B): one product per point instead of one per edge.
        of_neighbor, of_center = self.linear.weight.chunk(2, dim=1)
        centers = F.linear(features, of_center - of_neighbor)
        edges = gather(F.linear(features, of_neighbor), neighbors) + centers[:, :, None]
        normed: Tensor = self.activation(self.norm(edges.flatten(0, 2)))
        return normed.view(edges.shape).amax(2)


@torch.no_grad()
def nearest_features(features: Tensor, k: int) -> Tensor:
    """Indices ``(B, N, k)`` of the k points nearest to each in feature space ``(B, N, C)``, itself included."""
    with torch.autocast(features.device.type, enabled=False):
        features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        if features.shape[-1] == 3:
            return knn(features, k).index
        centred = features - features.mean(1, keepdim=True)  # less cancellation in the differences of squares
        squares = centred.square().sum(-1)
        closeness = 2 * centred @ centred.mT - squares[:, None, :]
        return closeness.topk(k, dim=-1).indices
