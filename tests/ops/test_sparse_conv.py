"""Sparse convolution against dense convolution, and the kernel map against a dictionary of voxels."""

from __future__ import annotations

import math

import pytest
import torch
from clouds import offsets_of, pairs
from torch.nn import functional

from pc3d.data import Household
from pc3d.ops import KernelMap, kernel_map, reference_voxels, sparse_conv3d, voxelize, voxelize_coords

LOW, HIGH = -5, 7  # of the voxels below
LENGTHS = ([60], [40, 0, 25, 1], [0, 0, 30])
MAPS = [(3, 1), (1, 1), (5, 1), (2, 2), (3, 2), (3, 3), (4, 4), (5, 3)]


def voxels(lengths, seed=0, sort=True):
    """Distinct random voxels of several clouds, negative ones too."""
    random, parts = torch.Generator().manual_seed(seed), []
    for n in lengths:
        cells = torch.randperm((HIGH - LOW) ** 3, generator=random)[:n]
        if sort:
            cells = cells.sort().values
        side = HIGH - LOW
        parts.append(torch.stack([cells // side**2, cells // side % side, cells % side], 1) + LOW)
    return torch.cat(parts).int(), offsets_of(lengths)


def dense(features, coords, margin):
    """(1, C, X, Y, Z) volume of a cloud, whose voxel (0, 0, 0) is LOW - margin."""
    side = HIGH - LOW + 2 * margin
    x, y, z = (coords.long() - LOW + margin).T
    volume = features.new_zeros(side, side, side, features.shape[1]).index_put((x, y, z), features)
    return volume.permute(3, 0, 1, 2)[None]


def as_dense_weight(weight, size):
    """(K^3, C_in, C_out), x slowest, as torch's (C_out, C_in, X, Y, Z)."""
    return weight.reshape(size, size, size, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


def convolved(features, weight, coords, offsets, table, size, stride):
    """The same by a dense convolution of every cloud with stride 1, read where output voxels are."""
    margin, parts = 8, []
    for (begin, end), (out_begin, out_end) in zip(pairs(offsets), pairs(table.offsets), strict=True):
        volume = dense(features[begin:end], coords[begin:end], margin)
        out = functional.conv3d(volume, as_dense_weight(weight, size))
        low = 0 if size == stride else -(size // 2)
        x, y, z = (table.coords[out_begin:out_end].long() * stride + low - LOW + margin).T
        parts.append(out[0][:, x, y, z].T)
    return torch.cat(parts)


def on(device, *tensors):
    return [t.to(device) for t in tensors]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("size", "stride"), MAPS)
def test_equals_dense_convolution(device, size, stride, lengths, sort):
    coords, offsets = voxels(lengths, sort=sort)
    features, weight = random(len(coords), 3).requires_grad_(), random(size**3, 3, 4, seed=1).requires_grad_()
    bias = random(4, seed=2)
    table = kernel_map(coords.to(device), offsets=offsets.to(device), kernel_size=size, stride=stride)
    table_on_cpu = KernelMap(*(t.cpu() for t in table))
    own = sparse_conv3d(*on(device, features, weight), table, bias.to(device)).cpu()
    right = convolved(features, weight, coords, offsets, table_on_cpu, size, stride) + bias
    torch.testing.assert_close(own, right, rtol=1e-12, atol=1e-12)
    push = random(*own.shape, seed=3)
    for found, exact in zip(
        torch.autograd.grad(own, (features, weight), push), torch.autograd.grad(right, (features, weight), push),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("size", "stride"), MAPS)
def test_output_voxels(device, size, stride, lengths):
    coords, offsets = on(device, *voxels(lengths, sort=False))
    table = kernel_map(coords, offsets=offsets, kernel_size=size, stride=stride)
    if stride == 1:
        assert torch.equal(table.coords, coords)
        assert torch.equal(table.offsets, offsets)
    else:
        coarse = voxelize_coords(coords, stride, offsets=offsets)
        assert torch.equal(table.coords, coarse.coords)
        assert torch.equal(table.offsets, coarse.offsets)
    # Both tables say the same.
    out, tap = (table.neighbors >= 0).nonzero().T
    assert torch.equal(table.reverse[table.neighbors[out, tap].long(), tap].long(), out)
    assert int((table.reverse >= 0).sum()) == len(out)
    assert bool((table.reverse >= 0).any(1).all())


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 3), (3, 2), (3, 1)])
def test_transposed_equals_dense_transposed(device, size, stride):
    coords, _ = voxels([50])
    table = kernel_map(coords.to(device), kernel_size=size, stride=stride)
    features, weight = random(len(table.coords), 3), random(size**3, 3, 4, seed=1)
    own = sparse_conv3d(*on(device, features, weight), table, transposed=True)
    # Volumes whose voxel (0, 0, 0) is far enough below LOW, in coarse units and in fine ones.
    low = -10
    volume = torch.zeros(1, 3, 24, 24, 24, dtype=torch.float64)
    x, y, z = (table.coords.cpu().long() - low).T
    volume[0, :, x, y, z] = features.T
    full = functional.conv_transpose3d(volume, as_dense_weight(weight, size).transpose(0, 1), stride=stride)
    first = low * stride + (0 if size == stride else -(size // 2))
    x, y, z = (coords.long() - first).T
    torch.testing.assert_close(own.cpu(), full[0][:, x, y, z].T, rtol=1e-12, atol=1e-12)


def test_transposed_is_the_adjoint(device):
    coords, offsets = on(device, *voxels([40, 0, 25]))
    table = kernel_map(coords, offsets=offsets, kernel_size=3, stride=2)
    weight = random(27, 3, 4).to(device)
    x, y = random(len(coords), 3, seed=1).to(device), random(len(table.coords), 4, seed=2).to(device)
    back = sparse_conv3d(y, weight.transpose(1, 2), table, transposed=True)
    torch.testing.assert_close((sparse_conv3d(x, weight, table) * y).sum(), (x * back).sum())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (2, 2)])
def test_gradients_of_both_orders(device, size, stride, transposed):
    coords, offsets = on(device, *voxels([9, 0, 4]))
    table = kernel_map(coords, offsets=offsets, kernel_size=size, stride=stride)
    rows = len(table.coords) if transposed else len(coords)
    leaves = [t.to(device).requires_grad_() for t in (random(rows, 2), random(size**3, 2, 3, seed=1), random(3))]

    def conv(features, weight, bias):
        return sparse_conv3d(features, weight, table, bias, transposed=transposed)

    assert torch.autograd.gradcheck(conv, leaves)
    assert torch.autograd.gradgradcheck(conv, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("c_in", "c_out"),
    [
        *[(1, 1), (6, 48), (9, 80), (33, 65), (64, 17), (7, 112), (2, 0), (0, 2)],  # no multiple of a vector
        *[(4, 36), (8, 16), (16, 40), (24, 72), (72, 136), (64, 64)],  # whole vectors, tiles of every width
    ],
)
def test_kernels_equal_the_definition(device, dtype, c_in, c_out):
    check_kernels(device, dtype, c_in, c_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(("size", "stride"), [(5, 1), (2, 2), (1, 1)])
def test_kernels_of_other_sizes_equal_the_definition(device, dtype, size, stride):
    check_kernels(device, dtype, 16, 24, size, stride)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_kernels_read_rows_that_begin_anywhere(device, dtype):
    # Whole vectors by their number, but not by where they lie.
    check_kernels(device, dtype, 16, 24, skip=1)


def check_kernels(device, dtype, c_in, c_out, size=3, stride=1, skip=0):
    """The raw operators against their definition; tensors begin `skip` elements into their memory."""
    xyz = Household(split="train")[0].xyz
    found = voxelize(xyz, 0.06)
    table = kernel_map(found.coords.to(device), kernel_size=size, stride=stride)
    n = len(found.coords)
    assert n > 600  # several tiles

    def elements(*shape, seed=0):
        flat = random(skip + math.prod(shape), seed=seed, dtype=dtype)
        return flat[skip:].view(shape), flat.to(device)[skip:].view(shape)

    features, own_features = elements(n, c_in)
    weight, own_weights = elements(size**3, c_in, c_out, seed=1)
    grad, own_grad = elements(len(table.coords), c_out, seed=2)
    neighbors, reverse = table.neighbors.cpu(), table.reverse.cpu()
    own = torch.ops.pc3d.sparse_conv(own_features, own_weights, table.neighbors, table.reverse)
    right = reference_voxels.sparse_conv(features.double(), weight.double(), neighbors, reverse)
    own_weight = torch.ops.pc3d.sparse_conv_weight_gradient(own_features, own_grad, table.neighbors, table.reverse)
    right_weight = reference_voxels.sparse_conv_weight_gradient(features.double(), grad.double(), neighbors, reverse)
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6}.get(dtype, 1e-14)
    for found, exact in ((own, right), (own_weight, right_weight)):
        assert found.dtype == dtype
        assert found.shape == exact.shape
        if exact.numel():
            largest = float(exact.abs().max())
            torch.testing.assert_close(found.double().cpu(), exact, rtol=0, atol=tolerance * max(largest, 1e-300))


@pytest.mark.parametrize("shift", [0, 10_000, -(2**31) + 40, 2**31 - 40])
def test_position_does_not_matter(device, shift):
    coords, offsets = on(device, *voxels([60, 30]))
    table, moved = kernel_map(coords, offsets=offsets), kernel_map(coords + shift, offsets=offsets)
    assert torch.equal(table.neighbors, moved.neighbors)
    assert torch.equal(table.reverse, moved.reverse)


@pytest.mark.parametrize("stride", [1, 2])
def test_voxels_far_apart_and_at_the_ends_of_int32(device, stride):
    near, _ = voxels([40])
    low, high = -(2**31), 2**31 - 1
    ends = torch.tensor([[low, low, low], [low, low, low + 1], [high, high, high], [high - 1, high, high]])
    coords = torch.cat([near.long(), ends, near.long() * torch.tensor([1, 2**20, 2**20])[None] + 2**28]).int()
    offsets = offsets_of([70, 0, len(coords) - 70])
    size = 3 if stride == 1 else 2
    table = kernel_map(coords.to(device), offsets=offsets.to(device), kernel_size=size, stride=stride)
    out, low = (t.cpu() for t in table[2:]), -1 if stride == 1 else 0
    exact = reference_voxels.kernel_map(coords, offsets, *out, size, stride, low)
    for own, right in zip(table, exact, strict=False):
        assert torch.equal(own.cpu(), right)


@pytest.mark.parametrize("num_clouds", [0, 1, 3])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (2, 2)])
def test_no_voxels(device, num_clouds, size, stride):
    offsets = torch.zeros(num_clouds + 1, dtype=torch.int64, device=device)
    coords = torch.zeros(0, 3, dtype=torch.int32, device=device)
    table = kernel_map(coords, offsets=offsets, kernel_size=size, stride=stride)
    assert table.neighbors.shape == table.reverse.shape == (0, size**3)
    assert table.offsets.tolist() == [0] * (num_clouds + 1)
    features = torch.zeros(0, 4, device=device, requires_grad=True)
    weight = torch.ones(size**3, 4, 5, device=device, requires_grad=True)
    out = sparse_conv3d(features, weight, table)
    assert out.shape == (0, 5)
    out.sum().backward()
    assert features.grad.shape == (0, 4)
    assert not weight.grad.any()


