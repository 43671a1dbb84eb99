"""Operators: sampling, neighbours, gathering, chamfer distance, voxels, sparse convolution, window attention.

All take dense ``(B, N, C)`` tensors or packed ``(N, C)`` ones with int64 ``offsets`` ``(B + 1,)``, where cloud ``b`` is
rows ``offsets[b]`` to ``offsets[b + 1]``. An index addresses the tensor it was computed from: within each cloud for
dense input, rows for packed input. The lowest index wins every tie, on every device.
"""

from pc3d.ops._library import FallbackWarning, build_info
from pc3d.ops.attention import Windows, window_attention, window_partition
from pc3d.ops.chamfer import chamfer_distance
from pc3d.ops.gathering import gather, group
from pc3d.ops.interpolation import interpolate
from pc3d.ops.neighbors import BallNeighbors, Neighbors, ball_query, knn
from pc3d.ops.sampling import farthest_point_sample, sample_offsets
from pc3d.ops.segments import gather_max, segment_reduce
from pc3d.ops.sparse_conv import KernelMap, kernel_map, sparse_conv3d
from pc3d.ops.voxels import Voxels, voxel_neighbors, voxelize, voxelize_coords

__all__ = [
    "BallNeighbors",
    "FallbackWarning",
    "KernelMap",
    "Neighbors",
    "Voxels",
    "Windows",
    "ball_query",
    "build_info",
    "chamfer_distance",
    "farthest_point_sample",
    "gather",
    "gather_max",
    "group",
    "interpolate",
    "kernel_map",
    "knn",
    "sample_offsets",
    "segment_reduce",
    "sparse_conv3d",
    "voxel_neighbors",
    "voxelize",
    "voxelize_coords",
    "window_attention",
    "window_partition",
]
