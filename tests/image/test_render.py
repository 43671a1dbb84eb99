"""Renderers against geometry that is known exactly."""

from __future__ import annotations

import math
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pc3d.data import BadFileError, PointCloud
from pc3d.image import Camera, Mesh, MeshRenderer, extent, read_mesh, render_mesh, render_points, view_set
from pc3d.image.meshes import from_trimesh
from pc3d.image.rendering import AMBIENT, HEAD, SIDE

needs_rays = pytest.mark.skipif(find_spec("embreex") is None, reason='pip install "pc3d[image]"')


def looking_down(size: int = 40, distance: float = 2.0) -> Camera:
    """Above the origin; the ground from -1 to 1 fills the picture, +y up."""
    eye, up = torch.tensor([0.0, 0, distance]), torch.tensor([0, 1.0, 0])
    return Camera.look_at(eye, torch.zeros(3), focal=distance * size / 2, size=size, up=up)


def plate(half: float, height: float, color: Any = (1.0, 1.0, 1.0), **texture: Any) -> Mesh:
    corners = torch.tensor([[-half, -half], [half, -half], [half, half], [-half, half]], dtype=torch.float64)
    vertices = torch.cat([corners, torch.full((4, 1), height, dtype=torch.float64)], dim=1)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    colors = torch.as_tensor(color, dtype=torch.float32)
    return Mesh(vertices, faces, colors.expand(2, 3, 3) if colors.ndim == 1 else colors[faces], **texture)


def sphere(radius: float = 0.4, subdivisions: int = 5) -> Mesh:
    import trimesh

    return from_trimesh([trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)])


@needs_rays
def test_a_sphere_is_as_deep_as_it_should_be() -> None:
    renderer = MeshRenderer(sphere())
    for cam in (view_set("openshape12", 96)[2], view_set("clip2point10", 96)[5]):
        view = renderer.render(cam, supersample=1)
        origins, directions = cam.rays(cam.pixel_centers())
        length = directions.norm(dim=1)
        way = directions / length[:, None]
        middle = -(origins * way).sum(dim=1)
        square = 0.4**2 - (origins.square().sum(dim=1) - middle.square())
        hit = square > 0
        depth = (middle - square.clamp(min=0).sqrt()) / length
        normal = (origins + directions * depth[:, None]) / 0.4
        # Where the ray meets the sphere at under 80 degrees: at the rim the facets of the mesh show.
        clear = hit & (-(normal * way).sum(dim=1) > math.cos(math.radians(80)))
        assert clear.float().mean() > 0.1
        assert (view.depth.flatten()[clear] - depth[clear]).abs().max() < 1e-3
        assert ((view.depth.flatten() > 0) == hit).float().mean() > 0.998
        # A facet of the mesh spans about 2 degrees.
        cosine = (view.normal.reshape(-1, 3)[clear] * normal[clear]).sum(dim=1)
        assert cosine.min() > math.cos(math.radians(2))
        place = view.position().reshape(-1, 3)
        torch.testing.assert_close(
            place[clear].norm(dim=1), torch.full((int(clear.sum()),), 0.4).double(), atol=1e-3, rtol=0
        )
        assert place[~hit & (view.depth.flatten() == 0)].isnan().all()


@needs_rays
def test_the_nearer_face_hides_the_farther() -> None:
    low, high = plate(0.8, 0.0, (0.0, 1.0, 0.0)), plate(0.3, 0.5, (1.0, 0.0, 0.0))
    both = Mesh(
        torch.cat([low.vertices, high.vertices]),
        torch.cat([low.faces, high.faces + 4]),
        torch.cat([low.corner_color, high.corner_color]),
    )
    view = render_mesh(both, [looking_down(40)])[0]
    x, y = ((torch.arange(40) + 0.5) / 20 - 1).abs(), ((torch.arange(40) + 0.5) / 20 - 1).abs()
    reach = torch.maximum(x[None], y[:, None])
    expected = torch.where(reach < 0.4, 1.5, torch.where(reach < 0.8, 2.0, 0.0))
    torch.testing.assert_close(view.depth, expected.double(), atol=1e-6, rtol=0)
    assert torch.equal(view.index >= 2, reach < 0.4)
    assert torch.equal(view.index >= 0, reach < 0.8)
    color = torch.from_numpy(view.color)
    assert torch.equal(color[:, :, 0] > 0, reach < 0.4)
    assert torch.equal(color[:, :, 3] == 255, reach < 0.8)
    # Under a lamp at the camera and one at 0.8 / sqrt(0.98) of the up axis.
    bright = AMBIENT + HEAD * math.cos(math.atan(math.sqrt(2) * 0.025 / 2 * 1.0)) + SIDE * 0.8 / math.sqrt(0.98)
    assert int(color[20, 20, 0]) == pytest.approx(255 * bright, abs=1)
    assert torch.equal(view.normal[20, 20], torch.tensor([0.0, 0, 1], dtype=torch.float64))
    from_below = Camera.look_at(torch.tensor([0.0, 0, -2]), torch.zeros(3), focal=40, size=40)
    assert torch.equal(
        render_mesh(both, [from_below])[0].normal[20, 20], torch.tensor([0.0, 0, -1], dtype=torch.float64)
    )


