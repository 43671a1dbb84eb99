"""Superpoints against a plain statement, on real rooms and in hand-made cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pc3d.data import Rooms
from pc3d.nn import superpoints


def test_they_are_cubes_cut_by_the_direction_of_normals() -> None:
    rooms = Rooms("train")
    clouds = [rooms[0].select(slice(0, 3000, 3)), rooms[1].select(slice(0, 3000, 4))]
    xyz = torch.cat([cloud.xyz for cloud in clouds])
    normal = torch.cat([cloud.normal for cloud in clouds])  # type: ignore[misc]
    lengths = [len(cloud) for cloud in clouds]
    found = superpoints(xyz, torch.tensor([0, lengths[0], len(xyz)]), 0.4, normal)
    # Two superpoints may be told apart by anything, but points that share one share scene, cube and direction.
    names = []
    for i, (point, n) in enumerate(zip(xyz.tolist(), normal.tolist(), strict=True)):
        size = torch.tensor(0.4, dtype=torch.float32).item()
        axis = max(range(3), key=lambda k: abs(n[k]))
        names.append((i >= lengths[0], *(math.floor(x / size) for x in point), axis, n[axis] < 0))
    pairs = set(zip(found.tolist(), names, strict=True))
    assert len(pairs) == len(set(names)) == len(found.unique())
    assert len(pairs) > 50


def test_without_normals_cubes_stay_whole() -> None:
    xyz = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9], [1.1, 0.1, 0.1], [-0.1, 0.1, 0.1], [0.1, 0.1, 0.1]])
    found = superpoints(xyz, torch.tensor([0, 4, 5]), 1.0).tolist()
    same = [(i, j) for i, j in itertools.combinations(range(5), 2) if found[i] == found[j]]
    assert same == [(0, 1)]


def test_ties_go_to_the_first_axis_and_its_positive_side() -> None:
    normal = torch.tensor([[1.0, 1, 0], [2.0, 0, 0], [0, -1.0, 0], [0, 1.0, 0], [0.0, 0, 0], [0, 0, -3.0]])
    found = superpoints(torch.zeros(6, 3) + 0.5, torch.tensor([0, 6]), 1.0, normal).tolist()
    assert found[0] == found[1] == found[4]
    assert len(set(found)) == 4


def test_what_does_not_fit_is_refused() -> None:
    xyz, offsets = torch.rand(4, 3), torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"cell_size must be positive, got 0\.0"):
        superpoints(xyz, offsets, 0.0)
    with pytest.raises(ValueError, match=r"normal must have the shape of xyz, \(4, 3\), got \(3, 3\)"):
        superpoints(xyz, offsets, 1.0, torch.rand(3, 3))
