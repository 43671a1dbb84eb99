"""Sizes at which indices of 32 bits or a matrix of distances would fail, and automatic mixed precision."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from pc3d import ops


def lattice(side: int) -> Tensor:
    """``side^3`` points one apart, so that the answers are known without looking."""
    axis = torch.arange(side, dtype=torch.float32)
    return torch.cartesian_prod(axis, axis, axis)


def test_ball_query_over_more_than_two_to_the_31_distances(device: str) -> None:
    grid = lattice(36).to(device)
    assert len(grid) ** 2 > 2**31
    found = ops.ball_query(grid[None], 1.1, 8)
    # Within 1.1 lie the point and its neighbours along the axes: 6, less one for each face that it touches.
    touching = ((grid == 0) | (grid == 35)).sum(1)
    assert torch.equal(found.count[0], 7 - touching)
    last = found.index[0, -1, : int(found.count[0, -1])].tolist()
    assert last == [36**3 - 1 - 36**2, 36**3 - 1 - 36, 36**3 - 2, 36**3 - 1]


def test_chamfer_distance_over_more_than_two_to_the_31_distances(device: str) -> None:
    grid = lattice(36).to(device)
    moved = (grid + torch.tensor([0.25, 0.0, 0.0], device=device)).requires_grad_()
    distance = ops.chamfer_distance(grid[None], moved[None])
    assert distance.item() == pytest.approx(2 * 0.25**2)
    distance.backward()
    # Each moved point is pulled back by both directions: 2 * 2 * 0.25 / N along x.
    expected = torch.zeros_like(moved)
    expected[:, 0] = 1.0 / len(grid)
    torch.testing.assert_close(moved.grad, expected)


PEAK = """
import sys
from pathlib import Path
import torch
from pc3d import ops

torch.set_num_threads(1)
num_points, operator = int(sys.argv[1]), sys.argv[2]
xyz = torch.rand(1, num_points, 3, generator=torch.Generator().manual_seed(0))
call = {"knn": lambda x: ops.knn(x, 16), "ball_query": lambda x: ops.ball_query(x, 0.02, 16),
        "chamfer": lambda x: ops.chamfer_distance(x, x.flip(1)),
        "fps": lambda x: ops.farthest_point_sample(x, 64)}[operator]
call(xyz[:, :1000])

def resident(name):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name)).split()[1])

Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
call(xyz)
print(1024 * (resident("VmHWM") - before))
"""


@pytest.mark.parametrize("operator", ["knn", "ball_query", "chamfer", "fps"])
def test_memory_grows_with_the_points_not_with_their_pairs(operator: str) -> None:
    num_points = 200_000
    command = [sys.executable, "-c", PEAK, str(num_points), operator]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result_bytes = {"knn": 16 * 12, "ball_query": 16 * 8 + 8, "chamfer": 24, "fps": 0}[operator]
    # The result, as much again for its copies, and 200 bytes a point for trees: a matrix of distances has 800,000.
    assert int(done.stdout) < num_points * (2 * result_bytes + 200)


def test_operators_keep_their_precision_under_autocast(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(2, 300, 3, generator=generator).to(device)
    features = torch.rand(2, 300, 8, generator=generator).to(device)

    def results() -> list[Tensor]:
        near = ops.knn(xyz, 4)
        return [
            ops.farthest_point_sample(xyz, 32),
            near.index,
            near.squared_distance,
            ops.ball_query(xyz, 0.2, 8).index,
            ops.gather(features, near.index),
            ops.interpolate(features, xyz, xyz[:, ::3]),
            ops.chamfer_distance(xyz, xyz.flip(0)),
        ]

    plain = results()
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        mixed = results()
    for one, other in zip(plain, mixed, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0)
