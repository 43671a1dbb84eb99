"""Dense targets for a 3D encoder: the features of a tower on the points of a scan or of an object."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pc3d.data.frames import Frame
from pc3d.data.types import PointCloud
from pc3d.image.cameras import Camera
from pc3d.image.lifting import LiftedFeatures, View, lift
from pc3d.image.rendering import Rendering
from pc3d.image.towers import ImageTower
from pc3d.image.visibility import cosine_to_camera, depth_edges, facing, pixel_of, visible_by_depth


def lift_frames(
    cloud: PointCloud,
    frames: Iterable[Frame],
    tower: ImageTower,
    *,
    tolerance: float = 0.05,
    edge: float | None = 0.1,
    max_degrees: float = 80.0,
    two_sided: bool = False,
    short_side: int | None = None,
    unit: bool = False,
) -> LiftedFeatures:
    """Average a tower's dense features over the frames of a scan that see a point (OpenScene, section 3.1).

    A frame sees a point if its depth picture confirms it. The frames may come from a :class:`pc3d.data.SensFile`, a
    :class:`pc3d.data.FrameFolder` or :meth:`pc3d.data.Rooms.frames`; they are taken one at a time.

    Args:
        cloud: of the scan, in metres; its normals are used if it has any.
        frames: posed colour and depth pictures.
        tower: whose features are lifted.
        tolerance: metres between a point and the depth picture. OpenScene allows a quarter of the depth, which accepts
            points behind furniture; the noise of depth cameras is centimetres.
        edge: metres of depth within 3 x 3 pixels above which a pixel is not trusted; None trusts all.
        max_degrees: angle between normal and ray above which a point is not lifted to.
        two_sided: the normals may point to either side of the surface, as estimated ones do. Otherwise surfaces are not
            lifted to from behind.
        short_side: what pictures are scaled to, see :meth:`ImageTower.encode_dense`.
        unit: normalise each frame's feature before averaging.

    Raises:
        ValueError: no frame has a tracked camera pose, or a frame cannot be used: which, and why.
    """
    lost = 0

    def view(frame: Frame) -> View:
        depth, camera = torch.from_numpy(frame.depth), Camera.of_frame(frame, "depth")
        visible = visible_by_depth(camera, cloud.xyz, depth, tolerance=tolerance)
        if edge is not None:
            uv, z = camera.project(cloud.xyz)
            unsafe = depth_edges(depth, edge).flatten()
            visible &= ~unsafe[pixel_of(uv, camera.inside(uv, z), camera.width)]
        if cloud.normal is not None:
            visible &= facing(camera, cloud.xyz, cloud.normal, max_degrees, two_sided=two_sided)
        return View(Camera.of_frame(frame, "color"), tower.encode_dense(frame.color, short_side), visible)

    def views() -> Iterator[View]:
        nonlocal lost
        number = -1
        for number, frame in enumerate(frames):
            if not frame.tracked:
                lost += 1
                continue
            try:
                yield view(frame)
            except ValueError as error:
                raise ValueError(f"frame {number} of those lifted: {error}") from error
        if lost == number + 1:
            raise ValueError(f"no frame has a tracked camera pose ({lost} lost): there is nothing to lift from")

    try:
        return lift(cloud.xyz, views(), unit=unit)
    finally:
        if lost:
            warnings.warn(f"{lost} frame(s) without a pose were left out: tracking was lost there", stacklevel=2)


def lift_renderings(
    xyz: Tensor,
    renderings: Iterable[Rendering],
    tower: ImageTower,
    *,
    normal: Tensor | None = None,
    tolerance: float | None = None,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    short_side: int | None = None,
    unit: bool = False,
) -> LiftedFeatures:
    """Average a tower's dense features over the rendered views that see a point.

    Args:
        xyz: ``(N, 3)`` points of the object, in the coordinates that it was rendered in.
        renderings: of :func:`pc3d.image.render_mesh` or :func:`pc3d.image.render_points`.
        tower: whose features are lifted.
        normal: ``(N, 3)``; if given, views are weighted by the cosine between normal and ray, and not used from behind.
        tolerance: between a point and the depth picture; by default 0.02, for an object of about unit size, or three
            spacings for renderings of points, whose discs have the depth of their centres.
        background: colour behind the object.
        short_side: what pictures are scaled to.
        unit: normalise each view's feature before averaging.
    """

    def views() -> Iterator[View]:
        for rendering in renderings:
            camera = rendering.camera
            allowed = max(0.02, 3 * rendering.spacing) if tolerance is None else tolerance
            visible = visible_by_depth(camera, xyz, rendering.depth, tolerance=allowed)
            weight = None if normal is None else cosine_to_camera(camera, xyz, normal)
            yield View(camera, tower.encode_dense(rendering.on(background), short_side), visible, weight)

    return lift(xyz, views(), unit=unit)
