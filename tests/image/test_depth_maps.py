"""Depth maps that stand in for pictures, against loops over points and pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_towers import SIZE
from torch import Tensor

from pc3d.data import Household
from pc3d.image import (
    CLIP2POINT_PROMPT,
    POINTCLIP_PROMPT,
    Camera,
    Preprocessing,
    clip2point_maps,
    multi_view_logits,
    open_clip_pair,
    pointclip_maps,
    prompt_ensemble,
    view_set,
)

PLAIN = Preprocessing(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def ball(xyz: Tensor) -> list[list[float]]:
    """The cloud in the unit sphere around the middle of its box, in plain numbers."""
    rows = xyz.double().tolist()
    middle = [(min(row[k] for row in rows) + max(row[k] for row in rows)) / 2 for k in range(3)]
    moved = [[row[k] - middle[k] for k in range(3)] for row in rows]
    radius = max(math.sqrt(sum(value**2 for value in row)) for row in moved)
    return [[value / radius for value in row] for row in moved]


def test_sparse_maps_are_harmonic_means_of_the_nearest_cells() -> None:
    xyz = Household("test")[3].xyz[:600] * 3 + torch.tensor([5.0, -2.0, 1.0])
    # Points in pairs, one behind the other: cells with several.
    maps = pointclip_maps(torch.cat([xyz, xyz * 0.999 + 0.001 * xyz.mean(0)]), size=128)
    assert tuple(maps.shape) == (6, 3, 128, 128)
    points = ball(torch.cat([xyz, xyz * 0.999 + 0.001 * xyz.mean(0)]))
    # The front view looks along -x from (1.6, 0, 0): right in the picture is +y, down is -z.
    inverse: dict[tuple[int, int], list[float]] = {}
    for x, y, z in points:
        depth = 1.6 - x
        place = ((y / depth + 1) * 64, (-z / depth + 1) * 64)
        column, row = (math.ceil(value - 0.5) for value in place)
        inverse.setdefault((row, column), []).append(1 / depth)
    expected = torch.zeros(128, 128, dtype=torch.float64)
    for (row, column), values in inverse.items():
        expected[row, column] = len(values) / sum(values)
    assert max(map(len, inverse.values())) > 1
    # A point within rounding of the middle between two cells may go to either.
    assert ((maps[0, 0].double() - expected).abs() < 1e-4).float().mean() > 0.9995
    assert torch.equal(maps[:, 0], maps[:, 1])
    assert torch.equal(maps[:, 0], maps[:, 2])


def test_a_tie_goes_to_the_lower_cell_and_maps_are_enlarged() -> None:
    # The ends of a vertical line fix the unit ball; the point between them lies at the depth 1.6 of the front view.
    points = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 1.6 * 0.5 / 64, 1.6 * 3.25 / 64]])
    front = pointclip_maps(points, size=128)[0, 0]
    assert front[61, 64] == front[front > 0].max() == pytest.approx(1.6)  # 64.5 goes to 64, 60.75 to 61
    enlarged = pointclip_maps(points, size=256)[0, 0]
    # 256 pixels from corner cell to corner cell: pixel k lies at the cell k * 127 / 255, bilinear between two cells.
    share = (122 * 127 / 255 - 60) * (128 * 127 / 255 - 63)
    assert float(enlarged[122, 128]) == pytest.approx(1.6 * share, rel=1e-5)
    assert tuple(pointclip_maps(points).shape) == (6, 3, 224, 224)


def test_dense_maps_have_the_nearest_disc_of_each_pixel() -> None:
    xyz = Household("test")[3].xyz[:300]
    points = ball(xyz)
    maps = clip2point_maps(xyz, PLAIN, size=48)
    assert tuple(maps.shape) == (10, 3, 48, 48)
    # The front view looks along -x: right is +y, down is -z, and the unit sphere fills the picture.
    depth = [[math.inf] * 48 for _ in range(48)]
    radius = max(0.5, 0.02 * 24)
    for x, y, z in points:
        u, v, far = 24 + 24 * y, 24 - 24 * z, 1 - x
        for row in range(48):
            for column in range(48):
                covered = (column + 0.5 - u) ** 2 + (row + 0.5 - v) ** 2 <= radius**2
                if covered or (row, column) == (math.floor(v), math.floor(u)):
                    depth[row][column] = min(depth[row][column], far)
    expected = torch.tensor(depth, dtype=torch.float64)
    shown = expected.isfinite()
    low, high = expected[shown].min(), expected[shown].max()
    expected = torch.where(shown, 200 / 255 * (expected - low) / high, 1.0)
    assert ((maps[0, 0].double() - expected).abs() < 1e-5).float().mean() > 0.998
    assert float(maps[0, 0].max()) == 1
    assert float(maps[0, 0].min()) == 0


def test_dense_maps_are_normalised_as_the_tower_wants_it() -> None:
    xyz = Household("test")[0].xyz[:200]
    plain, colored = (clip2point_maps(xyz, each, size=32) for each in (PLAIN, Preprocessing()))
    mean, std = (torch.tensor(values)[:, None, None] for values in (Preprocessing().mean, Preprocessing().std))
    torch.testing.assert_close(colored, (plain - mean) / std)


def test_a_tower_classifies_by_depth_maps(open_clip_vit: tuple[str, str]) -> None:
    """Through a tiny tower: the logits are the sums over the views' own."""
    pair = open_clip_pair(*open_clip_vit)
    xyz = Household("test")[0].xyz
    for maps, prompt in (
        (pointclip_maps(xyz, size=SIZE), POINTCLIP_PROMPT),
        (clip2point_maps(xyz, pair.image.preprocessing, size=SIZE), CLIP2POINT_PROMPT),
    ):
        classes = prompt_ensemble(pair.text, ["chair", "lamp"], prompt)
        features = pair.image.global_features(maps)
        unit = features / features.norm(dim=1, keepdim=True)
        torch.testing.assert_close(multi_view_logits(features, classes), (100 * unit @ classes.T).sum(0))


@pytest.mark.parametrize("make", [pointclip_maps, lambda xyz, **options: clip2point_maps(xyz, PLAIN, **options)])
def test_what_cannot_be_shown_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="no extent"):
        make(torch.ones(5, 3))
    away = Camera.look_at(torch.tensor([9.0, 0, 0]), torch.tensor([10.0, 0, 0]), focal=64, size=64, parallel=True)
    with pytest.raises(ValueError, match=r"(must have 128 x 128 pixels, got 64 x 64|view 0 shows no point)"):
        make(Household("test")[0].xyz, cameras=[away])
    front = view_set("pointclip6" if make is pointclip_maps else "clip2point10", 128)[0]
    assert len(make(Household("test")[0].xyz, cameras=[front])) == 1


def test_dense_maps_are_of_parallel_cameras_alone() -> None:
    with pytest.raises(ValueError, match="must be parallel ones, view 0 is not"):
        clip2point_maps(Household("test")[0].xyz, PLAIN, cameras=[view_set("pointclip6", 128)[0]])


def test_prompts_are_those_of_the_released_codes() -> None:
    assert POINTCLIP_PROMPT[0].format("chair") == "point cloud depth map of a chair."
    assert CLIP2POINT_PROMPT[0].format("chair") == "image of a chair"
