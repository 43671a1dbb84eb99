"""voxelize and voxelize_coords against numpy, cell by cell; order, ties, extremes, bad input, graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clouds import LENGTHS, make, offsets_of, pairs

from pc3d.data import Household
from pc3d.ops import reference_voxels, voxelize, voxelize_coords

SIZES = {"normal": 0.3, "lattice": 0.25, "duplicates": 0.5, "sorted": 1.0, "line": 3.0, "huge": 0.7, "tiny": 1e-5}


def written(cells: np.ndarray, offsets: torch.Tensor) -> list[np.ndarray]:
    """What a grid of cells holds, by looking at one point after the other."""
    coords, cuts, inverse, first, count = [], [0], np.empty(len(cells), np.int64), [], []
    for begin, end in pairs(offsets):
        rows: dict[tuple[int, ...], list[int]] = {}
        for row in range(begin, end):
            rows.setdefault(tuple(cells[row].tolist()), []).append(row)
        for cell in sorted(rows):
            inverse[rows[cell]] = len(coords)
            coords.append(cell)
            first.append(rows[cell][0])
            count.append(len(rows[cell]))
        cuts.append(len(coords))
    return [np.array(coords, np.int32).reshape(-1, 3), np.array(cuts), inverse, np.array(first), np.array(count)]


def assert_same(found, expected):
    for name, own, right in zip(found._fields, found, expected, strict=True):
        assert own.dtype == (torch.int32 if name == "coords" else torch.int64)
        assert own.shape == right.shape
        assert np.array_equal(own.cpu().numpy(), right), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_point_is_in_its_cell(device, kind, lengths, dtype):
    xyz, offsets = make(kind, sum(lengths), dtype), offsets_of(lengths)
    own = xyz.float() if dtype in (torch.float16, torch.bfloat16) else xyz
    # numpy divides and floors in the type of the points.
    cells = np.floor(own.numpy() / own.numpy().dtype.type(SIZES[kind])).astype(np.int32)
    found = voxelize(xyz.to(device), SIZES[kind], offsets=offsets.to(device))
    assert_same(found, written(cells, offsets))


@pytest.mark.parametrize("factor", [1, 2, 3, 7, 2**31 - 1])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_coarser_voxels(device, factor, lengths):
    random, offsets = torch.Generator().manual_seed(0), offsets_of(lengths)
    coords = torch.randint(-9, 10, (sum(lengths), 3), generator=random, dtype=torch.int32)
    found = voxelize_coords(coords.to(device), factor, offsets=offsets.to(device))
    assert_same(found, written(np.floor_divide(coords.numpy(), factor), offsets))


def test_the_whole_range_of_int32(device):
    low, high = -(2**31), 2**31 - 1
    coords = torch.tensor([[high, low, 0], [low, high, high], [high, low, 0], [0, 0, low], [low, high, high - 1]])
    found = voxelize_coords(coords.int().to(device), 1, offsets=offsets_of([3, 2]).to(device))
    assert found.coords.tolist() == [[low, high, high], [high, low, 0], [low, high, high - 1], [0, 0, low]]
    assert found.inverse.tolist() == [1, 0, 1, 3, 2]
    for factor in (2, 3, 1000):
        found = voxelize_coords(coords.int().to(device), factor)
        assert_same(found, written(np.floor_divide(coords.numpy(), factor), offsets_of([5])))


def test_quotients_next_to_an_integer_round_down_alike(device):
    cells = torch.arange(-500, 500)[:, None].expand(1000, 3)
    for dtype in (torch.float32, torch.float64):
        size = torch.tensor(0.1, dtype=dtype)
        edges = cells.to(dtype) * size
        for xyz in (edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1)):
            found = voxelize(xyz.contiguous().to(device), 0.1)
            right = torch.floor(xyz / size).int()
            assert torch.equal(found.coords[found.inverse].cpu(), right)


@pytest.mark.parametrize("num_clouds", [0, 1, 3])
def test_nothing_to_voxelize(device, num_clouds):
    offsets = torch.zeros(num_clouds + 1, dtype=torch.int64, device=device)
    found = voxelize(torch.zeros(0, 3, device=device), 0.1, offsets=offsets)
    assert_same(found, written(np.empty((0, 3), np.int32), offsets))
    assert found.offsets.tolist() == [0] * (num_clouds + 1)
    assert_same(
        voxelize_coords(torch.zeros(0, 3, dtype=torch.int32, device=device), 2, offsets=offsets),
        written(np.empty((0, 3), np.int32), offsets),
    )


def test_clouds_do_not_mix_and_their_order_inside_does_not_matter(device):
    xyz = Household(split="train")[0].xyz.to(device)
    order = torch.randperm(len(xyz), generator=torch.Generator().manual_seed(0)).to(device)
    alone = voxelize(xyz, 0.05)
    both = voxelize(torch.cat([xyz, xyz[order]]), 0.05, offsets=offsets_of([len(xyz)] * 2).to(device))
    size = len(alone.coords)
    assert 100 < size < len(xyz)
    assert both.offsets.tolist() == [0, size, 2 * size]
    for part in (both.coords[:size], both.coords[size:]):
        assert torch.equal(part, alone.coords)
    assert torch.equal(both.inverse[len(xyz) :] - size, alone.inverse[order])
    assert torch.equal(both.count[size:], alone.count)


def test_levels_nest(device):
    xyz = make("normal", 3000).to(device)
    fine = voxelize(xyz, 0.125)
    coarse = voxelize_coords(fine.coords, 4)
    direct = voxelize(xyz, 0.5)
    assert torch.equal(coarse.coords, direct.coords)
    assert torch.equal(coarse.inverse[fine.inverse], direct.inverse)
    twice = voxelize_coords(voxelize_coords(fine.coords, 2).coords, 2)
    assert torch.equal(twice.coords, direct.coords)


@pytest.mark.parametrize("num_points", [70_000, 200_000])
def test_many_points(device, num_points):
    # Several chunks of the sort, whatever the number of threads.
    xyz = 40 * make("normal", num_points, seed=3)
    offsets = offsets_of([num_points // 3, 0, num_points - num_points // 3])
    expected = reference_voxels.voxelize(xyz, offsets, 0.4)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = voxelize(xyz.to(device), 0.4, offsets=offsets.to(device))
            for own, right in zip(found, expected, strict=True):
                assert torch.equal(own.cpu(), right)
    finally:
        torch.set_num_threads(before)


def test_coordinates_that_need_more_than_64_bits_together(device):
    # 32 bits an axis: the packed keys of the CPU kernel do not fit, nor do they with a few hundred metres.
    random = torch.Generator().manual_seed(0)
    wide = torch.randint(-(2**31), 2**31, (300, 3), generator=random).int()
    wide = torch.cat([wide, wide[::3], wide[::7]])
    offsets = offsets_of([200, 0, len(wide) - 200])
    assert_same(voxelize_coords(wide.to(device), 1, offsets=offsets.to(device)), written(wide.numpy(), offsets))


@pytest.mark.parametrize("product", [2**31 - 1, 2**31, 2**63 - 1, 2**63])
def test_boxes_whose_cells_can_just_be_counted_in_32_or_64_bits(device, product):
    # Sides whose product with the two clouds is at most `product`, then more: a CUDA kernel's keys change type there.
    random = torch.Generator().manual_seed(0)
    for x, y, z in ((product // 2, 1, 1), (2**9, 2**9, product // 2**19), (2**21, 2**20, product // 2**42)):
        if not all(1 <= side <= 2**32 for side in (x, y, z)):
            continue
        for more in (0, 1):
            low, sides = torch.tensor([-(x // 2), -y, 0 if z < 2**31 else -(2**31)]), (x, y, min(z + more, 2**32))
            corners = torch.tensor([[0, 0, 0], [side - 1 for side in sides]])
            inside = torch.stack([torch.randint(0, side, (60,), generator=random) for side in sides], 1)
            coords = (torch.cat([corners, inside, inside[::2], corners]) + low).int()
            offsets = offsets_of([70, len(coords) - 70])
            found = voxelize_coords(coords.to(device), 1, offsets=offsets.to(device))
            assert_same(found, written(coords.numpy(), offsets))


def test_strided_input(device):
    xyz = make("normal", 200).to(device)
    strided = xyz.t().contiguous().t()
    assert not strided.is_contiguous()
    for own, right in zip(voxelize(strided, 0.2), voxelize(xyz, 0.2), strict=True):
        assert torch.equal(own, right)


XYZ = torch.rand(10, 3)
BAD = [
    (TypeError, "xyz must have dtype .*, got int64", lambda: voxelize(torch.zeros(5, 3, dtype=torch.int64), 0.1)),
    (TypeError, "xyz must be a torch.Tensor, got list", lambda: voxelize([[0.0, 0.0, 0.0]], 0.1)),
    (TypeError, "voxel_size must be a number, got str '0.1'", lambda: voxelize(XYZ, "0.1")),
    (ValueError, "voxel_size must be positive and finite, got 0", lambda: voxelize(XYZ, 0)),
    (ValueError, "voxel_size must be positive and finite, got nan", lambda: voxelize(XYZ, float("nan"))),
    (ValueError, r"xyz must be packed \(N, 3\), got \(1, 10, 3\): pass xyz.flatten", lambda: voxelize(XYZ[None], 0.1)),
    (ValueError, r"xyz must have shape .*, got \(10, 2\)", lambda: voxelize(XYZ[:, :2], 0.1)),
    (ValueError, "xyz holds a NaN or infinite coordinate", lambda: voxelize(XYZ / 0, 0.1)),
    (ValueError, "voxel_size 1e-10 puts coordinates into voxels", lambda: voxelize(XYZ + 1, 1e-10)),
    (ValueError, "offsets must run from 0 to .* 10, got 0 to 9", lambda: voxelize(XYZ, 1.0, offsets=offsets_of([9]))),
    (TypeError, "coords must have dtype int32, got float32", lambda: voxelize_coords(XYZ, 2)),
    (TypeError, "factor must be an int, got float 2.0", lambda: voxelize_coords(XYZ.int(), 2.0)),
    (ValueError, "factor must be between 1 and 2147483647, got 0", lambda: voxelize_coords(XYZ.int(), 0)),
    (
        ValueError,
        r"coords must have shape \(N, 3\), without a batch column, got \(4, 4\)",
        lambda: voxelize_coords(torch.zeros(4, 4).int(), 2),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["voxelize", "unique_voxels"])
def test_opcheck(device, name):
    offsets = offsets_of([25, 0, 15]).to(device)
    points = make("normal", 40).to(device)
    arguments = (points, offsets, 0.3) if name == "voxelize" else ((5 * points).int(), offsets, 2)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    results = torch.library.opcheck(getattr(torch.ops.pc3d, name).default, arguments, test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}


def test_a_graph_without_breaks(device):
    def levels(xyz, offsets):
        fine = voxelize(xyz, 0.2, offsets=offsets)
        coarse = voxelize_coords(fine.coords, 2, offsets=fine.offsets)
        return coarse.coords.float().sum(0), coarse.inverse[fine.inverse], coarse.count

    before = torch._dynamo.config.capture_dynamic_output_shape_ops
    torch._dynamo.config.capture_dynamic_output_shape_ops = True  # the number of voxels is data
    try:
        compiled = torch.compile(levels, fullgraph=True, backend="aot_eager")
        for seed in (0, 1):
            arguments = make("normal", 50, seed=seed).to(device), offsets_of([20, 30]).to(device)
            for own, right in zip(compiled(*arguments), levels(*arguments), strict=True):
                assert torch.equal(own, right)
    finally:
        torch._dynamo.config.capture_dynamic_output_shape_ops = before


def test_raw_operators_guard_their_memory():
    ops, coords = torch.ops.pc3d, torch.zeros(10, 3, dtype=torch.int32)
    bad, good = torch.tensor([0, 11]), torch.tensor([0, 10])
    for call in (
        lambda: ops.voxelize(torch.zeros(10, 3), bad, 0.1),
        lambda: ops.unique_voxels(coords, torch.tensor([0, 12, 10]), 1),
        lambda: ops.unique_voxels(coords, good, 0),
        lambda: ops.kernel_map(coords, bad, coords, good, 3, 1, -1),
        lambda: ops.kernel_map(coords, good, coords, torch.tensor([0, 5, 10]), 3, 1, -1),
        lambda: ops.kernel_map(coords, good, coords, good, 0, 1, 0),
    ):
        with pytest.raises(RuntimeError):
            call()
    # Out of range before the cast to an integer, which is not defined there.
    far = ops.voxelize(torch.tensor([[1e30, -1e30, float("nan")]]), torch.tensor([0, 1]), 0.1)[0]
    assert far.dtype == torch.int32
