"""Meshes as programs write them: the colour of every sample is compared with what the file says of its place."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from unit_square import CORNERS, check_gradient, check_texture

from pc3d.data import BadFileError, read_points
from pc3d.image import read_mesh

OBJ = "".join(f"v {x} {y} {z}\n" for x, y, z in CORNERS)
PLACES = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
TEXTURED = OBJ + PLACES + "usemtl m\nf 1/1 2/2 3/3 4/4\n"


@pytest.mark.usefixtures("picture")
@pytest.mark.parametrize(
    "name",
    [
        "../images/a b.png",
        "..\\images\\a b.png",
        "-s 1 1 1 -clamp on ../images/a b.png",
        "C:\\work\\a b.png",
        '"a b.png"',
        "..\\images\\A B.PNG",
        '-s 1 1 1 "a b.png"',
        "-o 0 0 0 -bm 1.0 a b.png  # of the front",
        "../images/a b #2.png",
    ],
)
def test_obj_finds_its_texture(tmp_path: Path, picture: Path, name: str) -> None:
    """ShapeNet's pictures lie beside the folder of the mesh; other paths are those of the machine that wrote it."""
    folder = tmp_path / "models"
    folder.mkdir()
    if "images" not in name:
        picture.rename(folder / picture.name)
    elif "#2" in name:
        picture.rename(picture.with_name("a b #2.png"))
    (folder / "a.mtl").write_text(f"newmtl m\nKd 1 1 1\nmap_Kd {name}\n")
    (folder / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED)
    check_texture(read_points(folder / "a.obj", num_points=200))


@pytest.mark.parametrize("material", ["newmtl m\nKd 0 1 0\nmap_Kd gone.png\n", None])
def test_obj_tells_what_is_not_there(tmp_path: Path, material: str | None) -> None:
    if material is not None:
        (tmp_path / "a.mtl").write_text(material)
    (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED)
    missing = "a.mtl" if material is None else "gone.png"
    with pytest.warns(UserWarning, match=rf"a\.obj: '{missing}' is not beside it: read without its colours"):
        cloud = read_points(tmp_path / "a.obj", num_points=10)
    assert (None if cloud.rgb is None else cloud.rgb.tolist()) == (None if material is None else [[0, 1, 0]] * 10)


