"""Voxels in the order of a space-filling curve, cut into patches (Point Transformer V3, Wu et al., 2024, section 4)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pc3d.nn.sparse import scene_of_rows

SerialOrder = Literal["z", "z-trans", "hilbert", "hilbert-trans"]
"""A curve through the voxels: z-order or Hilbert, each also with x and y exchanged."""
SERIAL_ORDERS: tuple[SerialOrder, ...] = ("z", "z-trans", "hilbert", "hilbert-trans")
"""All values of :data:`SerialOrder`, in the published order."""
_MAX_DEPTH = 20
_CODE_BITS = 63


def z_order_code(coords: Tensor) -> Tensor:
    """The place of voxels along the z-order curve: the bits of x, y and z in turn, x highest.

    Args:
        coords: ``(V, 3)`` int64, from 0 to ``2**20 - 1``.

    Returns:
        ``(V,)`` int64.
    """
    x, y, z = (_spread(column) for column in coords.unbind(1))
    return (x << 2) | (y << 1) | z


def hilbert_code(coords: Tensor, depth: Tensor) -> Tensor:
    """The place of voxels along the Hilbert curve that fills a cube of ``2**depth`` voxels along an edge.

    Codes that follow one another belong to voxels that share a face. The turns of the curve depend on the depth, and
    the code of a voxel without its last three bits is that of the voxel around it in a cube of one level less.

    Args:
        coords: ``(V, 3)`` int64, from 0 to ``2**depth - 1``.
        depth: ``(V,)`` int64 of each voxel's own curve.

    Returns:
        ``(V,)`` int64.

    Source:
        Skilling, Programming the Hilbert curve, 2004.
    """
    axes = list(coords.unbind(1))
    for bit in reversed(range(int(depth.max()) if len(depth) else 0)):
        lower = torch.where(depth > bit, (1 << bit) - 1, 0)
        for axis in range(3):
            # All ones where this bit is set: there the first axis is mirrored below it, elsewhere it changes places
            # with this axis.
            is_set = -((axes[axis] >> bit) & 1)
            exchanged = (axes[0] ^ axes[axis]) & lower & ~is_set
            axes[0] = axes[0] ^ exchanged ^ (lower & is_set)
            if axis > 0:
                axes[axis] = axes[axis] ^ exchanged
    # The bits in turn are now a Gray code: each bit of the place is the parity of the bits from the highest to itself.
    code = z_order_code(torch.stack(axes, dim=1))
    for shift in (1, 2, 4, 8, 16, 32):
        code = code ^ (code >> shift)
    return code


def serial_depth(coords: Tensor, offsets: Tensor) -> Tensor:
    """Depth ``(B,)`` int64 of the curve of each scene: the bits of its largest coordinate plus one, as published.

    Args:
        coords: ``(V, 3)``, from 0.
        offsets: ``(B + 1,)`` int64.

    Raises:
        ValueError: a scene of 2^20 voxels or more along an axis.
    """
    scene = scene_of_rows(offsets, len(coords))
    largest = coords.new_zeros(len(offsets) - 1, dtype=torch.int64)
    largest.scatter_reduce_(0, scene, coords.long().amax(1), "amax")
    depth = torch.frexp((largest + 1).double()).exponent.long()  # the number of bits, exactly
    if len(depth) and int(depth.max()) > _MAX_DEPTH:
        raise ValueError(
            f"a scene is {int(largest.max()) + 1} voxels long, more than the {2**_MAX_DEPTH - 1} that can be put into "
            "order: remove points that lie far outside, or take a larger voxel_size"
        )
    return depth


def serialize(coords: Tensor, offsets: Tensor, depth: Tensor, order: SerialOrder) -> Tensor:
    """The rows ``(V,)`` int64 of voxels along a curve, scene by scene.

    Args:
        coords: ``(V, 3)``, each voxel of a scene once, from 0.
        offsets: ``(B + 1,)`` int64.
        depth: ``(B,)`` int64, from :func:`serial_depth` or for a part of its curve.
        order: which curve.

    Raises:
        ValueError: an unknown order, or more and larger scenes than 63 bits can number.
    """
    if order not in SERIAL_ORDERS:
        raise ValueError(f"orders must be some of {', '.join(SERIAL_ORDERS)}, got {order!r}")
    scene, deepest = scene_of_rows(offsets, len(coords)), int(depth.max()) if len(depth) else 0
    if 3 * deepest + (len(offsets) - 1).bit_length() > _CODE_BITS:
        raise ValueError(
            f"{len(offsets) - 1} scenes of up to {2**deepest} voxels along an axis are too many for one batch: take "
            "smaller batches or a larger voxel_size"
        )
    wide = coords.long()
    if order.endswith("-trans"):
        wide = wide[:, [1, 0, 2]]
    code = hilbert_code(wide, depth[scene]) if order.startswith("hilbert") else z_order_code(wide)
    return torch.argsort(code | (scene << (3 * deepest)))


class SerialPatches(NamedTuple):
    """Voxels of packed scenes in patches of neighbours along a curve.

    Attributes:
        full: ``(P, K)`` int64 rows of the voxels of each patch.
        short: ``(Q, L)`` int64 rows of the scenes of less than K voxels, each a patch of its own, then -1.
        slot: ``(V,)`` int64: where each voxel's result is among those of all patches, full ones first, in a row.
    """

    full: Tensor
    short: Tensor
    slot: Tensor


def serial_patches(rows: Tensor, offsets: Tensor, patch_size: int) -> SerialPatches:
    """Cut scenes into patches of ``patch_size`` voxels that follow one another along a curve.

    The last patch of a scene ends with the scene's last voxel: what it lacks, it borrows from the patch before, whose
    voxels keep the results that they have there. A scene of fewer voxels is one patch. So patches depend on their scene
    alone. (The published code does this with flash attention; without, it cuts all patches of a batch to the size of
    its smallest scene.)

    Args:
        rows: ``(V,)`` int64 from :func:`serialize`.
        offsets: ``(B + 1,)`` int64.
        patch_size: K.
    """
    count = offsets.diff()
    patches = torch.where(count < patch_size, 0, (count + patch_size - 1) // patch_size)
    first_patch = patches.cumsum(0) - patches
    patch = torch.arange(int(patches.sum()), device=rows.device)
    scene = torch.repeat_interleave(patches, output_size=len(patch))
    within = (patch - first_patch[scene]) * patch_size
    start = offsets[scene] + torch.minimum(within, count[scene] - patch_size)
    full = rows[start[:, None] + torch.arange(patch_size, device=rows.device)]

    small = ((count > 0) & (count < patch_size)).nonzero().flatten()
    longest = int(count[small].max()) if len(small) else 0
    place = torch.arange(longest, device=rows.device)
    inside = place < count[small, None]
    short = torch.where(inside, rows[torch.where(inside, offsets[small, None] + place, 0)], -1)

    of_scene = scene_of_rows(offsets, len(rows))
    position = torch.arange(len(rows), device=rows.device) - offsets[of_scene]
    number = position // patch_size
    number_start = torch.minimum(number * patch_size, count[of_scene] - patch_size)
    in_full = (first_patch[of_scene] + number) * patch_size + position - number_start
    rank = torch.zeros_like(count)
    rank[small] = torch.arange(len(small), device=rows.device)
    in_short = full.numel() + rank[of_scene] * longest + position
    slot = torch.empty_like(rows)
    slot[rows] = torch.where(count[of_scene] < patch_size, in_short, in_full)
    return SerialPatches(full, short, slot)


def _spread(value: Tensor) -> Tensor:
    """The bits of numbers below 2^21 three places apart."""
    for shift, kept in (
        (32, 0x001F00000000FFFF),
        (16, 0x001F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        value = (value | (value << shift)) & kept
    return value
