"""Tables of numbers as programs write them: text with all kinds of separators and headers, NPY and NPZ."""

from __future__ import annotations

import io
import zipfile
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
    "words and gaps in other columns": "name,x,y,z,r,g,b,note\n"
    + table(",", [[f'"a, {i} # b"', *row, "" if i else "top"] for i, row in enumerate(ROWS)]),
    "all in quotes": '"x";"y";"z";"r";"g";"b"\n' + table(";", [[f'"{cell}"' for cell in row] for row in ROWS]),
    "words between blanks": "x y z class r g b\n" + table(rows=[[*row[:3], "chair", *row[3:]] for row in ROWS]),
    "names and decimal commas": "x;y;z;r;g;b\n" + table(";").replace(".", ","),
    "names and a separator at the end": "x,y,z,r,g,b\n" + table(",").replace("\n", ",\n"),
    "names and 16 bits": "X,Y,Z,Intensity,Red,Green,Blue\n"
    + table(",", [[*row[:3], "7", *(str(int(c) * 257) for c in row[3:])] for row in ROWS]),
    "a count and intensities": "3\n" + table(rows=[[*row[:3], "-7", *row[3:]] for row in ROWS]),
    "an index without a name": ",x,y,z,r,g,b\n" + table(",", [[str(i), *row] for i, row in enumerate(ROWS)]),
    "another order": "blue z y x red green\n" + table(rows=[[r[5], *r[2::-1], *r[3:5]] for r in ROWS]),
    "words that happen to be as many": "# x y z of the points\n" + table(),
    "names of another number of columns": "# x y z\n" + table(),
    "no end of the last line": table().rstrip(),
    "names and units": "X [m],Y [m],Z [m],R,G,B\n" + table(","),
    "names and units between blanks": "x(m) y(m) z(m) r g b\n" + table(),
    "separators as Excel is told them": "sep=;\nx;y;z;r;g;b\n" + table(";"),
    "ParaView": '"RGB:0","RGB:1","RGB:2","Points:0","Points:1","Points:2"\n'
    + table(",", [[*row[3:], *row[:3]] for row in ROWS]),
    "ParaView 5.9": "Points_0,Points_1,Points_2,Colors_0,Colors_1,Colors_2\n" + table(","),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_separators_and_headers(tmp_path: Path, text: str) -> None:
    for name, encoding, end in (
        ("a.txt", "utf-8", "\n"),
        ("b.xyz", "utf-8-sig", "\r\n"),
        ("c.csv", "utf-16", "\n"),
        ("d.ASC", "ascii", "\r"),
    ):
        (tmp_path / name).write_text(text.replace("\n", end), encoding, newline="")
        check(read_scene(tmp_path / name))


