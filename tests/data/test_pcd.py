"""PCD files as programs write them: every value is compared with what was written."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from pc3d.data import BadFileError, read_points, read_scene

CODES = {"F4": "f", "F8": "d", "U1": "B", "U2": "H", "U4": "I", "I4": "i"}
POINTS = [(0.5, -1.0, 2.0), (1.25, 0.0, -3.5), (4.0, 8.0, 0.125)]
COLOURS = [(255, 0, 51), (0, 102, 255), (153, 1, 0)]
NORMALS = [(0.0, 0.0, 1.0), (0.6, 0.0, -0.8), (0.0, -1.0, 0.0)]
WORDS = [red << 16 | green << 8 | blue for red, green, blue in COLOURS]
# A field: its name, type and size, and values of which there may be several a point.
Field = tuple[str, str, list]


def fields(kind: str, names: str, rows: list[tuple]) -> list[Field]:
    return [(name, kind, [row[axis] for row in rows]) for axis, name in enumerate(names.split())]


def pcd(columns: list[Field], data: str, *, counts: bool = True, points: int = 3) -> bytes:
    def items(value: object) -> tuple:
        return value if isinstance(value, tuple) else (value,)

    names, kinds, values = zip(*columns, strict=True)
    header = ["VERSION .7", f"FIELDS {' '.join(names)}", f"SIZE {' '.join(kind[1] for kind in kinds)}"]
    header += [f"TYPE {' '.join(kind[0] for kind in kinds)}"]
    header += [f"COUNT {' '.join(str(len(items(column[0]))) for column in values)}"] if counts else []
    header += [f"WIDTH {points}", "HEIGHT 1", "VIEWPOINT 1 2 3 1 0 0 0", f"POINTS {points}", f"DATA {data}"]
    body = b""
    for row in zip(*values, strict=True):
        flat = [(kind, item) for kind, value in zip(kinds, row, strict=True) for item in items(value)]
        if data == "ascii":
            body += (" ".join(repr(item) for _, item in flat) + "\n").encode()
        else:
            body += b"".join(struct.pack("<" + CODES[kind], item) for kind, item in flat)
    return ("# made by hand\n" + "\n".join(header) + "\n").encode() + body


XYZ, NORMAL = fields("F4", "x y z", POINTS), fields("F4", "normal_x normal_y normal_z", NORMALS)
VARIANTS = {
    "packed": [*XYZ, ("rgb", "U4", WORDS), *NORMAL, ("curvature", "F4", [0.0] * 3)],
    "packed with alpha": [("label", "U2", [1, 2, 3]), *NORMAL, ("rgba", "U4", [w | 255 << 24 for w in WORDS]), *XYZ],
    "packed in a float": [*XYZ, *NORMAL, ("rgb", "F4", [struct.unpack("f", struct.pack("I", w))[0] for w in WORDS])],
    "a field each": [*XYZ, *fields("U1", "r g b", COLOURS), *NORMAL],
    "a field each, 0 to 1": [*XYZ, *fields("F4", "r g b", [tuple(c / 255 for c in row) for row in COLOURS]), *NORMAL],
    "double": [*fields("F8", "x y z", POINTS), ("rgb", "I4", WORDS), *fields("F8", "nx ny nz", NORMALS)],
    "capitals": [*fields("F4", "X Y Z", POINTS), ("rgb", "U4", WORDS), *NORMAL],
    "padded": [*XYZ, ("_", "U1", [(0, 0, 0, 0)] * 3), ("rgb", "U4", WORDS), ("_", "F4", [0.0] * 3), *NORMAL],
    "histograms": [("fpfh", "F4", [(0.5, 1.5)] * 3), *XYZ, ("rgb", "U4", WORDS), *NORMAL],
}


@pytest.mark.parametrize("data", ["ascii", "binary"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fields_in_the_words_of_many_programs(tmp_path: Path, variant: str, data: str) -> None:
    # The line COUNT may be left out where each field holds one number.
    for counts in (True, False) if variant not in ("padded", "histograms") else (True,):
        (tmp_path / "a.pcd").write_bytes(pcd(VARIANTS[variant], data, counts=counts))
        cloud = read_scene(tmp_path / "a.pcd")
        assert cloud.xyz.tolist() == [list(point) for point in POINTS]
        torch.testing.assert_close(cloud.rgb, torch.tensor(COLOURS) / 255)
        torch.testing.assert_close(cloud.normal, torch.tensor(NORMALS))


@pytest.mark.parametrize("data", ["ascii", "binary"])
def test_points_that_the_header_promises_must_be_there(tmp_path: Path, data: str) -> None:
    (tmp_path / "a.pcd").write_bytes(pcd(XYZ, data, points=4))
    with pytest.raises(BadFileError, match=r"a\.pcd: is truncated: the header promises 4 points, 3 are there"):
        read_points(tmp_path / "a.pcd")
    (tmp_path / "a.pcd").write_bytes(pcd(XYZ, data, points=2))
    assert read_points(tmp_path / "a.pcd").xyz.tolist() == [list(point) for point in POINTS[:2]]


@pytest.mark.parametrize("data", ["ascii", "binary"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POINTS 3\n", b""),
        (b"VIEWPOINT 1 2 3 1 0 0 0\n", b""),
        (b"VERSION .7\nFIELDS", b"VERSION .5\nCOLUMNS"),
        (b"# made by hand\n", b"# made by hand\n" * 1000),
    ],
    ids=["no number of points", "no viewpoint", "before 0.7", "a long header"],
)
def test_headers_as_old_or_other_programs_write_them(tmp_path: Path, data: str, old: bytes, new: bytes) -> None:
    written = pcd([*XYZ, ("rgb", "U4", WORDS)], data, counts=False)
    assert written.count(old) == 1
    (tmp_path / "a.pcd").write_bytes(written.replace(old, new))
    cloud = read_points(tmp_path / "a.pcd")
    assert cloud.xyz.tolist() == [list(point) for point in POINTS]
    torch.testing.assert_close(cloud.rgb, torch.tensor(COLOURS) / 255)


@pytest.mark.parametrize(("old", "new"), [(" ", "\t"), (" ", "  "), ("\n", " \r\n"), ("\n", "\n\n")])
def test_text_with_other_blanks(tmp_path: Path, old: str, new: str) -> None:
    header, _, body = pcd([*XYZ, ("rgb", "U4", WORDS)], "ascii").decode().partition("DATA ascii\n")
    (tmp_path / "a.pcd").write_bytes((header + "DATA ascii\n" + body.replace(old, new)).encode())
    assert read_points(tmp_path / "a.pcd").xyz.tolist() == [list(point) for point in POINTS]


@pytest.mark.parametrize("data", ["ascii", "binary"])
def test_organised_clouds_have_gaps(tmp_path: Path, data: str) -> None:
    nan = float("nan")
    gap = [*fields("F4", "x y z", [POINTS[0], (nan,) * 3, POINTS[2]]), ("rgb", "U4", [WORDS[0], 0, WORDS[2]])]
    (tmp_path / "a.pcd").write_bytes(pcd(gap, data))
    with pytest.raises(BadFileError, match="1 of 3 points are not finite; drop_invalid=True"):
        read_points(tmp_path / "a.pcd")
    cloud = read_points(tmp_path / "a.pcd", drop_invalid=True)
    assert cloud.xyz.tolist() == [list(POINTS[0]), list(POINTS[2])]
    torch.testing.assert_close(cloud.rgb, torch.tensor(COLOURS)[[0, 2]] / 255)


@pytest.mark.parametrize("data", ["ascii", "binary"])
def test_one_point(tmp_path: Path, data: str) -> None:
    column = [(name, kind, values[:1]) for name, kind, values in XYZ]
    (tmp_path / "a.pcd").write_bytes(pcd(column, data, points=1))
    assert read_points(tmp_path / "a.pcd").xyz.tolist() == [list(POINTS[0])]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pcd(XYZ[:2], "ascii"), r"has no columns x, y and z; its columns are \['x', 'y'\]"),
        (pcd(XYZ, "binary")[:-1], "is truncated: the header promises 3 points, 2 are there"),
        # Room for none of it.
        (pcd(XYZ, "binary", points=3 * 10**12), "is truncated: the header promises 3000000000000 points, 3 are there"),
        (
            pcd(XYZ, "ascii").replace(b"COUNT 1 1 1", b"COUNT 1 1 %d" % 10**12),
            r"is truncated: the header promises 1000000000002 numbers a point, \d+ bytes are there",
        ),
        (
            pcd(XYZ, "ascii").replace(b"DATA ascii", b"DATA text"),
            r"its header is wrong \(data: Input should be 'ascii'",
        ),
        (pcd(XYZ, "ascii").replace(b"SIZE 4 4 4\n", b""), r"its header is wrong \(size: Field required\)"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.pcd").write_bytes(data)
    with pytest.raises(BadFileError, match=r"a\.pcd: .*" + message):
        read_points(tmp_path / "a.pcd")
