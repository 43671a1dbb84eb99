"""Features of pictures on points."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from pc3d.image import (
    Camera,
    LiftedFeatures,
    View,
    fill_unseen,
    lift,
    pixels_to_points,
    sample_map,
    view_set,
    visible_by_depth,
)

needs_rays = pytest.mark.skipif(find_spec("embreex") is None, reason='pip install "pc3d[image]"')


def at(*eye: float, size: int = 64) -> Camera:
    return Camera.look_at(torch.tensor(eye), torch.zeros(3), focal=size, size=size)


def coordinates(height: int, width: int, picture: tuple[int, int]) -> Tensor:
    """A map whose feature is the place of its own cell's centre in a picture of (width, height)."""
    row, column = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([column * picture[0] / width, row * picture[1] / height])


def test_sampling_is_bilinear_between_cell_centres() -> None:
    """A linear function of the place is sampled exactly, whatever the grid."""
    features = coordinates(6, 8, (64, 40))
    uv = torch.rand(100, 2) * torch.tensor([56.0, 33]) + torch.tensor([4.0, 3.4])
    torch.testing.assert_close(sample_map(features, uv, 64, 40), uv, atol=1e-4, rtol=0)
    # Beyond the outermost centres the outermost value holds.
    corner = sample_map(features, torch.tensor([[0.0, 0.0], [64.0, 40.0]]), 64, 40)
    torch.testing.assert_close(corner, torch.tensor([[4.0, 40 / 12], [60, 40 - 40 / 12]]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"features must have shape \(C, h, w\) and uv \(N, 2\)"):
        sample_map(features, uv[:, 0], 64, 40)


def test_what_is_lifted_is_where_the_point_is_projected() -> None:
    """Exact on a synthetic case: the feature of a pixel is its place, so a point must get its own projection."""
    xyz = torch.rand(200, 3) * 0.5 - 0.25
    cam = at(1.0, 2.0, 0.5)
    view = View(cam, coordinates(8, 8, (64, 64)), torch.ones(200, dtype=torch.bool))
    lifted = lift(xyz, [view])
    assert lifted.mask.all()
    torch.testing.assert_close(lifted.features.double(), cam.project(xyz)[0], atol=1e-4, rtol=0)


def test_two_views_by_hand() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [50, 0, 0]])
    first = View(at(2, 0.1, 0), torch.tensor([2.0, 0]).reshape(2, 1, 1), torch.tensor([True, True, False, True]))
    second = View(at(0, 2, 0.1), torch.tensor([0.0, 4]).reshape(2, 1, 1), torch.tensor([True, False, False, True]))
    lifted = lift(xyz, (view for view in (first, second)))
    # The last point is behind the first camera and outside the picture of the second.
    assert lifted.num_views.tolist() == [2, 1, 0, 0]
    assert lifted.mask.tolist() == [True, True, False, False]
    assert lifted.features.tolist() == [[1, 2], [2, 0], [0, 0], [0, 0]]
    unit = lift(xyz, [first, second], unit=True)
    assert unit.features[0].tolist() == [0.5, 0.5]
    weighted = lift(
        xyz,
        [
            replace(first, weight=torch.tensor([3.0, -1.0, 1.0, 1.0])),
            replace(second, weight=torch.tensor([1.0, 1.0, 1.0, 1.0])),
        ],
    )
    assert weighted.features.tolist() == [[1.5, 1], [0, 0], [0, 0], [0, 0]]
    assert weighted.num_views.tolist() == [2, 0, 0, 0]


def test_lifting_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    xyz = torch.rand(30, 3, generator=generator) - 0.5
    views = [
        View(
            cam,
            torch.randn(5, 7, 9, generator=generator),
            torch.rand(30, generator=generator) > 0.4,
            torch.rand(30, generator=generator),
        )
        for cam in (at(1.2, 0.3, 0.2), at(-0.2, 1.3, 0.4), at(0.1, 0.2, -1.1))
    ]
    lifted = lift(xyz, views)
    for point in range(30):
        total, weight, count = torch.zeros(5, dtype=torch.float64), 0.0, 0
        for view in views:
            (u, v), z = view.camera.project(xyz[[point]])[0][0].tolist(), 1
            if bool(view.visible[point]) and 0 <= u < 64 and 0 <= v < 64 and z > 0:
                assert view.weight is not None
                share = float(view.weight[point])
                total += share * sample_map(view.features.double(), torch.tensor([[u, v]]), 64, 64)[0]
                weight, count = weight + share, count + 1
        assert int(lifted.num_views[point]) == count
        if count:
            torch.testing.assert_close(lifted.features[point].double(), total / weight, atol=1e-5, rtol=1e-5)


