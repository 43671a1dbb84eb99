"""Curves through voxels against definitions of single bits, and patches against loops over scenes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pc3d.nn.serialization import (
    SERIAL_ORDERS,
    SerialPatches,
    hilbert_code,
    serial_depth,
    serial_patches,
    serialize,
    z_order_code,
)


def cube(edge: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(edge), repeat=3)))


def z_place(x: int, y: int, z: int) -> int:
    bits = "".join(f"{(x >> bit) & 1}{(y >> bit) & 1}{(z >> bit) & 1}" for bit in reversed(range(20)))
    return int(bits, 2)


def hilbert_place(xyz: list[int], depth: int) -> int:
    """Skilling's transformation on lists of bits, the highest first."""
    bits = [[(value >> bit) & 1 for bit in reversed(range(depth))] for value in xyz]
    for level in range(depth):
        for axis in range(3):
            for below in range(level + 1, depth):
                if bits[axis][level]:
                    bits[0][below] = 1 - bits[0][below]
                else:
                    bits[0][below], bits[axis][below] = bits[axis][below], bits[0][below]
    parity, place = 0, 0
    for level in range(depth):
        for axis in range(3):
            parity ^= bits[axis][level]
            place = 2 * place + parity
    return place


def scenes() -> tuple[Tensor, Tensor]:
    """Five scenes, sorted by scene and (x, y, z) and each from 0: 700 voxels, a few, none, one, and many."""
    generator = torch.Generator().manual_seed(0)
    found, lengths = [], [0]
    for edge, share in ((9, 1.0), (2, 0.9), (1, 0.0), (1, 1.0), (20, 0.1)):
        every = cube(edge)
        chosen = every[torch.rand(len(every), generator=generator) < share]
        found.append(chosen - chosen.amin(0) if len(chosen) else chosen)
        lengths.append(len(chosen))
    return torch.cat(found).int(), torch.tensor(lengths).cumsum(0)


def test_the_codes_are_those_of_single_bits() -> None:
    generator = torch.Generator().manual_seed(1)
    for depth in (1, 2, 5, 16, 20):
        coords = torch.randint(0, 2**depth, (40, 3), generator=generator)
        assert z_order_code(coords).tolist() == [z_place(*voxel) for voxel in coords.tolist()]
        expected = [hilbert_place(voxel, depth) for voxel in coords.tolist()]
        assert hilbert_code(coords, torch.full((40,), depth)).tolist() == expected


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_hilbert_curve_goes_through_every_voxel_from_neighbour_to_neighbour(depth: int) -> None:
    coords = cube(2**depth)
    code = hilbert_code(coords, torch.full((len(coords),), depth))
    assert torch.equal(code.sort().values, torch.arange(8**depth))
    steps = coords[code.argsort()].diff(dim=0).abs().sum(1)
    assert (steps == 1).all()
    parents = hilbert_code(coords // 2, torch.full((len(coords),), depth - 1))
    assert torch.equal(code >> 3, parents)


def test_the_depth_counts_the_bits_of_the_largest_coordinate_plus_one() -> None:
    for largest in (0, 1, 2, 3, 6, 7, 8, 1000, 2**19 - 2):
        coords = torch.tensor([[0, 0, 0], [0, largest, 0]]).int()
        assert serial_depth(coords, torch.tensor([0, 2])).tolist() == [(largest + 1).bit_length()]
    coords, offsets = scenes()
    expected = [
        (int(coords[low:high].max()) + 1).bit_length() if high > low else 1
        for low, high in itertools.pairwise(offsets.tolist())
    ]
    assert serial_depth(coords, offsets).tolist() == expected


@pytest.mark.parametrize("order", SERIAL_ORDERS)
def test_each_scene_is_put_into_the_order_of_its_own_curve(order: str) -> None:
    coords, offsets = scenes()
    rows = serialize(coords, offsets, serial_depth(coords, offsets), order)  # type: ignore[arg-type]
    expected = []
    for low, high in itertools.pairwise(offsets.tolist()):
        voxels = [row[:3] for row in coords[low:high].tolist()]
        if order.endswith("-trans"):
            voxels = [[y, x, z] for x, y, z in voxels]
        depth = (max(itertools.chain([0], *voxels)) + 1).bit_length()
        places = [hilbert_place(v, depth) if order.startswith("hilbert") else z_place(*v) for v in voxels]
        expected += [low + i for i in sorted(range(len(places)), key=places.__getitem__)]
    assert rows.tolist() == expected


@pytest.mark.parametrize("patch_size", [1, 7, 64, 729, 1000])
def test_patches_are_runs_and_the_last_ends_with_the_scene(patch_size: int) -> None:
    coords, offsets = scenes()
    rows = torch.cat([offsets[i] + torch.randperm(int(n)) for i, n in enumerate(offsets.diff())])
    patches = serial_patches(rows, offsets, patch_size)
    full, short, owner = [], [], {}
    for low, high in itertools.pairwise(offsets.tolist()):
        line = rows[low:high].tolist()
        if 0 < len(line) < patch_size:
            short.append(line)
            owner.update({row: ("short", len(short) - 1, place) for place, row in enumerate(line)})
            continue
        for start in range(0, len(line), patch_size):
            begin = min(start, len(line) - patch_size)
            full.append(line[begin : begin + patch_size])
            own = {row: ("full", len(full) - 1, place) for place, row in enumerate(full[-1])}
            owner.update({row: own[row] for row in line[start : start + patch_size]})
    assert patches.full.tolist() == full
    assert [[row for row in line if row >= 0] for line in patches.short.tolist()] == short
    assert len(owner) == len(coords)
    for row, slot in enumerate(patches.slot.tolist()):
        kind, number, place = owner[row]
        width = patch_size if kind == "full" else patches.short.shape[1]
        begin = 0 if kind == "full" else patches.full.numel()
        assert slot == begin + number * width + place


def test_nothing_at_all_has_no_patches() -> None:
    for offsets in (torch.tensor([0]), torch.tensor([0, 0, 0])):
        coords = torch.zeros(0, 3, dtype=torch.int32)
        rows = serialize(coords, offsets, serial_depth(coords, offsets), "hilbert")
        found: SerialPatches = serial_patches(rows, offsets, 4)
        assert [len(part) for part in found] == [0, 0, 0]


def test_what_cannot_be_numbered_is_refused() -> None:
    far = torch.tensor([[0, 0, 0], [2**20 - 1, 0, 0]]).int()
    with pytest.raises(ValueError, match="a scene is 1048576 voxels long, more than the 1048575 that"):
        serial_depth(far, torch.tensor([0, 2]))
    wide = torch.tensor([[2**20 - 2, 0, 0]] * 8).int()
    offsets = torch.arange(9)
    with pytest.raises(ValueError, match="8 scenes of up to 1048576 voxels along an axis are too many for one batch"):
        serialize(wide, offsets, serial_depth(wide, offsets), "z")
    assert serialize(wide[:7], offsets[:8], serial_depth(wide[:7], offsets[:8]), "z").tolist() == list(range(7))
    with pytest.raises(ValueError, match="orders must be some of z, z-trans, hilbert, hilbert-trans, got 'peano'"):
        serialize(wide[:1], offsets[:2], torch.tensor([20]), "peano")  # type: ignore[arg-type]
