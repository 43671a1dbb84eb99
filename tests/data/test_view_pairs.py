"""Pairs of views: what they show of a scene, that points know where they were, and that workers change nothing."""

from __future__ import annotations

import pytest
import torch

from pc3d.data import (
    CenterShift,
    GridSample,
    PointBatch,
    PointCloud,
    PointLoader,
    RandomColorDrop,
    RandomDropout,
    RandomRotate,
    Rooms,
    Transform,
    ViewPairs,
)

CHANGES: list[Transform] = [
    RandomDropout(0.5, probability=1.0),
    CenterShift(),
    RandomRotate("z", 180.0, probability=1.0),
]


@pytest.fixture(scope="module")
def rooms() -> list[PointCloud]:
    generator = torch.Generator().manual_seed(0)
    return [GridSample(0.15)(Rooms("train")[index], generator) for index in (0, 2, 3)]


def pairs(rooms: list[PointCloud], seed: int = 0, **options: float) -> PointBatch:
    return ViewPairs(CHANGES, **options)(rooms, torch.Generator().manual_seed(seed))


def view(batch: PointBatch, number: int) -> slice:
    return slice(int(batch.offsets[number]), int(batch.offsets[number + 1]))


def test_points_know_where_they_were_in_the_room(rooms: list[PointCloud]) -> None:
    batch = pairs(rooms)
    assert len(batch) == 6
    assert batch.feature is not None
    assert batch.rgb is not None
    for number in range(6):
        room, rows = rooms[number // 2], view(batch, number)
        assert batch.meta[number]["id"] == room.meta["id"]
        assert room.rgb is not None
        distance, index = torch.cdist(batch.feature[rows].double(), room.xyz.double()).min(1)
        assert distance.max() == 0
        assert len(index.unique()) == len(index)
        assert torch.equal(batch.rgb[rows], room.rgb[index])  # of that very point
        # Turned about the vertical and moved: all distances are as they were.
        before, after = batch.feature[rows][::9].double(), batch.xyz[rows][::9].double()
        torch.testing.assert_close(torch.cdist(after, after), torch.cdist(before, before), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("radius", "distance"), [(0.8, 0.3), (2.0, 1.0)])
def test_views_lie_around_points_near_each_other(rooms: list[PointCloud], radius: float, distance: float) -> None:
    for seed in range(5):
        batch = ViewPairs([], radius, distance)(rooms, torch.Generator().manual_seed(seed))
        assert batch.feature is not None
        for b, room in enumerate(rooms):
            centers = []
            for number in (2 * b, 2 * b + 1):
                shown = batch.feature[view(batch, number)]
                # The points of the room around which exactly these are within the radius: its centre is among them.
                inside = torch.cdist(room.xyz, shown).amax(1) <= radius + 1e-5
                count = (torch.cdist(room.xyz[inside], room.xyz) <= radius - 1e-5).sum(1)
                found = room.xyz[inside][count <= len(shown)]
                assert len(found) > 0
                centers.append(found)
            assert torch.cdist(*centers).min() <= distance


def test_both_views_have_draws_of_their_own(rooms: list[PointCloud]) -> None:
    batch = ViewPairs([RandomColorDrop(0.5, value=0.5)])([rooms[0]] * 40, torch.Generator().manual_seed(0))
    assert batch.rgb is not None
    grey = torch.tensor([bool((batch.rgb[view(batch, number)] == 0.5).all()) for number in range(80)]).view(-1, 2)
    assert {tuple(pair) for pair in grey.tolist()} == {(a, b) for a in (False, True) for b in (False, True)}


def test_the_seed_decides_and_workers_do_not(rooms: list[PointCloud]) -> None:
    one, same, other = pairs(rooms), pairs(rooms), pairs(rooms, seed=1)
    assert torch.equal(one.xyz, same.xyz)
    assert one.offsets.tolist() != other.offsets.tolist()

    def batches(num_workers: int) -> list[PointBatch]:
        made = ViewPairs([*CHANGES, GridSample(0.1)])
        return list(PointLoader(Rooms("train"), 2, collate=made, num_workers=num_workers, seed=4))

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone.xyz, shared.xyz)
        assert alone.feature is not None
        assert shared.feature is not None
        assert torch.equal(alone.feature, shared.feature)


class Nothing(Transform):
    """Leaves no point."""

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        return cloud.select(slice(0, 0))


def test_bad_input_is_named(rooms: list[PointCloud]) -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"radius must be positive and finite, got 0\.0"):
        ViewPairs([], 0.0)
    with pytest.raises(ValueError, match="distance must be positive and finite, got inf"):
        ViewPairs([], distance=float("inf"))
    with pytest.raises(ValueError, match="must not have a feature"):
        ViewPairs([])([rooms[0].replace(feature=rooms[0].xyz)], generator)
    with pytest.raises(ValueError, match=r"less than twice the radius.* got distance=1\.0 and radius=0\.5"):
        ViewPairs([], radius=0.5, distance=1.0)
    with pytest.raises(ValueError, match="the scene attic has no point"):
        ViewPairs([])([PointCloud(torch.zeros(0, 3), meta={"id": "attic"})], generator)
    with pytest.raises(ValueError, match=rf"left no point of a view of {rooms[0].meta['id']}"):
        ViewPairs([Nothing()])([rooms[0]], generator)