def test_unseen_points_are_filled_from_the_nearest_seen() -> None:
    generator = torch.Generator().manual_seed(4)
    xyz, features = torch.rand(20, 3, generator=generator), torch.randn(20, 4, generator=generator)
    mask = torch.arange(20) % 3 != 0
    lifted = LiftedFeatures(features * mask[:, None], mask, mask.long())
    filled = fill_unseen(xyz, lifted)
    assert torch.equal(filled[mask], features[mask])
    for point in torch.nonzero(~mask).flatten().tolist():
        distance = (xyz[mask] - xyz[point]).norm(dim=1)
        near = distance.argsort()[:3]
        share = 1 / distance[near]
        expected = (features[mask][near] * share[:, None]).sum(0) / share.sum()
        torch.testing.assert_close(filled[point], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(
        fill_unseen(xyz[mask], LiftedFeatures(features[mask], mask[mask], mask[mask].long())), features[mask]
    )
    with pytest.raises(ValueError, match="k=3 seen points are needed"):
        fill_unseen(xyz, LiftedFeatures(features, torch.arange(20) < 2, mask.long()))


def test_pixels_go_to_the_nearest_point() -> None:
    cam = at(2.0, 0, 0, size=16)
    generator = torch.Generator().manual_seed(5)
    xyz = torch.rand(60, 3, generator=generator, dtype=torch.float64) - 0.5
    depth = torch.rand(16, 16, generator=generator) + 1.5
    depth[3:6] = 0
    pairs = pixels_to_points(cam, depth, xyz, max_distance=0.2)
    found = {tuple(pixel): point for pixel, point in zip(pairs.pixel.tolist(), pairs.point.tolist(), strict=True)}
    assert 0 < len(found) < 13 * 16
    for row in range(16):
        for column in range(16):
            place = cam.back_project(torch.tensor([[column + 0.5, row + 0.5]]), depth[row, column][None])
            distance = (xyz - place).norm(dim=1)
            if float(depth[row, column]) > 0 and float(distance.min()) <= 0.2:
                assert found[column, row] == int(distance.argmin())
            else:
                assert (column, row) not in found
    cells = pairs.cells(4)
    expected = {(c // 4, r // 4, p) for (c, r), p in found.items()}
    assert {
        (*pixel, point) for pixel, point in zip(cells.pixel.tolist(), cells.point.tolist(), strict=True)
    } == expected
    assert len(cells.point) == len(expected)
    assert len(pixels_to_points(cam, torch.zeros(16, 16), xyz).point) == 0
    assert len(pixels_to_points(cam, depth, xyz[:0]).point) == 0


@needs_rays
def test_forward_and_backward_agree() -> None:
    """A point that a camera sees is the one its pixel leads back to, where no other point is in that pixel."""
    import trimesh

    from pc3d.image import MeshRenderer
    from pc3d.image.meshes import from_trimesh

    torus = trimesh.creation.torus(0.35, 0.12, major_sections=60, minor_sections=30)
    xyz = torch.from_numpy(trimesh.sample.sample_surface(torus, 5000, seed=0)[0])
    cam = view_set("openshape12", 256)[0]
    depth = MeshRenderer(from_trimesh([torus])).render(cam, supersample=1).depth
    seen = torch.nonzero(visible_by_depth(cam, xyz, depth, tolerance=0.01)).flatten()
    pixel = cam.project(xyz[seen])[0].floor().long()
    _, group, count = pixel.unique(dim=0, return_inverse=True, return_counts=True)
    alone = count[group] == 1
    pairs = pixels_to_points(cam, depth, xyz, max_distance=0.05)
    back = {tuple(place): point for place, point in zip(pairs.pixel.tolist(), pairs.point.tolist(), strict=True)}
    same = [back.get(tuple(p)) == s for p, s in zip(pixel[alone].tolist(), seen[alone].tolist(), strict=True)]
    assert len(same) > 1000
    assert sum(same) / len(same) > 0.9


def test_views_that_do_not_fit_are_refused() -> None:
    xyz, everything = torch.rand(4, 3), torch.ones(4, dtype=torch.bool)
    view = View(at(2.0, 0, 0), torch.randn(3, 2, 2), everything)
    with pytest.raises(ValueError, match="views is empty"):
        lift(xyz, [])
    with pytest.raises(ValueError, match=r"visible must be bool of shape \(4,\)"):
        lift(xyz, [replace(view, visible=everything[:2])])
    with pytest.raises(ValueError, match="views differ in their width: 3 and 5"):
        lift(xyz, [view, replace(view, features=torch.randn(5, 2, 2))])
    with pytest.raises(ValueError, match=r"weight must have shape \(4,\)"):
        lift(xyz, [replace(view, weight=torch.ones(2))])
    with pytest.raises(ValueError, match=r"depth has the shape \(2, 2\)"):
        pixels_to_points(view.camera, torch.ones(2, 2), xyz)
