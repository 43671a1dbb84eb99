"""Attention in windows against its definition, pair by pair in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from clouds import offsets_of
from torch import Tensor

from pc3d.data import Rooms
from pc3d.ops import Windows, reference_attention, voxelize, window_attention, window_partition

AXES = {0: (), 3: (40,) * 3, 6: (40,) * 3 + (32,) * 3, 9: (40,) * 3 + (32,) * 6, 4: (7, 1, 12, 3)}


@dataclass
class Problem:
    """Arguments of window_attention; features and tables in one list each."""

    features: list[Tensor]
    signals: Tensor
    windows: Windows
    tables: list[Tensor]
    axis_rows: Sequence[int]

    def run(self) -> Tensor:
        return window_attention(*self.features, self.signals, self.windows, *self.tables, self.axis_rows)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Problem:
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        windows = Windows(self.windows.order.to(device), self.windows.offsets.to(device))
        return Problem(
            [f.detach().to(device, dtype) for f in self.features],
            self.signals.to(device, sums),
            windows,
            [t.detach().to(device, sums) for t in self.tables],
            self.axis_rows,
        )

    def with_gradients(self, push: Tensor) -> list[Tensor]:
        """The result, and the gradients of features and tables."""
        leaves = [x.detach().clone().requires_grad_() for x in (*self.features, *self.tables)]
        own = replace(self, features=leaves[:3], tables=leaves[3:])
        out = own.run()
        return [out.detach(), *torch.autograd.grad(out, leaves, push.to(out))]


def problem(lengths=(30, 0, 21), heads=3, dim=8, signals=9, window_size=5, span=6, seed=0, scale=1.0) -> Problem:
    """Two clouds and an empty one, negative coordinates, windows of several sizes; all in float64."""
    random = torch.Generator().manual_seed(seed)
    rows = AXES[signals]
    n = sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64) * scale

    coords = torch.randint(-span, span, (n, 3), generator=random, dtype=torch.int32)
    windows = window_partition(coords, window_size, offsets=offsets_of(list(lengths)))
    # Rounded, so that differences are exact and fall into the same bins in every type.
    values = (torch.randn(n, len(rows), generator=random, dtype=torch.float64) * 40).round() / 8
    features, tables = ([normal(m, heads, dim) for _ in range(3)] for m in (n, sum(rows)))
    return Problem(features, values, windows, tables, rows)


def pair_by_pair(p: Problem) -> Tensor:
    """The definition with loops over windows, heads, queries, keys and signals, in Python numbers and float64 rows."""
    query, key, value = (f.double() for f in p.features)
    tables = [t.double() for t in p.tables]
    out = torch.zeros_like(query)
    cuts = p.windows.offsets.tolist()
    firsts = [sum(p.axis_rows[:a]) for a in range(len(p.axis_rows))]
    signals = p.signals.tolist()
    for begin, end in pairwise(cuts):
        members = p.windows.order[begin:end].tolist()
        for i in members:
            scores, values = [], []
            for j in members:
                from_tables = [torch.zeros_like(query[0]) for _ in tables]
                for a, rows in enumerate(p.axis_rows):
                    t = min(max(math.floor(signals[i][a] - signals[j][a] + rows / 2), 0), rows - 1)
                    from_tables = [f + table[firsts[a] + t] for f, table in zip(from_tables, tables, strict=True)]
                scores.append((query[i] * key[j] + query[i] * from_tables[0] + key[j] * from_tables[1]).sum(1))
                values.append(value[j] + from_tables[2])
            share = torch.stack(scores).softmax(0)
            out[i] = (share[..., None] * torch.stack(values)).sum(0)
    return out


def by_definition(p: Problem, push: Tensor) -> list[Tensor]:
    """The plain PyTorch twin of both operators, in float64."""
    p = p.to(torch.float64)
    inputs = (*p.features, p.signals, p.windows.order, p.windows.offsets, *p.tables, p.axis_rows)
    out, log_sum = reference_attention.window_attention(*inputs)
    return [out, *reference_attention.window_attention_backward(push.double(), out, log_sum, *inputs)]


def push_of(p: Problem) -> Tensor:
    return torch.randn(p.features[0].shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def assert_near(own: Sequence[Tensor], right: Sequence[Tensor], tolerance: float) -> None:
    """Each within ``tolerance`` of its largest entry: entries that cancel have no relative precision of their own."""
    for a, b in zip(own, right, strict=True):
        assert a.shape == b.shape
        limit = tolerance * max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        torch.testing.assert_close(a.double().cpu(), b.double(), rtol=0, atol=limit)


@pytest.mark.parametrize("signals", [0, 3, 4, 6, 9])
@pytest.mark.parametrize(("heads", "dim"), [(1, 8), (3, 4), (9, 5)])
def test_the_definition(device, signals, heads, dim):
    p = problem(signals=signals, heads=heads, dim=dim)
    expected = pair_by_pair(p)
    assert_near([p.to(torch.float64, device).run()], [expected], 1e-12)
    assert_near([by_definition(p, push_of(p))[0]], [expected], 1e-12)


@pytest.mark.parametrize("signals", [0, 3, 4, 9])
@pytest.mark.parametrize("heads", [1, 6, 11])
@pytest.mark.parametrize("dim", [1, 4, 8, 16, 32, 33, 64])
def test_result_and_gradients_in_float32(device, signals, heads, dim):
    p = problem((70, 0, 45), heads, dim, signals, scale=0.5).to(torch.float32)
    push = push_of(p)
    assert_near(p.to(torch.float32, device).with_gradients(push), by_definition(p, push), 3e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_sums_in_float32(device, dtype, tolerance):
    p = problem((70, 45), scale=0.5).to(dtype)
    push = push_of(p).to(dtype)
    own = p.to(dtype, device).with_gradients(push)
    assert [t.dtype for t in own] == [dtype] * 4 + [torch.float32] * 3
    assert_near(own, by_definition(p, push), tolerance)


def test_autocast_takes_its_type(device):
    p = problem().to(torch.float32, device)
    with torch.autocast(device.type, torch.bfloat16):
        out = p.run()
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, p.to(torch.bfloat16, device).run())


@pytest.mark.parametrize("signals", [0, 3, 4])
def test_gradcheck(device, signals):
    p = problem((9, 0, 6), heads=2, dim=4, signals=signals, span=4).to(torch.float64, device)

    def run(*leaves: Tensor) -> Tensor:
        return replace(p, features=list(leaves[:3]), tables=list(leaves[3:])).run()

    leaves = [x.requires_grad_() for x in (*p.features, *p.tables)]
    assert torch.autograd.gradcheck(run, leaves)


def test_no_second_derivative(device):
    p = problem().to(torch.float32, device)
    query = p.features[0].requires_grad_()
    (first,) = torch.autograd.grad(p.run().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_at_their_edges(device, dtype):
    """Differences of exactly +-L/2, +-2 units of colour, far beyond, and one step before a border."""
    rows = (8, 32, 5)
    edges = torch.tensor([0, 4, -4, 4.5, 3.5, 1e-3, -1e-3, 1e30, -1e30, 16, -16, 2.5, -2.5], dtype=dtype)
    n = len(edges)
    p = problem((n,), heads=1, dim=1, signals=3).to(dtype, device)
    signals = torch.stack([edges, edges.flip(0), edges.roll(3)], dim=1).to(device)
    windows = Windows(torch.arange(n, device=device), torch.tensor([0, n], device=device))
    # The value table alone speaks: out = the mean over keys of the rows that were found.
    zero, table = torch.zeros(n, 1, 1, dtype=dtype, device=device), torch.zeros(45, 1, 1, dtype=dtype, device=device)
    numbers = torch.arange(1, 46, dtype=dtype, device=device)[:, None, None]
    p = Problem([zero] * 3, signals, windows, [table, table, numbers], rows)
    expected = []
    host = signals.cpu().numpy()
    for i in range(n):
        found = 0
        for j in range(n):
            for a, (first, size) in enumerate(((0, 8), (8, 32), (40, 5))):
                t = math.floor(host[i, a] - host[j, a] + host.dtype.type(size / 2))
                found += first + min(max(t, 0), size - 1) + 1
        expected.append(found / n)
    torch.testing.assert_close(p.run().flatten().double().cpu(), torch.tensor(expected, dtype=torch.float64))


def test_differences_past_the_table_take_its_last_row_and_no_other(device):
    """The next signal's first row and memory after the tables stay untouched, forward and backward."""
    signals = torch.tensor([[16.0, 16.0], [-16.0, -16.0]], dtype=torch.float64)
    windows = Windows(torch.tensor([0, 1]), torch.tensor([0, 2]))
    random = torch.Generator().manual_seed(0)
    features, tables = (
        [torch.randn(m, 1, 4, generator=random, dtype=torch.float64) for _ in range(3)] for m in (2, 64)
    )
    p = Problem(features, signals, windows, tables, (32, 32)).to(torch.float64, device)
    gradients = p.with_gradients(torch.ones(2, 1, 4, dtype=torch.float64))
    used = {r for first in (0, 32) for r in (first, first + 16, first + 31)}  # differences -32, 0, 32
    for table in gradients[4:]:
        assert set(table.abs().sum((1, 2)).nonzero().flatten().tolist()) == used


