from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from pc3d.data import (
    S3DIS,
    S3DIS_CLASSES,
    SCANNET20,
    SCANNET200,
    BadFileError,
    Rooms,
    ScanNet,
    SceneFolder,
    Structured3D,
)
from pc3d.data.normals import estimate_normals
from pc3d.data.ply import vertex_normals
from pc3d.data.raw_s3dis import read_s3dis_object, read_s3dis_room
from pc3d.data.raw_scannet import read_scannet_categories, read_scannet_scan
from pc3d.data.raw_structured3d import find_structured3d_rooms, read_structured3d_room

TOOLS = Path(__file__).parents[2] / "data_tools"
SCENES = Path(__file__).parents[1] / "assets" / "scenes"
SCAN = Path("scans") / "scene9000_00"
ROOM = Path("Stanford3dDataset_v1.2_Aligned_Version") / "Area_1" / "office_1"
# The columns that count, and rows that matter: "object" twice, ids 39, 40 and 0, and a category without an id.
TABLE = """id\traw_category\tcategory\tcount\tnyu40id\teigen13id
1\twall\twall\t8277\t1\t12
3\tfloor\tfloor\t1553\t2\t5
5\tdoor\tdoor\t2028\t8\t12
7\tcabinet\tcabinet\t730\t3\t6
1163\tobject\tobject\t5056\t40\t7
9999\tobject\tobject\t1\t39\t7
4\ttable\ttable\t1170\t7\t10
2\tchair\tchair\t4646\t5\t4
40\tplant\tplant\t345\t40\t7
28\tlamp\tlamp\t419\t35\t7
26\tbox\tbox\t775\t29\t7
19\tmonitor\tmonitor\t697\t40\t7
42\tottoman thing\tottoman\t3\t39\t6
700\tfog\tfog\t1\t0\t0
701\tmist\tmist\t1\t\t
"""


