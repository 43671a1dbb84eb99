"""Edges of the Python layer, found by reading it with fresh eyes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc3d import ops


def test_edges_that_a_review_found() -> None:
    """Fake tensors, numpy numbers, wrong kinds of argument."""
    meta = torch.empty(2, 50, 3, device="meta")
    assert ops.farthest_point_sample(meta, 8).shape == (2, 8)
    assert ops.knn(meta, 4).index.shape == (2, 50, 4)
    assert ops.chamfer_distance(meta, meta).shape == ()
    xyz = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0))
    assert ops.knn(xyz, np.int64(4)).index.shape == (2, 50, 4)  # type: ignore[arg-type]
    assert ops.ball_query(xyz, np.float32(0.4), 5).count.shape == (2, 50)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got 3"):
        ops.farthest_point_sample(xyz, 4, start="random", generator=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ignore_near_origin must be a bool, got 'no'"):
        ops.farthest_point_sample(xyz, 4, ignore_near_origin="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="xyz must have shape"):
        ops.group(torch.rand(10, 6), torch.zeros(2, 3, dtype=torch.int64), torch.rand(2, 3))
    with pytest.raises(ValueError, match="eps must be positive"):
        ops.interpolate(xyz, xyz, xyz, eps=0)
    with pytest.raises(ValueError, match=r"features must have shape \(2, 50, 'C'\) to fit xyz"):
        ops.interpolate(xyz[:, :20], xyz, xyz)


def test_a_compiled_gather_does_not_read_the_next_cloud() -> None:
    compiled = torch.compile(ops.gather, fullgraph=True, backend="aot_eager")
    features = torch.arange(6.0).reshape(2, 3, 1)
    assert compiled(features, torch.tensor([[2], [0]])).flatten().tolist() == [2, 3]
    with pytest.raises(RuntimeError, match="index must lie in"):
        compiled(features, torch.tensor([[3], [0]]))


def test_a_compiled_ball_query_takes_any_radius() -> None:
    compiled = torch.compile(lambda x, r: ops.ball_query(x, r, 8).count, fullgraph=True, dynamic=True, backend="eager")
    xyz = torch.rand(1, 40, 3)
    assert torch.equal(compiled(xyz, 0.3), ops.ball_query(xyz, 0.3, 8).count)


def test_packed_chamfer_of_many_points_does_not_drift() -> None:
    x, y = torch.rand(1_000_000, 3), torch.rand(1000, 3)
    packed = ops.chamfer_distance(x, y, x_offsets=torch.tensor([0, len(x)]), y_offsets=torch.tensor([0, len(y)]))
    torch.testing.assert_close(packed, ops.chamfer_distance(x[None], y[None]), rtol=1e-6, atol=0)
