"""Farthest point sampling: its greedy definition, ties, layouts, starts, the near-origin rule, bad input."""

from __future__ import annotations

import pytest
import torch
from clouds import KINDS, LENGTHS, greedy, make, offsets_of, pairs

from pc3d.data import Household
from pc3d.ops import farthest_point_sample, reference, sample_offsets


def run_reference(xyz, offsets, num_samples, start, ignore_near_origin):
    cuts = sample_offsets(offsets, num_samples)
    return reference.farthest_point_sample(xyz, offsets, cuts, int(cuts[-1]), start, ignore_near_origin)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_points", [1, 2, 33, 257, 1100])
def test_takes_the_farthest_point_every_time(device, kind, dtype, num_points):
    xyz = make(kind, num_points, dtype)
    wanted = min(num_points, 40)
    found = farthest_point_sample(xyz.to(device), wanted)
    assert found.tolist() == greedy(xyz, wanted).tolist()


@pytest.mark.parametrize("kind", ["normal", "lattice"])
def test_taking_all_points_is_a_permutation(device, kind):
    found = farthest_point_sample(make(kind, 300).to(device), 300)
    assert sorted(found.tolist()) == list(range(300))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("ignore_near_origin", [False, True])
def test_packed_clouds_equal_the_definition(device, kind, dtype, lengths, ignore_near_origin):
    xyz, offsets = make(kind, sum(lengths), dtype), offsets_of(lengths)
    number = torch.tensor([(3 * n + 3) // 4 for n in lengths])
    start = torch.tensor([n // 2 for n in lengths])
    found = farthest_point_sample(
        xyz.to(device),
        number.to(device),
        offsets=offsets.to(device),
        start=start.to(device),
        ignore_near_origin=ignore_near_origin,
    )
    assert torch.equal(found.cpu(), run_reference(xyz, offsets, number, start, ignore_near_origin))


def test_real_objects(device):
    clouds = [Household(split="train", num_points=1024)[i].xyz for i in range(3)]
    found = farthest_point_sample(torch.stack(clouds).to(device), 64)
    for cloud, index in zip(clouds, found, strict=True):
        assert index.tolist() == greedy(cloud, 64).tolist()


# One for each way a CUDA kernel shares out a cloud: registers of one block, of several, and (where few run at once)
# global memory.
@pytest.mark.parametrize("num_points", [1024, 1025, 8192, 8193, 20_000, 60_000])
@pytest.mark.parametrize("kind", ["normal", "lattice"])
@pytest.mark.parametrize("ignore_near_origin", [False, True])
def test_clouds_of_all_sizes(device, num_points, kind, ignore_near_origin):
    xyz = torch.cat([make(kind, num_points, seed=1), make(kind, 50, seed=2)])
    offsets = offsets_of([num_points, 50])
    start = torch.zeros(2, dtype=torch.int64)
    found = farthest_point_sample(xyz.to(device), 30, offsets=offsets.to(device), ignore_near_origin=ignore_near_origin)
    assert torch.equal(found.cpu(), run_reference(xyz, offsets, 30, start, ignore_near_origin))


@pytest.mark.parametrize("num_clouds", [1, 3])
@pytest.mark.parametrize("num_points", [1024, 1025, 2048, 3000, 4096, 8192, 8193])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clouds_of_one_size(device, num_points, num_clouds, dtype):
    # Of dense clouds the kernels know the size beforehand, and take as much shared memory as that needs. The 48 KB of
    # 4096 points (2048 in float64) are what a block has unasked, if it has no other.
    dense = torch.stack([make("normal", num_points, dtype, seed=seed) for seed in range(num_clouds)])
    found = farthest_point_sample(dense.to(device), 12, start=5)
    offsets, start = num_points * torch.arange(num_clouds + 1), torch.full((num_clouds,), 5)
    rows = run_reference(dense.flatten(0, 1), offsets, 12, start, False).reshape(num_clouds, 12)
    assert torch.equal(found.cpu(), rows - offsets[:-1, None])


@pytest.mark.parametrize("lengths", [[3000], [40, 3000], [9000, 40, 1500]])
@pytest.mark.parametrize("largest", [0, 100, 1024, 2000, 8192, 10**9])
def test_a_wrong_largest_cloud_gives_no_row_or_the_right_one(device, lengths, largest):
    xyz, offsets = make("normal", sum(lengths)), offsets_of(lengths)
    cuts, start = sample_offsets(offsets, 7), torch.zeros(len(lengths), dtype=torch.int64)
    found = torch.ops.pc3d.farthest_point_sample(
        xyz.to(device), offsets.to(device), cuts.to(device), int(cuts[-1]), start.to(device), False, largest
    ).cpu()
    right = run_reference(xyz, offsets, 7, start, False)
    for n, rows, expected in zip(lengths, found.split(7), right.split(7), strict=True):
        assert torch.equal(rows, expected) or (n > largest and bool((rows == -1).all()))


@pytest.mark.parametrize("num_points", [100, 3000, 9000])
@pytest.mark.parametrize("lengths", [[0], [0, 50], [50, 0], [50], [1500]])
def test_samples_of_a_cloud_without_points_have_no_row(device, num_points, lengths):
    # Only unchecked offsets ask for them, here such as end before the points do.
    xyz, offsets = make("normal", num_points), offsets_of(lengths).clamp(max=num_points)
    cuts, start = 7 * torch.arange(len(lengths) + 1), torch.zeros(len(lengths), dtype=torch.int64)
    arguments = (xyz, offsets, cuts, int(cuts[-1]), start, False)
    try:
        found = torch.ops.pc3d.farthest_point_sample(*(a.to(device) if torch.is_tensor(a) else a for a in arguments))
    except RuntimeError:
        pytest.skip("the CPU's own kernel refuses such offsets")
    for b, rows in enumerate(found.cpu().split(7)):
        begin, end = offsets[b : b + 2].tolist()
        if begin == end:
            assert (rows == -1).all()
        else:
            right = run_reference(xyz[begin:end], offsets_of([end - begin]), 7, start[:1], False)
            assert torch.equal(rows, right + begin)


def test_line_of_eleven_points(device):
    found = farthest_point_sample(make("line", 11).to(device), 3)
    assert found.tolist() == [0, 10, 5]


def test_duplicates_come_last_lowest_index_first(device):
    xyz = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], device=device)
    assert farthest_point_sample(xyz, 5).tolist() == [0, 2, 1, 3, 4]


def test_dense_equals_packed_equals_one_at_a_time(device):
    dense = make("normal", 4 * 90).reshape(4, 90, 3).to(device)
    index = farthest_point_sample(dense, 17, start=3)
    packed = farthest_point_sample(dense.reshape(-1, 3), 17, offsets=offsets_of([90] * 4).to(device), start=3)
    rows = index + torch.arange(4, device=device)[:, None] * 90
    assert torch.equal(rows.reshape(-1), packed)
    for b in range(4):
        assert torch.equal(farthest_point_sample(dense[b], 17, start=3), index[b])
    assert index.shape == (4, 17)
    assert index.dtype == torch.int64


def test_moving_and_permuting(device):
    xyz = make("lattice", 120).unique(dim=0)  # no duplicates, but ties
    moved = farthest_point_sample((xyz + 8.0).to(device), 20)
    assert torch.equal(moved, farthest_point_sample(xyz.to(device), 20))
    far = make("normal", 60)  # no ties
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(59)])
    permuted = farthest_point_sample(far[order].to(device), 20).cpu()
    assert torch.equal(order[permuted], farthest_point_sample(far.to(device), 20).cpu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(device, dtype):
    xyz = make("normal", 200).to(dtype)
    assert torch.equal(farthest_point_sample(xyz.to(device), 30), farthest_point_sample(xyz.float().to(device), 30))


def test_strided_input(device):
    xyz = make("normal", 200).to(device)
    assert torch.equal(farthest_point_sample(xyz[::2], 30), farthest_point_sample(xyz[::2].contiguous(), 30))
    wide = torch.cat([xyz, xyz], 1)[None].transpose(1, 2)[:, :3].transpose(1, 2)
    assert torch.equal(farthest_point_sample(wide, 30)[0], farthest_point_sample(xyz, 30))


def test_starts(device):
    xyz = make("normal", 150).reshape(3, 50, 3).to(device)
    assert farthest_point_sample(xyz, 5)[:, 0].tolist() == [0, 0, 0]
    assert farthest_point_sample(xyz, 5, start=7)[:, 0].tolist() == [7, 7, 7]
    chosen = torch.tensor([1, 49, 20], device=device)
    assert torch.equal(farthest_point_sample(xyz, 5, start=chosen)[:, 0], chosen)


def test_random_start_is_reproducible_and_random(device):
    xyz = make("normal", 64 * 50).reshape(64, 50, 3).to(device)

    def draw(seed):
        return farthest_point_sample(xyz, 2, start="random", generator=torch.Generator().manual_seed(seed))[:, 0]

    first = draw(1)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))
    assert len(set(first.tolist())) > 20
    assert int(first.min()) >= 0
    assert int(first.max()) < 50


