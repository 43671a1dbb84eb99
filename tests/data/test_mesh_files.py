"""Meshes as programs write them: the colour of every sample is compared with what the file says of its place."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from pc3d.data import BadFileError, PointCloud, read_points

# The unit square, whose colours grow red along x and green along y.
CORNERS = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
VERTICES = "".join(f"{x} {y} {z}\n" for x, y, z in CORNERS)


def check_gradient(cloud: PointCloud, factor: tuple[float, float, float] = (1, 1, 1), atol: float = 1e-5) -> None:
    assert cloud.rgb is not None
    expected = torch.cat([cloud.xyz[:, :2], torch.zeros(len(cloud), 1)], dim=1) * torch.tensor(factor)
    torch.testing.assert_close(cloud.rgb, expected, atol=atol, rtol=0)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.zeros((52, 52, 3), np.uint8)
    pixels[:, :, 0] = np.arange(52)[None] * 5
    pixels[:, :, 1] = np.arange(52)[::-1, None] * 5
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a b.png")
    return tmp_path / "images" / "a b.png"


COLOURS = ["0 0 0", "255 0 0", "255 255 0", "0 255 0"]
FACES = "3 0 1 2\n3 0 2 3\n"
OFF = {
    "COFF": "".join(f"{x} {y} {z} {c} 255\n" for (x, y, z), c in zip(CORNERS, COLOURS, strict=True)),
    "coff": "".join(f"{x} {y} {z} {x}.0 {y}.0 0.0\n" for x, y, z in CORNERS),
    "STCNOFF": "".join(f"{x} {y} {z} 0 0 1 {c} 255 0.5 0.5\n" for (x, y, z), c in zip(CORNERS, COLOURS, strict=True)),
}


@pytest.mark.parametrize("keyword", OFF)
@pytest.mark.parametrize("faces", [FACES, "4 0 1 2 3\n"])
def test_off_with_colours_of_vertices(tmp_path: Path, keyword: str, faces: str) -> None:
    (tmp_path / "a.off").write_text(f"{keyword}\n4 {faces.count(chr(10))} 0\n{OFF[keyword]}{faces}")
    check_gradient(read_points(tmp_path / "a.off", num_points=300))
    # Without faces it is a set of points.
    (tmp_path / "a.off").write_text(f"{keyword}\n4 0 0\n{OFF[keyword]}")
    cloud = read_points(tmp_path / "a.off")
    assert cloud.xyz.tolist() == [list(corner) for corner in CORNERS]
    check_gradient(cloud)
    assert (cloud.normal is None) == (keyword != "STCNOFF")


@pytest.mark.parametrize(
    ("red", "white"),
    [("255 0 0", "255 255 255"), ("1.0 0 0.0 1", "1 1 1."), ("255 0 0 255", ""), ("255 0 0", "7")],
    ids=["0 to 255", "0 to 1", "one without", "a number of a table"],
)
def test_off_with_colours_of_faces(tmp_path: Path, red: str, white: str) -> None:
    """No line OFF, which the format lets be left out; a triangle and a polygon of five corners."""
    (tmp_path / "a.off").write_text(f"5 2 0\n{VERTICES}0.5 1.5 0\n3 0 1 2 {red}\n4 0 2 4 3 {white}\n")
    cloud = read_points(tmp_path / "a.off", num_points=300)
    below = cloud.xyz[:, 1] < cloud.xyz[:, 0]
    assert 0 < below.sum() < 300
    assert torch.equal(cloud.rgb, torch.tensor([[1.0, 1, 1], [1, 0, 0]])[below.long()])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OFF BINARY\n\0\0", "is a binary OFF file, which is not read: export it as text"),
        ("COFF\n4 1 0\n" + VERTICES + "3 0 1 2\n", "has 3 numbers a vertex, fewer than its keyword announces"),
        ("OFF\n4 1 0\n" + VERTICES + "4 0 1 2\n", "a face with fewer corners than it says, '4 0 1 2'; truncated"),
        ("OFF\n4 1 0\n" + VERTICES + "3 0 1 4\n", "has faces with vertices 0 to 4, of which it has 4"),
        ("OFF\n0 0 0\n", "holds no points"),
    ],
)
def test_what_is_wrong_with_an_off_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(BadFileError, match=r"a\.off: .*" + message):
        read_points(tmp_path / "a.off")


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
    ],
)
def test_obj_finds_its_texture(tmp_path: Path, picture: Path, name: str) -> None:
    """ShapeNet's pictures lie beside the folder of the mesh; other paths are those of the machine that wrote it."""
    folder = tmp_path / "models"
    folder.mkdir()
    if "images" not in name:
        picture.rename(folder / picture.name)
    (folder / "a.mtl").write_text(f"newmtl m\nKd 1 1 1\nmap_Kd {name}\n")
    (folder / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED)
    check_gradient(read_points(folder / "a.obj", num_points=200), atol=1 / 255)


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
    check_gradient(read_points(tmp_path / "a.obj", num_points=200), atol=1 / 255)


