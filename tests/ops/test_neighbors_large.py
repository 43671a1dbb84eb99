"""The neighbour searches on both sides of every switch of their algorithms: tile, tree, levels of boxes, vector widths.

The definition in pc3d.ops.reference is the oracle; on large clouds it answers for a sample of the queries.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pc3d.data import Household
from pc3d.ops import reference

OPS = torch.ops.pc3d

# Leaves hold 32 points and boxes 16 children: 257 and 513 points are a leaf more than fits one box of leaves, 8,193 one
# more than fits two levels. 1,024 points are a tile; from there on, depending on k, a tree takes over.
SIZES = [1, 33, 513, 1025, 2500, 8193]


def make_cloud(kind: str, n: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    uniform = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    normal = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    which = torch.randint(0, max(1, n // 100), (n,), generator=generator)
    clouds = {
        "uniform": uniform,
        "shifted": normal + 1e4,
        "clustered": 100 * normal[which] + 1e-2 * uniform,
        "sphere": normal / normal.norm(dim=1, keepdim=True),
        "line": uniform[:, :1] * torch.tensor([[1.0, 2.0, 3.0]]),
        "lattice": torch.randint(0, max(2, round(n ** (1 / 3))), (n, 3), generator=generator).double(),
        "seven places": uniform[which % 7],
        "equal": torch.full((n, 3), 0.3),
        "outlier": torch.cat((torch.full((1, 3), 1e8, dtype=torch.float64), normal[1:])),
        "overflowing": 3e38 * uniform if dtype == torch.float32 else 1e308 * uniform,
    }
    return clouds[kind].to(dtype)


KINDS = [
    *("uniform", "shifted", "clustered", "sphere", "line"),
    *("lattice", "seven places", "equal", "outlier", "overflowing"),
]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def one_cloud(x: Tensor) -> Tensor:
    return torch.tensor([0, x.shape[0]])


def sample(n: int, count: int = 12) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count].sort().values


def check_knn(xyz: Tensor, query: Tensor, k: int, device: str | torch.device = "cpu") -> None:
    given = (xyz, one_cloud(xyz), query, one_cloud(query))
    index, squared = (found.cpu() for found in OPS.knn(*(tensor.to(device) for tensor in given), k))
    rows = sample(query.shape[0])
    expected = reference.knn(xyz, one_cloud(xyz), query[rows], torch.tensor([0, rows.shape[0]]), k)
    assert torch.equal(index[rows], expected[0])
    assert torch.equal(squared[rows], expected[1])


def check_ball(
    xyz: Tensor,
    query: Tensor,
    radius: float,
    max_neighbors: int,
    nearest_first: bool,
    device: str | torch.device = "cpu",
) -> None:
    wanted = (radius, max_neighbors, nearest_first)
    given = (xyz, one_cloud(xyz), query, one_cloud(query))
    index, count = (found.cpu() for found in OPS.ball_query(*(tensor.to(device) for tensor in given), *wanted))
    rows = sample(query.shape[0])
    expected = reference.ball_query(xyz, one_cloud(xyz), query[rows], torch.tensor([0, rows.shape[0]]), *wanted)
    assert torch.equal(index[rows], expected[0])
    assert torch.equal(count[rows], expected[1])


def check_nearest_both_ways(x: Tensor, y: Tensor, device: torch.device) -> None:
    given = (tensor.to(device) for tensor in (x, one_cloud(x), y, one_cloud(y)))
    found = [tensor.cpu() for tensor in OPS.nearest_both_ways(*given)]
    for (a, b), (squared, index) in zip(((x, y), (y, x)), (found[:2], found[2:]), strict=True):
        rows = sample(a.shape[0])
        expected = reference.knn(b, one_cloud(b), a[rows], one_cloud(rows), 1)
        assert torch.equal(index[rows], expected[0][:, 0])
        assert torch.equal(squared[rows], expected[1][:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_knn_of_a_cloud_in_itself(kind: str, n: int, dtype: torch.dtype) -> None:
    xyz = make_cloud(kind, n, dtype)
    for k in (1, 16, 33, 128):
        if k <= n and (kind, n) != ("overflowing", 8193):  # where all distances are infinite no box spares a look
            check_knn(xyz, xyz, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [300, 3000, 9000])
def test_knn_of_other_queries(kind: str, n: int, threads: int) -> None:
    xyz = make_cloud(kind, n, torch.float32)
    near = xyz.flip(0) + 0.01 * make_cloud("shifted", n, torch.float32).sub(1e4)
    for query in (near, near[::37], xyz[: n // 2] + 1000, xyz[:5], torch.zeros(0, 3)):
        for k in (1, 20):
            check_knn(xyz, query.contiguous(), k)


@pytest.mark.parametrize("nearest_first", [False, True], ids=["index", "distance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [33, 1025, 4000])
def test_ball_query(kind: str, n: int, dtype: torch.dtype, nearest_first: bool) -> None:
    xyz = make_cloud(kind, n, dtype)
    typical = float(reference.knn(xyz, one_cloud(xyz), xyz[:1], torch.tensor([0, 1]), min(n, 30))[1][0, -1]) ** 0.5
    for radius in (min(typical, 1e30) + 1e-3, 5 * min(typical, 1e30) + 1e-3):
        for max_neighbors in (1, 16, 300):
            check_ball(xyz, xyz, radius, max_neighbors, nearest_first)


# On CUDA leaves and nodes hold 32: 1,025 points have a level of nodes more than 1,024, and 32,769 another.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "count"), [(1025, 40), (32_769, 32)])
def test_few_queries_of_a_large_cloud(device: torch.device, kind: str, n: int, count: int, dtype: torch.dtype) -> None:
    xyz = make_cloud(kind, n, dtype)
    query = xyz[sample(n, count)]
    query[::4] += xyz.std(0).nan_to_num(posinf=1)
    query[-1] += 1000
    for k in (1, 20) if n > 20_000 else (1, 33, 128):
        check_knn(xyz, query, k, device)
    near = reference.knn(xyz, one_cloud(xyz), query[:1], torch.tensor([0, 1]), 30)[1]
    radius = 1.5 * min(float(near[0, -1]), 1e30) ** 0.5 + 1e-3
    for nearest_first in (False, True):
        for max_neighbors in (20,) if n > 20_000 else (1, 50):
            check_ball(xyz, query, radius, max_neighbors, nearest_first, device)


@pytest.mark.parametrize("kind", ["uniform", "lattice", "equal"])
def test_more_than_two_to_the_32_distances(device: torch.device, kind: str) -> None:
    xyz = make_cloud(kind, 66_000, torch.float32)
    for k in (1, 16, 128):
        check_knn(xyz, xyz.flip(0), k, device)
    for nearest_first in (False, True):
        check_ball(xyz, xyz.flip(0), 0.05, 20, nearest_first, device)
    check_nearest_both_ways(xyz, make_cloud(kind, 67_000, torch.float32), device)


def test_ball_is_open_where_points_lie_on_its_surface(threads: int) -> None:
    axis = torch.arange(20.0)
    xyz = torch.cartesian_prod(axis, axis, axis)
    for nearest_first in (False, True):
        _, count = OPS.ball_query(xyz, one_cloud(xyz), xyz, one_cloud(xyz), 1.0, 8, nearest_first)
        assert torch.equal(count, torch.ones_like(count))
        _, count = OPS.ball_query(xyz, one_cloud(xyz), xyz, one_cloud(xyz), 1.0000001, 8, nearest_first)
        assert count.max() == 7
        assert count.min() == 4
    tiny = 1e-30  # its square vanishes in float32, and nothing is closer than 0
    _, count = OPS.ball_query(xyz, one_cloud(xyz), xyz, one_cloud(xyz), tiny, 8, True)
    assert torch.equal(count, torch.zeros_like(count))


def test_equal_points_are_not_all_compared(threads: int) -> None:
    n, k = 50_000, 16
    xyz = torch.ones(n, 3)
    index, squared = OPS.knn(xyz, one_cloud(xyz), xyz, one_cloud(xyz), k)
    assert torch.equal(index, torch.arange(k).expand(n, k))
    assert not squared.any()
    index, _ = OPS.ball_query(xyz, one_cloud(xyz), xyz, one_cloud(xyz), 0.1, k, False)
    assert torch.equal(index, torch.arange(k).expand(n, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "query_sizes",
    [[0, 40, 4000, 0, 0, 10, 300, 3000], [0, 9, 15, 0, 0, 10, 3, 4]],
    ids=["thousands_of_queries", "few_queries"],
)
def test_small_and_large_clouds_in_one_batch(
    device: torch.device, dtype: torch.dtype, query_sizes: list[int], threads: int
) -> None:
    sizes = [0, 40, 5000, 7, 0, 4000, 300, 3000]
    offsets, query_offsets = (torch.tensor([0, *s]).cumsum(0) for s in (sizes, query_sizes))
    xyz = torch.cat([make_cloud(kind, n, dtype) for n, kind in zip(sizes, KINDS, strict=False)])
    query = torch.cat([make_cloud(kind, n, dtype) for n, kind in zip(query_sizes, KINDS, strict=False)])
    given = [tensor.to(device) for tensor in (xyz, offsets, query, query_offsets)]
    index, squared = (found.cpu() for found in OPS.knn(*given, 20))
    lowest, count = (found.cpu() for found in OPS.ball_query(*given, 0.2, 12, False))
    for b in range(len(sizes)):
        points = xyz[offsets[b] : offsets[b + 1]]
        rows = sample(query_sizes[b]) + query_offsets[b]
        pair = (points, one_cloud(points), query[rows], one_cloud(rows))
        if len(rows) == 0:
            continue
        expected, distance = reference.knn(*pair, 20)
        assert torch.equal(index[rows], expected + offsets[b])
        assert torch.equal(squared[rows], distance)
        expected, size = reference.ball_query(*pair, 0.2, 12, False)
        assert torch.equal(lowest[rows], torch.where(expected < 0, expected, expected + offsets[b]))
        assert torch.equal(count[rows], size)


def test_many_large_clouds_of_real_objects(threads: int) -> None:
    clouds = [item.xyz for item in (Household("test", num_points=2048)[i] for i in range(8))]
    xyz = torch.cat([*clouds, torch.cat(clouds), torch.cat(clouds[::-1])])
    offsets = torch.tensor([0, *[2048] * 8, 8 * 2048, 8 * 2048]).cumsum(0)
    index, squared = OPS.knn(xyz, offsets, xyz, offsets, 16)
    for b in range(10):
        points = xyz[offsets[b] : offsets[b + 1]]
        rows = sample(points.shape[0])
        expected = reference.knn(points, one_cloud(points), points[rows], one_cloud(rows), 16)
        assert torch.equal(index[rows + offsets[b]], expected[0] + offsets[b])
        assert torch.equal(squared[rows + offsets[b]], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [([32] * 50, [32] * 50), ([0, 1, 17, 5, 0, 40], [0, 7, 1, 300, 0, 16])])
@pytest.mark.parametrize("kind", ["uniform", "lattice", "equal", "overflowing"])
def test_nearest_both_ways_of_small_sets(
    kind: str, sizes: tuple[list[int], list[int]], dtype: torch.dtype, threads: int
) -> None:
    (x, x_offsets), (y, y_offsets) = (
        (torch.cat([make_cloud(kind, n, dtype) for n in side]), torch.tensor([0, *side]).cumsum(0)) for side in sizes
    )
    found = OPS.nearest_both_ways(x, x_offsets, y, y_offsets)
    for ours, expected in zip(found, reference.nearest_both_ways(x, x_offsets, y, y_offsets), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_nearest_both_ways_of_large_sets(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    for n, m in ((300, 300), (900, 1100), (5000, 6000), (5000, 20)):
        check_nearest_both_ways(make_cloud(kind, n, dtype), make_cloud(kind, m, dtype), device)


def test_what_a_compiled_graph_lets_pass_does_no_harm() -> None:
    for n in (50, 5000):
        xyz = make_cloud("uniform", n, torch.float32)
        xyz[n // 2 :, 1] = torch.nan
        for k in (1, n // 2 + 3 if n == 50 else 128):
            index, _ = OPS.knn(xyz, one_cloud(xyz), xyz, one_cloud(xyz), k)
            assert index.min() >= 0
            assert index.max() < n
        index, count = OPS.ball_query(xyz, one_cloud(xyz), xyz, one_cloud(xyz), 0.2, 9, True)
        assert index.min() >= -1
        assert index.max() < n
        assert not count[n // 2 :].any()


def test_a_large_cloud_that_a_compiled_graph_lets_pass_does_no_harm(device: torch.device) -> None:
    xyz = make_cloud("uniform", 2000, torch.float32)
    xyz[::2, 1] = torch.nan
    xyz[1::20] = torch.inf
    query = xyz[:40].clone()
    for offsets in ([0, 2000], [-5, 3000], [700, 900], [2000, 0]):
        given = [tensor.to(device) for tensor in (xyz, torch.tensor(offsets), query, one_cloud(query))]
        if offsets != [0, 2000] and device.type == "cpu" and "PC3D_EMULATED_CUDA" not in os.environ:
            # The CPU's kernels look at offsets, those of CUDA keep to the memory.
            with pytest.raises(RuntimeError, match="offsets must run from 0 to the number of rows"):
                OPS.knn(*given, 9)
            continue
        found, within = OPS.knn(*given, 9)[0], OPS.ball_query(*given, 0.2, 9, True)[0]
        for index in (found.cpu(), within.cpu()):
            assert index.min() >= -1
            assert index.max() < 2000


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_over_readers_do_not_depend_on_the_threads(channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(-1, 9000, (60_000,), generator=generator)
    grad = torch.randn(60_000, channels, generator=generator).to(dtype)
    before = torch.get_num_threads()
    sums = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        sums.append(OPS.gather_backward(grad, index, 9000, True))
    torch.set_num_threads(before)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
    assert torch.equal(sums[0], reference.gather_backward(grad, index, 9000, True))


_DIGEST = """
import hashlib, torch, pc3d.ops
generator = torch.Generator().manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    for n, k in ((100, 9), (700, 100), (6000, 20)):
        for scale in (1, 9):
            xyz = (torch.rand(n, 3, generator=generator) * 10 * scale).round_().to(dtype) / 7
            o = torch.tensor([0, n])
            results = [*torch.ops.pc3d.knn(xyz, o, xyz, o, k), *torch.ops.pc3d.ball_query(xyz, o, xyz, o, 0.4, k, True)]
            results += torch.ops.pc3d.nearest_both_ways(xyz, o, xyz[: n // 2] + 0.01, torch.tensor([0, n // 2]))
            for result in results:
                digest.update(result.contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_vectors_of_every_width_give_the_same_bits() -> None:
    digests = {}
    for level in ("baseline", "avx2", "widest"):
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env={**os.environ, "PC3D_SIMD": level, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        digests[level] = done.stdout.strip()
    assert len(digests["widest"]) == 64
    assert len(set(digests.values())) == 1, digests