@needs_rays
def test_textures_lie_where_their_coordinates_say() -> None:
    # Lower left red, lower right green, upper left blue, upper right white; the picture's rows run downwards.
    texture = np.array([[[0, 0, 255], [255, 255, 255]], [[255, 0, 0], [0, 255, 0]]], np.uint8)
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    mesh = plate(
        1.0, 0.0, corner_uv=uv[torch.tensor([[0, 1, 2], [0, 2, 3]])], texture=torch.zeros(2).long(), textures=(texture,)
    )
    # Texels are centred at quarters: there a texture is its texel, shaded.
    view = render_mesh(mesh, [looking_down(40)], supersample=1)[0]
    for (row, column), color in {
        (30, 10): (1, 0, 0),
        (30, 30): (0, 1, 0),
        (10, 10): (0, 0, 1),
        (10, 30): (1, 1, 1),
    }.items():
        block = view.color[row - 1 : row + 1, column - 1 : column + 1, :3].reshape(-1, 3).astype(float).mean(axis=0)
        bright = max(block)
        np.testing.assert_allclose(block / bright, color, atol=0.06)
        assert bright > 0.9 * 255
    # Half way between two texels their mean.
    between = view.color[30, 19:21, :3].astype(float).mean(axis=0)
    assert between[0] == pytest.approx(between[1], rel=0.02)
    assert between[2] < 12


@needs_rays
def test_colours_of_corners_are_mixed() -> None:
    colors = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    view = render_mesh(plate(1.0, 0.0, colors), [looking_down(40)], supersample=1)[0]
    share = view.color[:, 20, 0].astype(float) / view.color[:, 20, :2].astype(float).sum(axis=1)
    np.testing.assert_allclose(share, (np.arange(40) + 0.5) / 40, atol=0.01)


@needs_rays
def test_edges_are_smooth_and_not_dark() -> None:
    # The edge of the plate is in the middle of a pixel.
    view = render_mesh(plate(0.825, 0.0), [looking_down(40)], supersample=4)[0]
    assert view.color[20, 36, 3] == 128
    assert view.color[20, 37, 3] == 0
    assert abs(int(view.color[20, 36, 0]) - int(view.color[20, 35, 0])) <= 1
    half = view.on((0.0, 0.0, 0.0))[20, 36, 0]
    assert int(half) == pytest.approx(int(view.color[20, 36, 0]) * 128 / 255, abs=1)
    with pytest.raises(ValueError, match="supersample must be at least 1"):
        render_mesh(plate(1.0, 0.0), [looking_down()], supersample=0)


@needs_rays
def test_points_on_a_mesh_are_seen_exactly() -> None:
    import trimesh

    box = trimesh.creation.box((0.6, 0.6, 0.6))
    xyz, face = trimesh.sample.sample_surface(box, 2000, seed=0)
    cam = view_set("openshape12", 128)[0]
    seen = MeshRenderer(from_trimesh([box])).sees(cam, torch.from_numpy(xyz))
    # Of a convex body a point is seen if its face is turned to the camera.
    expected = ((cam.center.numpy() - xyz) * box.face_normals[face]).sum(axis=1) > 0
    assert np.array_equal(seen.numpy(), expected)


@needs_rays
def test_a_mesh_far_from_the_origin_is_drawn_as_one_near() -> None:
    """Coordinates of a survey, millions of metres, have no room for centimetres in float32."""
    mesh, away = sphere(subdivisions=3), torch.tensor([4.1e6, 5.2e6, 300.0], dtype=torch.float64)
    far = Mesh(mesh.vertices + away, mesh.faces, mesh.corner_color)
    cam = view_set("openshape12", 48)[0]
    pose = cam.pose.clone()
    pose[:3, 3] += away
    near_view = MeshRenderer(mesh).render(cam)
    far_view = MeshRenderer(far).render(Camera(cam.intrinsic, pose, 48, 48))
    assert (near_view.index == far_view.index).float().mean() > 0.995
    assert ((near_view.depth - far_view.depth).abs() < 1e-6).float().mean() > 0.995