@pytest.mark.parametrize("size", [1e4, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_and_small_logits(device, size, dtype):
    p = problem(heads=2).to(dtype, device)
    logits = size / float((p.features[0] * p.features[1]).sum(2).abs().max())
    p.features[0] = p.features[0] * logits
    own = p.with_gradients(push_of(p))
    assert all(bool(t.isfinite().all()) for t in own)
    exact = pair_by_pair(p.to(torch.float64))
    # The logits themselves round: 1e4 in float32 to 1e-3.
    assert_near(own[:1], [exact], max(size, 1.0) * 20 * torch.finfo(dtype).eps)


def test_a_voxel_alone_takes_its_value_and_the_middle_rows(device):
    p = problem((4,), heads=3, signals=9, window_size=1, span=900)
    assert p.windows.offsets.diff().max() == 1
    firsts = torch.tensor(p.axis_rows).cumsum(0) - torch.tensor(p.axis_rows)
    middle = firsts + torch.tensor(p.axis_rows) // 2
    expected = p.features[2] + p.tables[2][middle].sum(0)
    torch.testing.assert_close(p.to(torch.float64, device).run().cpu(), expected)


def room(edge: float = 1.2, voxel_size: float = 0.06) -> tuple[Tensor, Tensor]:
    """Voxels of a corner of a real room, and their signals in bins."""
    cloud = Rooms("test")[0]
    near = ((cloud.xyz - cloud.xyz.amin(0)) < edge).all(1)
    xyz, rgb, normal = cloud.xyz[near], cloud.rgb[near], cloud.normal[near]
    voxels = voxelize(xyz, voxel_size)
    position = xyz[voxels.first] / voxel_size
    signals = torch.cat([position * 4, (rgb[voxels.first] * 2 - 1) * 8, normal[voxels.first] * 8], dim=1)
    return voxels.coords, signals


def room_problem(coords: Tensor, signals: Tensor, windows: Windows, heads: int = 6, dim: int = 8) -> Problem:
    random = torch.Generator().manual_seed(1)
    features, tables = (
        [torch.randn(m, heads, dim, generator=random) * s for _ in range(3)] for m, s in ((len(coords), 1), (360, 0.1))
    )
    return Problem(features, signals, windows, tables, (56,) * 3 + (32,) * 6)


def test_a_real_room(device):
    coords, signals = room()
    p = room_problem(coords, signals, window_partition(coords, 7, shift=3))
    assert p.windows.offsets.diff().max() > 40
    # Bins are cut in float32: the definition in that type, summed in that type too.
    inputs = (*p.features, p.signals, p.windows.order, p.windows.offsets, *p.tables, p.axis_rows)
    expected, _ = reference_attention.window_attention(*inputs)
    assert_near([p.to(torch.float32, device).run()], [expected], 2e-5)


def test_order_of_voxels_does_not_matter():
    coords, signals = room(2.0)
    p = room_problem(coords, signals, window_partition(coords, 5))
    shuffle = torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))
    shuffled = Problem(
        [f[shuffle] for f in p.features],
        signals[shuffle],
        window_partition(coords[shuffle], 5),
        p.tables,
        p.axis_rows,
    )
    assert_near([shuffled.run()], [p.run()[shuffle]], 1e-5)


