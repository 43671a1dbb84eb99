"""The compiled module ``pointnet2_batch_cuda`` of OpenPoints: results are written into the last arguments.

Every function takes the sizes of the tensors first; they are ignored.
"""

from __future__ import annotations

from torch import Tensor

from pc3d import ops
from pc3d.compat import pointnet2_ops


def furthest_point_sampling_wrapper(b: int, n: int, m: int, xyz: Tensor, temp: Tensor, idx: Tensor) -> None:
    """(B, N, 3) points to (B, m) indices, from index 0; unlike in ``pointnet2_ops``, no points are ignored."""
    idx.copy_(ops.farthest_point_sample(xyz, m))


def ball_query_wrapper(
    b: int, n: int, m: int, radius: float, nsample: int, new_xyz: Tensor, xyz: Tensor, idx: Tensor
) -> None:
    """(B, N, 3) points around (B, m, 3) centres to (B, m, nsample) indices; rows of empty balls are not changed."""
    index = ops.ball_query(xyz, radius, nsample, query=new_xyz).index
    idx.copy_(index.where(index >= 0, idx.long()))


def gather_points_wrapper(b: int, c: int, n: int, npoints: int, points: Tensor, idx: Tensor, out: Tensor) -> None:
    """Gather (B, C, N) features at (B, npoints) indices: (B, C, npoints)."""
    out.copy_(pointnet2_ops.gather_operation(points, idx))


def gather_points_grad_wrapper(
    b: int, c: int, n: int, npoints: int, grad_out: Tensor, idx: Tensor, grad_points: Tensor
) -> None:
    """Add to the gradient (B, C, N) of the features of :func:`gather_points_wrapper`."""
    grad_points.scatter_add_(2, idx.long()[:, None].expand_as(grad_out), grad_out)


def group_points_wrapper(
    b: int, c: int, n: int, npoints: int, nsample: int, points: Tensor, idx: Tensor, out: Tensor
) -> None:
    """Gather (B, C, N) features at (B, npoints, nsample) indices: (B, C, npoints, nsample)."""
    out.copy_(pointnet2_ops.grouping_operation(points, idx))


def group_points_grad_wrapper(
    b: int, c: int, n: int, npoints: int, nsample: int, grad_out: Tensor, idx: Tensor, grad_points: Tensor
) -> None:
    """Add to the gradient (B, C, N) of the features of :func:`group_points_wrapper`."""
    gather_points_grad_wrapper(b, c, n, npoints * nsample, grad_out.flatten(2), idx.flatten(1), grad_points)


def three_nn_wrapper(b: int, n: int, m: int, unknown: Tensor, known: Tensor, dist2: Tensor, idx: Tensor) -> None:
    """Squared distances and indices of the three points of (B, m, 3) nearest to each of (B, n, 3)."""
    index, squared = ops.knn(known, 3, query=unknown)
    dist2.copy_(squared)
    idx.copy_(index)


def three_interpolate_wrapper(
    b: int, c: int, m: int, n: int, points: Tensor, idx: Tensor, weight: Tensor, out: Tensor
) -> None:
    """Weighted sums (B, C, n) of (B, C, m) features, with (B, n, 3) indices and weights."""
    out.copy_(pointnet2_ops.three_interpolate(points, idx, weight))


def three_interpolate_grad_wrapper(
    b: int, c: int, n: int, m: int, grad_out: Tensor, idx: Tensor, weight: Tensor, grad_points: Tensor
) -> None:
    """Add to the gradient (B, C, m) of the features of :func:`three_interpolate_wrapper`."""
    spread = grad_out[..., None] * weight[:, None]
    gather_points_grad_wrapper(b, c, m, 3 * n, spread.flatten(2), idx.flatten(1), grad_points)