@needs_rays
def test_discs_cover_what_rays_hit() -> None:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.4)
    xyz = torch.from_numpy(trimesh.sample.sample_surface(ball, 10_000, seed=0)[0]).float()
    cam = view_set("openshape12", 224)[0]
    exact = render_mesh(from_trimesh([ball]), [cam], supersample=1)[0]
    discs = render_points(PointCloud(xyz, normal=torch.nn.functional.normalize(xyz, dim=1)), [cam])[0]
    a, b = exact.color[:, :, 3] > 0, discs.color[:, :, 3] > 0
    assert (a & b).sum() / (a | b).sum() > 0.9
    # A disc is at the depth of its centre: off by its radius, 1.2 * 0.0142, times the slope, 0.75 at this cosine.
    # Points drawn at random leave holes of that radius at exp(-pi * 1.44) = 1 % of the places.
    both = (exact.depth > 0) & (discs.depth > 0) & ((exact.normal * -cam.forward).sum(dim=2) > 0.8)
    assert ((exact.depth - discs.depth)[both].abs() < 0.015).float().mean() > 0.97
    assert ((discs.normal * exact.normal).sum(dim=2)[both] > 0.98).float().mean() > 0.97
    assert torch.equal(discs.index >= 0, discs.depth > 0)
    assert discs.color[112, 112, 0] > 0.5 * 255


def test_a_picture_of_two_points() -> None:
    cloud = PointCloud(torch.tensor([[0.0, 0, 0], [0.5, 0, 0.5]]), rgb=torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    view = render_points(cloud, [looking_down(40)], spacing=0.1, disc_factor=1.0)[0]
    # Radii of 0.1 * 40 / 2 = 2 and 0.1 * 40 / 1.5 = 2.7 pixels.
    assert int((view.index == 0).sum()) == 12
    assert int((view.index == 1).sum()) == sum(
        (c + 0.5 - 1 / 3) ** 2 + (r + 0.5) ** 2 <= (8 / 3) ** 2 for c in range(-4, 4) for r in range(-4, 4)
    )
    assert view.depth[20, 20] == 2
    assert view.depth[20, 33] == 1.5
    assert view.color[20, 20].tolist() == [255, 0, 0, 255]
    assert view.color[20, 33].tolist() == [0, 0, 255, 255]
    assert view.color[0, 0, 3] == 0


def test_a_nearer_point_is_in_front_and_close_ones_are_mixed() -> None:
    def middle(gap: float) -> list[int]:
        xyz = torch.tensor([[0.0, 0, 0], [0.0, 0, gap]])
        cloud = PointCloud(xyz, rgb=torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
        color: list[int] = render_points(cloud, [looking_down(40)], spacing=0.1)[0].color[20, 20].tolist()
        return color

    assert middle(0.5) == [0, 0, 255, 255]
    assert middle(0.1) == [128, 0, 128, 255]  # within two spacings


def test_small_holes_are_closed_in_colour_alone() -> None:
    # One point per pixel, in its middle, but for one.
    step = torch.arange(-0.475, 0.5, 0.05)
    x, y = torch.meshgrid(step, step, indexing="ij")
    xyz = torch.stack([x.flatten(), y.flatten(), torch.zeros(x.numel())], dim=1)
    kept = ((xyz[:, :2] - torch.tensor([0.025, -0.025])).norm(dim=1) > 1e-3).nonzero().flatten()
    cloud = PointCloud(xyz[kept], rgb=torch.full((len(kept), 3), 0.6))
    cam = looking_down(40)
    opened, closed = (render_points(cloud, [cam], spacing=0.01, close_holes=close)[0] for close in (False, True))
    assert opened.color[20, 20, 3] == 0
    assert closed.color[20, 20].tolist() == [153, 153, 153, 255]
    assert int(closed.index[20, 20]) == -1
    assert float(closed.depth[20, 20]) == 0
    assert closed.color[2, 2, 3] == 0


def test_clouds_that_cannot_be_drawn_are_refused() -> None:
    cam = looking_down()
    with pytest.raises(ValueError, match="the cloud is empty"):
        render_points(PointCloud(torch.zeros(0, 3)), [cam])
    with pytest.raises(ValueError, match="needs a cloud with normals"):
        render_points(PointCloud(torch.zeros(4, 3)), [cam], shaded=True)
    assert render_points(PointCloud(torch.zeros(1, 3)), [cam])[0].index.max() == 0
    behind = render_points(PointCloud(torch.tensor([[0.0, 0, 5], [0, 0, 6]])), [cam])[0]
    assert (behind.index == -1).all()
    assert (behind.color == 0).all()


# ---- files -------------------------------------------------------------------------------------------------------


@needs_rays
def test_a_textured_file_is_drawn_with_its_texture(tmp_path: Path) -> None:
    import trimesh
    from PIL import Image

    box = trimesh.creation.box((0.2, 0.4, 0.6))
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, :] = (200, 100, 0)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(pixels))
    box.visual = trimesh.visual.TextureVisuals(uv=np.random.default_rng(0).random((8, 2)), material=material)
    box.export(tmp_path / "box.glb")
    mesh = read_mesh(tmp_path / "box.glb")
    assert mesh.textures[0].shape == (4, 4, 3)
    # GLB is y up: its y is z here.
    size = mesh.vertices.amax(0) - mesh.vertices.amin(0)
    torch.testing.assert_close(size, torch.tensor([0.2, 0.6, 0.4], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        read_mesh(tmp_path / "box.glb", up="z").vertices[:, [0, 2, 1]].abs(), mesh.vertices.abs()
    )
    scaled, center, factor = mesh.scaled_to(*extent("openshape12"))
    assert factor == pytest.approx(0.8 / 0.6)
    torch.testing.assert_close((mesh.vertices - center) * factor, scaled.vertices)
    ball, _, _ = mesh.scaled_to(*extent("pointclip6"))
    assert float(ball.vertices.norm(dim=1).max()) == pytest.approx(1)
    view = render_mesh(scaled, view_set("openshape12", 64)[:1])[0]
    color = view.color[view.color[:, :, 3] == 255][:, :3].astype(float)
    np.testing.assert_allclose(color[:, 1] / color[:, 0], 0.5, atol=0.02)
    assert (color[:, 2] == 0).all()
    files = view.save(tmp_path / "views", "000")
    assert [path.name for path in files] == ["000.png", "000.npz"]
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])), view.color)
    with np.load(files[1]) as stored:
        np.testing.assert_array_equal(stored["index"], view.index)
        np.testing.assert_allclose(stored["depth"], view.depth, atol=1e-6)
        np.testing.assert_array_equal(stored["pose"], view.camera.pose)


