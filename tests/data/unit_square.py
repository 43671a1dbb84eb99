"""The unit square, whose colours grow red along x and green along y."""

from __future__ import annotations

import numpy as np
import torch

from pc3d.data import PointCloud

CORNERS = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
VERTICES = "".join(f"{x} {y} {z}\n" for x, y, z in CORNERS)


def check_gradient(cloud: PointCloud, factor: tuple[float, float, float] = (1, 1, 1), atol: float = 1e-5) -> None:
    assert cloud.rgb is not None
    expected = torch.cat([cloud.xyz[:, :2], torch.zeros(len(cloud), 1)], dim=1) * torch.tensor(factor)
    torch.testing.assert_close(cloud.rgb, expected, atol=atol, rtol=0)


def check_texture(cloud: PointCloud, factor: tuple[float, float, float] = (1, 1, 1), atol: float = 1e-5) -> None:
    """The square shows the whole of the fixture ``picture``, lower left in (0, 0)."""
    assert cloud.rgb is not None
    x, y = cloud.xyz[:, :2].T
    expected = torch.stack([texture_at(x), texture_at(y), torch.zeros(len(cloud))], dim=1) * torch.tensor(factor)
    torch.testing.assert_close(cloud.rgb, expected, atol=atol, rtol=0)


def texture_at(place: torch.Tensor) -> torch.Tensor:
    """The red of ``picture`` at places along its lower edge, or its green along its left edge.

    The middle of pixel i of 52 lies at (i + 0.5) / 52, colours change evenly from one to the next, and the last one has
    the first one beside it.
    """
    middles, colours = (np.arange(52) + 0.5) / 52, np.arange(52) * 5 / 255
    return torch.from_numpy(np.interp(place.double().numpy(), middles, colours, period=1)).float()
