"""Masking of scenes: hide random cubes, remove their signals, and encode the scene with a mask token instead."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pc3d.data.types import PointBatch
from pc3d.models.voxel_features import VoxelEncoder, upcast
from pc3d.nn import SampleRandom
from pc3d.nn.sparse import scene_of_rows
from pc3d.ops import voxelize


class HiddenScene(NamedTuple):
    """A batch with the signals of some voxels hidden.

    Attributes:
        batch: the points in the same order. Points of hidden voxels are moved to the centre of their voxel, grey (0.5),
            with a zero normal; encoders read colour and normal of these values as 0.
        mask: ``(V,)`` bool, True = hidden; voxels in the order of the encoder's finest level.
        inverse: ``(N,)`` int64, the voxel of each point.
        offsets: ``(B + 1,)`` int64 of the voxels.
        cell: ``(V,)`` int64, the cube that contains each voxel.
        cell_offsets: ``(B + 1,)`` int64 of the cubes.
    """

    batch: PointBatch
    mask: Tensor
    inverse: Tensor
    offsets: Tensor
    cell: Tensor
    cell_offsets: Tensor


def check_cell_size(cell_size: float, voxel_size: float) -> None:
    """Check that cubes are at least as large as voxels.

    Raises:
        ValueError: they are smaller.
    """
    if not cell_size >= voxel_size:
        raise ValueError(f"cell_size must be at least the encoder's voxel_size, {voxel_size}, got {cell_size}")


def hide_cells(
    batch: PointBatch, voxel_size: float, cell_size: float, mask_ratio: float, draws: SampleRandom
) -> HiddenScene:
    """Hide the points of all voxels whose centre lies in randomly chosen cubes; the positions of voxels stay visible.

    Args:
        batch: scenes.
        voxel_size: edge of the encoder's finest voxels.
        cell_size: edge of the cubes, whose grid has a random shift for each scene.
        mask_ratio: of G occupied cubes of a scene, ``int(mask_ratio * G)`` are hidden; all choices are equally likely.
        draws: source of the random numbers.

    Raises:
        ValueError: no scene of the batch has enough cubes to hide one.
    """
    coords, offsets, inverse, _, _ = voxelize(batch.xyz, voxel_size, offsets=batch.offsets)
    scene = scene_of_rows(offsets, len(coords))
    shift = draws.uniform(3).double() * cell_size
    middle = (coords.double() + 0.5) * voxel_size
    cells = voxelize(middle + shift[scene], cell_size, offsets=offsets)
    occupied = cells.offsets.diff().tolist()
    every = torch.ones(sum(occupied), dtype=torch.bool, device=cells.offsets.device)
    chosen = draws.some_rows(every, cells.offsets, [int(mask_ratio * number) for number in occupied])
    if not len(chosen):
        raise ValueError(
            f"no cube of {cell_size} can be hidden at mask_ratio {mask_ratio}, scenes of the batch have {occupied}: "
            "use a smaller cell_size (are coordinates in metres?)"
        )
    mask = torch.zeros_like(every).index_fill(0, chosen, True)[cells.inverse]

    of_point = mask[inverse, None]
    changes: dict[str, Any] = {"xyz": torch.where(of_point, middle[inverse].to(batch.xyz.dtype), batch.xyz)}
    if batch.rgb is not None:
        changes["rgb"] = batch.rgb.masked_fill(of_point, 0.5)
    if batch.normal is not None:
        changes["normal"] = batch.normal.masked_fill(of_point, 0.0)
    return HiddenScene(dataclasses.replace(batch, **changes), mask, inverse, offsets, cells.inverse, cells.offsets)


def encode_hidden(voxels: VoxelEncoder, hidden: HiddenScene, mask_token: Tensor) -> Tensor:
    """Features of every finest voxel, ``(V, sum of channels)``, computed from the visible signals.

    Args:
        voxels: the encoder.
        hidden: from :func:`hide_cells` with the encoder's voxel size.
        mask_token: ``(1, C)``, replaces the output of the stem at hidden voxels.
    """
    scene = voxels.scene(hidden.batch)
    embedded = voxels.embed(scene)
    embedded = torch.where(hidden.mask[:, None], mask_token.to(embedded.dtype), embedded)
    return upcast(scene, voxels.encode_voxels(scene, embedded))