def test_the_same_every_time_and_on_any_number_of_threads(device):
    xyz = torch.cat([Household(split="train")[i].xyz + 3 * i for i in range(6)])
    table = kernel_map(voxelize(xyz, 0.03).coords.to(device))
    features = random(len(table.coords), 19, dtype=torch.float32).to(device)
    weight = random(27, 19, 33, seed=1, dtype=torch.float32).to(device)
    assert len(features) > 5000  # more than one partial sum of the weight's gradient
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            leaves = features.clone().requires_grad_(), weight.clone().requires_grad_()
            out = sparse_conv3d(*leaves, table)
            runs.append((out.detach(), *torch.autograd.grad(out.sin().sum(), leaves), *kernel_map(table.coords)))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for own, right in zip(run, runs[0], strict=True):
            assert torch.equal(own, right)


def test_strided_input(device):
    coords, _ = on(device, *voxels([40]))
    table = kernel_map(coords.t().contiguous().t())
    assert torch.equal(table.neighbors, kernel_map(coords).neighbors)
    features, weight = random(4, 40).T.to(device), random(5, 4, 27, seed=1).permute(2, 1, 0).to(device)
    assert not features.is_contiguous()
    own = sparse_conv3d(features, weight, table)
    assert torch.equal(own, sparse_conv3d(features.contiguous(), weight.contiguous(), table))