def test_obj_with_places_on_a_picture_but_no_material_has_no_colour(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text(TEXTURED)
    assert read_points(tmp_path / "a.obj", num_points=10).rgb is None


def test_obj_with_tabs_and_indents(tmp_path: Path) -> None:
    text = OBJ.replace(" ", "\t") + "\tf\t-4 -3\t-2\n   f -4 -2 -1\n"
    (tmp_path / "a.obj").write_text(text)
    cloud = read_points(tmp_path / "a.obj", num_points=200)
    torch.testing.assert_close(cloud.xyz[:, :2].mean(dim=0), torch.tensor([0.5, 0.5]), atol=0.1, rtol=0)


def test_obj_comments_do_not_go_on(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text(f"# from C:\\models\\\n{OBJ}v 9 9 9\nf 1 2 \\\n3 \\\n4\n")
    xyz = read_points(tmp_path / "a.obj", num_points=200).xyz
    torch.testing.assert_close(xyz.mean(dim=0), torch.tensor([0.5, 0.5, 0]), atol=0.1, rtol=0)
    assert xyz.max() <= 1


def test_obj_counts_back_from_where_a_face_stands(tmp_path: Path) -> None:
    """Two squares, the second one behind the faces of the first, each on its half of a picture."""
    pixels = np.zeros((1, 8, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
    text = "mtllib a.mtl\nusemtl m\n"
    for x, u in ((0, 0.25), (5, 0.75)):
        text += "".join(f"v {x + dx} {y} {z}\n" for dx, y, z in CORNERS) + f"vt {u} 0.5\nvn 0 0 1\n"
        text += "f -4/-1/-1 -3/-1/-1 \\\n-2/-1/-1 -1/-1/-1 # a square\n"
    (tmp_path / "a.obj").write_text(text)
    cloud = read_points(tmp_path / "a.obj", num_points=400)
    second = cloud.xyz[:, 0] > 3
    assert second.float().mean() == pytest.approx(0.5, abs=0.1)
    for which, x, colour in ((~second, 0.5, [1.0, 0, 0]), (second, 5.5, [0.0, 0, 1])):
        torch.testing.assert_close(cloud.xyz[which].mean(0), torch.tensor([x, 0.5, 0]), atol=0.08, rtol=0)
        assert cloud.xyz[which, 0].aminmax().min > x - 0.5
        torch.testing.assert_close(cloud.rgb[which], torch.tensor([colour]).expand(int(which.sum()), 3))


@pytest.mark.parametrize("face", ["0 1 2", "1 2 0/1", "1/1 0/1 2/1", "0 1 2 3", "-1 -2 -5"])
def test_obj_face_without_such_a_vertex(tmp_path: Path, face: str) -> None:
    """Arrays would take one from the end instead."""
    (tmp_path / "a.obj").write_text(f"{OBJ}f 1 2 3\nf {face}\n")
    with pytest.raises(BadFileError, match="a face names vertex 0"):
        read_points(tmp_path / "a.obj", num_points=10)


@pytest.mark.parametrize(
    ("lines", "other"),
    [
        ("mtllib a.mtl c.mtl", "c.mtl"),
        ("mtllib a.mtl\nmtllib b c.mtl", "b c.mtl"),
        ("mtllib c.mtl a.mtl gone.mtl", "c.mtl"),
        ("mtllib a.mtl\nmtllib gone.mtl\nmtllib c.mtl\nmtllib gone.mtl", "c.mtl"),
    ],
)
def test_obj_of_several_files_of_materials(tmp_path: Path, lines: str, other: str) -> None:
    (tmp_path / "a.mtl").write_text("newmtl red\n\tKd 1 0 0 # as a tomato")
    (tmp_path / other).write_text("newmtl blue\nKd 0 0 1\n")
    faces = "usemtl red\nf 1 2 3\nusemtl blue\nf 1 3 4\n"
    (tmp_path / "a.obj").write_text(f"{lines}\n{OBJ}{faces}")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_points(tmp_path / "a.obj", num_points=100)
    assert [str(one.message).split("'")[1] for one in told] == (["gone.mtl"] if "gone" in lines else [])
    blue = cloud.xyz[:, 1] > cloud.xyz[:, 0]
    assert torch.equal(cloud.rgb, torch.tensor([[1.0, 0, 0], [0, 0, 1]])[blue.long()])


def test_obj_of_coloured_vertices_with_a_material(tmp_path: Path) -> None:
    """As Blender writes them: every material has a grey."""
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 0.8 0.8 0.8\n")
    coloured = "".join(f"v {x} {y} {z} {x} {y} 0\n" for x, y, z in CORNERS)
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\n{coloured}usemtl m\nf 1 2 3 4\n")
    check_gradient(read_points(tmp_path / "a.obj", num_points=100))


def test_obj_of_points_keeps_their_colours(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("".join(f"v {x} {y} {z} {x} {y} 0\n" for x, y, z in CORNERS))
    cloud = read_points(tmp_path / "a.obj")
    assert cloud.xyz.tolist() == [list(corner) for corner in CORNERS]
    check_gradient(cloud)


def test_a_texture_that_repeats(tmp_path: Path, picture: Path) -> None:
    """The square sees the fourth repetition along x, the third below along y."""
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd images/a b.png\n")
    places = "vt 3 -2\nvt 4 -2\nvt 4 -1\nvt 3 -1\n"
    (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED.replace(PLACES, places))
    check_texture(read_points(tmp_path / "a.obj", num_points=200))


def test_a_place_in_the_middle_of_a_pixel_has_its_colour(tmp_path: Path) -> None:
    """Models of blocks and of low polygons have a palette for a texture: a pixel for each colour."""
    palette = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]], np.uint8)
    Image.fromarray(palette).save(tmp_path / "palette.png")
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd palette.png\n")
    corners = [(x + dx, dy, 0) for x in range(4) for dx, dy in ((0, 0), (1, 0), (0, 1))]
    text = "mtllib a.mtl\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in corners)
    text += "".join(f"vt {(pixel + 0.5) / 4} 0.5\n" for pixel in range(4)) + "usemtl m\n"
    text += "".join(f"f {3 * i + 1}/{i + 1} {3 * i + 2}/{i + 1} {3 * i + 3}/{i + 1}\n" for i in range(4))
    (tmp_path / "a.obj").write_text(text)
    cloud = read_points(tmp_path / "a.obj", num_points=100)
    expected = torch.from_numpy(palette[0] / 255).float()
    torch.testing.assert_close(cloud.rgb, expected[cloud.xyz[:, 0].floor().long()])
    mesh = read_mesh(tmp_path / "a.obj")
    torch.testing.assert_close(mesh.color_at(torch.arange(4), torch.full((4, 3), 1 / 3)), expected)


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.fromarray(np.full((2, 2), 0x3333, np.uint16)), (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((2, 2), 51, np.uint8)), (0.2, 0.2, 0.2)),
        (Image.new("1", (2, 2), 1), (1, 1, 1)),
        (Image.new("P", (2, 2), 3), (0.2, 0.4, 0.6)),
        (Image.new("LA", (2, 2), (51, 9)), (0.2, 0.2, 0.2)),
        (Image.new("RGBA", (2, 2), (51, 102, 153, 9)), (0.2, 0.4, 0.6)),
    ],
    ids=["grey in 16 bits", "grey", "black and white", "palette", "grey and transparent", "transparent"],
)
@pytest.mark.parametrize("ending", [".obj", ".glb", ".ply"])
def test_textures_of_any_kind(tmp_path: Path, picture: Image.Image, colour: tuple[float, ...], ending: str) -> None:
    if picture.mode == "P":
        picture.putpalette([0, 0, 0] * 3 + [51, 102, 153])
    picture.save(tmp_path / "a.png")
    if ending == ".obj":
        (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
        (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED)
    elif ending == ".glb":
        visual = trimesh.visual.TextureVisuals(
            [(x, y) for x, y, _ in CORNERS], trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
        )
        trimesh.Trimesh(CORNERS, FACETS, visual=visual, process=False).export(tmp_path / "a.glb")
    else:
        header = "ply\nformat ascii 1.0\ncomment TextureFile a.png\nelement vertex 4\n"
        header += "".join(f"property float {name}\n" for name in "xyzst")
        header += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
        rows = "".join(f"{x} {y} {z} {x} {y}\n" for x, y, z in CORNERS) + "3 0 1 2\n3 0 2 3\n"
        (tmp_path / "a.ply").write_text(header + rows)
    expected = torch.tensor([colour]).float()
    path = tmp_path / f"a{ending}"
    torch.testing.assert_close(read_points(path, num_points=10).rgb, expected.expand(10, 3))
    color = read_mesh(path).color_at(torch.tensor([0]), torch.tensor([[0.2, 0.3, 0.5]]))
    torch.testing.assert_close(color, expected)


FACETS = [(0, 1, 2), (0, 2, 3)]


def stl_text(name: str) -> str:
    facets = ""
    for facet in FACETS:
        corners = "".join(f"      vertex {x} {y} {z}\n" for x, y, z in (CORNERS[i] for i in facet))
        facets += f"  facet normal 0 0 1\n    outer loop\n{corners}    endloop\n  endfacet\n"
    return f"solid {name}\n{facets}endsolid {name}\n"


def stl_binary(header: bytes) -> bytes:
    triangles = [struct.pack("<12fH", 0, 0, 1, *(c for i in facet for c in CORNERS[i]), 0) for facet in FACETS]
    return header.ljust(80, b" ") + struct.pack("<I", len(FACETS)) + b"".join(triangles)


@pytest.mark.parametrize(
    "data",
    [
        stl_text("a").encode(),
        stl_text("a").upper().replace("\n", "\r\n").encode(),
        stl_text("a").replace("\n", "\r").encode(),
        stl_text("größe " * 300).encode("latin-1"),
        (stl_text("a") + stl_text("b")).encode(),
        stl_binary(b"made by hand"),
        stl_binary(b"solid facet normal, says a program that ignores what it should not write"),
        stl_binary(b"made by hand") + b"\0\0 appended",
    ],
    ids=[
        "text",
        "capitals",
        "carriage returns",
        "a long name",
        "two solids",
        "binary",
        "binary called solid",
        "binary and more",
    ],
)
def test_stl_whole_and_cut(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.stl").write_bytes(data)
    cloud = read_points(tmp_path / "a.stl", num_points=200)
    assert torch.equal(cloud.xyz[:, 2], torch.zeros(200))
    torch.testing.assert_close(cloud.xyz[:, :2].mean(dim=0), torch.tensor([0.5, 0.5]), atol=0.1, rtol=0)
    end = (
        data.lower().rfind(b"endsolid") if b"endfacet" in data.lower() else len(data.removesuffix(b"\0\0 appended")) - 1
    )
    (tmp_path / "a.stl").write_bytes(data[:end])
    with pytest.raises(BadFileError, match=r"a\.stl: is truncated"):
        read_points(tmp_path / "a.stl")
