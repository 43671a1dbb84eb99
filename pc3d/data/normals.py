"""Normals for scans that have none."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pc3d.ops import gather, knn

NORMAL_NEIGHBORS = 16
_CHUNK = 100_000


@torch.no_grad()
def estimate_normals(xyz: Tensor) -> Tensor:
    """Estimate unit normals ``(N, 3)`` of the least-squares planes through the 16 nearest points of each point.

    They point towards the middle of the box of the points between the first and the last percent along each axis,
    because a few outliers, as in laser scans, would turn the normals of floors upside down. If the points span no
    plane, the direction is arbitrary.
    """
    count = min(NORMAL_NEIGHBORS, len(xyz))
    if not count:
        return xyz.clone()
    middle = torch.from_numpy(np.percentile(xyz.cpu().numpy(), [1, 99], axis=0).mean(0)).to(xyz)
    pieces = []
    for query in xyz.split(_CHUNK):
        neighbors = gather(xyz, knn(xyz, count, query=query).index)
        spread = (neighbors - neighbors.mean(1, keepdim=True)).double()
        normal = torch.linalg.eigh(spread.mT @ spread).eigenvectors[:, :, 0].to(xyz.dtype)
        away = ((middle - query) * normal).sum(1, keepdim=True) < 0
        pieces.append(torch.where(away, -normal, normal))
    return torch.cat(pieces)
