"""Input and output levels shared by the backbones for voxelised scenes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pc3d.data.types import PointBatch
from pc3d.nn.sparse import SIGNALS, Signals, VoxelGrid, voxel_grid


class VoxelLevel(NamedTuple):
    """One resolution of encoded scenes.

    Attributes:
        coords: ``(V, 3)`` int32, voxels of this level's edge, ordered by scene and then by (x, y, z).
        offsets: ``(B + 1,)`` int64, scene ``b`` is rows ``offsets[b]:offsets[b + 1]``.
        xyz: ``(V, 3)``, the point that stands for each voxel, in the units of the batch.
        features: ``(V, C)``.
        stride: edge of a voxel in voxels of the finest level.
        parent: ``(V,)`` int64, the row of the next coarser level that holds each voxel; None at the coarsest.
    """

    coords: Tensor
    offsets: Tensor
    xyz: Tensor
    features: Tensor
    stride: int
    parent: Tensor | None


class VoxelInput(NamedTuple):
    """A voxelised batch.

    Attributes:
        grid: the voxels; ``grid.point`` is the row of each one's representative point.
        inverse: ``(N,)`` int64, the voxel of each point.
        signals: ``(V, 0)``, ``(V, 3)`` or ``(V, 6)`` float32, colours and normals of the representatives in [-1, 1].
    """

    grid: VoxelGrid
    inverse: Tensor
    signals: Tensor

    def features(self) -> Tensor:
        """``(V, 3 to 9)`` float32: colour, normal, and position in the voxel, 0 to 1 from its lower corner."""
        return torch.cat([self.signals, self.grid.local], dim=1)


def check_signals(signals: str) -> None:
    """Refuse an unknown choice of signals."""
    if signals not in SIGNALS:
        raise ValueError(f"signals must be one of {', '.join(SIGNALS)}, got {signals!r}")


@torch.no_grad()
def voxelize_batch(batch: PointBatch, voxel_size: float, signals: Signals, *, random_point: bool) -> VoxelInput:
    """Cut a batch into voxels, one point each.

    Args:
        batch: scenes in the units of ``voxel_size``.
        voxel_size: edge of a voxel.
        signals: which fields besides the coordinates are read.
        random_point: as :func:`pc3d.nn.voxel_grid`.

    Raises:
        ValueError: the batch lacks a field that ``signals`` names.
    """
    fields = {"rgb": batch.rgb, "normal": batch.normal}
    wanted = {"xyz": (), "xyz_rgb": ("rgb",), "xyz_rgb_normal": ("rgb", "normal")}[signals]
    missing = [name for name in wanted if fields[name] is None]
    if missing:
        usable = "xyz_rgb" if batch.rgb is not None else "xyz"
        raise ValueError(
            f"the model was built with signals={signals!r}, but this batch has no {' and no '.join(missing)}: load "
            f"scenes with {' and '.join(missing)}, add some with pc3d.tasks.with_fields, or build (and train) the "
            f"model with signals={usable!r}"
        )
    grid, inverse = voxel_grid(batch.xyz, voxel_size, batch.offsets, random_point=random_point)
    columns = [grid.local[:, :0]]
    for name in wanted:
        value = fields[name]
        assert value is not None
        chosen = value[grid.point].float()
        columns.append(2.0 * chosen - 1.0 if name == "rgb" else chosen)
    return VoxelInput(grid, inverse, torch.cat(columns, dim=1))
