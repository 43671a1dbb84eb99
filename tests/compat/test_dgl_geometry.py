"""The stand-in for the sampler of dgl.geometry against the plain algorithm."""

from __future__ import annotations

import pytest
import torch

from pc3d.compat.dgl_geometry import farthest_point_sampler


@pytest.mark.parametrize("start", [0, 9, None])
def test_farthest_points_from_a_given_or_random_one(start: int | None) -> None:
    xyz = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    xyz[:, 7] = 0.0  # a point at the origin is like any other
    index = farthest_point_sampler(xyz, 50, start) if start is not None else farthest_point_sampler(xyz, 50)
    assert (index.dtype, index.shape) == (torch.int64, (2, 50))
    for found, points in zip(index.tolist(), xyz, strict=True):
        taken = found[:1] if start is None else [start]
        while len(taken) < 50:
            taken.append(int(torch.cdist(points, points[taken]).amin(1).argmax()))
        assert found == taken


def test_random_starts_differ_between_clouds() -> None:
    torch.manual_seed(0)
    assert farthest_point_sampler(torch.randn(40, 50, 3), 1).unique().numel() > 10


def test_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 9, 16\).*install dgl"):
        farthest_point_sampler(torch.randn(2, 9, 16), 3)