def test_translation_by_whole_windows_changes_nothing_and_by_parts_does():
    coords, signals = room(2.0)
    p = room_problem(coords, signals, window_partition(coords, 5))
    moved = replace(p, windows=window_partition(coords + torch.tensor([10, -35, 5], dtype=torch.int32), 5))
    assert torch.equal(moved.run(), p.run())
    shifted = replace(p, windows=window_partition(coords, 5, shift=2))
    assert not torch.allclose(shifted.run(), p.run(), atol=1e-2)


def test_a_cloud_alone_is_as_in_a_batch():
    p = problem((40, 0, 33), span=3)
    both = p.run()
    for begin, end in ((0, 40), (40, 73)):
        mine = (p.windows.order >= begin) & (p.windows.order < end)
        counts = p.windows.offsets.diff()
        window = torch.repeat_interleave(counts)[mine]
        sizes = torch.unique_consecutive(window, return_counts=True)[1]
        cuts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        alone = Problem(
            [f[begin:end] for f in p.features],
            p.signals[begin:end],
            Windows(p.windows.order[mine] - begin, cuts),
            p.tables,
            p.axis_rows,
        )
        assert torch.equal(alone.run(), both[begin:end])


@pytest.mark.parametrize(("repeats", "others", "dim"), [(703, 3, 4), (1000, 360, 4), (1200, 3, 1)])
def test_windows_larger_than_what_is_kept_at_a_time(device, repeats, others, dim):
    """Voxels that are there many times; scores of such a window are kept for a part of its queries.

    Of 360 queries more scores are kept than of 640: what is kept is not that of the largest window.
    """
    coords = torch.zeros(repeats, 3, dtype=torch.int32)
    coords[-others:] = 50
    random = torch.Generator().manual_seed(0)
    rows = (6, 4, 8)
    features, tables = ([torch.randn(m, 1, dim, generator=random) for _ in range(3)] for m in (repeats, 18))
    signals = torch.randint(-3, 4, (repeats, 3), generator=random).float()
    p = Problem(features, signals, window_partition(coords, 5), tables, rows)
    assert p.windows.offsets.diff().max() == repeats - others
    push = push_of(p)
    assert_near(p.to(torch.float32, device).with_gradients(push), by_definition(p, push), 1e-4)


