"""OFF files as programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unit_square import CORNERS, VERTICES, check_gradient

from pc3d.data import BadFileError, read_points

SQUARE = "0 0 0\n2 0 0\n2 1 0\n0 1 0\n"
FACES = "3 0 1 2\n3 0 2 3\n"


def off(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mesh.off"
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "OFF\n4 2 0\n" + SQUARE + FACES,
        "OFF4 2 0\n" + SQUARE + FACES,
        "OFF 4 2 0\n" + SQUARE + FACES,
        "OFF\n4 2\n" + SQUARE + FACES,
        ("OFF4 2 0\n" + SQUARE + FACES).replace("\n", "\r\n"),
        "# made by hand\n\nOFF # the keyword\n# counts\n4 2 0 # here\n\n" + SQUARE + "\n# faces\n" + FACES,
        "off\n4 2 0\n" + SQUARE + FACES,
        "Off4 2 0\n" + SQUARE + FACES,
        "OFF\n4 1 0\n" + SQUARE + "4 0 1 2 3\n",
        "OFF\n4 2 0\n" + SQUARE + "3 0 1 2 255 0 0\n3 0 2 3 0 255 0\n",
        "OFF\n4 1 0\n" + SQUARE + "4 0 1 2 3 0.1 0.2 0.3\n",
        "COFF\n4 2 0\n" + SQUARE.replace(" 0\n", " 0 255 0 0 255\n") + FACES,
        "OFF\n4 3 0\n" + SQUARE + FACES + "3 0 0 2\n",
        "OFF\n4 2 0\n" + SQUARE + FACES + "junk after the end\n",
        "OFF\n 4 2 0\n" + SQUARE.replace("\n", "  \n") + FACES,
        ("OFF 4 2 0 " + SQUARE + FACES).replace("\n", " "),
        "OFF\n" + ("4 2 0 " + SQUARE + FACES).replace("\n", " "),
        "OFF # by hand\n4 2 0\n" + SQUARE.replace("\n", " ") + "# faces\n" + FACES,
        "OFF\n4\n2\n0\n" + SQUARE + FACES,
        ("STNOFF 4 1 0 " + SQUARE.replace("\n", " 0 0 1 0.5 0.5 ") + "4 0 1 2 3").replace("\n", " "),
        ("OFF\n4 2 0\n" + SQUARE + FACES).replace("\n", "\r"),
    ],
    ids=[
        *("plain", "glued", "one line", "two counts", "glued crlf", "comments", "lower case", "mixed case glued"),
        *("quad", "face colours", "quad colours", "vertex colours", "zero-area face", "trailing junk", "spaces"),
        *("all in one line", "one line after the keyword", "vertices in one line", "counts on three lines"),
        *("a texture in one line", "carriage returns"),
    ],
)
def test_off_variants_are_the_same_square(tmp_path: Path, text: str) -> None:
    cloud = read_points(off(tmp_path, text), num_points=4000)
    assert cloud.xyz.shape == (4000, 3)
    assert torch.equal(cloud.xyz[:, 2], torch.zeros(4000))
    assert torch.equal(cloud.normal.abs(), torch.tensor([0.0, 0.0, 1.0]).expand(4000, 3))
    # Uniform on 2 x 1: mean within four standard errors, and each quarter holds its share.
    error = (cloud.xyz[:, :2].mean(dim=0) - torch.tensor([1.0, 0.5])).abs()
    assert (error < 4 * torch.tensor([2.0, 1.0]) / (12 * 4000) ** 0.5).all()
    quarters = torch.histogramdd(cloud.xyz[:, :2], bins=[2, 2], range=[0.0, 2.0, 0.0, 1.0]).hist
    assert (quarters - 1000).abs().max() < 4 * 750**0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("OFF\n", "no line with the numbers of vertices and faces"),
        ("solid thing\n", "does not begin with OFF"),
        ("OFF\n4 2 0\n0 0 0\n1 0 0\n", "promises 4 vertices and 2 faces, 2 lines follow"),
        ("OFF\n4 2 0\n" + SQUARE + "3 0 1 2\n", "truncated"),
        ("OFF\n4 2 0\n" + SQUARE + "3 0 1 2\n3 0", "a face with fewer corners than it says, '3 0'; truncated"),
        ("OFF\n4 1 0\n" + SQUARE + "3 0 0 0\n", "zero total area"),
        ("OFF\n4 2 0\n" + SQUARE.replace("2 1 0", "nan 1 0") + FACES, "not finite"),
        ("OFF\n4 2 0\n" + SQUARE + "3 0 1 2\n3 0 2 9\n", "has faces with vertices 0 to 9, of which it has 4"),
        ("OFF\n4 x 0\n" + SQUARE + FACES, "no line with the numbers"),
        (
            ("OFF 4 2 0 " + SQUARE + "3 0 1 2 3 0 2").replace("\n", " "),
            "is truncated: .* 4 vertices and 2 faces, 0 lines",
        ),
        (("OFF 4 2 0 " + SQUARE + FACES + "7").replace("\n", " "), "is truncated: .* 4 vertices and 2 faces, 0 lines"),
        ("OFF 4000000000 2 0 1 2 3", "is truncated: .* 4000000000 vertices"),
        ("4OFF\n4 2 0\n" + SQUARE.replace("\n", " 2\n") + FACES, "other than three dimensions"),
        ("nOFF\n3\n4 2 0\n" + SQUARE + FACES, "other than three dimensions"),
        ("STCN4nOFF 3\n4 2 0\n" + SQUARE + FACES, "other than three dimensions"),
    ],
)
def test_broken_off_is_refused_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    path = off(tmp_path, text)
    with pytest.raises(BadFileError, match=message) as caught:
        read_points(path)
    assert str(path) in str(caught.value)
    assert caught.value.path == path


def test_real_off_with_a_glued_header(assets: Path) -> None:
    path = assets / "modelnet_off" / "chair" / "train" / "chair_0002.off"
    assert path.read_bytes().startswith(b"OFF1296 2430 0")
    cloud = read_points(path, num_points=2000)
    # An independent reading of vertices and faces: every sample lies on the plane of some face within its box.
    lines = path.read_text().splitlines()[1:]
    vertices = torch.tensor([[float(x) for x in line.split()] for line in lines[:1296]])
    assert (cloud.xyz.amin(dim=0) >= vertices.amin(dim=0) - 1e-4).all()
    assert (cloud.xyz.amax(dim=0) <= vertices.amax(dim=0) + 1e-4).all()
    faces = torch.tensor([[int(x) for x in line.split()[1:4]] for line in lines[1296 : 1296 + 2430]])
    triangle = vertices[faces].double()
    normal = torch.linalg.cross(triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0])
    area = normal.norm(dim=1) / 2
    normal = torch.nn.functional.normalize(normal, dim=1)
    height = (cloud.xyz[:50, None].double() - triangle[None, :, 0]).mul(normal[None]).sum(dim=2).abs()
    assert height[:, area > 0].amin(dim=1).max() < 1e-4


COLOURS = ["0 0 0", "255 0 0", "255 255 0", "0 255 0"]
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


def test_opacity_tells_dark_colours_from_bright_ones(tmp_path: Path) -> None:
    for vertex, red in (("1 0 0 255", 1 / 255), ("1 0 0 1", 1.0), ("1 0 0", 1.0)):
        (tmp_path / "a.off").write_text("COFF\n4 0 0\n" + VERTICES.replace("\n", f" {vertex}\n"))
        assert read_points(tmp_path / "a.off").rgb.tolist() == [[pytest.approx(red), 0, 0]] * 4


def test_numbers_that_the_keyword_does_not_announce_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text("OFF\n4 0 0\n" + VERTICES.replace("\n", " 255 0 0\n"))
    with pytest.warns(UserWarning, match=r"a\.off: has 6 numbers a vertex, more than its keyword announces: .* COFF"):
        assert read_points(tmp_path / "a.off").rgb is None
