"""E57 files as scanners and programs write them, made node by node."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pye57
import pytest
from pye57 import libe57

from pc3d.data import BadFileError, read_points, read_scene

XYZ = np.array([[0.5, -1.0, 2.0], [1.25, 0.0, -3.5], [4.0, 8.0, 0.125], [3.0, 1.0, 1.0]])
RGB = np.array([[255, 0, 51], [0, 102, 255], [153, 1, 0], [10, 20, 30]])
# A quarter about z, and far away.
TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
PLACE = np.array([500_000.0, 5_400_000.0, 100.0])
# Of each column the kind of its numbers, and the numbers.
Columns = dict[str, tuple[str, np.ndarray]]


def columns(kind: str, names: str, values: np.ndarray) -> Columns:
    return {name: (kind, values[:, axis]) for axis, name in enumerate(names.split())}


def cartesian(kind: str = "double", values: np.ndarray = XYZ) -> Columns:
    return columns(kind, "cartesianX cartesianY cartesianZ", values)


def colour(kind: str, values: np.ndarray = RGB) -> Columns:
    return columns(kind, "colorRed colorGreen colorBlue", values)


def write(path: Path, *scans: Columns, pose: bool = False) -> None:
    file = pye57.E57(str(path), mode="w")
    image = file.image_file
    for scan in scans:
        node, prototype = libe57.StructureNode(image), libe57.StructureNode(image)
        buffers, kept = libe57.VectorSourceDestBuffer(), []
        node.set("guid", libe57.StringNode(image, "made by hand"))
        if pose:
            node.set("pose", libe57.StructureNode(image))
            for name, numbers in (
                ("rotation", dict(zip("wxyz", (0.5**0.5, 0, 0, 0.5**0.5), strict=True))),
                ("translation", dict(zip("xyz", PLACE, strict=True))),
            ):
                part = libe57.StructureNode(image)
                node["pose"].set(name, part)
                for letter, number in numbers.items():
                    part.set(letter, libe57.FloatNode(image, float(number)))
        for name, (kind, values) in scan.items():
            count = len(values)
            if kind == "double":
                prototype.set(name, libe57.FloatNode(image, 0.0, libe57.E57_DOUBLE, -1e9, 1e9))
            elif kind == "single":
                prototype.set(name, libe57.FloatNode(image, 0.0, libe57.E57_SINGLE, -1e9, 1e9))
            elif kind == "scaled":
                prototype.set(name, libe57.ScaledIntegerNode(image, 0, -(2**40), 2**40, 0.001, 0.0))
            else:
                prototype.set(name, libe57.IntegerNode(image, 0, 0, int(kind)))
            kept.append(np.ascontiguousarray(values, np.float64))
            buffers.append(libe57.SourceDestBuffer(image, name, kept[-1], count, True, kind == "scaled"))
        points = libe57.CompressedVectorNode(image, prototype, libe57.VectorNode(image, True))
        node.set("points", points)
        file.data3d.append(node)
        writer = points.writer(buffers)
        writer.write(count)
        writer.close()
    file.close()


@pytest.mark.parametrize(
    "scan",
    [
        cartesian() | colour("255"),
        cartesian() | colour("65535", RGB * 257),
        cartesian("scaled") | colour("single", RGB / 255),
        cartesian("single") | colour("double", RGB),
        colour("255") | cartesian() | {"intensity": ("single", RGB[:, 0]), "rowIndex": ("99999", RGB[:, 1] + 70_000)},
    ],
    ids=["8 bits", "16 bits", "0 to 1", "0 to 255", "more columns"],
)
def test_colours_of_all_ranges(tmp_path: Path, scan: Columns) -> None:
    write(tmp_path / "a.e57", scan)
    for cloud in (read_points(tmp_path / "a.e57"), read_scene(tmp_path / "a.e57")):
        np.testing.assert_allclose(cloud.xyz.numpy(), XYZ, atol=1e-6)
        np.testing.assert_allclose(cloud.rgb.numpy(), RGB / 255, atol=1e-6)


def test_scans_of_different_scanners(tmp_path: Path) -> None:
    """8 and 16 bits, and a scan that was cut off before its first point."""
    empty = {name: (kind, values[:0]) for name, (kind, values) in (cartesian() | colour("255")).items()}
    write(tmp_path / "a.e57", cartesian() | colour("255"), empty, cartesian() | colour("65535", RGB * 257), pose=True)
    cloud = read_scene(tmp_path / "a.e57")
    expected = XYZ @ TURN.T + PLACE
    np.testing.assert_allclose(cloud.xyz.numpy() + cloud.meta["origin"], np.r_[expected, expected], atol=1e-5)
    np.testing.assert_allclose(cloud.rgb.numpy(), np.r_[RGB, RGB] / 255, atol=1e-6)


@pytest.mark.parametrize("pose", [False, True])
def test_range_and_angles(tmp_path: Path, pose: bool) -> None:
    """A point at infinity, which only has a direction, and one that is no point at all are left out."""
    distance = np.linalg.norm(XYZ, axis=1)
    angles = [distance, np.arctan2(XYZ[:, 1], XYZ[:, 0]), np.arcsin(XYZ[:, 2] / distance)]
    scan = columns("double", "sphericalRange sphericalAzimuth sphericalElevation", np.stack(angles, axis=1))
    write(
        tmp_path / "a.e57", scan | {"sphericalInvalidState": ("2", np.array([0, 1, 0, 2]))} | colour("255"), pose=pose
    )
    cloud = read_scene(tmp_path / "a.e57")
    expected = XYZ[[0, 2]] @ TURN.T + PLACE if pose else XYZ[[0, 2]]
    np.testing.assert_allclose(cloud.xyz.numpy() + cloud.meta.get("origin", (0, 0, 0)), expected, atol=1e-5)
    np.testing.assert_allclose(cloud.rgb.numpy(), RGB[[0, 2]] / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("scans", "message"),
    [
        ([], "holds no scans"),
        ([cartesian() | {"cartesianInvalidState": ("2", np.full(4, 2))}], "holds no points"),
        ([{"intensity": ("single", RGB[:, 0])}], "coordinate system not supported"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, scans: list[Columns], message: str) -> None:
    write(tmp_path / "a.e57", *scans)
    with pytest.raises(BadFileError, match=rf"a\.e57: .*{message}"):
        read_scene(tmp_path / "a.e57")


def test_where_pye57_has_no_build_another_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scan.e57"
    path.write_bytes(b"ASTM-E57")
    monkeypatch.setitem(sys.modules, "pye57", None)
    with pytest.raises(ImportError, match=r"Linux on ARM\), convert the file to LAS"):
        read_points(path)