@pytest.fixture(scope="module")
def tool(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("data_tools/prepare_scenes.py")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.tsv"
    path.write_text(TABLE.replace("\n", "\r\r\n"), encoding="utf-8", newline="")  # as some copies are
    return path


def call(tool: ModuleType, *arguments: object) -> None:
    tool.main([*map(str, arguments), "--workers", "1"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ScanNet


def test_categories_and_their_classes(labels: Path) -> None:
    table = read_scannet_categories(labels)
    assert table["door"] == (SCANNET20.index("door"), SCANNET200.index("door"))
    assert table["object"] == (-1, SCANNET200.index("object"))  # the first row: NYU40 id 40
    assert table["ottoman thing"] == (SCANNET20.index("otherfurniture"), SCANNET200.index("bathtub"))
    assert table["fog"] == table["mist"] == (-1, -1)
    labels.write_text("id\tname\n1\twall\n")
    with pytest.raises(BadFileError, match="must have the columns id, raw_category and nyu40id"):
        read_scannet_categories(labels)
    labels.write_text("\n")
    with pytest.raises(BadFileError, match="holds no categories"):
        read_scannet_categories(labels)


def test_a_scan_becomes_what_pointcept_makes_of_it(labels: Path) -> None:
    """Against the prepared sample, whose instances are numbered otherwise and leave out walls and floor."""
    arrays, notes = read_scannet_scan(SCENES / "scannet_raw" / SCAN, read_scannet_categories(labels))
    expected = {path.stem: np.load(path) for path in (SCENES / "scannet" / "train" / "scene9000_00").glob("*.npy")}
    assert notes == []
    for name in ("coord", "color", "segment20"):
        np.testing.assert_array_equal(arrays[name], expected[name])
    things = expected["instance"] >= 0
    pairs = set(zip(arrays["instance"][things].tolist(), expected["instance"][things].tolist(), strict=True))
    assert len(pairs) == len(np.unique(arrays["instance"][things])) == len(np.unique(expected["instance"][things]))
    # Cutting the sample took faces away at its edge; elsewhere the normals are those of the whole mesh.
    same = np.abs(arrays["normal"] - expected["normal"]).max(axis=1) < 1e-5
    assert same.mean() > 0.85
    assert [SCANNET200[c] for c in np.unique(arrays["segment200"]) if c >= 0].count("object") == 1


def test_the_labels_agree_with_the_label_mesh(labels: Path) -> None:
    """ScanNet's own labels.ply says the NYU40 id of every vertex: an independent way to the same classes."""
    folder = SCENES / "scannet_raw" / SCAN
    data = (folder / "scene9000_00_vh_clean_2.labels.ply").read_bytes()
    layout = [*((axis, "<f4") for axis in "xyz"), *((channel, "u1") for channel in "rgba"), ("label", "<u2")]
    rows = np.frombuffer(data, layout, 3029, data.index(b"end_header\n") + 11)
    arrays, _ = read_scannet_scan(folder, read_scannet_categories(labels))
    published = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 39: 19}
    assert arrays["segment20"].tolist() == [published.get(number, -1) for number in rows["label"].tolist()]


def test_vertex_normals_are_weighted_by_area() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2], [9, 9, 9]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    normals = vertex_normals(vertices, faces)
    expected = np.array([1.0, 0.0, 0.5])  # areas 1/2 (up) and 1 (along x)
    np.testing.assert_allclose(normals[0], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(normals[[1, 3]], [[0, 0, 1], [1, 0, 0]], atol=1e-6)
    assert normals[4].tolist() == [0, 0, 0]  # on no face


def test_later_groups_and_unknown_categories(labels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene9000_00"
    shutil.copytree(SCENES / "scannet_raw" / SCAN, folder)
    segments = json.loads((folder / "scene9000_00_vh_clean_2.0.010000.segs.json").read_text())["segIndices"]
    some = sorted(set(segments))[:3]
    groups = [
        {"id": 5, "label": "chair", "segments": some},
        {"id": 6, "label": "table", "segments": some[1:2]},
        {"id": 7, "label": "gizmo", "segments": [*some[2:], 10**6]},
    ]
    aggregation = folder / "scene9000_00.aggregation.json"
    aggregation.write_text(json.dumps({"segGroups": groups}))
    arrays, notes = read_scannet_scan(folder, read_scannet_categories(labels))
    expected = {some[0]: (4, 5), some[1]: (6, 6), some[2]: (-1, 7)}
    pairs = zip(arrays["segment20"].tolist(), arrays["instance"].tolist(), strict=True)
    assert list(pairs) == [expected.get(segment, (-1, -1)) for segment in segments]
    assert len(notes) == 1
    assert "category 'gizmo' is not in the table" in notes[0]
    aggregation.write_text('{"segGroups": [{"id": 1}]}')
    with pytest.raises(BadFileError, match=r"aggregation\.json: has a group without id, label or segments"):
        read_scannet_scan(folder, {})
    aggregation.unlink()
    with pytest.raises(BadFileError, match=r"aggregation\.json: is not there: download the annotations"):
        read_scannet_scan(folder, {})
    unlabelled, _ = read_scannet_scan(folder, {}, labels_required=False)  # as in the test split
    assert set(unlabelled) == {"coord", "color", "normal"}


def test_bad_scans_are_named(labels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene9000_00"
    shutil.copytree(SCENES / "scannet_raw" / SCAN, folder)
    segments = folder / "scene9000_00_vh_clean_2.0.010000.segs.json"
    segments.write_text('{"segIndices": [1, 2]}')
    with pytest.raises(BadFileError, match=r"segs\.json: has 2 indices for 3029 vertices"):
        read_scannet_scan(folder, {})
    segments.unlink()
    with pytest.raises(BadFileError, match=r"segs\.json: is not there"):
        read_scannet_scan(folder, {})
    mesh = folder / "scene9000_00_vh_clean_2.ply"
    mesh.write_bytes(mesh.read_bytes()[:50_000])
    with pytest.raises(BadFileError, match=r"vh_clean_2\.ply: "):
        read_scannet_scan(folder, {})


# S3DIS


def test_a_room_is_its_annotations() -> None:
    arrays, notes = read_s3dis_room(SCENES / "s3dis_raw" / ROOM)
    assert notes == []
    whole = np.loadtxt(SCENES / "s3dis_raw" / ROOM / "office_1.txt")
    np.testing.assert_array_equal(arrays["coord"], whole[:, :3].astype(np.float32))
    np.testing.assert_array_equal(arrays["color"], whole[:, 3:])
    names = sorted(path.stem for path in (SCENES / "s3dis_raw" / ROOM / "Annotations").glob("*.txt"))
    assert arrays["instance"].max() == len(names) - 1
    for number, name in enumerate(names):
        assert (arrays["segment"][arrays["instance"] == number] == S3DIS_CLASSES.index(name.split("_")[0])).all()


def test_the_two_known_corrupt_lines_are_repaired(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    good = b"1.5 -2.25 3.0 10 20 30\n"
    path = tmp_path / "Annotations" / "stairs_1.txt"
    path.write_bytes(good + b"22.35 6.692 3.1 185 103.0\xba\x100000 187\n" + b"2.0 3.0\x164.0 1 2 3\r\n" + good + b"\n")
    table, notes = read_s3dis_object(path)
    assert table.tolist()[1:3] == [[22.35, 6.692, 3.1, 185, 103, 187], [2, 3, 4, 1, 2, 3]]
    assert ["line 2 repaired" in notes[0], "line 3 repaired" in notes[1], len(notes)] == [True, True, 2]
    arrays, notes = read_s3dis_room(tmp_path)
    assert set(arrays["segment"].tolist()) == {S3DIS_CLASSES.index("clutter")}
    assert "'stairs' is not one of the 13 classes, taken for clutter" in notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4 5\n", r"must hold lines x y z r g b, has the shape \(1, 5\)"),
        ("1 2 3 4 5 6\n1 2 3 4 5 six\n", "line 2 is not x y z r g b"),
        ("1 2 3 4 5 300\n", "row 1 is not x y z and a colour from 0 to 255"),
        ("1 nan 3 4 5 6\n", "row 1 is not x y z"),
    ],
)
def test_lines_that_cannot_be_repaired(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wall_1.txt"
    path.write_text(text)
    with pytest.raises(BadFileError, match=rf"wall_1\.txt: .*{message}"):
        read_s3dis_object(path)


def test_normals_that_the_text_files_do_not_have(tmp_path: Path, tool: ModuleType, capsys) -> None:
    call(tool, "s3dis", SCENES / "s3dis_raw", tmp_path / "without")
    assert "without normals, which the download does not have" in capsys.readouterr().out
    assert S3DIS(tmp_path / "without", areas=[1])[0].normal is None
    call(tool, "s3dis", SCENES / "s3dis_raw", tmp_path / "with", "--normals", "estimated")
    assert "without normals" not in capsys.readouterr().out
    room = S3DIS(tmp_path / "with", areas=[1])[0]
    torch.testing.assert_close(room.normal.norm(dim=1), torch.ones(len(room)))
    floor = room.normal[room.segment == S3DIS_CLASSES.index("floor")]
    assert float((floor[:, 2] > 0.95).float().mean()) > 0.8  # up, into the room, but where furniture stands
    added = set(contents(tmp_path / "with").items()) - set(contents(tmp_path / "without").items())
    assert {name.rpartition("/")[2] for name, _ in added} == {"normal.npy", "manifest.sha256", "preparation.json"}
    with pytest.raises(SystemExit, match=r"preparation\.json exists with other options"):
        call(tool, "s3dis", SCENES / "s3dis_raw", tmp_path / "without", "--normals", "estimated")


@pytest.mark.parametrize(("degrees", "matrix"), [(90, [[0, 1], [-1, 0]]), (180, [[-1, 0], [0, -1]]), (0, np.eye(2))])
def test_rooms_are_turned_back_about_their_middle(tmp_path: Path, degrees: int, matrix: list[list[int]]) -> None:
    room = tmp_path / "Area_3" / "office_1"
    shutil.copytree(SCENES / "s3dis_raw" / ROOM, room)
    angles = room.parent / "Area_3_alignmentAngle.txt"
    angles.write_text(f"## Global alignment angle per disjoint space in Area_3 ##\noffice_10 270\noffice_1 {degrees}\n")
    turned, plain = read_s3dis_room(room, align=True)[0]["coord"], read_s3dis_room(room)[0]["coord"]
    middle = (plain.min(axis=0) + plain.max(axis=0)) / 2
    expected = (plain - middle)[:, :2] @ np.array(matrix).T
    np.testing.assert_allclose((turned - middle)[:, :2], expected, atol=1e-5)
    np.testing.assert_allclose(turned[:, 2], plain[:, 2], atol=1e-6)
    angles.write_text("office_10 270\n")
    with pytest.raises(BadFileError, match="has no angle for office_1"):
        read_s3dis_room(room, align=True)
    angles.unlink()
    with pytest.raises(BadFileError, match=r"Area_3_alignmentAngle\.txt: is not there"):
        read_s3dis_room(room, align=True)


def test_a_room_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"Annotations: holds no \.txt files"):
        read_s3dis_room(tmp_path)


# Structured3D

POSITION = (1000.0, 2000.0, 1500.0)  # millimetres, as in the files
HEIGHT, WIDTH, TANGENT = 24, 32, 0.8


def png(values: np.ndarray, palette: bool = False) -> bytes:
    image = Image.fromarray(values)
    if palette:
        image = image.convert("P")
        image.putdata(values.reshape(-1).tolist())
        image.putpalette([(37 * i) % 256 for i in range(768)])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def structured3d_archives(root: Path, scene: str = "scene_03100") -> None:
    """A room of a wall 3 m ahead of the camera, which looks along x, and a sphere of 2 m around it."""
    root.mkdir(exist_ok=True)
    base = f"Structured3D/{scene}/2D_rendering/512"
    color = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    color[:, WIDTH // 2 :, 0] = 200  # the right half is red
    semantic = np.full((HEIGHT, WIDTH), 1, np.uint8)
    semantic[0] = 0  # the first row has no class
    semantic[1] = 13  # blinds, which are not among the 25
    depth = np.full((HEIGHT, WIDTH), 3000, np.uint16)
    depth[-1] = 0
    slope = HEIGHT / WIDTH * TANGENT
    pose = [*POSITION, 1, 0, 0, 0, 0, 1, math.atan(TANGENT), math.atan(slope), 1]
    with zipfile.ZipFile(root / "perspective_00.zip", "w") as archive:
        view = f"{base}/perspective/full/0"
        for name, values in (("rgb_rawlight", color), ("depth", depth), ("semantic", semantic)):
            archive.writestr(f"{view}/{name}.png", png(values, palette=name == "semantic"))
        archive.writestr(f"{view}/camera_pose.txt", " ".join(map(str, pose)))
        archive.writestr(f"{base}/perspective/full/1/depth.png", png(depth))
    with zipfile.ZipFile(root / "panorama_00.zip", "w") as archive:
        sphere = np.full((64, 128), 2000, np.uint16)
        archive.writestr(f"{base}/panorama/full/rgb_rawlight.png", png(np.full((64, 128, 3), 90, np.uint8)))
        archive.writestr(f"{base}/panorama/full/depth.png", png(sphere))
        archive.writestr(f"{base}/panorama/full/semantic.png", png(np.full((64, 128), 22, np.uint8), palette=True))
        archive.writestr(f"{base}/panorama/camera_xyz.txt", " ".join(map(str, POSITION)))
        archive.writestr(f"{base}/panorama/layout.txt", "not needed")


def test_structured3d_geometry(tmp_path: Path) -> None:
    structured3d_archives(tmp_path)
    (room,) = find_structured3d_rooms(tmp_path.glob("*.zip"))
    assert (room.scene, room.room, room.split) == ("scene_03100", "512", "val")
    arrays, notes = read_structured3d_room(room)
    lacking = "rgb_rawlight.png, semantic.png, camera_pose.txt"
    assert notes == [f"scene_03100/512/perspective/full/1: left out, lacks {lacking}"]
    offset = arrays["coord"] - np.array(POSITION) / 1000
    wall = arrays["color"][:, 1] == 0
    # The wall: 3 m ahead in x, to both sides as far as the field of view, red on the right, which is -y.
    np.testing.assert_allclose(offset[wall, 0], 3, atol=1e-5)
    assert offset[wall, 1].max() == pytest.approx(3 * TANGENT, abs=1e-5)
    assert offset[wall, 2].max() == pytest.approx(3 * 0.6 * (1 - 2 / HEIGHT), abs=1e-5)  # the first row has no class
    # The last row has no depth, and the one above it, whose neighbour it is, no normal to trust.
    assert wall.sum() == (HEIGHT - 3) * WIDTH
    red = arrays["color"][wall, 0] == 200
    np.testing.assert_array_equal(red, offset[wall, 1] <= 1e-6)
    np.testing.assert_allclose(arrays["normal"][wall], np.tile([-1, 0, 0], (wall.sum(), 1)), atol=1e-5)
    blinds = np.isclose(offset[wall, 2], offset[wall, 2].max(), atol=1e-4)
    assert set(arrays["segment"][wall][blinds].tolist()) == {-1}
    assert set(arrays["segment"][wall][~blinds].tolist()) == {0}
    # The sphere: 2 m away on all sides, seen from inside, ceiling all over.
    np.testing.assert_allclose(np.linalg.norm(offset[~wall], axis=1), 2, atol=1e-5)
    assert (np.abs(offset[~wall].mean(axis=0)) < 0.1).all()
    inward = -(arrays["normal"][~wall] * offset[~wall]).sum(axis=1) / 2
    assert inward.min() > 0.15
    assert np.median(inward) > 0.99
    assert set(arrays["segment"][~wall].tolist()) == {16}


def test_structured3d_options(tmp_path: Path) -> None:
    structured3d_archives(tmp_path)
    (room,) = find_structured3d_rooms([tmp_path / "perspective_00.zip"])
    world, _ = read_structured3d_room(room)
    mirrored, _ = read_structured3d_room(room, axes="mirrored")
    np.testing.assert_allclose(mirrored["coord"], world["coord"][:, [1, 0, 2]], atol=1e-6)
    ranged, _ = read_structured3d_room(room, depth="range")
    position = np.array(POSITION) / 1000
    np.testing.assert_allclose(np.linalg.norm(ranged["coord"] - position, axis=1), 3, atol=1e-5)
    # Pixels count from 1: the edges of the field of view lie a pixel further to the right and down.
    across = (ranged["coord"] - position)[:, 1] / (ranged["coord"] - position)[:, 0]
    assert -across.min() == pytest.approx(TANGENT, abs=1e-4)
    assert across.max() == pytest.approx(TANGENT * (1 - 2 / WIDTH), abs=1e-4)
    down = -(ranged["coord"] - position)[:, 2] / (ranged["coord"] - position)[:, 0]
    # The first row has no class; the last has no depth, and the one above it no normal to trust.
    assert -down.min() == pytest.approx(TANGENT * HEIGHT / WIDTH * (1 - 4 / HEIGHT), abs=1e-4)
    assert down.max() <= TANGENT * HEIGHT / WIDTH * (1 - 2 / HEIGHT) + 1e-4
    with pytest.raises(ValueError, match="depth must be 'z' or 'range'"):
        read_structured3d_room(room, depth="y")
    with pytest.raises(ValueError, match="axes must be 'world' or 'mirrored'"):
        read_structured3d_room(room, axes="y")


def test_structured3d_keeps_the_first_point_of_a_cell(tmp_path: Path) -> None:
    structured3d_archives(tmp_path)
    with zipfile.ZipFile(tmp_path / "perspective_00.zip") as old, zipfile.ZipFile(tmp_path / "again.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("full/0", "full/2"), old.read(name))
    once, _ = read_structured3d_room(find_structured3d_rooms([tmp_path / "perspective_00.zip"])[0])
    twice, _ = read_structured3d_room(find_structured3d_rooms(tmp_path.glob("*[0n].zip"))[0])
    assert len(once["coord"]) < len(twice["coord"])  # with the panorama
    both = [tmp_path / "perspective_00.zip", tmp_path / "again.zip"]
    only, _ = read_structured3d_room(find_structured3d_rooms(both)[0])
    np.testing.assert_array_equal(only["coord"], once["coord"])


def test_each_archive_is_opened_once_a_room_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structured3d_archives(tmp_path)
    (room,) = find_structured3d_rooms(tmp_path.glob("*.zip"))
    opened = []

    class Counted(zipfile.ZipFile):
        def __init__(self, path: str) -> None:
            super().__init__(path)
            opened.append(self)

    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    read_structured3d_room(room)
    assert sorted(Path(file.filename).name for file in opened) == ["panorama_00.zip", "perspective_00.zip"]
    assert all(file.fp is None for file in opened)


def test_bad_archives_are_named(tmp_path: Path) -> None:
    structured3d_archives(tmp_path)
    path = tmp_path / "panorama_00.zip"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadFileError, match=r"panorama_00\.zip: not a readable zip archive"):
        find_structured3d_rooms(tmp_path.glob("*.zip"))
    with zipfile.ZipFile(path, "w") as archive:
        view = "scene_00000/2D_rendering/1/panorama"
        for name in ("rgb_rawlight", "depth", "semantic"):
            archive.writestr(f"{view}/full/{name}.png", b"no picture")
        archive.writestr(f"{view}/camera_xyz.txt", "1 2")
    with pytest.raises(BadFileError, match=r"rgb_rawlight\.png: cannot be decoded"):
        read_structured3d_room(find_structured3d_rooms([path])[0])


# The tool


def test_scannet_from_raw_to_read(tmp_path: Path, tool: ModuleType, labels: Path) -> None:
    arguments = ("scannet", SCENES / "scannet_raw", tmp_path / "out", "--labels", labels)
    with pytest.raises(SystemExit, match=r"scene9000_00 is not an official scan: --other_split says"):
        call(tool, *arguments)
    call(tool, *arguments, "--other_split", "train")
    subprocess.run(["sha256sum", "--check", "--quiet", "manifest.sha256"], cwd=tmp_path / "out", check=True)
    prepared, sample = ScanNet(tmp_path / "out")[0], ScanNet(SCENES / "scannet")[0]
    assert prepared.xyz.tolist() == sample.xyz.tolist()
    assert prepared.segment.tolist() == sample.segment.tolist()
    assert ScanNet(tmp_path / "out", classes=200)[0].segment.max() == SCANNET200.index("object")
    with pytest.raises(SystemExit, match=r"preparation\.json exists with other options"):
        call(tool, *arguments, "--other_split", "val")
    labels.write_text(TABLE)  # the same table moved is the same; other contents are not
    with pytest.raises(SystemExit, match=r"preparation\.json exists with other options"):
        call(tool, *arguments, "--other_split", "train")


def test_only_test_scans_may_lack_annotations(tmp_path: Path, tool: ModuleType, labels: Path) -> None:
    shutil.copytree(SCENES / "scannet_raw", tmp_path / "raw")
    (tmp_path / "raw" / SCAN / "scene9000_00.aggregation.json").unlink()
    for split in ("train", "val"):
        with pytest.raises(SystemExit, match=r"scene9000_00\.aggregation\.json: is not there"):
            call(tool, "scannet", tmp_path / "raw", tmp_path / split, "--labels", labels, "--other_split", split)
    call(tool, "scannet", tmp_path / "raw", tmp_path / "test", "--labels", labels, "--other_split", "test")
    assert not (tmp_path / "test" / "test" / "scene9000_00" / "segment20.npy").exists()


def test_s3dis_and_structured3d_from_raw_to_read(tmp_path: Path, tool: ModuleType) -> None:
    call(tool, "s3dis", SCENES / "s3dis_raw", tmp_path / "s3dis")
    assert S3DIS(tmp_path / "s3dis", areas=[1]).ids == ["Area_1-office_1"]
    assert SceneFolder(tmp_path / "s3dis", "Area_1").classes == S3DIS_CLASSES  # as scenes of any kind, too
    (tmp_path / "s3dis" / "classes.txt").write_text("Decke\n")
    call(tool, "s3dis", SCENES / "s3dis_raw", tmp_path / "s3dis")
    assert (tmp_path / "s3dis" / "classes.txt").read_text() == "Decke\n"  # the user's own names stay
    structured3d_archives(tmp_path / "zips")
    call(tool, "structured3d", tmp_path / "zips", tmp_path / "structured3d")
    rooms = Structured3D(tmp_path / "structured3d", "val")
    assert rooms.ids == ["scene_03100_room_512"]
    assert set(rooms[0].segment.unique().tolist()) == {-1, 0, 16}
    assert SceneFolder(tmp_path / "structured3d", "val").classes == rooms.classes
    with pytest.raises(SystemExit, match=r"preparation\.json exists with other options"):
        call(tool, "structured3d", tmp_path / "zips", tmp_path / "structured3d", "--axes", "mirrored")


@pytest.fixture
def area(tmp_path: Path) -> Path:
    """Four rooms."""
    for number in range(4):
        shutil.copytree(SCENES / "s3dis_raw" / ROOM, tmp_path / "raw" / "Area_2" / f"office_{number}")
    return tmp_path / "raw"


def test_a_stopped_run_goes_on_and_overwrites_nothing(tmp_path: Path, tool: ModuleType, area: Path) -> None:
    out = tmp_path / "out"
    call(tool, "s3dis", area, out)
    first = contents(out)
    stamp = (out / "Area_2" / "office_0" / "coord.npy").stat().st_mtime_ns
    # Stopped after a rename was announced but not made, and in the middle of a line and of a folder.
    shutil.rmtree(out / "Area_2" / "office_1")
    (out / "partial" / "Area_2" / "office_2").mkdir(parents=True)
    shutil.rmtree(out / "Area_2" / "office_2")
    lines = (out / "manifest.sha256").read_text().splitlines(keepends=True)
    (out / "manifest.sha256").write_text("".join(line for line in lines if "office_2" not in line) + "0123ab")
    call(tool, "s3dis", area, out)
    again = contents(out)
    assert sorted(again.pop("manifest.sha256").splitlines()) == sorted(first.pop("manifest.sha256").splitlines())
    assert again == first
    assert (out / "Area_2" / "office_0" / "coord.npy").stat().st_mtime_ns == stamp
    np.save(out / "Area_2" / "office_3" / "color.npy", np.zeros(3))
    with pytest.raises(SystemExit, match=r"office_3 exists and is not what this tool wrote"):
        call(tool, "s3dis", area, out)


def test_hidden_files_are_passed_over(tmp_path: Path, tool: ModuleType, area: Path, labels: Path) -> None:
    """Some systems leave a ``._NAME`` beside each file that they copy."""
    call(tool, "s3dis", area, tmp_path / "expected")
    for path in [path for path in area.rglob("*") if path.suffix == ".txt" or path.name == "Annotations"]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    (area / "Area_2" / ".Trash" / "Annotations").mkdir(parents=True)
    call(tool, "s3dis", area, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    scan = shutil.copytree(SCENES / "scannet_raw" / SCAN, tmp_path / SCAN)
    (scan / f"._{SCAN.name}_vh_clean_2.ply").write_bytes(b"\0\5\x16\7")
    call(tool, "scannet", tmp_path, tmp_path / "scannet", "--labels", labels, "--other_split", "train")
    assert ScanNet(tmp_path / "scannet").ids == [SCAN.name]


def test_a_refused_preparation_may_be_tried_with_other_options(tmp_path: Path, tool: ModuleType) -> None:
    (tmp_path / "in").mkdir()
    cloud = np.random.default_rng(0).normal(size=(50, 3))
    np.save(tmp_path / "in" / "scan.npy", np.insert(cloud, 7, np.nan, axis=0))
    with pytest.raises(SystemExit, match="1 of 51 points are not finite"):
        call(tool, "files", tmp_path / "in", tmp_path / "out")
    call(tool, "files", tmp_path / "in", tmp_path / "out", "--drop_invalid")
    assert len(SceneFolder(tmp_path / "out", "train")[0]) == 50
    with pytest.raises(SystemExit, match=r"preparation\.json exists with other options"):
        call(tool, "files", tmp_path / "in", tmp_path / "out")


def test_bad_scenes_stop_the_run_or_are_listed(
    tmp_path: Path, tool: ModuleType, area: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (area / "Area_2" / "office_2" / "Annotations" / "floor_1.txt").write_text("<html>\n")
    with pytest.raises(SystemExit, match=r"floor_1\.txt: line 1 is not x y z r g b"):
        call(tool, "s3dis", area, tmp_path / "out")
    call(tool, "s3dis", area, tmp_path / "out", "--on_error", "report")
    assert S3DIS(tmp_path / "out", areas=[2]).ids == [f"Area_2-office_{i}" for i in (0, 1, 3)]
    printed = capsys.readouterr().out
    assert "3 scenes, 1 left out" in printed
    assert "floor_1.txt: line 1" in printed


def test_several_workers_write_the_same(tmp_path: Path, tool: ModuleType, area: Path) -> None:
    command = [sys.executable, TOOLS / "prepare_scenes.py", "s3dis", area, tmp_path / "two", "--workers", "2"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    call(tool, "s3dis", area, tmp_path / "one")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert sorted(one.pop("manifest.sha256").splitlines()) == sorted(two.pop("manifest.sha256").splitlines())
    assert one == two


def test_nothing_to_prepare(tmp_path: Path, tool: ModuleType, labels: Path) -> None:
    for kind, message in (("s3dis", "S3DIS rooms"), ("structured3d", "Structured3D archives")):
        with pytest.raises(SystemExit, match=rf"{message}(.|\n)*terms: "):
            call(tool, kind, tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"ScanNet scans(.|\n)*www\.scan-net\.org"):
        call(tool, "scannet", tmp_path, tmp_path / "out", "--labels", labels)
    with pytest.raises(SystemExit, match="--labels must name"):
        call(tool, "scannet", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as caught:
        tool.main(["s3dis", str(tmp_path), str(tmp_path / "out"), "--workers", "0"])
    assert caught.value.code == 2


# Files of one's own


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two rooms for training with colours and normals, one for testing without, in files of three formats."""
    root = tmp_path / "scans"
    for index, place in enumerate(("train/first.npz", "train/second.csv", "test/site/third.npy")):
        room = Rooms("train")[index].select(slice(None, None, 30))
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        codes = 10 + 2 * room.segment.numpy()  # wall 10, floor 12, ...
        rgb = (255 * room.rgb.numpy()).round().astype(np.uint8)
        if index == 0:
            np.savez(path, xyz=room.xyz.numpy(), rgb=rgb, normal=room.normal.numpy(), label=codes)
        elif index == 1:
            rows = np.column_stack([room.xyz.numpy(), rgb, codes])
            np.savetxt(path, rows, fmt="%.6g", delimiter=",", header="x,y,z,r,g,b,class", comments="")
        else:
            np.save(path, np.column_stack([room.xyz.numpy(), codes]))
    (root / "train" / "photo.jpg").write_bytes(b"")
    (root / "classes.txt").write_text("# of the survey\n10 wall\n12: ground\n14, ground\n18 thing\n", encoding="utf-8")
    return root


def test_own_scans_with_classes(
    tmp_path: Path, tool: ModuleType, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call(tool, "files", scans, out)
    printed = capsys.readouterr().out
    assert "not read: train/photo.jpg" in printed
    assert re.search(r"first\.npz: no class for (16|2\d), .*: \d+\.\d % of the points", printed)
    assert "third.npy: no colours: mid-grey" in printed
    assert "third.npy: no normals: estimated from the 16 nearest points of each" in printed
    assert "3 scenes, 0 left out" in printed
    found = np.bincount([c for cloud in SceneFolder(out) for c in cloud.segment.tolist() if c >= 0])
    shares = found / found.sum()
    assert f"classes of train: wall {100 * shares[0]:.1f} %, ground {100 * shares[1]:.1f} %, thing" in printed
    assert f"--model.class_weights '[{1 / math.sqrt(shares[0] + 0.01):.1f}, " in printed
    subprocess.run(["sha256sum", "--check", "--quiet", "manifest.sha256"], cwd=out, check=True)
    train, test = SceneFolder(out), SceneFolder(out, "test")
    assert train.classes == test.classes == ("wall", "ground", "thing")
    assert (train.ids, test.ids) == (["first", "second"], ["site-third"])
    for index, cloud in enumerate((train[0], train[1], test[0])):
        room = Rooms("train")[index].select(slice(None, None, 30))
        classes = {0: 0, 1: 1, 2: 1, 4: 2}
        assert cloud.segment.tolist() == [classes.get(number, -1) for number in room.segment.tolist()]
        torch.testing.assert_close(cloud.xyz, room.xyz, atol=1e-4, rtol=0)
        if index < 2:
            torch.testing.assert_close(cloud.rgb, room.rgb, atol=1e-6, rtol=0)
        else:
            assert cloud.rgb.unique().tolist() == [0.5]
        if index == 0:
            torch.testing.assert_close(cloud.normal, room.normal, atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(cloud.normal, estimate_normals(cloud.xyz))
    call(tool, "files", scans, out)  # all is there
    with pytest.raises(SystemExit, match=r"preparation\.json exists with other options"):
        call(tool, "files", scans, out, "--cell", "0.1")


def test_own_scans_in_other_units_and_places(tmp_path: Path, tool: ModuleType) -> None:
    room = Rooms("test")[0].select(slice(None, None, 10))
    y_up = np.column_stack([room.xyz[:, 0], room.xyz[:, 2], -room.xyz[:, 1]]).astype(np.float64)
    far = np.array([4e5, 30.0, -5.2e6])
    normal = np.column_stack([room.normal[:, 0], room.normal[:, 2], -room.normal[:, 1]])
    for number in range(5):
        path = tmp_path / "scans" / f"scan{number}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, xyz=1000 * (y_up + far), normal=normal)
    options = ("--scale", "0.001", "--up", "y", "--cell", "0.2", "--test_share", "0.4")
    call(tool, "files", tmp_path / "scans", tmp_path / "out", *options)
    train, test = SceneFolder(tmp_path / "out"), SceneFolder(tmp_path / "out", "test")
    assert (len(train), len(test)) == (3, 2)
    assert train.classes == ()
    cloud = test[0]
    assert cloud.segment is None
    whole = cloud.xyz.double() + torch.tensor(cloud.meta["origin"])
    # The first point of each cube, counted from the lowest corner.
    cubes = np.floor((y_up - y_up.min(0)) / 0.2 + 1e-9).astype(int)
    first = np.sort(np.unique(cubes, axis=0, return_index=True)[1])
    expected = room.xyz[first].double() + torch.tensor([4e5, 5.2e6, 30.0])
    assert abs(len(whole) - len(expected)) <= 0.01 * len(expected)  # points on the border of two cubes
    distance = torch.cdist(whole - whole.mean(0), expected - whole.mean(0)).min(1)
    near = distance.values < 2e-3
    assert near.float().mean() > 0.98
    torch.testing.assert_close(cloud.normal[near], room.normal[first][distance.indices[near]], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("wall\nfloor\n", r"third\.npy: has points of the classes 10, .*, and there are 2 names, of 0 to 1: write a"),
        ("10 wall\nfloor\n", r"must name a class on each line, with a number before each name or before none"),
        ("10 wall\n10 floor\n", r"has a number or a name twice"),
        ("wall\nwall\n", r"has a number or a name twice"),
        ("# none\n", r"must name a class on each line"),
    ],
)
def test_lists_of_classes_that_do_not_do(
    tmp_path: Path, tool: ModuleType, scans: Path, classes: str, message: str
) -> None:
    (scans / "classes.txt").write_text(classes)
    with pytest.raises(SystemExit, match=message):
        call(tool, "files", scans, tmp_path / "out")


def test_own_scans_that_are_not_laid_out(tmp_path: Path, tool: ModuleType, scans: Path) -> None:
    with pytest.raises(SystemExit, match=r"--test_share 0\.2 is for files without splits"):
        call(tool, "files", scans, tmp_path / "out", "--test_share", "0.2")
    with pytest.raises(SystemExit, match=r"no\.txt does not exist"):
        call(tool, "files", scans, tmp_path / "out", "--classes", tmp_path / "no.txt")
    np.save(scans / "beside.npy", np.zeros((9, 4)))
    with pytest.raises(SystemExit, match=r"beside\.npy lies beside the folders of the splits"):
        call(tool, "files", scans, tmp_path / "out")
    (scans / "beside.npy").unlink()
    (scans / "train" / "bad.ply").write_text("ply")
    call(tool, "files", scans, tmp_path / "out", "--on_error", "report")
    assert SceneFolder(tmp_path / "out").ids == ["first", "second"]
    (tmp_path / "out" / "classes.txt").unlink()
    with pytest.raises(BadFileError, match=r"expected -1 \(none\) to -1: name them in classes, or in .*classes\.txt"):
        SceneFolder(tmp_path / "out")[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="any folder of scenes"):
        call(tool, "files", tmp_path / "empty", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    root = tmp_path / "flat"
    root.mkdir()
    for number in range(6):
        np.save(root / f"scan{number}.npy", np.random.default_rng(number).random((40, 4)) // [0.01, 0.01, 0.01, 2])
    (root / "classes.txt").write_text("ground\n")
    return root


def test_no_scene_is_in_train_and_test_when_files_are_added(tmp_path: Path, tool: ModuleType, flat: Path) -> None:
    out, options = tmp_path / "out", ("--test_share", "0.34")
    call(tool, "files", flat, out, *options)
    for name in ("a", "b", "c"):
        np.save(flat / f"{name}.npy", np.load(flat / "scan0.npy"))
    with pytest.raises(SystemExit, match=r"out/(train|test)/scan\d is of no file that .* has for this split now"):
        call(tool, "files", flat, out, *options)
    assert not set(SceneFolder(out).ids) & set(SceneFolder(out, "test").ids)
    assert len(list(out.glob("*/*/coord.npy"))) == 6


@pytest.mark.parametrize(("rows", "seconds"), [(40, 1), (40, -1000), (50, 0)], ids=["newer", "older", "longer"])
def test_a_scan_that_changed_is_not_kept_silently(
    tmp_path: Path, tool: ModuleType, flat: Path, rows: int, seconds: int
) -> None:
    call(tool, "files", flat, tmp_path / "out")
    scan = flat / "scan3.npy"
    kept, stamp = scan.read_bytes(), scan.stat().st_mtime_ns
    np.save(scan, np.random.default_rng(9).random((rows, 4)) // [0.01, 0.01, 0.01, 2])
    os.utime(scan, ns=(stamp, stamp + seconds * 10**9))
    with pytest.raises(SystemExit, match=r"scan3\.npy is not what .*scan3 was made of"):
        call(tool, "files", flat, tmp_path / "out")
    np.save(flat / "scan6.npy", np.load(flat / "scan0.npy"))
    scan.write_bytes(kept)
    os.utime(scan, ns=(stamp, stamp))
    call(tool, "files", flat, tmp_path / "out")  # a new one joins the others
    assert len(SceneFolder(tmp_path / "out")) == 7


def test_a_list_of_columns_is_a_source_of_the_scenes(tmp_path: Path, tool: ModuleType) -> None:
    """Another meaning of the columns would leave stale scenes behind."""
    scans = tmp_path / "scans"
    scans.mkdir()
    np.savetxt(scans / "a.txt", np.random.default_rng(0).random((50, 4)))
    (scans / ".columns").write_text("x y z intensity")
    call(tool, "files", scans, tmp_path / "out")
    call(tool, "files", scans, tmp_path / "out")
    (scans / ".columns").write_text("intensity x y z")
    later = (scans / ".columns").stat().st_mtime_ns + 10**9
    os.utime(scans / ".columns", ns=(later, later))
    with pytest.raises(SystemExit, match=r"\.columns is not what .*a was made of"):
        call(tool, "files", scans, tmp_path / "out")
    (scans / "a.txt").unlink()
    head = "ply\nformat ascii 1.0\nelement vertex 3\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    (scans / "a.ply").write_text(head + "end_header\n0 0 0\n1 0 0\n0 1 0\n")
    call(tool, "files", scans, tmp_path / "other")
    (scans / ".columns").unlink()  # a PLY file names its own
    call(tool, "files", scans, tmp_path / "other")


def test_a_folder_without_the_list_of_sources_goes_on_unless_a_file_is_newer(
    tmp_path: Path, tool: ModuleType, flat: Path
) -> None:
    out = tmp_path / "out"
    call(tool, "files", flat, out)
    (out / "sources.jsonl").unlink()  # as earlier versions left a folder
    np.save(flat / "scan6.npy", np.load(flat / "scan0.npy"))
    call(tool, "files", flat, out)
    assert len(SceneFolder(out)) == 7
    later = (out / "train" / "scan3" / "coord.npy").stat().st_mtime_ns + 10**9
    os.utime(flat / "scan3.npy", ns=(later, later))
    with pytest.raises(SystemExit, match=r"scan3\.npy is not what .*scan3 was made of"):
        call(tool, "files", flat, out)


def test_a_stop_within_a_line_of_the_sources_loses_no_more_than_the_scene(
    tmp_path: Path, tool: ModuleType, flat: Path
) -> None:
    out = tmp_path / "out"
    call(tool, "files", flat, out)
    sources, manifest = (out / "sources.jsonl").read_text(), (out / "manifest.sha256").read_text()
    (last,) = json.loads(sources.splitlines()[-1])
    shutil.rmtree(out / last)  # the scene has not got its name yet
    (out / "sources.jsonl").write_text(sources[:-20])
    (out / "manifest.sha256").write_text("".join(x for x in manifest.splitlines(True) if f"{last}/" not in x))
    call(tool, "files", flat, out)
    assert (out / "sources.jsonl").read_text() == sources
    assert (out / "manifest.sha256").read_text() == manifest
    assert len(SceneFolder(out)) == 6


def test_a_column_without_a_list_of_classes(tmp_path: Path, tool: ModuleType, flat: Path, capsys) -> None:
    (flat / "classes.txt").unlink()
    with pytest.raises(SystemExit):
        call(tool, "files", flat, tmp_path / "out", "--label_column", "kind")
    assert "--label_column needs --classes or " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "option", "of"),
    [
        ("s3dis", ("--scale", "0.001"), "files"),
        ("scannet", ("--up", "y"), "files"),
        ("files", ("--axes", "mirrored"), "structured3d"),
        ("files", ("--align",), "s3dis"),
        ("structured3d", ("--other_split", "train"), "scannet"),
    ],
)
def test_an_option_of_another_kind_is_refused(
    kind: str, option: tuple[str, ...], of: str, tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(tool, kind, tmp_path, tmp_path / "out", *option)
    assert f"{option[0]} is for {of}, and {kind} has no use for it: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_results_may_lie(tmp_path: Path, tool: ModuleType, flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flat)
    with pytest.raises(SystemExit, match="OUT is ROOT"):
        call(tool, "files", ".", flat)
    (tmp_path / "other.txt").write_text("0 earth\n")
    for _ in range(2):  # within ROOT, results are no scans of a later run; nor is the list that is not taken
        call(tool, "files", ".", "out", "--classes", tmp_path / "other.txt")
    assert (len(SceneFolder("out")), SceneFolder("out").classes) == (6, ("earth",))
    (tmp_path / "splits" / "partial").mkdir(parents=True)
    shutil.copy(flat / "scan0.npy", tmp_path / "splits" / "partial")
    with pytest.raises(SystemExit, match=r"scan0\.npy: unfinished scenes lie in OUT/partial"):
        call(tool, "files", tmp_path / "splits", tmp_path / "lost")


def test_classes_of_sweeps_are_not_told_to_be_left_out(
    tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "scans" / "train" / "00" / "velodyne" / "000000.bin"
    for folder in (sweep.parent, sweep.parents[1] / "labels"):
        folder.mkdir(parents=True)
    points = np.random.default_rng(0).random((50, 4), np.float32)
    points.tofile(sweep)
    codes = np.where(points[:, 2] > 0.5, (7 << 16) | 10, 40).astype("<u4")
    codes.tofile(sweep.parents[1] / "labels" / "000000.label")
    (tmp_path / "scans" / "classes.txt").write_text("10 car\n40 road\n")
    call(tool, "files", tmp_path / "scans", tmp_path / "out")
    assert "not read" not in capsys.readouterr().out
    assert SceneFolder(tmp_path / "out")[0].segment.tolist() == (points[:, 2] <= 0.5).astype(int).tolist()
    call(tool, "files", tmp_path / "scans", tmp_path / "out")
    labels = sweep.parents[1] / "labels" / "000000.label"
    np.flip(codes).tofile(labels)
    os.utime(labels, ns=(0, 0))
    with pytest.raises(SystemExit, match=r"labels/000000\.label is not what .*000000 was made of"):
        call(tool, "files", tmp_path / "scans", tmp_path / "out")
