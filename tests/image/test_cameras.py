"""Cameras and sets of views."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pc3d.data import Frame
from pc3d.image import VIEW_SETS, Camera, focal_length, view_set


def camera(parallel: bool = False, seed: int = 0) -> Camera:
    generator = torch.Generator().manual_seed(seed)
    eye, target = torch.randn(2, 3, generator=generator, dtype=torch.float64).unbind()
    look = Camera.look_at(eye * 3, target * 0.2, focal=90, size=(120, 80), parallel=parallel)
    skewed = look.intrinsic.clone()
    skewed[0] = torch.tensor([95.0, 2.0, 61.5])
    return Camera(skewed, look.pose, 120, 80, parallel)


@pytest.mark.parametrize("parallel", [False, True])
def test_projection_by_hand(parallel: bool) -> None:
    cam, xyz = camera(parallel), torch.randn(20, 3, dtype=torch.float64)
    uv, depth = cam.project(xyz)
    inverse = cam.pose.inverse()
    for row in range(20):
        x, y, z, _ = (inverse @ torch.cat([xyz[row], torch.ones(1)])).tolist()
        scale = 1 if parallel else z
        column = (95 * x + 2 * y) / scale + 61.5
        assert uv[row].tolist() == pytest.approx([column, 90 * y / scale + 40], abs=1e-9)
        assert float(depth[row]) == pytest.approx(z, abs=1e-12)


@pytest.mark.parametrize("parallel", [False, True])
def test_back_projection_undoes_projection(parallel: bool) -> None:
    cam, xyz = camera(parallel, seed=1), torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(cam.back_project(*cam.project(xyz)), xyz, atol=1e-9, rtol=0)
    uv, depth = torch.rand(50, 2) * 80, torch.rand(50) * 5 + 0.1
    again, z = cam.project(cam.back_project(uv, depth))
    torch.testing.assert_close(again, uv.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(z, depth.double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("parallel", [False, True])
def test_rays_pass_through_what_is_projected_there(parallel: bool) -> None:
    cam, xyz = camera(parallel, seed=2), torch.randn(20, 3, dtype=torch.float64)
    uv, depth = cam.project(xyz)
    origins, directions = cam.rays(uv)
    torch.testing.assert_close(origins + directions * depth[:, None], xyz, atol=1e-9, rtol=0)


def test_a_frame_is_back_projected_as_its_own_points() -> None:
    rng = np.random.default_rng(0)
    depth = (rng.random((6, 8)) + 1).astype(np.float32) * (rng.random((6, 8)) > 0.3)
    pose = camera().pose.numpy()
    matrix = np.array([[9.0, 0, 3.7], [0, 8.0, 2.4], [0, 0, 1]])
    frame = Frame(np.zeros((12, 16, 3), np.uint8), depth, pose, matrix * [[2], [2], [1]], matrix)
    cam = Camera.of_frame(frame)
    assert (cam.width, cam.height) == (8, 6)
    seen = torch.from_numpy(depth).flatten() > 0
    mine = cam.back_project(cam.pixel_centers()[seen], torch.from_numpy(depth).flatten()[seen])
    np.testing.assert_allclose(mine, frame.points(), atol=1e-9)
    color = Camera.of_frame(frame, "color")
    assert (color.width, color.height, float(color.intrinsic[0, 2])) == (16, 12, 2 * 3.7 + 0.5)
    lost = Frame(frame.color, depth, np.full((4, 4), -np.inf), matrix, matrix)
    with pytest.raises(ValueError, match="was tracking lost in this frame"):
        Camera.of_frame(lost)
    with pytest.raises(ValueError, match="picture must be 'color' or 'depth'"):
        Camera.of_frame(frame, "rgb")  # type: ignore[arg-type]


def test_a_scaled_and_cut_picture_has_the_same_points() -> None:
    cam, xyz = camera(seed=3), torch.randn(30, 3, dtype=torch.float64)
    uv, depth = cam.project(xyz)
    scaled, z = cam.resized(240, 40).project(xyz)
    torch.testing.assert_close(scaled, uv * torch.tensor([2.0, 0.5]), atol=1e-9, rtol=1e-12)
    assert torch.equal(z, depth)
    cut = cam.cropped(10, 20, 50, 30)
    torch.testing.assert_close(cut.project(xyz)[0], uv - torch.tensor([10.0, 20.0]), atol=1e-9, rtol=1e-12)
    assert (cut.width, cut.height) == (50, 30)


def test_opengl_axes() -> None:
    """A camera of OpenGL at the origin that is not turned looks along -z, with y up."""
    cam = Camera.from_opengl(torch.tensor([[10.0, 0, 5], [0, 10, 5], [0, 0, 1]]), torch.eye(4), 10, 10)
    uv, depth = cam.project(torch.tensor([[0.0, 0, -2], [1, 0, -2], [0, 1, -2]]))
    assert depth.tolist() == [2, 2, 2]
    assert uv.tolist() == [[5, 5], [10, 5], [5, 0]]
    torch.testing.assert_close(cam.opengl_pose(), torch.eye(4, dtype=torch.float64))


def test_looking_at_a_point_keeps_up_up() -> None:
    cam = Camera.look_at(torch.tensor([2.0, 1, 1]), torch.zeros(3), focal=100, size=64)
    uv, depth = cam.project(torch.tensor([[0.0, 0, 0], [0, 0, 0.1]]))
    torch.testing.assert_close(uv[0], torch.tensor([32.0, 32.0], dtype=torch.float64))
    assert float(depth[0]) == pytest.approx(math.sqrt(6))
    assert float(uv[1, 0]) == pytest.approx(32)
    assert float(uv[1, 1]) < 32  # rows count downwards
    above = Camera.look_at(torch.tensor([0.0, 0, 2]), torch.zeros(3), focal=100, size=64)
    torch.testing.assert_close(above.forward, torch.tensor([0.0, 0, -1], dtype=torch.float64))


def test_the_field_of_view_fills_the_picture() -> None:
    cam = Camera.look_at(torch.zeros(3), torch.tensor([1.0, 0, 0]), focal=focal_length(100, 60), size=100)
    edge = torch.tensor([[1.0, math.tan(math.radians(30)), 0]], dtype=torch.float64)
    assert float(cam.project(edge)[0][0, 0]) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="field_of_view must be between 0 and 180"):
        focal_length(100, 180)


def test_inside_counts_the_border_and_the_front() -> None:
    cam = Camera.look_at(torch.zeros(3), torch.tensor([1.0, 0, 0]), focal=50, size=(10, 8))
    uv = torch.tensor([[0.0, 0], [9.9, 7.9], [10, 4], [5, 8], [5, 4], [1.5, 4]])
    depth = torch.tensor([1.0, 1, 1, 1, -1, 1])
    assert cam.inside(uv, depth).tolist() == [True, True, False, False, False, True]
    assert cam.inside(uv, depth, border=2).tolist() == [False] * 6


def test_view_sets_have_their_published_angles() -> None:
    def angles(name: str) -> list[tuple[int, int]]:
        result = []
        for cam in view_set(name, 224):
            x, y, z = cam.center.tolist()
            polar = math.degrees(math.acos(z / math.sqrt(x * x + y * y + z * z)))
            azimuth = math.degrees(math.atan2(y, x)) % 360 if math.hypot(x, y) > 1e-9 else 0.0
            result.append((round(polar, 6), round(azimuth, 6) % 360))
            towards = -cam.center / cam.center.norm()
            torch.testing.assert_close(cam.forward, towards, atol=1e-9, rtol=0)
        return result  # type: ignore[return-value]

    assert angles("openshape12") == (
        [(60, a) for a in (30, 120, 210, 300)]
        + [(90, a) for a in (60, 150, 240, 330)]
        + [(120, a) for a in (0, 90, 180, 270)]
    )
    assert angles("ulip30") == [(90, 12 * i) for i in range(30)]
    assert angles("pointclip6") == [(90, 0), (90, 90), (90, 180), (90, 270), (0, 0), (180, 0)]
    assert set(angles("clip2point10")) == {
        *((90, a) for a in (0, 90, 180, 270)),
        *((p, a) for p in (45, 135) for a in (225, 315)),
        (0, 0),
        (180, 0),
    }
    assert angles("axis3") == [(90, 0), (90, 90), (0, 0)]
    views = view_set("openshape12", 512)
    assert all(float(cam.intrinsic[0, 0]) == 560 and float(cam.center.norm()) == pytest.approx(1.2) for cam in views)
    assert [cam.parallel for name in VIEW_SETS for cam in view_set(name, 8)[:1]] == [False, False, False, True, True]
    with pytest.raises(ValueError, match="there is no view set 'twelve', only openshape12"):
        view_set("twelve", 224)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intrinsic": torch.eye(4)}, r"intrinsic must have shape \(3, 3\)"),
        ({"pose": torch.full((4, 4), math.nan)}, "pose is not finite"),
        ({"pose": torch.eye(4) * 2}, "pose must be a rotation and a translation"),
        ({"pose": torch.diag(torch.tensor([-1.0, 1, 1, 1]))}, "pose must be a rotation"),
        ({"pose": torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [2, 3, 4, 1]])}, "last row 0 0 0 1, got"),
        ({"width": 0}, "must be positive, got 0 x 10"),
        ({"intrinsic": -torch.eye(3)}, "focal lengths must be positive"),
    ],
)
def test_impossible_cameras_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = {"intrinsic": torch.eye(3), "pose": torch.eye(4), "width": 10, "height": 10, **changes}
    with pytest.raises(ValueError, match=message):
        Camera(**fields)


def test_wrong_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"xyz must have shape \(N, 3\), got \(3,\)"):
        camera().project(torch.zeros(3))
    with pytest.raises(ValueError, match="eye and target must differ"):
        Camera.look_at(torch.ones(3), torch.ones(3), focal=1, size=1)
