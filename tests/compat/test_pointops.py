"""The stand-in for Pointcept's pointops against loops over the points of each cloud."""

from __future__ import annotations

import pytest
import torch
from packed_clouds import ENDS, NEW_ENDS

from pc3d.compat import pointops


def sorted_rows(xyz: torch.Tensor, query: torch.Tensor, cloud: int) -> list[tuple[float, int]]:
    begin, end = [0, *ENDS.tolist()][cloud], ENDS.tolist()[cloud]
    return sorted(((xyz[row] - query).double().norm().item(), row) for row in range(begin, end))


def test_knn_query_marks_the_slots_that_a_small_cloud_leaves(xyz: torch.Tensor, queries: torch.Tensor) -> None:
    index, distance = pointops.knn_query(5, xyz, ENDS, queries, NEW_ENDS)
    assert (index.dtype, index.shape) == (torch.int32, (30, 5))
    for row, cloud in [(0, 0), (8, 0), (9, 1), (10, 1), (11, 2), (29, 2)]:
        expected = sorted_rows(xyz, queries[row], cloud)[:5]
        have = len(expected)
        assert index[row].tolist() == [near for _, near in expected] + [-1] * (5 - have)
        torch.testing.assert_close(distance[row, :have].double(), torch.tensor([d for d, _ in expected]).double())
        assert distance[row, have:].tolist() == [1e5] * (5 - have)


def test_knn_query_without_queries_finds_each_point_first(xyz: torch.Tensor) -> None:
    index, distance = pointops.knn_query(2, xyz.requires_grad_(), ENDS)
    assert torch.equal(index[:, 0].long(), torch.arange(90))
    assert not distance.requires_grad


def test_farthest_points_of_each_cloud_from_its_first(xyz: torch.Tensor) -> None:
    wanted = torch.tensor([4, 6, 9], dtype=torch.int32)
    index = pointops.farthest_point_sampling(xyz, ENDS, wanted)
    assert index.dtype == torch.int32
    for cloud, (begin, end) in enumerate([(0, 4), (4, 6), (6, 9)]):
        first, last = [0, *ENDS.tolist()][cloud], ENDS.tolist()[cloud]
        taken = [first]
        while len(taken) < end - begin:
            nearest = torch.cdist(xyz[first:last].double(), xyz[taken].double()).min(1).values
            taken.append(first + int(nearest.argmax()))
        assert index[begin:end].tolist() == taken


def test_groups_read_zero_where_there_is_no_neighbour(xyz: torch.Tensor, queries: torch.Tensor) -> None:
    feat = torch.randn(90, 6)
    grouped, index = pointops.knn_query_and_group(feat, xyz, ENDS, queries, NEW_ENDS, nsample=5, with_xyz=True)
    assert grouped.shape == (30, 5, 9)
    assert torch.equal(grouped[3, 2, :3], xyz[index[3, 2]] - queries[3])
    assert torch.equal(grouped[3, 2, 3:], feat[index[3, 2]])
    assert index[10, 3:].tolist() == [-1, -1]
    assert not grouped[10, 3:].any()
    again, same = pointops.knn_query_and_group(feat, xyz, new_xyz=queries, idx=index)
    assert same is index
    assert torch.equal(again, grouped[..., 3:])


def test_grouping_has_the_gradients_of_plain_indexing(xyz: torch.Tensor) -> None:
    points, feat = xyz[:6].double().requires_grad_(), torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 5, 0], [2, -1, -1]], dtype=torch.int32)
    centers = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda f, p, c: pointops.grouping(index, f, p, c, with_xyz=True), (feat, points, centers))


def test_interpolation_weighs_by_inverse_distance(xyz: torch.Tensor, queries: torch.Tensor) -> None:
    feat = torch.randn(90, 4)
    out = pointops.interpolation(xyz, queries, feat, ENDS, NEW_ENDS)
    for row, cloud in [(0, 0), (9, 1), (29, 2)]:
        near = sorted_rows(xyz, queries[row], cloud)[:3]
        weight = torch.tensor([1 / (d + 1e-8) for d, _ in near])
        expected = (weight / weight.sum()) @ feat[[row for _, row in near]]
        torch.testing.assert_close(out[row], expected)
    few = feat[:6].double().requires_grad_()
    ends = torch.tensor([6])
    torch.autograd.gradcheck(
        lambda f: pointops.interpolation(xyz[:6].double(), queries[:3].double(), f, ends, torch.tensor([3])), few
    )


def test_ends_and_clouds_of_rows() -> None:
    ends = torch.tensor([2, 3, 6], dtype=torch.int32)
    batch = pointops.offset2batch(ends)
    assert batch.tolist() == [0, 0, 1, 2, 2, 2]
    assert torch.equal(pointops.batch2offset(batch), ends)


def test_nothing_to_search_by_is_refused(xyz: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="nsample=None"):
        pointops.knn_query_and_group(xyz, xyz, ENDS)