def glb(
    attributes: dict[str, np.ndarray], material: dict[str, Any] | None, picture: Path | None = None, **more: Any
) -> bytes:
    """A square by hand: data of its vertices beside their places, and the material."""
    arrays = {"POSITION": np.array(CORNERS, "<f4"), **attributes}
    pieces = [array.tobytes() for array in arrays.values()] + [np.array([0, 1, 2, 0, 2, 3], "<u4").tobytes()]
    codes = {"f": 5126, "B": 5121, "H": 5123}
    accessors = [
        {
            "componentType": codes[a.dtype.char],
            "count": 4,
            "type": f"VEC{a.shape[1]}",
            "normalized": a.dtype.char != "f",
        }
        for a in arrays.values()
    ]
    accessors.append({"componentType": 5125, "count": 6, "type": "SCALAR"})
    accessors = [{"bufferView": view, **accessor} for view, accessor in enumerate(accessors)]
    primitive: dict[str, Any] = {"attributes": {name: i for i, name in enumerate(arrays)}, "indices": len(arrays)}
    described: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
    }
    if material is not None:
        primitive["material"] = 0
        described["materials"] = [{"pbrMetallicRoughness": material}]
    if picture is not None:
        pieces.append(picture.read_bytes())
        described["images"] = [{"bufferView": len(pieces) - 1, "mimeType": "image/png"}]
        described["textures"] = [{"source": 0}]
    views, blob = [], b""
    for piece in pieces:
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(piece)})
        blob += piece + b"\0" * (-len(piece) % 4)
    described |= {"meshes": [{"primitives": [primitive]}], "accessors": accessors, "bufferViews": views}
    described |= {"buffers": [{"byteLength": len(blob)}], **more}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


GRADIENT = np.array(CORNERS, np.float32)


@pytest.mark.parametrize(
    "colour",
    [
        np.array([(x, y, 0) for x, y, _ in CORNERS], "<f4"),
        np.array([(x * 255, y * 255, 0, 255) for x, y, _ in CORNERS], "B"),
        np.array([(x * 65535, y * 65535, 0, 65535) for x, y, _ in CORNERS], "<u2"),
    ],
)
@pytest.mark.parametrize("material", [None, {}, {"baseColorFactor": [0.2, 0.6, 1, 1]}])
def test_glb_multiplies_vertices_and_material(
    tmp_path: Path, colour: np.ndarray, material: dict[str, Any] | None
) -> None:
    (tmp_path / "a.glb").write_bytes(glb({"COLOR_0": colour}, material))
    factor = (material or {}).get("baseColorFactor", [1, 1, 1])[:3]
    check_gradient(read_points(tmp_path / "a.glb", num_points=300), factor)


def test_glb_multiplies_texture_and_material(tmp_path: Path, picture: Path) -> None:
    places = np.array([(x, 1 - y) for x, y, _ in CORNERS], "<f4")
    material = {"baseColorTexture": {"index": 0}, "baseColorFactor": [1, 0.4, 1, 1]}
    (tmp_path / "a.glb").write_bytes(glb({"TEXCOORD_0": places}, material, picture))
    check_gradient(read_points(tmp_path / "a.glb", num_points=300), (1, 0.4, 1), atol=1 / 255)


def test_glb_parts_with_and_without_a_material(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    red = trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 0, 255])
    for place, visual in ((0, trimesh.visual.TextureVisuals(material=red)), (2, None)):
        square = trimesh.Trimesh(CORNERS, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
        scene.add_geometry(square, transform=trimesh.transformations.translation_matrix([place, 0, 0]))
    scene.export(tmp_path / "a.glb")
    cloud = read_points(tmp_path / "a.glb", num_points=200)
    right = cloud.xyz[:, 0] > 1.5
    assert 0 < right.sum() < 200
    assert torch.equal(cloud.rgb, torch.tensor([[1.0, 0, 0], [1, 1, 1]])[right.long()])


def test_glb_of_points_and_compressed(tmp_path: Path) -> None:
    colours = np.array([(x * 255, y * 255, 0, 255) for x, y, _ in CORNERS], np.uint8)
    trimesh.Scene(trimesh.PointCloud(GRADIENT, colors=colours)).export(tmp_path / "a.glb")
    cloud = read_points(tmp_path / "a.glb")
    assert cloud.xyz.tolist() == GRADIENT.tolist()
    check_gradient(cloud)
    (tmp_path / "a.glb").write_bytes(glb({}, None, extensionsRequired=["KHR_draco_mesh_compression"]))
    with pytest.raises(BadFileError, match=r"is compressed by KHR_draco_mesh_compression, which is not read: export"):
        read_points(tmp_path / "a.glb")


def test_glb_with_lines_beside_the_mesh(tmp_path: Path) -> None:
    parts = [{"attributes": {"POSITION": 0}, "indices": 1}, {"attributes": {"POSITION": 0}, "mode": 1}]
    (tmp_path / "a.glb").write_bytes(glb({}, None, meshes=[{"primitives": parts}]))
    assert len(read_points(tmp_path / "a.glb", num_points=50)) == 50


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
        stl_text("größe " * 300).encode("latin-1"),
        (stl_text("a") + stl_text("b")).encode(),
        stl_binary(b"made by hand"),
        stl_binary(b"solid facet normal, says a program that ignores what it should not write"),
        stl_binary(b"made by hand") + b"\0\0 appended",
    ],
    ids=["text", "capitals", "a long name", "two solids", "binary", "binary called solid", "binary and more"],
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
