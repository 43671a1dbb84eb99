"""Tables of numbers as programs write them: text with all kinds of separators and headers, NPY and NPZ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pc3d.data import BadFileError, PointCloud, read_points, read_scene

XYZ = np.array([[0.5, -1.25, 2.0], [4.0, 0.0, -0.125], [-8.0, 3.5, 1.0]])
RGB = np.array([[255, 0, 51], [0, 102, 255], [1, 2, 204]])
NORMAL = np.array([[0.0, 0.0, 1.0], [0.6, 0.0, -0.8], [-1.0, 0.0, 0.0]])
ROWS = [[repr(float(x)) for x in xyz] + [str(c) for c in rgb] for xyz, rgb in zip(XYZ, RGB, strict=True)]


def table(separator: str = " ", rows: list[list[str]] = ROWS) -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


def check(cloud: PointCloud, *, rgb: bool = True, normal: bool = False) -> None:
    assert cloud.xyz.tolist() == XYZ.tolist()
    assert (cloud.rgb is not None, cloud.normal is not None) == (rgb, normal)
    if rgb:
        torch.testing.assert_close(cloud.rgb, torch.from_numpy(RGB).float() / 255)
    if normal:
        torch.testing.assert_close(cloud.normal, torch.from_numpy(NORMAL).float())


WITH_MORE = [[row[0], "-7", *row[1:], "0.5"] for row in ROWS]
TEXTS = {
    "semicolons": table(";"),
    "semicolons and blanks": table(" ; "),
    "commas and blanks": table(",  "),
    "tabs": table("\t"),
    "a separator at the end": table(",").replace("\n", ",\n"),
    "semicolons and decimal commas": table(";").replace(".", ","),
    "blanks and decimal commas": table().replace(".", ","),
    "a line of names": "X Y Z R G B\n" + table(),
    "a line of names in quotes": '"x","y","z","red","green","blue"\n' + table(","),
    "names as a comment, a count": "//X Y Z Rf Gf Bf\n3\n" + table(),
    "a count": "\n3\n" + table(),
    "other comments": "% made by hand\n; x y\n# three points\n" + table().replace("\n", "  // a point\n"),
    "more columns": "x,class,y,z,r,g,b,intensity\n" + table(",", WITH_MORE),
    "an index without a name": ",x,y,z,r,g,b\n" + table(",", [[str(i), *row] for i, row in enumerate(ROWS)]),
    "another order": "blue z y x red green\n" + table(rows=[[r[5], *r[2::-1], *r[3:5]] for r in ROWS]),
    "words that happen to be as many": "# x y z of the points\n" + table(),
    "names of another number of columns": "# x y z\n" + table(),
    "no end of the last line": table().rstrip(),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_separators_and_headers(tmp_path: Path, text: str) -> None:
    for name, encoding in (("a.txt", "utf-8"), ("b.xyz", "utf-8-sig"), ("c.txt", "utf-16")):
        (tmp_path / name).write_text(text.replace("\n", "\r\n" if name == "b.xyz" else "\n"), encoding, newline="")
        check(read_scene(tmp_path / name))


def test_a_decimal_comma_is_told_from_a_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1,5 2 3\n4 5,25 6\n")
    assert read_points(tmp_path / "a.txt").xyz.tolist() == [[1.5, 2, 3], [4, 5.25, 6]]
    (tmp_path / "a.txt").write_text("1,5,2\n4, 5,25\n")
    assert read_points(tmp_path / "a.txt").xyz.tolist() == [[1, 5, 2], [4, 5, 25]]


def test_normals_that_are_not_known(tmp_path: Path) -> None:
    normal = NORMAL.copy()
    normal[0] = 0
    np.save(tmp_path / "a.npy", np.concatenate([XYZ, normal], axis=1))
    cloud = read_points(tmp_path / "a.npy")
    assert cloud.rgb is None
    torch.testing.assert_close(cloud.normal, torch.from_numpy(normal).float())
    # Black, red and green might be normals but for one below zero.
    np.save(tmp_path / "a.npy", np.concatenate([XYZ, np.abs(np.round(normal))], axis=1))
    cloud = read_points(tmp_path / "a.npy")
    assert cloud.normal is None
    assert cloud.rgb.tolist() == np.abs(np.round(normal)).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            table(rows=WITH_MORE),
            r"has 8 columns: 3 .*; a first line may name them \(x y z red green blue nx ny nz; others",
        ),
        ("x y z label\n" + table(), r"names 4 columns \(x y z label\) and has 6: name each, or begin the line with #"),
        ("4\n" + table(), "promises 4 points in its first line, 3 are there"),
        ("Scan of a chair\n" + table(), "the line 'Scan of a chair' is neither numbers nor names .* begin it with #"),
        ("easting northing height\n1 2 3\n", "the line 'easting northing height' is neither numbers nor names"),
        ("x y z\n", "holds no points"),
        ("\n \n", "holds no points"),
        ("1 2 3\n4 5\n", r"the number of columns changed from 3 to 2 at row 2$"),
        ("1 2 3\n4 b 6\n", "could not convert string 'b' to float64 at row 1, column 2"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(BadFileError, match=r"a\.txt: .*" + message):
        read_points(tmp_path / "a.txt")


def records(*fields: tuple) -> np.ndarray:
    """Records of the fields (name, type, values), with room for alignment between them."""
    made = np.zeros(3, np.dtype([(name, kind, np.shape(values)[1:]) for name, kind, values in fields], align=True))
    for name, _, values in fields:
        made[name] = values
    return made


BY_COLUMN = [(name, ">f4", XYZ[:, axis]) for axis, name in enumerate("xyz")]
ARRAYS = {
    "records": records(
        *BY_COLUMN, *[(name, "u1", RGB[:, c]) for c, name in enumerate("rgb")], ("class", "i8", RGB[:, 0])
    ),
    "records of vectors": records(("rgb", "u2", RGB * 257), ("time", "f8", RGB[:, 0]), ("xyz", "f2", XYZ)),
    "records in a grid": records(("Points", "f8", XYZ), ("Color", "f4", RGB / 255)).reshape(1, 3),
    "columns": np.asfortranarray(np.concatenate([XYZ, RGB], axis=1).astype(">f8")),
}
ARCHIVES = {
    "capitals": {"XYZ": XYZ, "RGB": RGB.astype(np.uint8)},
    "positions": {"positions": XYZ.astype(np.float16), "colours": RGB / 255},
    "alpha": {"points": XYZ, "colors": np.concatenate([RGB, [[255]] * 3], axis=1)},
    "a column each": {name: values for name, _, values in BY_COLUMN} | {c: RGB[:, i] for i, c in enumerate("rgb")},
    "no names": {"arr_0": XYZ, "arr_1": np.arange(3), "arr_2": RGB},
    "others beside": {"xyz": XYZ, "faces": np.zeros((9, 3)), "rgb": RGB, "label": np.array("chair")},
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    check(read_points(tmp_path / "a.npy"))


@pytest.mark.parametrize("arrays", ARCHIVES.values(), ids=ARCHIVES)
def test_archives(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    check(read_points(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (XYZ.astype(str), "the array must hold numbers, has <U32"),
        (XYZ.astype(complex), "the array must hold numbers, has complex128"),
        (XYZ > 0, "the array must hold numbers, has bool"),
        (np.zeros((3, 100)), "has 100 columns: .* x, y and z seem to be its rows: store the transposed array"),
        (np.zeros((100, 4)), r"has 4 columns: .* leave others out, or store named arrays: np\.savez"),
        (records(*BY_COLUMN[:2]), r"has none of the keys \('xyz', .*, but \['x', 'y'\]"),
    ],
)
def test_what_is_wrong_with_an_array_is_said(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadFileError, match=r"a\.npy: .*" + message):
        read_points(tmp_path / "a.npy")


def test_colours_must_be_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", xyz=XYZ, rgb=np.array(["red", "green", "blue"]))
    with pytest.raises(BadFileError, match=r"a\.npz: rgb must hold numbers, has <U5"):
        read_points(tmp_path / "a.npz")