def test_points_near_the_origin_are_never_taken_under_the_rule(device):
    xyz = torch.nn.functional.normalize(make("normal", 2048), dim=1)
    xyz[[100, 700]] *= 0.03  # squared norm 9e-4, below 1e-3
    xyz[900] *= 0.032  # 1.024e-3, above
    found = farthest_point_sample(xyz.to(device), 2048, ignore_near_origin=True)
    assert len(set(found.tolist())) == 2046
    assert not {100, 700} & set(found.tolist())
    assert 900 in found.tolist()
    assert len(set(farthest_point_sample(xyz.to(device), 2048).tolist())) == 2048


def test_the_rule_spares_the_first_point_and_repeats_exhausted_candidates(device):
    xyz = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0.01, 0], [0, 2, 0]], device=device)
    assert farthest_point_sample(xyz, 4, ignore_near_origin=True).tolist() == [0, 3, 1, 1]
    near = torch.zeros(5, 3, device=device)
    assert farthest_point_sample(near, 3, start=2, ignore_near_origin=True).tolist() == [2, 0, 0]


def test_the_rule_changes_nothing_away_from_the_origin(device):
    xyz = (make("normal", 200) + 3).to(device)
    plain = farthest_point_sample(xyz, 50)
    assert torch.equal(plain, farthest_point_sample(xyz, 50, ignore_near_origin=True))


