"""Augmented views of clouds: crops and their completion, magnitudes, and draws that belong to samples."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from pc3d.data import Household
from pc3d.nn import SampleRandom, ViewAugmentation, ball_crop, complete, half_space_crop
from pc3d.nn.crops import share_of_points
from pc3d.nn.views import rotated

STILL: dict[str, Any] = {"jitter": None, "scale": None, "translation": 0.0}


@pytest.fixture(scope="module")
def objects() -> Tensor:
    data = Household("test", num_points=1024)
    return torch.stack([data[i].xyz for i in range(0, 124, 16)])


def draws(batch_size: int = 8, step: int = 0, **process: Any) -> SampleRandom:
    return SampleRandom(0, 0, step, batch_size=batch_size, **process)


def keys(points: Tensor) -> list[tuple[float, ...]]:
    return [tuple(round(value, 9) + 0.0 for value in row) for row in points.tolist()]


def rows(cloud: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in cloud.tolist()}


def test_a_ball_crop_keeps_the_nearest_points(objects: Tensor) -> None:
    seed = torch.arange(8) * 100
    index = ball_crop(objects, seed, 512)  # half of 1024
    assert index.shape == (8, 512)
    for cloud, center, kept in zip(objects, seed, index, strict=True):
        assert len(set(kept.tolist())) == 512
        assert int(center) in kept.tolist()
        distance = (cloud.double() - cloud[center].double()).norm(dim=1)
        lost = torch.ones(1024, dtype=torch.bool).index_fill(0, kept, False)
        assert distance[kept].max() <= distance[lost].min() + 1e-6
        assert (distance[kept].diff() >= -1e-6).all()


def test_half_space_crops_have_the_right_number_whatever_the_plane_goes_through(objects: Tensor) -> None:
    flat = objects.clone()
    flat[..., 2] = 0.5
    same = torch.zeros(8, 1024, 3)
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand(8, 3)
    for cloud in (objects, flat, same):
        index = half_space_crop(cloud, up, 300)
        assert [len(set(kept.tolist())) for kept in index] == [300] * 8
    for cloud, kept in zip(objects, half_space_crop(objects, up, 300), strict=True):
        lost = torch.ones(1024, dtype=torch.bool).index_fill(0, kept, False)
        assert cloud[kept, 2].min() >= cloud[lost, 2].max()
    assert half_space_crop(same, up, 3).tolist() == [[0, 1, 2]] * 8  # of equals the lowest


def test_shares_of_points_are_those_of_the_numbers_as_written() -> None:
    assert [share_of_points(0.5, 1024), share_of_points(0.9, 1024), share_of_points(0.7, 10)] == [512, 922, 7]
    assert [share_of_points(1.0, 7), share_of_points(0.201, 1000), share_of_points(0.001, 10)] == [7, 201, 1]


def test_midpoints_are_means_of_four_neighbours_of_those_that_were_there(objects: Tensor) -> None:
    """Against plain loops: at most doubling, until the rows are full; old points stay."""
    count, length = torch.tensor([40, 100, 64, 256]), 256
    start = objects[:4, :length].double()
    full = complete(start, count, 40, draws(4))
    assert full.shape == (4, length, 3)
    for before, after, number in zip(start, full, count.tolist(), strict=True):
        assert torch.equal(after[:number], before[:number])
        have = number
        while have < length:
            there = after[:have]
            nearest = [(there - point).norm(dim=1).argsort()[:4] for point in there]
            means = torch.stack([there[index].mean(0) for index in nearest])
            fresh = after[have : min(2 * have, length)]
            # Each mean once at most; points with the same neighbours have the same one.
            assert not Counter(keys(fresh)) - Counter(keys(means))
            have = min(2 * have, length)


def test_duplicates_are_points_that_were_there(objects: Tensor) -> None:
    count = torch.tensor([1, 40, 255, 256])
    full = complete(objects[:4, :256], count, 1, draws(4), "duplicates")
    for before, after, number in zip(objects[:4], full, count.tolist(), strict=True):
        assert torch.equal(after[:number], before[:number])
        assert rows(after) == rows(before[:number]) or number > 40
        assert rows(after) <= rows(before[:number])


@pytest.mark.parametrize("kind", ["ball", "half_space"])
@pytest.mark.parametrize(("crop", "length"), [((0.5, 0.9), 922), ((0.2, 0.5), 512), ((1.0, 1.0), 1024)])
def test_views_have_a_fixed_length_and_keep_the_share_drawn(
    objects: Tensor, kind: Any, crop: tuple[float, float], length: int
) -> None:
    augmentation = ViewAugmentation(crop, kind, "duplicates", **STILL)
    kept = []
    for step in range(6):
        views = augmentation(objects, draws(step=step))
        assert views.shape == (8, length, 3)
        assert augmentation.length(1024) == length
        for cloud, view in zip(objects, views, strict=True):
            assert rows(view) <= rows(cloud)
            kept.append(len(rows(view)) / 1024)
    assert min(kept) >= crop[0]
    assert max(kept) <= length / 1024
    # 48 uniform ratios reach into the outer sixths of their interval but for a chance of 2 (5/6)^48.
    width = crop[1] - crop[0]
    assert min(kept) <= crop[0] + width / 6 + 1 / 1024
    assert max(kept) >= crop[1] - width / 6


def test_completed_views_keep_their_points_and_are_shuffled(objects: Tensor) -> None:
    views = ViewAugmentation((0.5, 0.9), **STILL)(objects, draws())
    early = []
    for cloud, view in zip(objects, views, strict=True):
        points = rows(cloud)
        original = [tuple(row) in points for row in view.tolist()]
        assert sum(original) >= 512
        early.append(sum(original[:100]))
    assert min(early) < 90  # new points are not all at the end


def test_magnitudes(objects: Tensor) -> None:
    many = objects[:1, :256].expand(512, -1, -1)

    def view(**changes: Any) -> Tensor:
        return ViewAugmentation(None, **{**STILL, **changes})(many, draws(512))

    extent = many[0].amax(0) - many[0].amin(0)
    scaled = view(scale=(2 / 3, 3 / 2))
    factor = (scaled.amax(1) - scaled.amin(1)) / extent
    assert factor.min() >= 2 / 3 - 1e-5
    assert factor.max() <= 1.5 + 1e-5
    assert factor.min() < 0.68
    assert factor.max() > 1.48
    assert torch.corrcoef(factor.T)[0, 1].abs() < 0.2  # independent axes
    one = view(scale=(2 / 3, 3 / 2), scale_per_axis=False)
    factor = (one.amax(1) - one.amin(1)) / extent
    torch.testing.assert_close(factor[:, 0], factor[:, 1], rtol=1e-4, atol=1e-5)

    moved = view(translation=0.2).mean(1) - many[0].mean(0)
    assert 0.19 < moved.abs().max() <= 0.2 + 1e-5
    assert moved.mean(0).abs().max() < 0.03

    still = torch.zeros(64, 1024, 3)
    noise = ViewAugmentation(None, jitter=(0.01, 0.02), scale=None, translation=0.0)(still, draws(64))
    assert noise.abs().max() == pytest.approx(0.02)
    # Variance of a standard normal clipped at 2: 1 - 2 (2 phi(2) + Q(2)) + 2 * 4 Q(2) with Q(2) = 0.02275.
    phi, tail = math.exp(-2.0) / math.sqrt(2 * math.pi), 0.0227501
    variance = (1 - 2 * (2 * phi + tail)) + 8 * tail
    assert noise.double().var().item() == pytest.approx(1e-4 * variance, rel=0.02)


@pytest.mark.parametrize(("axis", "turn"), [("z", (0, 1, 2)), ("x", (1, 2, 0)), ("y", (2, 0, 1))])
def test_rotation(objects: Tensor, axis: Any, turn: tuple[int, int, int]) -> None:
    first, second, up = turn
    quarter = rotated(torch.eye(3)[None], torch.tensor([math.pi / 2]), axis)[0]
    torch.testing.assert_close(quarter[first], torch.eye(3)[second], atol=1e-6, rtol=0)
    torch.testing.assert_close(quarter[second], -torch.eye(3)[first], atol=1e-6, rtol=0)
    torch.testing.assert_close(quarter[up], torch.eye(3)[up])
    view = ViewAugmentation(None, rotate=axis, **STILL)(objects, draws())
    torch.testing.assert_close(view.norm(dim=2).sort(1).values, objects.norm(dim=2).sort(1).values)
    assert not torch.allclose(view.mean(1)[:, first], objects.mean(1)[:, first], atol=1e-3)
    torch.testing.assert_close(view[..., up].sort(1).values, objects[..., up].sort(1).values)


def test_low_resolution_copies_are_farthest_points(objects: Tensor) -> None:
    copy = ViewAugmentation(None, num_points=64, **STILL)(objects, draws())
    assert copy.shape == (8, 64, 3)
    for cloud, few in zip(objects.double(), copy.double(), strict=True):
        assert rows(few) <= rows(cloud)
        for number in range(1, 64):  # each the farthest of all from those before
            distance = torch.cdist(cloud, few[:number]).min(1).values
            assert distance.max() <= torch.cdist(few[number : number + 1], few[:number]).min() + 1e-6
    assert not any(torch.equal(few[0], cloud[0]) for cloud, few in zip(objects, copy, strict=True))  # a random start


@pytest.mark.parametrize("kind", ["ball", "half_space"])
def test_processes_together_see_what_one_does(objects: Tensor, kind: Any) -> None:
    augmentation = ViewAugmentation((0.2, 0.6), kind, rotate="z", num_points=200)
    whole = augmentation(objects, draws())
    assert torch.equal(whole, augmentation(objects, draws()))
    assert not torch.equal(whole, augmentation(objects, draws(step=1)))
    parts = [
        augmentation(objects[start : start + n], draws(n, start=start, global_batch_size=8))
        for start, n in ((0, 3), (3, 4), (7, 1))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_two_calls_of_one_step_are_two_views(objects: Tensor) -> None:
    step, augmentation = draws(), ViewAugmentation()
    assert not torch.equal(augmentation(objects, step), augmentation(objects, step))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (0.0, 0.5)}, r"crop must be a pair 0 < low <= high <= 1.*\(0.0, 0.5\)"),
        ({"crop": (0.5, 1.5)}, "crop must be"),
        ({"scale": (2.0, 1.0)}, "scale must be"),
        ({"jitter": (-0.1, 0.1)}, "jitter must be"),
        ({"translation": -1.0}, "translation must not be negative, got -1"),
        ({"num_points": 0}, "num_points must be at least 1"),
        ({"crop_kind": "cube"}, "crop_kind must be one of .*'cube'"),
        ({"completion": "none"}, "completion must be one of"),
        ({"rotate": "w"}, "rotate must be one of"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewAugmentation(**changes)


def test_clouds_that_do_not_fit_are_refused(objects: Tensor) -> None:
    with pytest.raises(ValueError, match=r"xyz must have shape \(B, N, 3\), got \(1024, 3\)"):
        ViewAugmentation()(objects[0], draws())
    with pytest.raises(ValueError, match="num_points=600 exceeds the 512 points that a view of 1024"):
        ViewAugmentation((0.2, 0.5), num_points=600)(objects, draws())
    with pytest.raises(ValueError, match="a crop of 2 points has no means of 4 neighbours"):
        ViewAugmentation((0.2, 0.5))(objects[:, :10], draws())