def test_autocast_casts_both(device):
    coords, _ = on(device, *voxels([40]))
    table = kernel_map(coords)
    features, weight = random(40, 4, dtype=torch.float16).to(device), random(27, 4, 5, dtype=torch.float32).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = sparse_conv3d(features, weight, table, torch.ones(5, device=device))
    assert out.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"weight is torch.float32, features are torch.float16; cast one of them"):
        sparse_conv3d(features, weight, table)


COORDS = torch.tensor([[0, 0, 0], [0, 0, 1], [5, 5, 5]], dtype=torch.int32)
TWICE = COORDS[[0, 1, 2, 1]]
TABLE = kernel_map(COORDS)
BAD = [
    (TypeError, "coords must have dtype int32, got int64", lambda: kernel_map(COORDS.long())),
    (ValueError, r"coords must have shape \(N, 3\)", lambda: kernel_map(torch.zeros(3, 4).int())),
    (ValueError, "coords must hold every voxel of a cloud once, but row 3 is there twice", lambda: kernel_map(TWICE)),
    (ValueError, "row 3 is there twice", lambda: kernel_map(TWICE, kernel_size=2, stride=2)),
    (ValueError, "kernel_size must equal stride, or be odd .* got kernel_size 2 with stride 1",
     lambda: kernel_map(COORDS, kernel_size=2)),
    (ValueError, "at least 2 \\* stride - 1 = 5", lambda: kernel_map(COORDS, kernel_size=4, stride=3)),
    (ValueError, "kernel_size must be between 1 and 31, got 0", lambda: kernel_map(COORDS, kernel_size=0)),
    (TypeError, "stride must be an int, got float 2.0", lambda: kernel_map(COORDS, stride=2.0)),
    (ValueError, "offsets must run from 0 to .* 3, got 0 to 4", lambda: kernel_map(COORDS, offsets=offsets_of([4]))),
    (TypeError, "kernel_map must come from kernel_map",
     lambda: sparse_conv3d(torch.zeros(3, 2), torch.zeros(27, 2, 4), None)),
    (ValueError, r"features must have shape \(3, C_in\), .* got \(4, 2\)",
     lambda: sparse_conv3d(torch.zeros(4, 2), torch.zeros(27, 2, 4), TABLE)),
    (ValueError, r"weight must have shape \(27, 2, C_out\) to fit .* got \(8, 2, 4\)",
     lambda: sparse_conv3d(torch.zeros(3, 2), torch.zeros(8, 2, 4), TABLE)),
    (ValueError, r"bias must have shape \(4,\), got \(3,\)",
     lambda: sparse_conv3d(torch.zeros(3, 2), torch.zeros(27, 2, 4), TABLE, torch.zeros(3))),
    (ValueError, "weight is on meta, features on cpu",
     lambda: sparse_conv3d(torch.zeros(3, 2), torch.zeros(27, 2, 4, device="meta"), TABLE)),
    (TypeError, "features must have dtype .*, got int64",
     lambda: sparse_conv3d(torch.zeros(3, 2).long(), torch.zeros(27, 2, 4), TABLE)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", ["kernel_map", "sparse_conv", "sparse_conv_weight_gradient"])
def test_opcheck(device, name, requires_grad):
    coords, offsets = on(device, *voxels([20, 0, 10]))
    table = kernel_map(coords, offsets=offsets)
    leaves = [random(*s, dtype=torch.float32).to(device) for s in ((30, 4), (27, 4, 5), (30, 5))]
    features, weight, grad = (leaf.requires_grad_(requires_grad) for leaf in leaves)
    arguments = {
        "kernel_map": (coords, offsets, coords.clone(), offsets.clone(), 3, 1, -1),
        "sparse_conv": (features, weight, table.neighbors, table.reverse),
        "sparse_conv_weight_gradient": (features, grad, table.neighbors, table.reverse),
    }[name]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    results = torch.library.opcheck(getattr(torch.ops.pc3d, name).default, arguments, test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("stride", [1, 2])
def test_a_graph_without_breaks(device, stride):
    size = 3 if stride == 1 else 2

    def net(features, weight, coords):
        table = kernel_map(coords, kernel_size=size, stride=stride)
        hidden = sparse_conv3d(features, weight, table).relu()
        return sparse_conv3d(hidden, weight.transpose(1, 2), table, transposed=True).square().sum()

    before = torch._dynamo.config.capture_dynamic_output_shape_ops
    torch._dynamo.config.capture_dynamic_output_shape_ops = True  # the number of output voxels is data
    try:
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        for n in (30, 50):
            coords, _ = on(device, *voxels([n], seed=n))
            results = []
            for function in (net, compiled):
                features, weight = random(n, 3).to(device), random(size**3, 3, 4, seed=1).to(device)
                leaves = features.requires_grad_(), weight.requires_grad_()
                value = function(*leaves, coords)
                results.append((value.detach(), *torch.autograd.grad(value, leaves)))
            torch.testing.assert_close(results[1], results[0])
    finally:
        torch._dynamo.config.capture_dynamic_output_shape_ops = before


@pytest.mark.parametrize("name", ["sparse_conv", "sparse_conv_weight_gradient"])
def test_rows_out_of_range_are_passed_over(device, name):
    rows = random(5, 2).to(device)
    table = torch.tensor([[0, 7, -9], [2**31 - 1, -(2**31), 1]] * 2 + [[4, 5, 2]], dtype=torch.int32)
    clean = torch.where((table < 0) | (table > 4), -1, table)
    other = random(3, 2, 4, seed=1) if name == "sparse_conv" else random(5, 4, seed=1)
    operator = getattr(torch.ops.pc3d, name)
    own, right = (operator(rows, *on(device, other, t, t)) for t in (table, clean))
    assert torch.equal(own, right)
    assert bool(own.any())


def test_raw_operators_check_shapes():
    ops, rows, weight = torch.ops.pc3d, torch.zeros(5, 2), torch.zeros(3, 2, 4)
    table = torch.zeros(5, 3, dtype=torch.int32)
    for call in (
        lambda: ops.sparse_conv(rows, weight, table.long(), table),
        lambda: ops.sparse_conv(rows, weight[:2], table, table),
        lambda: ops.sparse_conv(rows, weight.double(), table, table),
        lambda: ops.sparse_conv_weight_gradient(rows, rows[:3], table, table),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_spconv_agrees_where_it_is_installed():
    spconv = pytest.importorskip("spconv.pytorch", reason="optional oracle: pip install spconv-cu126 ninja")
    coords, offsets = voxels([200, 150])
    features, weight = random(350, 6, dtype=torch.float32), random(27, 6, 10, seed=1, dtype=torch.float32)
    ours = sparse_conv3d(features, weight, kernel_map(coords, offsets=offsets))
    cloud = torch.repeat_interleave(torch.arange(2, dtype=torch.int32), offsets.diff())
    indices = torch.cat([cloud[:, None], coords - LOW], 1).contiguous()
    layer = spconv.SubMConv3d(6, 10, 3, bias=False, algo=spconv.ConvAlgo.Native)  # the one that runs without a GPU
    layer.weight = torch.nn.Parameter(weight.reshape(3, 3, 3, 6, 10).permute(4, 0, 1, 2, 3).contiguous())
    theirs = layer(spconv.SparseConvTensor(features, indices, [HIGH - LOW] * 3, 2)).features
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