def test_an_obj_file_has_the_texture_of_its_material(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0], pixels[1] = (250, 0, 0), (0, 0, 250)  # the upper row is red
    Image.fromarray(pixels).save(tmp_path / "skin.png")
    (tmp_path / "plate.mtl").write_text(
        "newmtl skin\nKd 0.5 0.5 0.5\nmap_Kd skin.png\n\nnewmtl plain\nKd 0.0 1.0 0.0\n"
    )
    (tmp_path / "plate.obj").write_text(
        "mtllib plate.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\n"
        "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
        "usemtl skin\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\nusemtl plain\nf 1/1 2/2 5/3\n"
    )
    mesh = read_mesh(tmp_path / "plate.obj")
    assert len(mesh.faces) == 3
    center = torch.full((3, 3), 1 / 3)
    color = mesh.color_at(torch.arange(3), center)
    on_skin = mesh.texture >= 0  # type: ignore[operator]
    assert int(on_skin.sum()) == 2
    np.testing.assert_allclose(color[~on_skin], [[0, 1, 0]], atol=1e-6)
    # The lower right triangle's middle is at v = 1/3, the upper left one's at 2/3: 1/6 from the middle of the picture,
    # where the rows' centres, half a picture apart, weigh 5/6 and 1/6.
    height = mesh.vertices[mesh.faces].mean(dim=1)[:, 1]
    for face in torch.nonzero(on_skin).flatten().tolist():
        red = 250 / 255 * (1 / 6 if float(height[face]) < 0.5 else 5 / 6)
        np.testing.assert_allclose(color[face], [red, 0, 250 / 255 - red], atol=1e-5)


