"""The stand-in for Point Transformer's compiled module: what is written into the result, against plain statements."""

from __future__ import annotations

import pytest
import torch
from packed_clouds import ENDS, NEW_ENDS

from pc3d.compat import pointops_cuda


def clouds() -> list[tuple[range, range]]:
    """Rows of points and of queries of each cloud."""
    return [(range(0, 40), range(0, 9)), (range(40, 43), range(9, 11)), (range(43, 90), range(11, 30))]


def test_neighbors_of_a_small_cloud_are_filled_up_with_its_first_point(
    xyz: torch.Tensor, queries: torch.Tensor
) -> None:
    index, squared = torch.full((30, 5), -7, dtype=torch.int32), torch.zeros(30, 5)
    pointops_cuda.knnquery_cuda(30, 5, xyz, queries, ENDS, NEW_ENDS, index, squared)
    for points, asking in clouds():
        for query in asking:
            pairs = sorted((float((xyz[row] - queries[query]).double().square().sum()), row) for row in points)[:5]
            missing = 5 - len(pairs)
            assert index[query].tolist() == [row for _, row in pairs] + [points[0]] * missing
            expected = torch.tensor([d for d, _ in pairs] + [1e10] * missing)
            torch.testing.assert_close(squared[query], expected)


def test_dense_clouds_are_refused(xyz: torch.Tensor) -> None:
    dense, index = xyz.reshape(3, 30, 3), torch.zeros(3, 30, 4, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"PointWeb.*pc3d\.ops\.knn"):
        pointops_cuda.knnquery_cuda(3, 30, 30, 4, dense, dense, index, torch.zeros(3, 30, 4))


def test_farthest_points_of_each_cloud(xyz: torch.Tensor) -> None:
    ends = torch.tensor([4, 6, 9], dtype=torch.int32)
    index = torch.zeros(9, dtype=torch.int32)
    pointops_cuda.furthestsampling_cuda(3, 47, xyz, ENDS, ends, torch.full((90,), 1e10), index)
    for (points, _), wanted in zip(clouds(), [(0, 4), (4, 6), (6, 9)], strict=True):
        taken = [points[0]]
        while len(taken) < wanted[1] - wanted[0]:
            nearest = torch.cdist(xyz[points.start : points.stop].double(), xyz[taken].double()).amin(1)
            taken.append(points[0] + int(nearest.argmax()))
        assert index[slice(*wanted)].tolist() == taken


def test_ball_query_takes_the_lowest_rows_and_leaves_an_empty_ball(xyz: torch.Tensor, queries: torch.Tensor) -> None:
    queries[10] = 100.0
    index = torch.full((30, 4), 89, dtype=torch.int32)
    pointops_cuda.ballquery_cuda(30, 1.0, 4, xyz, queries, ENDS, NEW_ENDS, index)
    for points, asking in clouds():
        for query in asking:
            inside = [row for row in points if (xyz[row] - queries[query]).norm() < 1.0]
            assert index[query].tolist() == ((inside + inside[:1] * 4)[:4] if inside else [89] * 4)
    assert index[10].tolist() == [89] * 4


def test_grouping_and_its_gradient() -> None:
    feat = torch.randn(20, 6, requires_grad=True)
    index = torch.randint(0, 20, (7, 4), dtype=torch.int32)
    expected = torch.stack([feat[row.long()] for row in index])
    out, grad, upstream = torch.empty(7, 4, 6), torch.ones(20, 6), torch.randn(7, 4, 6)
    pointops_cuda.grouping_forward_cuda(7, 4, 6, feat.data, index, out)
    pointops_cuda.grouping_backward_cuda(7, 4, 6, upstream, index, grad)
    assert torch.equal(out, expected)
    torch.testing.assert_close(grad, 1 + torch.autograd.grad(expected, feat, upstream)[0])  # added to what is there


def test_interpolation_and_its_gradient() -> None:
    feat, weight = torch.randn(20, 6, requires_grad=True), torch.rand(7, 3)
    index = torch.randint(0, 20, (7, 3), dtype=torch.int32)
    expected = torch.stack(
        [sum(w * feat[int(row)] for w, row in zip(*pair, strict=True)) for pair in zip(weight, index, strict=True)]
    )
    out, grad, upstream = torch.ones(7, 6), torch.ones(20, 6), torch.randn(7, 6)
    pointops_cuda.interpolation_forward_cuda(7, 6, 3, feat.data, index, weight, out)
    pointops_cuda.interpolation_backward_cuda(7, 6, 3, upstream, index, weight, grad)
    torch.testing.assert_close(out, 1 + expected)
    torch.testing.assert_close(grad, 1 + torch.autograd.grad(expected, feat, upstream)[0])


def test_subtraction_and_its_gradient() -> None:
    one, other = torch.randn(7, 6, requires_grad=True), torch.randn(7, 6, requires_grad=True)
    index = torch.randint(0, 7, (7, 4), dtype=torch.int32)
    expected = torch.stack([torch.stack([one[i] - other[int(row)] for row in index[i]]) for i in range(7)])
    out, upstream = torch.empty(7, 4, 6), torch.randn(7, 4, 6)
    grads = torch.ones(7, 6), torch.ones(7, 6)
    pointops_cuda.subtraction_forward_cuda(7, 4, 6, one.data, other.data, index, out)
    pointops_cuda.subtraction_backward_cuda(7, 4, 6, index, upstream, *grads)
    assert torch.equal(out, expected)
    for grad, of_autograd in zip(grads, torch.autograd.grad(expected, (one, other), upstream), strict=True):
        torch.testing.assert_close(grad, 1 + of_autograd)


def test_aggregation_shares_a_weight_among_channels() -> None:
    """Channel i uses weight i modulo their number."""
    feat, position = torch.randn(7, 6, requires_grad=True), torch.randn(7, 4, 6, requires_grad=True)
    weight = torch.randn(7, 4, 2, requires_grad=True)
    index = torch.randint(0, 7, (7, 4), dtype=torch.int32)
    expected = torch.stack(
        [
            torch.stack(
                [
                    sum((feat[int(index[n, s]), i] + position[n, s, i]) * weight[n, s, i % 2] for s in range(4))
                    for i in range(6)
                ]
            )
            for n in range(7)
        ]
    )
    out, upstream = torch.ones(7, 6), torch.randn(7, 6)
    given = feat.data, position.data, weight.data, index
    pointops_cuda.aggregation_forward_cuda(7, 4, 6, 2, *given, out)
    torch.testing.assert_close(out, 1 + expected)
    grads = torch.ones(7, 6), torch.ones(7, 4, 6), torch.ones(7, 4, 2)
    pointops_cuda.aggregation_backward_cuda(7, 4, 6, 2, *given, upstream, *grads)
    of_feat, of_position, of_weight = torch.autograd.grad(expected, (feat, position, weight), upstream)
    torch.testing.assert_close(grads[0], 1 + of_feat)
    torch.testing.assert_close(grads[1], of_position)  # set, not added
    torch.testing.assert_close(grads[2], 1 + of_weight)
