"""The operators: farthest point sampling, neighbours, gathering, chamfer distance.

All take dense ``(B, N, C)`` tensors or packed ``(N, C)`` ones with int64 ``offsets`` ``(B + 1,)``, where cloud ``b`` is
rows ``offsets[b]`` to ``offsets[b + 1]``. An index addresses the tensor it was computed from: within each cloud for
dense input, rows for packed input. The lowest index wins every tie, on every device.
"""

from pc3d.ops._library import FallbackWarning, build_info
from pc3d.ops.chamfer import chamfer_distance
from pc3d.ops.gathering import gather, group, interpolate
from pc3d.ops.neighbors import BallNeighbors, Neighbors, ball_query, knn
from pc3d.ops.sampling import farthest_point_sample, sample_offsets

__all__ = [
    "BallNeighbors",
    "FallbackWarning",
    "Neighbors",
    "ball_query",
    "build_info",
    "chamfer_distance",
    "farthest_point_sample",
    "gather",
    "group",
    "interpolate",
    "knn",
    "sample_offsets",
]