@needs_rays
@pytest.mark.parametrize("kind", ["vertex", "face", "material", "none"])
def test_a_mesh_without_a_texture_keeps_its_colours(kind: str, tmp_path: Path) -> None:
    import trimesh

    box = trimesh.creation.box((0.5, 0.5, 0.5))
    expected = np.array([0.7, 0.7, 0.7])
    if kind == "vertex":
        box.visual.vertex_colors = [10, 200, 90, 255]
    elif kind == "face":
        box.visual.face_colors = [10, 200, 90, 255]
    elif kind == "material":
        box.visual = trimesh.visual.TextureVisuals(
            material=trimesh.visual.material.PBRMaterial(baseColorFactor=[10, 200, 90, 255])
        )
    if kind != "none":
        expected = np.array([10, 200, 90]) / 255
    mesh = from_trimesh([box, box])
    assert (len(mesh.vertices), len(mesh.faces)) == (16, 24)
    color = mesh.color_at(torch.tensor([3, 15]), torch.tensor([[0.2, 0.3, 0.5], [1, 0, 0]]))
    np.testing.assert_allclose(color, np.stack([expected, expected]), atol=1e-6)


def test_files_are_read_as_they_are_for_sampling(tmp_path: Path) -> None:
    """A triangle and a quad in a binary PLY file, and colours of faces below a header of ModelNet's kind."""
    places = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 2, 0)]
    header = b"ply\nformat binary_little_endian 1.0\nelement vertex 5\nproperty float x\nproperty float y\n"
    header += b"property float z\nelement face 2\nproperty list uchar int vertex_indices\nend_header\n"
    body = b"".join(struct.pack("<3f", *place) for place in places)
    body += struct.pack("<B3i", 3, 3, 2, 4) + struct.pack("<B4i", 4, 0, 1, 2, 3)
    (tmp_path / "a.ply").write_bytes(header + body)
    assert read_mesh(tmp_path / "a.ply").faces.tolist() == [[3, 2, 4], [0, 1, 2], [0, 2, 3]]
    lines = [*(" ".join(map(str, place)) for place in places), "3 3 2 4 255 0 0", "4 0 1 2 3 0 0 255"]
    (tmp_path / "a.off").write_text("OFF5 2 0\n" + "\n".join(lines))
    mesh = read_mesh(tmp_path / "a.off")
    assert mesh.faces.tolist() == [[3, 2, 4], [0, 1, 2], [0, 2, 3]]
    assert mesh.corner_color[:, 0].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_files_that_are_no_meshes_are_refused(tmp_path: Path) -> None:
    import trimesh

    with pytest.raises(FileNotFoundError, match=r"no\.glb does not exist"):
        read_mesh(tmp_path / "no.glb")
    for content, message in ((b"glTF nothing", "is not glTF 2"), (b"nothing", "cannot be read as a mesh")):
        (tmp_path / "bad.glb").write_bytes(content)
        with pytest.raises(BadFileError, match=rf"bad\.glb: {message}"):
            read_mesh(tmp_path / "bad.glb")
    trimesh.PointCloud(np.random.default_rng(0).random((5, 3))).export(tmp_path / "points.ply")
    with pytest.raises(BadFileError, match="has no triangles: is it a cloud of points"):
        read_mesh(tmp_path / "points.ply")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faces": torch.zeros(0, 3).long()}, "one or more triangles"),
        ({"faces": torch.tensor([[0, 1, 9]])}, r"faces must be in 0\.\.3, got 9"),
        ({"vertices": torch.full((4, 3), math.inf)}, "vertices must be finite"),
        ({"corner_color": torch.zeros(2, 3)}, r"corner_color must have shape \(2, 3, 3\)"),
    ],
)
def test_impossible_meshes_are_refused(change: dict[str, Any], message: str) -> None:
    good = plate(1.0, 0.0)
    fields = {"vertices": good.vertices, "faces": good.faces, "corner_color": good.corner_color, **change}
    with pytest.raises(ValueError, match=message):
        Mesh(**fields)


def test_wrong_axes_and_sizes_are_refused() -> None:
    mesh = plate(1.0, 0.0)
    with pytest.raises(ValueError, match="up must be 'y' or 'z', got 'x'"):
        mesh.turned_up("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind must be 'edge' or 'radius'"):
        mesh.scaled_to("volume", 1.0)
    with pytest.raises(ValueError, match="the object has no extent"):
        Mesh(torch.zeros(3, 3).double(), torch.tensor([[0, 1, 2]]), torch.zeros(1, 3, 3)).scaled_to("edge", 1.0)


def test_where_there_is_no_ray_caster_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "embreex", None)
    with pytest.raises(ImportError, match=r'pip install "pc3d\[image\]".*use render_points'):
        MeshRenderer(plate(1.0, 0.0))