def test_a_list_beside_names_the_columns_of_tables_without_names(tmp_path: Path) -> None:
    """As surveys come: x y z intensity, or x y z r g b and a class, with nothing above them."""
    (tmp_path / ".columns").write_text("X Y Z Intensity\n")
    for folder in (tmp_path, tmp_path / "train" / "chair"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.txt").write_text(table(rows=[[*row[:3], "-7"] for row in ROWS]))
        check(read_points(folder / "a.txt"), rgb=False)
    np.save(tmp_path / "a.npy", np.concatenate([XYZ, XYZ[:, :1]], axis=1))
    check(read_points(tmp_path / "a.npy"), rgb=False)
    # The nearest list counts, a line of names in the file more, a comment less.
    near = tmp_path / "near"
    near.mkdir()
    (near / ".columns").write_text("x;y;z;r;g;b;label")
    classes = [[*row, str(i)] for i, row in enumerate(ROWS)]
    (near / "a.csv").write_text("# x y z r g b and more\n" + table(",", classes))
    check(read_points(near / "a.csv"))
    scene = read_scene(near / "a.csv", labels=True)
    check(scene)
    assert scene.segment.tolist() == [0, 1, 2]
    (near / "b.txt").write_text("x y z r g b\n" + table())
    check(read_points(near / "b.txt"))
    np.savez(near / "c.npz", xyz=XYZ, rgb=RGB)
    check(read_points(near / "c.npz"))


def test_a_list_of_columns_that_does_not_fit_is_named(tmp_path: Path) -> None:
    listing = tmp_path / ".columns"
    listing.write_text("x y z intensity")
    (tmp_path / "a.txt").write_text(table())
    np.save(tmp_path / "a.npy", np.concatenate([XYZ, RGB], axis=1))
    message = rf"has 6 columns, and {listing} names 4 columns \(x y z intensity\)"
    for name in ("a.txt", "a.npy"):
        with pytest.raises(BadFileError, match=message):
            read_points(tmp_path / name)
    (tmp_path / "b.txt").write_text("1 2 3 4\n5 6 7")
    with pytest.raises(BadFileError, match=r"has 3 columns, and .* in row 1: truncated\?"):
        read_points(tmp_path / "b.txt")
    listing.write_text("easting northing")
    with pytest.raises(BadFileError, match=rf"{listing} must name the columns of the files .*such as x y z intensity"):
        read_points(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_list_of_columns_in_another_encoding_is_read_or_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / ".columns").write_text("x y z größe", encoding)
    (tmp_path / "a.txt").write_text(table(rows=[[*row[:3], "-7"] for row in ROWS]))
    if encoding == "latin-1":
        check(read_points(tmp_path / "a.txt"), rgb=False)
    else:
        with pytest.raises(BadFileError, match=rf"{tmp_path / '.columns'} must name the columns"):
            read_points(tmp_path / "a.txt")


def test_a_list_of_columns_is_looked_for_above_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the folder that the command runs in, where the path leads out of it."""
    for name in ("work", "scans"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / ".columns").write_text("x y z intensity")
    (tmp_path / "scans" / "a.txt").write_text(table())
    monkeypatch.chdir(tmp_path / "work")
    check(read_points("../scans/a.txt"))
    (tmp_path / ".columns").write_text("z y x r g b")
    assert torch.equal(read_points("../scans/a.txt").xyz, torch.from_numpy(XYZ).float().flip(1))
    # A file that is kept elsewhere belongs to the folder that links to it.
    (tmp_path / "scans" / ".columns").write_text("x y z r g b")
    (tmp_path / "store").mkdir()
    (tmp_path / "scans" / "a.txt").rename(tmp_path / "store" / "0f3a.txt")
    (tmp_path / "scans" / "a.txt").symlink_to(tmp_path / "store" / "0f3a.txt")
    check(read_points("../scans/a.txt"))


def test_a_decimal_comma_is_told_from_a_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1,5 2 3\n4 5,25 6\n")
    assert read_points(tmp_path / "a.txt").xyz.tolist() == [[1.5, 2, 3], [4, 5.25, 6]]
    (tmp_path / "a.txt").write_text("1,5,2\n4, 5,25\n")
    assert read_points(tmp_path / "a.txt").xyz.tolist() == [[1, 5, 2], [4, 5, 25]]


def test_pts_with_an_intensity_and_no_count(tmp_path: Path) -> None:
    (tmp_path / "a.pts").write_text(table(rows=[[*row[:3], "-0.5", *row[3:]] for row in ROWS]))
    check(read_points(tmp_path / "a.pts"))
    (tmp_path / "a.pts").write_text("3\n" + table(rows=[[*row[:3], "-0.5"] for row in ROWS]))
    check(read_points(tmp_path / "a.pts"), rgb=False)


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".csv"])
def test_rows_without_a_point(tmp_path: Path, suffix: str) -> None:
    gap = np.full((1, 9), np.nan)
    rows = np.concatenate([gap, np.concatenate([XYZ, NORMAL, RGB], axis=1)])
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", rows)
    elif suffix == ".txt":
        np.savetxt(tmp_path / "a.txt", rows)
    else:  # as pandas writes them
        text = "".join(",".join("" if np.isnan(v) else repr(float(v)) for v in row) + "\n" for row in rows)
        (tmp_path / "a.csv").write_text("x,y,z,nx,ny,nz,r,g,b\n" + text)
    with pytest.raises(BadFileError, match="1 of 4 points are not finite"):
        read_points(tmp_path / f"a{suffix}")
    check(read_points(tmp_path / f"a{suffix}", drop_invalid=True), normal=True)


@pytest.mark.parametrize(
    "missing", ["NA", "null", "-nan(ind)", "1.#QNAN", "-1.#IND", "nan(snan)"], ids=["R", "SQL", *"abcd"]
)
def test_numbers_that_are_missing(tmp_path: Path, missing: str) -> None:
    """As R, databases and C programs on Windows write them, the latter also without names of columns."""
    row = ["0", "0", missing]
    (tmp_path / "a.csv").write_text("x,y,z,r,g,b\n" + table(",", [[*row, *ROWS[0][3:]], *ROWS]))
    (tmp_path / "a.xyz").write_text(table(rows=[row, *(line[:3] for line in ROWS)]))
    paths = ["a.csv"] if missing in ("NA", "null") else ["a.csv", "a.xyz"]
    for path in paths:
        with pytest.raises(BadFileError, match="1 of 4 points are not finite"):
            read_points(tmp_path / path)
        check(read_points(tmp_path / path, drop_invalid=True), rgb=path == "a.csv")


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
            r"has 8 columns: 3 .*; a first line may name them, such as x y z intensity red green blue nx ny nz: those "
            r".*; or a file \.columns in its folder or above may name them for all, such as x y z intensity",
        ),
        ("x y z label\n" + table(), r"names 4 columns \(x y z label\) and has 6: name each, or begin the line with #"),
        ("x,y,z,name\n1,2,3,a\n4,5,", r"names 4 columns \(x y z name\) and has 3 in row 1: truncated\?"),
        ("x,y,z\n1,2,3\n4,b,6\n", "could not convert string 'b' to float64 at row 1, column 2"),
        ("4\n" + table(), "promises 4 points in its first line, 3 are there"),
        ("Scan of a chair\n" + table(), "the line 'Scan of a chair' is neither numbers nor names .* begin it with #"),
        ("easting northing height\n1 2 3\n", "the line 'easting northing height' is neither numbers nor names"),
        ("x y z\n", "holds no points"),
        (
            "X [m],Y [m],Z [m],x [px]\n1,2,3,4\n",
            r"several columns of the names \['x'\]: rename those that are not meant",
        ),
        ("\n \n", "holds no points"),
        ("1 2 3\n4 5\n", r"the number of columns changed from 3 to 2 at row 2$"),
        ("1 2 3\n4 b 6\n", "could not convert string 'b' to float64 at row 1, column 2"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(BadFileError, match=r"a\.txt: (?!.*a\.txt).*" + message):
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
    "other names": {"Point_Cloud": XYZ, "Colors": RGB.astype(np.float16)},
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
        (np.zeros((2, 100, 3)), r"has shape \(2, 100, 3\); rows of x y z .* of one cloud are expected"),
        (np.zeros((100, 4)), r"has 4 columns: .* leave others out, or store named arrays: np\.savez"),
        (records(*BY_COLUMN[:2]), r"has none of the keys \('xyz', .*, but \['x', 'y'\]"),
    ],
)
def test_what_is_wrong_with_an_array_is_said(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadFileError, match=r"a\.npy: .*" + message):
        read_points(tmp_path / "a.npy")


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_an_array_that_the_file_cannot_hold_gets_no_room(tmp_path: Path, ending: str) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    data = file.getvalue() + bytes(120)
    if ending == "npy":
        (tmp_path / "a.npy").write_bytes(data)
    else:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("xyz.npy", data)
    promised = r"is truncated: an array of \(1000000000000, 3\) float32 has 12000000000000 bytes, 120 are there"
    with pytest.raises(BadFileError, match=promised):
        read_points(tmp_path / f"a.{ending}")


def test_a_dictionary_of_arrays(tmp_path: Path) -> None:
    """As OpenShape's release has them; ragged values under other names do not matter."""
    held = {"xyz": XYZ, "rgb": RGB / 255, "normal": NORMAL, "id": "chair", "views": [[1], [2, 3]], 7: None}
    np.save(tmp_path / "a.npy", held, allow_pickle=True)
    check(read_points(tmp_path / "a.npy"), normal=True)


def test_colours_must_be_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", xyz=XYZ, rgb=np.array(["red", "green", "blue"]))
    with pytest.raises(BadFileError, match=r"a\.npz: rgb must hold numbers, has <U5"):
        read_points(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["f8", "f4", "i4", "u2"])
@pytest.mark.parametrize("top", [1, 255, 65535])
def test_the_largest_colour_tells_the_range_of_all(tmp_path: Path, kind: str, top: int) -> None:
    """16-bit colours are floats after a way through text or pandas."""
    expected = np.array([[0, 51, 255], [255, 102, 0], [0, 0, 0], [5, 10, 15]]) / 255
    colours = (expected * top).astype(kind) if kind[0] == "f" or top > 1 else (expected * 255).round().astype(kind)
    np.savez(tmp_path / "a.npz", xyz=np.eye(4, 3), rgb=colours)
    np.testing.assert_allclose(read_points(tmp_path / "a.npz").rgb.numpy(), expected, atol=1e-6)
    # Where there is no point there is no colour either.
    if kind[0] == "f":
        gap = np.full((1, 3), np.nan)
        np.savez(tmp_path / "a.npz", xyz=np.r_[np.eye(4, 3), gap], rgb=np.r_[colours, gap.astype(kind)])
        cloud = read_points(tmp_path / "a.npz", drop_invalid=True)
        np.testing.assert_allclose(cloud.rgb.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        (np.array([[-1.0, 0.5, 1.0]]), "has colours of -1 to 1: write them in 0..1, 0..255 or 0..65535"),
        (np.array([[0, 127, -128]], np.int8), "has colours of -128 to 127"),
        (np.array([[0, 1, 1 << 24]]), r"has colours of 0 to 1\.67772e\+07"),
    ],
)
def test_colours_of_other_ranges_are_refused(tmp_path: Path, colours: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", xyz=np.eye(1, 3), rgb=colours)
    with pytest.raises(BadFileError, match=r"a\.npz: .*" + message):
        read_points(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["i4", "i8", "f8", "longdouble"])
def test_far_coordinates_of_any_type_are_moved_before_they_are_rounded(tmp_path: Path, kind: str) -> None:
    """A survey in whole millimetres."""
    xyz = np.array([[500_000_123, 540_000_456, 7], [500_001_124, 540_000_457, 1009]]).astype(kind)
    np.save(tmp_path / "a.npy", xyz)
    cloud = read_points(tmp_path / "a.npy")
    assert (cloud.xyz.double() + torch.tensor(cloud.meta["origin"], dtype=torch.float64)).tolist() == xyz.tolist()
