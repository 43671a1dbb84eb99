"""Farthest point sampling by the tree of boxes: equal to the definition on both sides of every switch of the kernels.

The kernels look at every point below 2,048 points or 200 samples, build a tree of buckets of 128 points beyond, and
from 131,072 points on apply waiting samples to all buckets at once, by several threads.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from pc3d.data import Household
from pc3d.ops import farthest_point_sample, reference, sample_offsets


def cloud(kind: str, num_points: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(num_points, 3) of a kind that is hard on a tree of boxes."""
    random = torch.Generator().manual_seed(num_points)
    normal = torch.randn(num_points, 3, generator=random, dtype=torch.float64)
    uniform = torch.rand(num_points, 3, generator=random, dtype=torch.float64)
    choice = torch.randint(0, 16, (num_points, 1), generator=random)
    side = round(num_points ** (1 / 3)) + 1
    rows = torch.arange(num_points)
    points = {
        "uniform": uniform,
        "surface": normal / normal.norm(dim=1, keepdim=True),
        # Clusters within clusters: cells of the curve have to be split again and again.
        "clusters": (choice - 8) * 100.0 + 10.0 ** -(choice % 6) * normal,
        "outlier": torch.cat([torch.full((1, 3), 1e6, dtype=torch.float64), uniform[1:]]),
        "lattice": torch.stack([rows % side, rows // side % side, rows // side**2], 1).double(),
        "few_places": normal[torch.randint(0, max(1, min(50, num_points)), (num_points,), generator=random)],
        "one_place": torch.full((num_points, 3), 0.3, dtype=torch.float64),
        "line": uniform[:, :1] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
        "plane": uniform * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64),
        "far_away": 1e4 + uniform,
        "tiny": 1e-4 * normal,
        "beyond_range": 1e25 * normal,  # squared distances overflow to infinity in float32
    }[kind]
    return points.to(dtype)


KINDS = (
    *("uniform", "surface", "clusters", "outlier", "lattice", "few_places"),
    *("one_place", "line", "plane", "far_away", "tiny", "beyond_range"),
)


def defined(xyz: Tensor, num_samples: int, start: int = 0, ignore_near_origin: bool = False) -> Tensor:
    offsets = torch.tensor([0, xyz.shape[0]])
    cuts = torch.tensor([0, num_samples])
    return reference.farthest_point_sample(xyz, offsets, cuts, num_samples, torch.tensor([start]), ignore_near_origin)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("num_points", "num_samples"), [(5000, 900), (2561, 2561)])
def test_trees_equal_the_definition(kind, dtype, num_points, num_samples):
    xyz = cloud(kind, num_points, dtype)
    found = farthest_point_sample(xyz, num_samples, start=num_points // 3)
    assert torch.equal(found, defined(xyz, num_samples, num_points // 3))


@pytest.mark.parametrize("kind", ["uniform", "lattice", "few_places", "clusters"])
@pytest.mark.parametrize("num_points", [2047, 2048, 2049, 128 * 16, 128 * 16 + 1, 128 * 256, 128 * 256 + 1])
@pytest.mark.parametrize("num_samples", [199, 201, 1700])
def test_both_sides_of_the_switch(kind, num_points, num_samples):
    xyz = cloud(kind, num_points)
    assert torch.equal(farthest_point_sample(xyz, num_samples), defined(xyz, num_samples))


@pytest.mark.parametrize("kind", ["uniform", "few_places", "lattice", "tiny", "one_place"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_origin_rule(kind, dtype):
    # A quarter of the points is near the origin ("tiny": all). The rest is exhausted, and candidates repeat.
    xyz = cloud(kind, 2400, dtype)
    xyz[::4] *= 1e-3
    for start in (0, 1):
        found = farthest_point_sample(xyz, 2300, start=start, ignore_near_origin=True)
        assert torch.equal(found, defined(xyz, 2300, start, ignore_near_origin=True))


def test_all_points_of_a_large_cloud_once():
    xyz = cloud("few_places", 40_000)
    found = farthest_point_sample(xyz, 40_000)
    assert torch.equal(found.sort().values, torch.arange(40_000))
    # Once every place is taken, only duplicates are left: lowest index first.
    assert bool((found[51:].diff() > 0).all())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["surface", "lattice", "clusters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_clouds(threads, kind, dtype):
    xyz = cloud(kind, 140_000, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = farthest_point_sample(xyz, 300, start=7)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, defined(xyz, 300, start=7))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("longest", [9000, 132_000])
def test_packed_clouds_of_all_sizes(threads, longest):
    lengths = [0, 5, 3000, longest, 1, 2048, 0, 700, 5000]
    number = torch.tensor([0, 5, 900, 400, 1, 300, 0, 64, 1000])
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    xyz = torch.cat([cloud("surface", n) for n in lengths])
    start = torch.tensor([n // 2 for n in lengths])
    cuts = sample_offsets(offsets, number)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = farthest_point_sample(xyz, number, offsets=offsets, start=start)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, reference.farthest_point_sample(xyz, offsets, cuts, int(cuts[-1]), start, False))


def test_real_objects_as_one_scene():
    objects = Household(split="test")
    scene = torch.cat([objects[i].xyz + torch.tensor([2.0 * (i % 5), 2.0 * (i // 5), 0.0]) for i in range(20)])
    assert torch.equal(farthest_point_sample(scene, 2000), defined(scene, 2000))


PRINT_A_CHECKSUM = """
import torch
from pc3d.ops import farthest_point_sample
random = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.float64):
    xyz = torch.randn(6000, 3, generator=random, dtype=dtype)
    for points, number in ((xyz, 1500), (xyz[:1000], 300), ((4 * xyz).round(), 1500)):
        index = farthest_point_sample(points, number)
        print(int((index * torch.arange(1, number + 1)).sum()), int(index[-1]))
"""


def test_all_levels_of_vectors_agree():
    outputs = {
        level: subprocess.run(
            [sys.executable, "-c", PRINT_A_CHECKSUM],
            env={**os.environ, "PC3D_SIMD": level},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for level in ("baseline", "avx2", "")
    }
    assert outputs["baseline"].count("\n") == 6
    assert len(set(outputs.values())) == 1
