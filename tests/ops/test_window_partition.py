"""Windows of voxels: every voxel in one window, by a plain statement of the rule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from clouds import offsets_of
from torch import Tensor

from pc3d.data import Rooms
from pc3d.ops import Windows, voxelize, window_partition


def by_the_rule(coords: Tensor, offsets: Tensor, window_size: int, shift: int) -> dict[tuple[int, ...], list[int]]:
    """The rows of every window, windows ordered by cloud and then lexicographically."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, cell in enumerate(coords.tolist()):
        cloud = next(b for b in range(len(offsets) - 1) if offsets[b] <= row < offsets[b + 1])
        groups.setdefault((cloud, *((c + shift) // window_size for c in cell)), []).append(row)
    return dict(sorted(groups.items()))


def rows_of(windows: Windows) -> list[list[int]]:
    cuts = windows.offsets.tolist()
    return [windows.order[a:b].tolist() for a, b in pairwise(cuts)]


@pytest.mark.parametrize("lengths", [[60], [20, 0, 31, 1], [0, 5]])
@pytest.mark.parametrize(("window_size", "shift"), [(5, 0), (5, 2), (7, 3), (1, 0), (3, -4), (100, 0)])
def test_windows_are_the_cubes_of_the_grid(device, lengths, window_size, shift):
    coords = torch.randint(-9, 9, (sum(lengths), 3), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    offsets = offsets_of(lengths)
    windows = window_partition(coords.to(device), window_size, offsets=offsets.to(device), shift=shift)
    expected = list(by_the_rule(coords, offsets, window_size, shift).values())
    assert rows_of(windows) == expected
    assert windows.order.dtype == windows.offsets.dtype == torch.int64


def test_a_real_room():
    room = Rooms("test")[0]
    coords = voxelize(room.xyz, 0.05).coords
    for shift in (0, 2):
        windows = window_partition(coords, 5, shift=shift)
        assert torch.equal(windows.order.sort().values, torch.arange(len(coords)))
        cells = (coords.long() + shift).div(5, rounding_mode="floor")
        assert len(windows.offsets) - 1 == len(cells.unique(dim=0))
        window = torch.repeat_interleave(windows.offsets.diff())
        first = cells[windows.order[windows.offsets[:-1]]]
        assert torch.equal(cells[windows.order], first[window])


def test_no_voxels(device):
    empty = torch.empty(0, 3, dtype=torch.int32, device=device)
    for offsets in (None, torch.zeros(1, dtype=torch.int64, device=device), offsets_of([0, 0]).to(device)):
        windows = window_partition(empty, 5, offsets=offsets)
        assert windows.order.shape == (0,)
        assert windows.offsets.tolist() == [0]


def test_coordinates_as_far_apart_as_int32_allows(device):
    """The ids of four columns do not fit 64 bits together."""
    far = torch.tensor([-(2**31), 2**31 - 1, 0])
    coords = torch.cartesian_prod(far, far, far).to(torch.int32).repeat(2, 1)
    offsets = offsets_of([27, 27])
    windows = window_partition(coords.to(device), 1, offsets=offsets.to(device), shift=2**31)
    assert rows_of(windows) == list(by_the_rule(coords, offsets, 1, 2**31).values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"window_size": 0}, ValueError, "window_size must be between 1 and"),
        ({"window_size": 2.5}, TypeError, "window_size must be an int, got float"),
        ({"shift": "2"}, TypeError, "shift must be an int, got str"),
        ({"coords": torch.zeros(4, 3)}, TypeError, "coords must have dtype int32, got float32"),
        ({"coords": torch.zeros(4, 4, dtype=torch.int32)}, ValueError, r"coords must have shape \(N, 3\), without a"),
        ({"offsets": torch.tensor([0, 3])}, ValueError, "offsets must run from 0 to the number of rows 4, got 0 to 3"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"coords": torch.zeros(4, 3, dtype=torch.int32), "window_size": 5, **change}
    with pytest.raises(error, match=message):
        window_partition(**arguments)
