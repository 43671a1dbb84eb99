"""Scenes joined with lifted features: every point keeps its own, whatever happens to the scene."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pc3d.data import (
    Compose,
    GridSample,
    IsotropicScaleShift,
    KeepFields,
    LiftedSet,
    RandomDropout,
    RandomRotate,
    Rooms,
    SceneCollate,
    Selection,
    SphereCrop,
    collate,
    mix3d,
)


class Stored:
    """Every second point of a room is shown; its feature is its colour and its own number."""

    def __init__(self, rooms: Rooms, items: int = 2, drop: int = 0) -> None:
        self.contents: dict[str, dict[str, Tensor]] = {}
        for index in range(items):
            cloud = rooms.load(index)
            number = torch.arange(len(cloud) - drop)
            shown = number % 2 == 1
            assert cloud.rgb is not None
            feature = torch.cat([cloud.rgb[: len(number)], number[:, None] + 1.0], dim=1)[shown]
            self.contents[cloud.meta["id"]] = {"feature": feature, "num_views": shown.float()}

    def __contains__(self, item: object) -> bool:
        return item in self.contents

    def __getitem__(self, item: str) -> dict[str, Tensor]:
        return self.contents[item]

    def identity(self) -> dict[str, Any]:
        return {"name": "colors"}


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return Rooms("train")


def test_points_that_no_picture_shows_have_zeros(rooms: Rooms) -> None:
    cloud = LiftedSet(rooms, Stored(rooms))[1]
    assert cloud.feature is not None
    assert cloud.rgb is not None
    number = torch.arange(len(cloud))
    assert (cloud.feature[::2] == 0).all()
    assert torch.equal(cloud.feature[1::2, 3], number[1::2] + 1.0)
    assert torch.equal(cloud.feature[1::2, :3], cloud.rgb[1::2])
    assert cloud.meta["teacher"] == "colors"
    assert torch.equal(cloud.xyz, rooms[1].xyz)


def test_features_follow_their_points_through_transforms_of_the_set_or_of_the_loader(rooms: Rooms) -> None:
    change = Compose(
        [
            RandomDropout(0.5, probability=1.0),
            RandomRotate("z", 180.0, probability=1.0),
            IsotropicScaleShift((0.9, 1.1), 0.1),
            GridSample(0.1),
            SphereCrop(1500),
        ]
    )
    inside = LiftedSet(rooms, Stored(rooms), transform=change).sample(0, torch.Generator().manual_seed(3))
    outside = change(LiftedSet(rooms, Stored(rooms)).load(0), torch.Generator().manual_seed(3))
    assert len(inside) == 1500
    assert inside.feature is not None
    assert inside.rgb is not None
    assert outside.feature is not None
    assert torch.equal(inside.xyz, outside.xyz)
    assert torch.equal(inside.feature, outside.feature)
    shown = inside.feature.any(1)
    assert 0.4 < shown.float().mean() < 0.6
    assert torch.equal(inside.feature[shown, :3], inside.rgb[shown])


def test_they_come_through_selections_batches_and_mixtures(rooms: Rooms) -> None:
    clouds = [Selection(LiftedSet(rooms, Stored(rooms)), [1, 0])[i].select(slice(50 + i)) for i in range(2)]
    first, second = (cloud.feature for cloud in clouds)
    assert first is not None
    assert second is not None
    batch = collate(clouds)
    assert batch.feature is not None
    assert torch.equal(batch.feature, torch.cat([first, second]))
    assert torch.equal(batch.unbind()[1].feature, second)  # type: ignore[arg-type]
    assert torch.equal(mix3d(*clouds).feature, batch.feature)  # type: ignore[arg-type]
    mixed = SceneCollate(1.0)(clouds, torch.Generator().manual_seed(0))
    assert torch.equal(mixed.feature, batch.feature)  # type: ignore[arg-type]
    assert KeepFields(["feature"])(clouds[0], torch.Generator()).rgb is None
    assert KeepFields(["rgb"])(clouds[0], torch.Generator()).feature is None


def test_what_does_not_go_together_is_refused(rooms: Rooms) -> None:
    with pytest.raises(ValueError, match=r"none of the scene '.*_00.': lift them with data_tools/lift_features\.py"):
        LiftedSet(rooms, Stored(rooms))[2]
    size = len(rooms[0])
    with pytest.raises(ValueError, match=rf"are of {size - 5} points, it has {size}: lift them onto the points"):
        LiftedSet(rooms, Stored(rooms, drop=5))[0]
    cloud = LiftedSet(rooms, Stored(rooms))[0]
    with pytest.raises(ValueError, match=r"feature differs in width among the clouds, \[1, 4\]"):
        collate([cloud, cloud.replace(feature=torch.zeros(len(cloud), 1))])
    with pytest.raises(ValueError, match=r"1 of 2 clouds have no feature"):
        collate([cloud, cloud.replace(feature=None)])
    with pytest.raises(ValueError, match=rf"feature must have shape \({size}, 4\).* got \({size - 1}, 4\)"):
        cloud.replace(feature=torch.zeros(size - 1, 4))
    with pytest.raises(TypeError, match="feature must be a floating-point tensor"):
        cloud.replace(feature=torch.zeros(size, 4, dtype=torch.int64))
    with pytest.raises(IndexError, match="index 8 is out of range"):
        LiftedSet(rooms, Stored(rooms))[8]
