"""segment_reduce and gather_max: loops over rows, gradients, ties, NaN, half precision, determinism, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc3d.ops import gather, gather_max, reference_voxels, segment_reduce

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
REDUCTIONS = ["mean", "sum", "max", "first"]


def values(*shape, dtype=torch.float32, seed=0):
    """Of few values, so that there are ties."""
    random = torch.Generator().manual_seed(seed)
    return (torch.randint(-8, 9, shape, generator=random) / 4).to(dtype)


def indices(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def reduced(rows: np.ndarray, reduction: str) -> np.ndarray:
    if len(rows) == 0:
        return np.zeros(rows.shape[1])
    return rows[0] if reduction == "first" else getattr(rows, reduction)(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("channels", [1, 3, 17])
def test_segments_one_by_one(device, dtype, reduction, channels):
    rows, index = values(200, channels, dtype=dtype), indices(0, 40, 200)
    index[index == 7] = 8  # nobody is in segment 7, nor in the last one
    found = segment_reduce(rows.to(device), index.to(device), 41, reduction)
    exact = np.stack([reduced(rows.double().numpy()[index.numpy() == s], reduction) for s in range(41)])
    assert found.dtype == dtype
    # Sums of quarters are exact in every type; the division of a mean is rounded.
    own = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 1e-7}.get(dtype, 1e-15)
    np.testing.assert_allclose(found.double().cpu().numpy(), exact, rtol=own if reduction == "mean" else 0, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_of_segments(device, reduction):
    # No ties: there the maximum has a corner.
    rows = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    index = indices(0, 9, 30).to(device)

    def reduce(rows):
        return segment_reduce(rows, index, 10, reduction)

    assert torch.autograd.gradcheck(reduce, rows.requires_grad_())
    assert torch.autograd.gradgradcheck(reduce, rows)


def test_gradients_of_gather_max(device):
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    index = indices(-1, 12, 20, 4).to(device)
    index[3] = -1
    assert torch.autograd.gradcheck(lambda x: gather_max(x, index), rows.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: gather_max(x, index), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "k"), [(1, 1), (5, 3), (48, 16)])
def test_gather_max_is_the_maximum_of_what_is_gathered(device, dtype, channels, k):
    rows, index = values(50, channels, dtype=dtype), indices(-1, 50, 80, k)
    index[11] = -1
    found = gather_max(rows.to(device), index.to(device))
    gathered = gather(rows, index).masked_fill((index < 0)[..., None], -torch.inf).amax(1)
    gathered[(index < 0).all(1)] = 0
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), gathered)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_of_equals_gets_the_gradient(device, dtype):
    rows = torch.tensor([[1.0], [3.0], [3.0], [2.0]], dtype=dtype, device=device).requires_grad_()
    gather_max(rows, torch.tensor([[0, 2, 1], [1, 2, 3], [-1, -1, 2]], device=device)).sum().backward()
    assert rows.grad.flatten().tolist() == [0, 1, 2, 0]
    rows.grad = None
    segment_reduce(rows, torch.tensor([1, 1, 1, 0], device=device), 3, "max").sum().backward()
    assert rows.grad.flatten().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_maxima_equal_the_definition(device, dtype):
    rows = values(60, 7, dtype=dtype)
    rows[3, 2], rows[8, 0], rows[9], rows[10, 1] = float("nan"), float("inf"), -float("inf"), -0.0
    index, segments = indices(-1, 60, 90, 6), indices(0, 20, 60)
    ops = torch.ops.pc3d
    for own, right in (
        (ops.gather_max(rows.to(device), index.to(device)), reference_voxels.gather_max(rows, index)),
        (ops.segment_max(rows.to(device), segments.to(device), 25), reference_voxels.segment_max(rows, segments, 25)),
    ):
        torch.testing.assert_close(own[0].cpu(), right[0], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(own[1].cpu(), right[1])
        grad = values(*own[1].shape, dtype=dtype, seed=1)
        found = ops.max_gradient(grad.to(device), own[1], 60, False)
        torch.testing.assert_close(found.cpu(), reference_voxels.max_gradient(grad, right[1], 60), rtol=0, atol=0)


def test_half_means_do_not_overflow(device):
    rows = torch.full((4000, 2), 60.0, dtype=torch.float16, device=device)
    found = segment_reduce(rows, torch.zeros(4000, dtype=torch.int64, device=device), 1)
    assert found.tolist() == [[60.0, 60.0]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("n", "segments", "channels"), [(0, 0, 3), (0, 4, 3), (5, 2, 0)])
def test_nothing_to_reduce(device, reduction, n, segments, channels):
    rows = torch.zeros(n, channels, device=device, requires_grad=True)
    found = segment_reduce(rows, torch.zeros(n, dtype=torch.int64, device=device), segments, reduction)
    assert found.shape == (segments, channels)
    assert not found.any()
    found.sum().backward()
    assert rows.grad.shape == rows.shape


def test_nothing_to_take_the_maximum_of(device):
    for shape, index in (((0, 3), (4, 2)), ((5, 3), (4, 0)), ((5, 3), (0, 2)), ((5, 0), (4, 2))):
        rows = torch.zeros(shape, device=device, requires_grad=True)
        found = gather_max(rows, torch.full(index, -1, device=device))
        assert found.shape == (index[0], shape[1])
        assert not found.any()
        found.sum().backward()
        assert rows.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_same_every_time(device, dtype):
    rows = torch.randn(20_000, 40, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    index, segments = indices(0, 20_000, 30_000, 4).to(device), indices(0, 3000, 20_000).to(device)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    runs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaf = rows.clone().requires_grad_()
            total = [gather_max(leaf, index), *(segment_reduce(leaf, segments, 3000, r) for r in REDUCTIONS)]
            torch.cat(total).sin().sum().backward()
            runs.append([*(t.detach() for t in total), leaf.grad])
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for own, right in zip(run, runs[0], strict=True):
            assert torch.equal(own, right)


ROWS, INDEX = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)
BAD = [
    (TypeError, "values must have dtype .*, got int64", lambda: segment_reduce(INDEX[:, None], INDEX, 3)),
    (ValueError, r"values must have shape \(N, C\), got \(1, 5, 3\)", lambda: segment_reduce(ROWS[None], INDEX, 3)),
    (ValueError, r"index must have shape \(5,\) to fit values, got \(4,\)", lambda: segment_reduce(ROWS, INDEX[:4], 3)),
    (ValueError, r"index must have shape \(N,\), got \(5, 1\)", lambda: segment_reduce(ROWS, INDEX[:, None], 3)),
    (ValueError, r"index must lie in \[0, 3\), found 3 to 3", lambda: segment_reduce(ROWS, INDEX + 3, 3)),
    (ValueError, r"index must lie in \[0, 3\), found -1 to -1", lambda: segment_reduce(ROWS, INDEX - 1, 3)),
    (ValueError, "num_segments must be at least 0, got -1", lambda: segment_reduce(ROWS, INDEX, -1)),
    (ValueError, "reduction must be one of .*, got 'min'", lambda: segment_reduce(ROWS, INDEX, 3, "min")),
    (ValueError, "index is on meta, the rows are on cpu", lambda: segment_reduce(ROWS, INDEX.to("meta"), 3)),
    (ValueError, r"index must have shape \(M, k\), got \(5,\)", lambda: gather_max(ROWS, INDEX)),
    (ValueError, r"index must lie in \[-1, 5\), found 5 to 5", lambda: gather_max(ROWS, INDEX[:, None] + 5)),
    (TypeError, "index must have dtype int64, got int32", lambda: gather_max(ROWS, INDEX[:, None].int())),
    (ValueError, r"features must have shape \(N, C\), got \(3,\)", lambda: gather_max(ROWS[0], INDEX[:, None])),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", ["gather_max", "segment_max", "max_gradient"])
def test_opcheck(device, name, requires_grad):
    rows, grad = (torch.randn(n, 4, device=device, requires_grad=requires_grad) for n in (20, 9))
    arguments = {
        "gather_max": (rows, indices(-1, 20, 9, 3).to(device)),
        "segment_max": (rows, indices(0, 9, 20).to(device), 9),
        "max_gradient": (grad, indices(-1, 20, 9, 4).to(device), 20, True),
    }[name]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    results = torch.library.opcheck(getattr(torch.ops.pc3d, name).default, arguments, test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}


def test_a_graph_without_breaks(device):
    def pool(rows, index, segments):
        reduced = [segment_reduce(rows, segments, 6, reduction) for reduction in REDUCTIONS]
        return (gather_max(rows, index).sum() + torch.cat(reduced).sin().sum()).square()

    rows, index, segments = torch.randn(20, 3, device=device), indices(-1, 20, 9, 4), indices(0, 6, 20)
    index, segments = index.to(device), segments.to(device)
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    results = []
    for function in (pool, compiled):
        leaf = rows.clone().requires_grad_()
        value = function(leaf, index, segments)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0])


def test_raw_operators_guard_their_memory():
    ops, rows = torch.ops.pc3d, torch.zeros(5, 3)
    for call in (
        lambda: ops.gather_max(rows, torch.tensor([[5]])),
        lambda: ops.segment_max(rows, torch.arange(5), 4),
        lambda: ops.max_gradient(rows, torch.full((5, 3), 2), 2, False),
        lambda: ops.max_gradient(rows, torch.zeros(5, 2, dtype=torch.int64), 2, False),
    ):
        with pytest.raises(RuntimeError):
            call()
