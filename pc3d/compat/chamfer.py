"""The compiled module ``chamfer`` that all ``chamfer_dist`` folders import: dense clouds, int32 indices.

With it, a repository's own ``extensions/chamfer_dist`` can be imported, with all classes that it defines.
"""

from __future__ import annotations

from torch import Tensor

from pc3d import ops


def forward(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared distances (B, N) and (B, M) to the nearest point of the other cloud, and its indices; no gradient."""
    idx1, dist1 = ops.knn(xyz2.detach(), 1, query=xyz1.detach())
    idx2, dist2 = ops.knn(xyz1.detach(), 1, query=xyz2.detach())
    return dist1[..., 0], dist2[..., 0], idx1[..., 0].int(), idx2[..., 0].int()


def backward(
    xyz1: Tensor, xyz2: Tensor, idx1: Tensor, idx2: Tensor, graddist1: Tensor, graddist2: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`forward`'s distances with respect to both clouds."""
    rows1, rows2 = idx1.long(), idx2.long()
    push1 = 2 * graddist1[..., None] * (xyz1 - ops.gather(xyz2, rows1))
    push2 = 2 * graddist2[..., None] * (xyz2 - ops.gather(xyz1, rows2))
    # A point also gets the gradients of the points of the other cloud whose nearest neighbour it is.
    return (
        push1.scatter_add(1, rows2[..., None].expand_as(push2), -push2),
        push2.scatter_add(1, rows1[..., None].expand_as(push1), -push1),
    )