@pytest.mark.parametrize(("one", "other"), [(127, 128), (129, 130), (1024, 129), (1025, 128)])
def test_windows_at_the_bounds_of_what_is_kept_at_a_time(device, one, other):
    """Windows of 128 voxels are kept whole, and of larger ones the scores of 1024 keys."""
    n = one + other + 1
    coords = torch.zeros(n, 3, dtype=torch.int32)
    coords[one:] = 50
    coords[-1] = 100
    random = torch.Generator().manual_seed(one)
    features, tables = ([torch.randn(m, 1, 2, generator=random) for _ in range(3)] for m in (n, 4))
    signals = torch.randint(-3, 4, (n, 1), generator=random).float()
    p = Problem(features, signals, window_partition(coords, 5), tables, (4,))
    assert p.windows.offsets.diff().tolist() == [one, other, 1]
    push = push_of(p)
    assert_near(p.to(torch.float32, device).with_gradients(push), by_definition(p, push), 1e-4)


def dense_heads(p: Problem) -> Tensor:
    """One window of all voxels with one signal of three rows, head by head as plain matrices."""
    rows = (p.signals - p.signals.T + 1.5).floor().clamp(0, 2).long()
    heads = []
    for query, key, value, query_table, key_table, value_table in zip(
        *(x.unbind(1) for x in (*p.features, *p.tables)), strict=True
    ):
        logits = query @ key.T + (query @ query_table.T).gather(1, rows) + (key @ key_table.T).gather(1, rows.T).T
        share = logits.softmax(1)
        heads.append(share @ value + share.new_zeros(len(share), 3).scatter_add(1, rows, share) @ value_table)
    return torch.stack(heads, 1)


