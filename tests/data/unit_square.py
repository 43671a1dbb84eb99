"""The unit square, whose colours grow red along x and green along y."""

from __future__ import annotations

import torch

from pc3d.data import PointCloud

CORNERS = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
VERTICES = "".join(f"{x} {y} {z}\n" for x, y, z in CORNERS)


def check_gradient(cloud: PointCloud, factor: tuple[float, float, float] = (1, 1, 1), atol: float = 1e-5) -> None:
    assert cloud.rgb is not None
    expected = torch.cat([cloud.xyz[:, :2], torch.zeros(len(cloud), 1)], dim=1) * torch.tensor(factor)
    torch.testing.assert_close(cloud.rgb, expected, atol=atol, rtol=0)
