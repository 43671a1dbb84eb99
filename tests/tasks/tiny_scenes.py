"""A backbone and data small enough to train in a moment, on real rooms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pc3d.data import PointBatch, PointCloud, Rooms
from pc3d.data.dataset import PointDataset
from pc3d.models import SparseUNet


class Pointwise(nn.Module):
    """Looks at each point alone, at its colour and height."""

    def __init__(self, feature_dim: int = 12, voxel_size: float | None = 0.2) -> None:
        super().__init__()
        self.feature_dim, self.voxel_size, self.signals = feature_dim, voxel_size, "xyz_rgb"
        self.first = nn.Linear(4, feature_dim)

    def point_features(self, batch: PointBatch) -> Tensor:
        assert batch.rgb is not None
        return torch.relu(self.first(torch.cat([batch.xyz[:, 2:], 2 * batch.rgb - 1], dim=1)))


def unet(**changes: Any) -> SparseUNet:
    """Two levels; in training a random point stands for each voxel."""
    return SparseUNet(**{"channels": (8, 12), "blocks": (1, 1), "voxel_size": 0.4, **changes})


class SmallRooms(PointDataset):
    """Some points of the embedded rooms."""

    def __init__(self, split: str = "train", num_points: int = 600) -> None:
        rooms = Rooms(split)
        self.classes, self.labels = rooms.classes, rooms.labels
        self.clouds = []
        for index in range(len(rooms)):
            cloud = rooms.load(index)
            generator = torch.Generator().manual_seed(index)
            self.clouds.append(cloud.select(torch.randperm(len(cloud), generator=generator)[:num_points]))

    def load(self, index: int) -> PointCloud:
        return self.clouds[index]