@pytest.mark.slow
def test_pairs_times_channels_beyond_what_32_bits_count(device):
    """The released kernels number them in 32 bits, and pass over the pairs behind."""
    n, heads, dim = 1449, 16, 64
    assert n * n * heads * dim > 2**31
    random = torch.Generator().manual_seed(0)
    features, tables = ([torch.randn(m, heads, dim, generator=random) * dim**-0.25 for _ in range(3)] for m in (n, 3))
    windows = Windows(torch.arange(n), torch.tensor([0, n]))
    p = Problem(features, torch.randint(0, 2, (n, 1), generator=random).float(), windows, tables, (3,))
    push = push_of(p)
    # In float64: a row of a table's gradient is a sum over two million pairs.
    leaves = [x.double().requires_grad_() for x in (*features, *tables)]
    right = dense_heads(replace(p, features=leaves[:3], tables=leaves[3:], signals=p.signals.double()))
    expected = [right.detach(), *torch.autograd.grad(right, leaves, push)]
    own = p.to(torch.float32, device).with_gradients(push)
    assert_near(own[:4], expected[:4], 1e-5)
    assert_near(own[4:], expected[4:], 2**-24 * n)  # roundings of n * n terms, none with the others' sign


def test_the_same_bits_every_time_and_on_any_number_of_threads(device):
    coords, signals = room()
    p = room_problem(coords, signals, window_partition(coords, 7)).to(torch.float32, device)
    push = push_of(p)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 7):
            torch.set_num_threads(threads)
            results.append(p.with_gradients(push))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


CHILD = """
import sys, torch
sys.path.insert(0, "tests/ops")
from test_window_attention import problem, push_of
p = problem((70, 45), heads=9).to(torch.float32)
torch.save(p.with_gradients(push_of(p)), sys.argv[1])
"""


def test_every_instruction_set_gives_the_same_bits(tmp_path):
    repository = Path(__file__).parents[2]
    results = []
    for level in ("baseline", "avx2", "widest"):
        path = tmp_path / f"{level}.pt"
        environment = {**os.environ, "PC3D_SIMD": level}
        subprocess.run([sys.executable, "-c", CHILD, str(path)], cwd=repository, env=environment, check=True)
        results.append(torch.load(path, weights_only=True))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


MEMORY = """
import ctypes, sys, torch
from pathlib import Path
from pc3d.ops import window_attention, window_partition
torch.set_num_threads(1)

def peak(n):
    # A floor of voxels, four deep, in windows of 12: 576 keys for each query at every size.
    side = int((n / 4) ** 0.5)
    flat = torch.cartesian_prod(torch.arange(side), torch.arange(side), torch.arange(4)).int()
    signals = torch.cat([flat.float(), flat.float() % 3], 1)
    q, k, v = (torch.randn(len(flat), 2, 4, requires_grad=True) for _ in range(3))
    tables = [torch.randn(384, 2, 4, requires_grad=True) for _ in range(3)]
    windows = window_partition(flat, 12)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    status = lambda name: int(next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(name)).split()[1])
    before = status("VmRSS")
    window_attention(q, k, v, signals, windows, *tables, [96] * 3 + [32] * 3).sum().backward()
    pairs = float(windows.offsets.diff().double().square().sum())
    return len(flat), 1024 * (status("VmHWM") - before), pairs

peak(4000)
for n in (40_000, 160_000):
    print(*peak(n))
"""  # noqa: E501 (the helper is one line of the child's program)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to read peak memory")
def test_memory_grows_with_voxels_and_not_with_pairs():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (small, small_bytes, small_pairs), (large, large_bytes, pairs) = (
        map(float, line.split()) for line in done.stdout.splitlines()
    )
    # Beside a constant (tables, partial sums of their gradients) at most ten rows of features a voxel: the result, its
    # gradient, three gradients, copies, what the allocator adds. An array of a byte a pair would add more.
    added = large_bytes - small_bytes
    assert added < 10 * 2 * 4 * 4 * (large - small)
    assert added < 0.6 * (pairs - small_pairs)


