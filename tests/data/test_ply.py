"""PLY files as programs write them: every value is compared with what was written, number by number."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pc3d.data import BadFileError, PointCloud, read_points, read_scene

ENCODINGS = ["ascii", "binary_little_endian", "binary_big_endian"]
CODES = {"uchar": "B", "short": "h", "ushort": "H", "int": "i", "float": "f", "double": "d"}
POINTS = [(0.5, -1.0, 2.0), (1.25, 0.0, -3.5), (4.0, 8.0, 0.125), (0.0, 1.0, 1.0), (7.0, 1.0, 0.0)]
COLOURS = [(255, 0, 51), (0, 102, 255), (153, 1, 0), (1, 1, 1), (204, 255, 0)]
NORMALS = [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.6, 0.8, 0.0), (0.0, -1.0, 0.0), (0.0, 0.6, -0.8)]
# An element: its name, and of each property the type, the name and a value for each row (a tuple in a list).
Column = tuple[str, str, list[Any]]


def columns(kind: str, names: str, values: list[tuple[float, ...]]) -> list[Column]:
    return [(kind, name, [row[axis] for row in values]) for axis, name in enumerate(names.split())]


XYZ = columns("float", "x y z", POINTS)
RGB = columns("uchar", "red green blue", COLOURS)
NXYZ = columns("float", "nx ny nz", NORMALS)
POLYGONS = ("list uchar int", "vertex_indices", [(0, 1, 2), (0, 1, 2, 3), (4, 3, 2, 1, 0)])


def ply(encoding: str, *elements: tuple[str, list[Column]], comments: tuple[str, ...] = (), end: str = "\n") -> bytes:
    header, body = ["ply", f"format {encoding} 1.0", *comments], b""
    for name, properties in elements:
        count = len(properties[0][2])
        header += [f"element {name} {count}", *(f"property {kind} {column}" for kind, column, _ in properties)]
        for row in range(count):
            words: list[tuple[str, float]] = []
            for kind, _, values in properties:
                if kind.startswith("list"):
                    _, of_length, of_items = kind.split()
                    words += [(of_length, len(values[row])), *((of_items, item) for item in values[row])]
                else:
                    words.append((kind, values[row]))
            if encoding == "ascii":
                body += (" ".join(repr(value) for _, value in words) + end).encode()
            else:
                order = "<" if "little" in encoding else ">"
                body += b"".join(struct.pack(order + CODES[kind], value) for kind, value in words)
    return (end.join([*header, "end_header"]) + end).encode("latin-1") + body


def check(cloud: PointCloud, *, rgb: bool = True, normal: bool = False) -> None:
    assert cloud.xyz.tolist() == [list(point) for point in POINTS]
    assert (cloud.rgb is not None, cloud.normal is not None) == (rgb, normal)
    if rgb:
        torch.testing.assert_close(cloud.rgb, torch.tensor(COLOURS) / 255)
    if normal:
        torch.testing.assert_close(cloud.normal, torch.tensor(NORMALS))


VARIANTS: dict[str, list[tuple[str, list[Column]]]] = {
    "r g b": [("vertex", XYZ + columns("uchar", "r g b", COLOURS))],
    "diffuse": [("vertex", XYZ + columns("uchar", "diffuse_red diffuse_green diffuse_blue", COLOURS))],
    "capitals": [("vertex", columns("double", "X Y Z", POINTS) + columns("int", "Red Green Blue", COLOURS))],
    "0 to 1": [("vertex", XYZ + columns("float", "red green blue", [tuple(c / 255 for c in one) for one in COLOURS]))],
    "16 bits": [
        ("vertex", XYZ + columns("ushort", "red green blue", [tuple(c * 257 for c in one) for one in COLOURS]))
    ],
    "16 bits in doubles": [
        ("vertex", XYZ + columns("double", "red green blue", [tuple(c * 257.0 for c in one) for one in COLOURS]))
    ],
    "CloudCompare": [("vertex", XYZ + RGB + columns("float", "scalar_Intensity alpha", [(0.5, 255.0)] * 5))],
    "lists of one length": [("vertex", [*XYZ, ("list uchar float", "weights", [(0.5, 0.25)] * 5), *RGB])],
    "lists of many lengths": [("vertex", [*XYZ, ("list int short", "near", [(), (1, 2), (3,), (), (4, 5)]), *RGB])],
    "between other elements": [
        ("camera", [("float", "view", [0.5, 1.5]), ("list uchar int", "grid", [(1,), ()])]),
        ("vertex", XYZ + RGB),
        ("edge", columns("int", "vertex1 vertex2", [(0, 1)])),
        ("face", [("list uchar int", "vertex_indices", [])]),
    ],
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_points_in_the_words_of_many_programs(tmp_path: Path, encoding: str, variant: str) -> None:
    (tmp_path / "a.ply").write_bytes(ply(encoding, *VARIANTS[variant]))
    check(read_points(tmp_path / "a.ply"))
    check(read_scene(tmp_path / "a.ply"))


def test_gaussian_splats(tmp_path: Path) -> None:
    """As their training writes them: no colours but coefficients of spherical harmonics, and normals of zeros."""
    splat = [*XYZ, *columns("float", "nx ny nz", [(0.0, 0.0, 0.0)] * 5)]
    constant = 0.28209479177387814  # of degree 0
    splat += columns(
        "float", "f_dc_0 f_dc_1 f_dc_2", [tuple((c / 255 - 0.5) / constant for c in row) for row in COLOURS]
    )
    splat += columns("float", "f_rest_0 opacity scale_0 rot_0", [(0.3, -2.0, -4.0, 1.0)] * 5)
    (tmp_path / "splat.ply").write_bytes(ply("binary_little_endian", ("vertex", splat)))
    check(read_points(tmp_path / "splat.ply"))
    # What is beyond black and white is shown as these.
    splat[6] = ("float", "f_dc_0", [9.0, -9.0, 0.0, 0.0, 0.0])
    (tmp_path / "bright.ply").write_bytes(ply("binary_little_endian", ("vertex", splat)))
    rgb = read_points(tmp_path / "bright.ply").rgb
    assert rgb is not None
    assert rgb[:3, 0].tolist() == [1, 0, 0.5]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("faces_first", [False, True])
def test_vertices_of_a_mesh_with_polygons_of_several_sizes(tmp_path: Path, encoding: str, faces_first: bool) -> None:
    seen_by = ("float", "normal_z", [0.5] * 5)
    elements = [("vertex", [NXYZ[2], XYZ[1], RGB[0], XYZ[0], NXYZ[0], RGB[2], seen_by, XYZ[2], RGB[1], NXYZ[1]])]
    # What MeshLab adds to a textured mesh.
    flags, places = ("int", "flags", [0, 1, 2]), ("list uchar float", "texcoord", [(0.0,) * 6, (0.5,) * 8, ()])
    elements.insert(0 if faces_first else 1, ("face", [flags, POLYGONS, places]))
    (tmp_path / "a.ply").write_bytes(ply(encoding, *elements, comments=("comment TextureFile none.png",)))
    check(read_scene(tmp_path / "a.ply"), normal=True)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_polygons_are_sampled_by_their_area(tmp_path: Path, encoding: str) -> None:
    corners = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (3, 0, 0), (3, 1, 0), (5, 0, 0)]
    faces = ("list uchar int", "vertex_index", [(0, 1, 2, 3), (1, 4, 5, 2), (4, 6, 5)])
    paint = columns("uchar", "red green blue", [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    vertex, face = ("vertex", columns("float", "x y z", corners)), ("face", [faces, *paint])
    (tmp_path / "a.ply").write_bytes(ply(encoding, vertex, face))
    cloud = read_points(tmp_path / "a.ply", num_points=3000)
    # Areas 1, 2 and 1, which x tells apart.
    region = torch.bucketize(cloud.xyz[:, 0].contiguous(), torch.tensor([1.0, 3.0]))
    share = torch.bincount(region, minlength=3) / 3000
    assert (share - torch.tensor([0.25, 0.5, 0.25])).abs().max() < 4 * (0.25 / 3000) ** 0.5
    assert torch.equal(cloud.rgb, torch.eye(3)[region])


@pytest.fixture
def pictures(tmp_path: Path) -> None:
    """Two pictures of one colour each for half of their width."""
    for name, left, right in (("a b.png", (255, 0, 0), (0, 255, 0)), ("c.png", (0, 0, 255), (255, 255, 0))):
        pixels = np.zeros((8, 64, 3), np.uint8)
        pixels[:, :32], pixels[:, 32:] = left, right
        Image.fromarray(pixels).save(tmp_path / name)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_textures_at_the_corners_of_faces(tmp_path: Path, encoding: str) -> None:
    """A square looks at the left half of the first picture, the next at the right half of the second, one at none."""
    vertex = ("vertex", columns("float", "x y z", [(x, y, 0) for x in range(4) for y in range(2)]))
    faces = ("list uchar int", "vertex_indices", [(0, 2, 3, 1), (2, 4, 5, 3), (4, 6, 7), (4, 7, 5)])
    left, right = (0.1, 0.0, 0.4, 0.0, 0.4, 1.0, 0.1, 1.0), (0.6, 0.0, 0.9, 0.0, 0.9, 1.0, 0.6, 1.0)
    places = ("list uchar float", "texcoord", [left, right, (), ()])
    number = ("int", "texnumber", [0, 1, 0, -1])
    comments = ("comment TextureFile a b.png", "comment TextureFile c.png")
    (tmp_path / "a.ply").write_bytes(ply(encoding, vertex, ("face", [faces, places, number]), comments=comments))
    cloud = read_points(tmp_path / "a.ply", num_points=600)
    region = cloud.xyz[:, 0].floor().long()
    # Where there is no colour among coloured faces, it is white.
    assert torch.equal(cloud.rgb, torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1]])[region])


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("names", "picture"),
    [("s t", "c.png"), ("u v", "C:\\work\\c.png"), ("texture_u texture_v", "/of/another/machine/c.png")],
)
def test_texture_at_the_vertices(tmp_path: Path, names: str, picture: str) -> None:
    vertex = columns("float", "x y z", [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)])
    vertex += columns("float", names, [(0, 0), (1, 0), (1, 1), (0, 1)])
    face = ("list uchar int", "vertex_indices", [(0, 1, 2, 3)])
    data = ply("ascii", ("vertex", vertex), ("face", [face]), comments=(f"comment TextureFile {picture}",))
    (tmp_path / "a.ply").write_bytes(data)
    cloud = read_points(tmp_path / "a.ply", num_points=400)
    # Nor within half a pixel of the border, where the picture repeats.
    off_the_seam = ((cloud.xyz[:, 0] * 2).round() / 2 - cloud.xyz[:, 0]).abs() > 1 / 64
    expected = torch.tensor([[0.0, 0, 1], [1, 1, 0]])[(cloud.xyz[:, 0] > 0.5).long()]
    assert torch.equal(cloud.rgb[off_the_seam], expected[off_the_seam])
    # Gone, the picture is told about; its colours were the only ones.
    (tmp_path / "c.png").unlink()
    with pytest.warns(UserWarning, match=r"a\.ply: its texture '.*c\.png' cannot be opened .*: read without it"):
        assert read_points(tmp_path / "a.ply", num_points=10).rgb is None


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_comments(tmp_path: Path, encoding: str, end: str) -> None:
    comments = ("comment Größe in mm", "obj_info num_cols 512", "comment", "comment end of the header follows")
    # The first byte of the body is that of a line end.
    data = ply(encoding, ("vertex", columns("uchar", "a", [(10,)] * 5) + XYZ + RGB), comments=comments, end=end)
    (tmp_path / "a.ply").write_bytes(data)
    check(read_scene(tmp_path / "a.ply"))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "ends", [("\n", "\r\n", "\r\n"), ("\r\n", "\n", "\n"), ("\n", "\n", "\r\n"), ("\r\n", "\r\n", "\n"), ("\n\r",) * 3]
)
def test_line_ends_that_differ(tmp_path: Path, encoding: str, ends: tuple[str, str, str]) -> None:
    """Those of the first line, of the others, and of the last of the header, before a byte that might be another."""
    written = ply(encoding, ("vertex", [("int", "id", [0x0A0D0A0D] * 5), *XYZ, *RGB]))
    lines = written.partition(b"end_header\n")[0].decode().splitlines()
    header = lines[0] + ends[0] + ends[1].join(lines[1:]) + ends[1] + "end_header" + ends[2]
    (tmp_path / "a.ply").write_bytes(header.encode() + written.partition(b"end_header\n")[2])
    check(read_points(tmp_path / "a.ply"))


def test_blank_lines_tabs_and_no_last_line_end(tmp_path: Path) -> None:
    head, body = ply("ascii", ("vertex", XYZ + RGB)).decode().split("end_header\n")
    text = head + "end_header\n\n" + body.replace(" ", "\t").replace("\n", "  \n \n").rstrip()
    (tmp_path / "a.ply").write_text(text)
    check(read_points(tmp_path / "a.ply"))


@pytest.mark.parametrize("words", [1, 4, 7, 1000])
@pytest.mark.parametrize("polygons", [POLYGONS, ("list uchar int", "vertex_indices", [])], ids=["faces", "no faces"])
def test_lines_need_not_be_rows(tmp_path: Path, words: int, polygons: Column) -> None:
    """The format says of a text that numbers stand between white space."""
    head, body = ply("ascii", ("vertex", XYZ + NXYZ + RGB), ("face", [polygons])).decode().split("end_header\n")
    numbers = body.split()
    lines = [" ".join(numbers[i : i + words]) for i in range(0, len(numbers), words)]
    (tmp_path / "a.ply").write_text(head + "end_header\n" + "\n".join(lines))
    check(read_scene(tmp_path / "a.ply"), normal=True)
    for changed in (numbers[:-1], [*numbers, "0"]):
        (tmp_path / "a.ply").write_text(head + "end_header\n" + " ".join(changed))
        with pytest.raises(BadFileError, match=r"a\.ply: .*(truncated|has \d+ numbers a line)"):
            read_scene(tmp_path / "a.ply")


def test_normals_that_are_not_known(tmp_path: Path) -> None:
    """NaN where a program could not estimate one, zeros throughout where it had to write some."""
    unknown = [(float("nan"),) * 3, *NORMALS[1:]]
    (tmp_path / "a.ply").write_bytes(ply("ascii", ("vertex", XYZ + columns("float", "nx ny nz", unknown))))
    cloud = read_points(tmp_path / "a.ply")
    torch.testing.assert_close(cloud.normal, torch.tensor([(0.0, 0.0, 0.0), *NORMALS[1:]]))
    for value in (0.0, float("nan")):
        (tmp_path / "a.ply").write_bytes(
            ply("ascii", ("vertex", XYZ + columns("float", "nx ny nz", [(value,) * 3] * 5)))
        )
        check(read_points(tmp_path / "a.ply"), rgb=False)


def test_numbers_that_do_not_go_with_their_type(tmp_path: Path) -> None:
    """Colours in 0..1 that are declared as bytes, and one above 255, are not folded into bytes."""
    written = ply("ascii", ("vertex", XYZ + columns("uchar", "red green blue", [(0.5, 0.0, 1.0)] * 5)))
    (tmp_path / "a.ply").write_bytes(written)
    assert read_points(tmp_path / "a.ply").rgb.tolist() == [[0.5, 0.0, 1.0]] * 5
    (tmp_path / "a.ply").write_bytes(written.replace(b"0.5 0.0 1.0", b"256 51 0"))
    torch.testing.assert_close(read_points(tmp_path / "a.ply").rgb, torch.tensor([[1.0, 0.2, 0.0]] * 5))


def test_a_list_may_be_the_first_property(tmp_path: Path) -> None:
    vertex = [("list uchar int", "near", [(1,)] * 5), *XYZ, *NXYZ]
    (tmp_path / "a.ply").write_bytes(ply("ascii", ("vertex", vertex), ("face", [POLYGONS])))
    check(read_scene(tmp_path / "a.ply"), rgb=False, normal=True)


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
def test_an_element_may_have_no_properties(tmp_path: Path, kind: str) -> None:
    data = ply(kind, ("vertex", XYZ)).replace(b"end_header", b"element marker 3\nend_header")
    (tmp_path / "a.ply").write_bytes(data + (b"\n\n\n" if kind == "ascii" else b""))
    assert len(read_points(tmp_path / "a.ply")) == 5


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_strips_of_triangles(tmp_path: Path, encoding: str) -> None:
    """Two strips in the first list, the second of one triangle, and one of two in the next; all go round alike."""
    places = [(x, y, 0) for x in range(3) for y in range(2)] + [(5, 0, 0), (6, 0, 0), (6, 1, 0), (8, 0, 0), (9, 0, 0)]
    places += [(8, 1, 0), (9, 1, 0)]
    strips = ("tristrips", [("list int int", "vertex_indices", [(1, 0, 3, 2, 5, 4, -1, 6, 7, 8, -1), (9, 10, 11, 12)])])
    vertex = ("vertex", columns("float", "x y z", places))
    (tmp_path / "a.ply").write_bytes(ply(encoding, vertex, strips))
    cloud = read_points(tmp_path / "a.ply", num_points=3500)
    # Areas 2, 0.5 and 1, whose triangles all look up.
    region = torch.bucketize(cloud.xyz[:, 0].contiguous(), torch.tensor([4.0, 7.0]))
    share = torch.bincount(region, minlength=3) / 3500
    assert (share - torch.tensor([4, 1, 2]) / 7).abs().max() < 4 * (0.25 / 3500) ** 0.5
    assert torch.equal(cloud.normal, torch.tensor([[0.0, 0, 1]]).expand(3500, 3))


WHOLE = ply("ascii", ("vertex", XYZ), ("face", [POLYGONS]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE.replace(b"ply\n", b"plyx\n"), r"begins with b'plyx.*, not with a line 'ply'"),
        (WHOLE.replace(b"end_header", b"end"), "the line 'end_header' is missing; truncated"),
        (WHOLE.replace(b"format ascii 1.0\n", b""), r"has no line 'format' with one of \['ascii'"),
        (WHOLE.replace(b"float y", b"half y"), "its header has the line 'property half y'"),
        (WHOLE.replace(b"vertex 5", b"vertex five"), "its header has the line 'element vertex five'"),
        (WHOLE.replace(b"float z", b"float w"), r"has no columns x, y and z; its columns are \['x', 'y', 'w'\]"),
        (ply("ascii", ("camera", XYZ)), r"has no element 'vertex', but \['camera'\]"),
        (ply("ascii", ("vertex", [(kind, name, []) for kind, name, _ in XYZ])), "holds no points"),
        (WHOLE.replace(b"face 3", b"face 4"), "promises 4 of the element 'face', 3 are there"),
        (WHOLE.replace(b"5 4 3 2 1 0", b"5 4 3 2"), "promises 3 of the element 'face', 2 are there"),
        (WHOLE.replace(b"5 4 3 2 1 0", b"5 4 3 2 1 0 9"), "with more numbers than their lists have items"),
        (WHOLE.replace(b"5 4 3 2 1 0", b"5 4 3 2 1 7"), "has faces with vertices 0 to 7, of which it has 5"),
        (WHOLE.replace(b"5 4 3 2 1 0", b"5 -1 3 2 1 0"), "has faces with vertices -1 to 3, of which it has 5"),
        (WHOLE.replace(b"0.5 -1.0 2.0", b"0.5 -1.0"), r"the number of columns changed from 2 to 3 at row 2$"),
        (WHOLE.replace(b"property float z\n", b""), "has 3 numbers a line where 'vertex' has 2 properties"),
        (ply("binary_little_endian", ("vertex", XYZ))[:-1], "promises 5 of the element 'vertex', 4 are there"),
        (
            ply("binary_big_endian", ("vertex", XYZ), ("face", [POLYGONS]))[:-1],
            "promises 3 of the element 'face', 2 are there",
        ),
        # Room for none of it.
        (
            ply("binary_little_endian", ("vertex", XYZ)).replace(b"vertex 5", b"vertex %d" % 10**12),
            "promises 1000000000000 of the element 'vertex', 5 are there",
        ),
        (
            ply("binary_big_endian", ("vertex", XYZ), ("face", [POLYGONS])).replace(b"face 3", b"face %d" % 10**12),
            "promises 1000000000000 of the element 'face', 3 are there",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(BadFileError, match=r"a\.ply: .*" + message):
        read_points(tmp_path / "a.ply")
