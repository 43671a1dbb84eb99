"""Meshes as programs write them: the colour of every sample is compared with what the file says of its place."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from unit_square import CORNERS, check_gradient

from pc3d.data import BadFileError, read_points

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