def raw_arguments(p: Problem) -> tuple:
    leaves = [x.clone().requires_grad_() for x in (*p.features, *p.tables)]
    return (*leaves[:3], p.signals, p.windows.order, p.windows.offsets, *leaves[3:], list(p.axis_rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device, dtype):
    p = problem(heads=2).to(dtype, device)
    arguments = raw_arguments(p)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    operators = torch.ops.pc3d
    results = torch.library.opcheck(operators.window_attention.default, arguments, test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}
    out, log_sum = operators.window_attention(*arguments)
    push = torch.ones_like(out)
    plain = [a.detach() if isinstance(a, Tensor) else a for a in (push, out, log_sum, *arguments)]
    results = torch.library.opcheck(operators.window_attention_backward.default, plain, test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}


def test_a_graph_without_breaks(device):
    p = problem().to(torch.float32, device)

    def run(query: Tensor, table: Tensor) -> Tensor:
        own = replace(p, features=[query * 2, *p.features[1:]], tables=[table, *p.tables[1:]])
        return window_attention(*own.features, p.signals, p.windows, *own.tables, p.axis_rows).square().sum()

    def gradients(function) -> tuple[Tensor, ...]:
        leaves = [x.detach().clone().requires_grad_() for x in (p.features[0], p.tables[0])]
        return torch.autograd.grad(function(*leaves), leaves)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for own, right in zip(gradients(compiled), gradients(run), strict=True):
        torch.testing.assert_close(own, right)


def test_nothing_to_attend(device):
    for p in (problem((0,)), problem((0, 0), signals=0)):
        own = p.to(torch.float32, device).with_gradients(push_of(p))
        assert own[0].shape == (0, 3, 8)
        assert all(not bool(t.any()) for t in own)
    heads = problem(heads=0).to(torch.float32, device)
    assert heads.run().shape == (51, 0, 8)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_stays_in_its_window_and_head(device, where):
    p = problem(heads=3).to(torch.float32, device)
    right = p.run()
    row = int(p.windows.order[-1])
    p.features[where][row, 1, 2] = torch.nan
    out = p.run()
    met = torch.zeros_like(out, dtype=torch.bool)
    begin = int(p.windows.offsets[-2])
    met[p.windows.order[begin:] if where else row, 1] = True  # a key's and a value's reach the whole window
    nan = out.isnan()
    assert bool(nan[row, 1].any())
    assert not bool((nan & ~met).any())
    assert torch.equal(out[~met], right[~met])


@pytest.mark.parametrize(("n", "masked"), [(20, 3), (70, 40), (70, 69), (1100, 1030)])
def test_keys_whose_logits_overflow_below_have_no_share(device, n, masked):
    """Wherever they come in the window: -infinity in float32, and in float64 what no other key is near."""
    random = torch.Generator().manual_seed(n)
    features = [torch.randn(n, 1, 3, generator=random) for _ in range(3)]
    features[0][..., 0], features[1][:, :, 0] = 1e30, 0
    features[1][:masked, :, 0] = -1e30
    windows = Windows(torch.arange(n), torch.tensor([0, n]))
    p = Problem(features, torch.zeros(n, 0), windows, [torch.zeros(0, 1, 3)] * 3, ())
    expected = by_definition(p, push_of(p))[0]
    assert expected.isfinite().all()
    torch.testing.assert_close(p.to(torch.float32, device).run().cpu(), expected.float())


def change(p: Problem, **fields) -> Problem:
    return replace(p, **fields)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda p: change(p, windows=(1, 2, 3)), TypeError, "windows must come from window_partition"),
        (
            lambda p: change(p, features=[p.features[0][0], *p.features[1:]]),
            ValueError,
            r"query must have shape \(N, H",
        ),
        (lambda p: change(p, features=[f.repeat(1, 1, 9) for f in p.features]), ValueError, "d between 1 and 64"),
        (
            lambda p: change(p, features=[p.features[0], p.features[1][1:], p.features[2]]),
            ValueError,
            "key must have th",
        ),
        (
            lambda p: change(p, features=[*p.features[:2], p.features[2].half()]),
            ValueError,
            "value is torch.float16, q",
        ),
        (lambda p: change(p, features=[f.long() for f in p.features]), TypeError, "query must have dtype float32"),
        (lambda p: change(p, signals=p.signals[:, 1:]), ValueError, r"signals must have shape \(51, 9\), a column for"),
        (lambda p: change(p, signals=p.signals / 0), ValueError, "signals holds a NaN or infinite"),
        (
            lambda p: change(p, tables=[p.tables[0][1:], *p.tables[1:]]),
            ValueError,
            r"query_table must have shape \(312",
        ),
        (lambda p: change(p, axis_rows=(0, *p.axis_rows[1:])), ValueError, "axis_rows must be at least 1, got 0"),
        (lambda p: change(p, axis_rows=(1.5, *p.axis_rows[1:])), TypeError, "axis_rows must be an int, got float"),
        (
            lambda p: change(p, windows=window_partition(torch.zeros(7, 3, dtype=torch.int32), 5)),
            ValueError,
            "windows must be of the 51 voxels of query",
        ),
        (
            lambda p: change(p, windows=p.windows._replace(offsets=p.windows.offsets[:-1])),
            ValueError,
            "windows.offsets must end at the 51 voxels",
        ),
    ],
)
def test_bad_input(edit, error, message):
    with pytest.raises(error, match=message):
        edit(problem().to(torch.float32)).run()