def test_no_clouds_and_empty_clouds(device):
    assert farthest_point_sample(torch.empty(0, 9, 3, device=device), 4).shape == (0, 4)
    nothing = torch.zeros(1, dtype=torch.int64, device=device)
    assert farthest_point_sample(torch.empty(0, 3, device=device), 4, offsets=nothing).shape == (0,)
    offsets = offsets_of([0, 6, 0]).to(device)
    xyz = make("line", 6).to(device)
    assert farthest_point_sample(xyz, 2, offsets=offsets).tolist() == [0, 5]
    assert sample_offsets(offsets, 2).tolist() == [0, 0, 2, 2]
    assert farthest_point_sample(torch.empty(0, 3, device=device), 2, offsets=offsets_of([0, 0]).to(device)).shape == (
        0,
    )


def test_sample_offsets_cut_the_result(device):
    offsets = offsets_of([50, 20, 70]).to(device)
    number = torch.tensor([5, 0, 9], device=device)
    index = farthest_point_sample(make("normal", 140).to(device), number, offsets=offsets)
    cuts = sample_offsets(offsets, number)
    assert cuts.tolist() == [0, 5, 5, 14]
    for (low, high), (begin, end) in zip(pairs(cuts), pairs(offsets), strict=True):
        assert all(begin <= i < end for i in index[low:high].tolist())