def test_values_that_are_not_looked_at(device):
    p = problem().to(torch.float32, device)
    arguments = (*p.features, p.signals, p.windows, *p.tables, p.axis_rows)
    assert torch.equal(window_attention(*arguments, check_values=False), p.run())
    p.signals[3, 1] = torch.nan
    with pytest.raises(ValueError, match="signals holds a NaN"):
        p.run()
    # What is not a number selects the first row of its signal's part.
    assert window_attention(*arguments, check_values=False).isfinite().all()
    with pytest.raises(ValueError, match="windows must be of the 51 voxels"):
        window_attention(
            *p.features, p.signals, p.windows._replace(order=p.windows.order[1:]), *p.tables, p.axis_rows,
            check_values=False,
        )  # fmt: skip


def with_rows(axis_rows: Sequence[int], dtype: torch.dtype) -> Problem:
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    p = problem().to(dtype)
    return replace(
        p,
        signals=torch.zeros(len(p.signals), len(axis_rows)),
        tables=[torch.zeros(sum(axis_rows), 3, 8, dtype=sums) for _ in range(3)],
        axis_rows=axis_rows,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_limits_are_those_of_every_device(device, dtype):
    most = 700 if dtype == torch.float64 else 1400
    for axis_rows in ((most - 100, 100), (2,) * 32):
        p = with_rows(axis_rows, dtype).to(dtype, device)
        # All differences are 0 and all table rows as well: plain attention.
        plain = window_attention(*p.features, p.signals[:, :0], p.windows, *[t[:0] for t in p.tables], ())
        torch.testing.assert_close(p.run(), plain)
    with pytest.raises(ValueError, match=f"axis_rows must sum to at most {most:,} .* got {most + 1:,}; scale signals"):
        with_rows((most - 100, 101), dtype).to(dtype, device).run()
    with pytest.raises(ValueError, match="axis_rows must name at most 32 signals, got 33; leave signals out"):
        with_rows((2,) * 33, dtype).to(dtype, device).run()


def test_many_small_windows(device):
    p = problem((400, 0, 300), heads=2, window_size=2, span=10, scale=0.5).to(torch.float32)
    assert p.windows.offsets.diff().max() < 6
    assert len(p.windows.offsets) > 500
    push = push_of(p)
    assert_near(p.to(torch.float32, device).with_gradients(push), by_definition(p, push), 3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [8, 13, 40])
def test_tables_of_as_many_rows_as_are_allowed(device, dtype, dim):
    """They fit no shared memory, and have more rows than a block has threads."""
    rows = (300, 350, 50) if dtype == torch.float64 else (600, 700, 100)
    random = torch.Generator().manual_seed(3)
    p = problem((40, 0, 30), 2, dim, signals=3, scale=0.5)
    p.tables = [torch.randn(sum(rows), 2, dim, generator=random, dtype=torch.float64) * 0.5 for _ in range(3)]
    p = replace(p, signals=(p.signals * 50).round(), axis_rows=rows).to(dtype)
    push = push_of(p)
    found = ((p.signals[:, None] - p.signals).double() + torch.tensor(rows) / 2).floor()
    assert (found < 0).any()
    assert all(len(found[..., a].unique()) > 100 for a in range(2))
    tolerance = 1e-12 if dtype == torch.float64 else 3e-5
    assert_near(p.to(dtype, device).with_gradients(push), by_definition(p, push), tolerance)


@pytest.mark.parametrize(("dim", "rows"), [(8, 102), (8, 146), (40, 285), (40, 316)])
def test_tables_that_need_as_much_as_a_block_has_unasked(device, dim, rows):
    """48 KB of shared memory, forward and then backward, of which a part is taken already."""
    random = torch.Generator().manual_seed(rows)
    p = problem((40, 0, 30), 2, dim, signals=3, scale=0.5)
    p.tables = [torch.randn(rows, 2, dim, generator=random, dtype=torch.float64) * 0.5 for _ in range(3)]
    p = replace(p, axis_rows=(rows - 50, 40, 10)).to(torch.float32)
    push = push_of(p)
    assert_near(p.to(torch.float32, device).with_gradients(push), by_definition(p, push), 3e-5)


def test_a_direct_caller_cannot_leave_memory():
    p = problem().to(torch.float32)
    for order in (p.windows.order.clone().fill_(3), p.windows.order + 1, p.windows.order - 60):
        broken = replace(p, windows=p.windows._replace(order=order))
        with pytest.raises(RuntimeError, match="order must hold every row once"):
            broken.run()
    backwards = p.windows.offsets.clone()
    backwards[1] = 40
    with pytest.raises(RuntimeError, match="window_offsets must ascend"):
        replace(p, windows=p.windows._replace(offsets=backwards)).run()


@pytest.mark.parametrize("windows", ["none", "backwards", "overlapping", "outside", "short"])
@pytest.mark.parametrize("rows", ["one row", "outside"])
def test_windows_that_nobody_checked(device, windows, rows):
    """CUDA kernels hold them within memory. A voxel that no window has gets zeros; what else comes is finite."""
    p = problem((150, 0, 45), heads=2, signals=3).to(torch.float32, device)
    n = len(p.windows.order)
    far = 2**40
    offsets = {
        "none": [0] * 9,
        "backwards": [0, 180, 20, 150, 30, n],
        "overlapping": [0, n] * 3,
        "outside": [-far, -3, 7, n + 1, far],
        "short": [5, 9, n - 6],
    }[windows]
    order = torch.full_like(p.windows.order, 3) if rows == "one row" else p.windows.order - 60
    order[::7] += far if rows == "outside" else 0
    p = replace(p, windows=Windows(order, torch.tensor(offsets, device=device)))
    arguments = raw_arguments(p)
    try:
        out, log_sum = torch.ops.pc3d.window_attention(*arguments)
    except RuntimeError:
        pytest.skip("the CPU's own kernel refuses such windows")
    found = torch.ops.pc3d.window_attention_backward(torch.ones_like(out), out, log_sum, *arguments)
    assert all(bool(t.isfinite().all()) for t in (out, log_sum, *found))
    named = torch.zeros(n, dtype=torch.bool, device=device).index_fill(0, order.clamp(0, n - 1), True)
    assert all(not bool(t[~named].any()) for t in (out, log_sum, *found[:3]))
    if windows == "none":
        assert all(not bool(t.any()) for t in (out, log_sum, *found))