BAD = [
    (TypeError, "xyz must be a torch.Tensor, got list", {"xyz": [[0.0, 0, 0]]}),
    (TypeError, "xyz must have dtype .*, got int64", {"xyz": torch.zeros(2, 5, 3, dtype=torch.int64)}),
    (ValueError, r"xyz must have shape .*, got \(2, 5, 4\)", {"xyz": torch.zeros(2, 5, 4)}),
    (ValueError, r"xyz must have shape .*, got \(3,\)", {"xyz": torch.zeros(3)}),
    (ValueError, "num_samples must be at least 1, got 0", {"num_samples": 0}),
    (TypeError, "num_samples must be an int, got float", {"num_samples": 2.0}),
    (TypeError, "num_samples must be an int, got bool", {"num_samples": True}),
    (ValueError, "num_samples is 6, but the clouds of xyz have 5 points", {"num_samples": 6}),
    (ValueError, "num_samples must be an int for dense points", {"num_samples": torch.tensor([1, 1])}),
    (ValueError, r"offsets goes with packed \(N, 3\) points", {"offsets": torch.tensor([0, 5])}),
    (ValueError, "start must be 'first', 'random'.*, got 'last'", {"start": "last"}),
    (ValueError, "start must be at least 0, got -1", {"start": -1}),
    (ValueError, "start is 5 for cloud 0, which has 5 points", {"start": 5}),
    (ValueError, r"start must have shape \(2,\), got \(3,\)", {"start": torch.zeros(3, dtype=torch.int64)}),
    (TypeError, "start must have dtype int64", {"start": torch.zeros(2, dtype=torch.int32)}),
    (ValueError, "start is -1 for cloud 1", {"start": torch.tensor([0, -1])}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_bad_input_is_named(error, message, change):
    arguments = {"xyz": torch.zeros(2, 5, 3), "num_samples": 3} | change
    with pytest.raises(error, match=message):
        farthest_point_sample(**arguments)


BAD_PACKED = [
    ("offsets must ascend", {"offsets": torch.tensor([0, 7, 3, 10])}),
    ("offsets must run from 0 to the number of rows 10, got 0 to 9", {"offsets": torch.tensor([0, 9])}),
    ("offsets must run from 0", {"offsets": torch.tensor([1, 10])}),
    (r"offsets must have shape \(B \+ 1,\), got \(1, 2\)", {"offsets": torch.tensor([[0, 10]])}),
    (r"offsets must have shape \(B \+ 1,\), got \(0,\)", {"offsets": torch.empty(0, dtype=torch.int64)}),
    ("num_samples is 5 for cloud 1 of xyz, which has 4 points", {"num_samples": 5}),
    ("num_samples is 7 for cloud 0 of xyz, which has 6 points", {"num_samples": torch.tensor([7, 1])}),
    ("num_samples is -1 for cloud 1", {"num_samples": torch.tensor([1, -1])}),
    (r"num_samples must have shape \(2,\), got \(1,\)", {"num_samples": torch.tensor([1])}),
]


@pytest.mark.parametrize(("message", "change"), BAD_PACKED)
def test_bad_packed_input_is_named(message, change):
    arguments = {"xyz": torch.zeros(10, 3), "num_samples": 2, "offsets": torch.tensor([0, 6, 10])} | change
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(**arguments)


def test_offsets_of_a_wrong_type():
    with pytest.raises(TypeError, match="offsets must have dtype int64, got int32"):
        farthest_point_sample(torch.zeros(4, 3), 1, offsets=torch.tensor([0, 4], dtype=torch.int32))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_coordinates_that_are_not_finite_are_refused(device, value):
    xyz = torch.zeros(2, 5, 3, device=device)
    xyz[1, 2, 0] = value
    with pytest.raises(ValueError, match="xyz holds a NaN or infinite coordinate, first in row 7"):
        farthest_point_sample(xyz, 3)


def test_finite_coordinates_whose_sum_overflows_are_accepted(device):
    xyz = torch.full((4, 3), 3e38, device=device)
    assert farthest_point_sample(xyz, 2).tolist() == [0, 1]
