from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pc3d.data import (
    S3DIS,
    S3DIS_CLASSES,
    SCANNET20,
    SCANNET200,
    SCANNET200_GROUPS,
    STRUCTURED3D_CLASSES,
    BadFileError,
    GridSample,
    MissingDataError,
    RandomDropout,
    ScanNet,
    SceneFolder,
    Structured3D,
    collate,
)
from pc3d.data.scene_labels import SCANNET_VALIDATION_SPACES, scannet_split

SCENES = Path(__file__).parents[1] / "assets" / "scenes"
SCANNET, S3DIS_ROOT = SCENES / "scannet", SCENES / "s3dis"
SCAN = Path("train") / "scene9000_00"


@pytest.fixture
def scannet(tmp_path: Path) -> Path:
    shutil.copytree(SCANNET, tmp_path / "scannet")
    return tmp_path / "scannet"


def test_a_scannet_scan_reads_as_it_is_stored() -> None:
    scans = ScanNet(SCANNET)
    assert (len(scans), scans.classes, scans.ids) == (1, SCANNET20, ["scene9000_00"])
    cloud = scans[0]
    stored = {path.stem: np.load(path) for path in (SCANNET / SCAN).glob("*.npy")}
    np.testing.assert_array_equal(cloud.xyz.numpy(), stored["coord"])
    np.testing.assert_array_equal((cloud.rgb * 255).round().numpy(), stored["color"])
    np.testing.assert_array_equal(cloud.normal.numpy(), stored["normal"])
    np.testing.assert_array_equal(cloud.segment.numpy(), stored["segment20"])
    np.testing.assert_array_equal(cloud.instance.numpy(), stored["instance"])
    assert cloud.meta["id"] == "scene9000_00"
    # The floor is below, the table above it: the classes are where they should be.
    floor, table = (cloud.xyz[cloud.segment == SCANNET20.index(name), 2].median() for name in ("floor", "table"))
    assert floor.abs() < 0.05
    assert table > 0.2


def test_s3dis_columns_become_rows() -> None:
    rooms = S3DIS(S3DIS_ROOT, areas=[1])
    cloud = rooms[0]
    assert rooms.ids == ["Area_1-office_1"]
    assert cloud.normal is None
    stored = np.load(S3DIS_ROOT / "Area_1" / "office_1" / "segment.npy")
    assert stored.shape == (2500, 1)
    assert cloud.segment.tolist() == stored[:, 0].tolist()
    assert cloud.xyz[cloud.segment == S3DIS_CLASSES.index("floor"), 2].abs().max() < 0.1


def test_s3dis_areas_and_folds(tmp_path: Path) -> None:
    for area in range(1, 7):
        shutil.copytree(S3DIS_ROOT / "Area_1", tmp_path / f"Area_{area}")
    assert S3DIS(tmp_path).areas == (1, 2, 3, 4, 6)
    assert S3DIS(tmp_path, "test").ids == ["Area_5-office_1"]
    folds = list(S3DIS.folds(tmp_path))
    assert [test.areas for _, test in folds] == [(1,), (2,), (3,), (4,), (5,), (6,)]
    for train, test in folds:
        assert sorted(train.ids + test.ids) == [f"Area_{area}-office_1" for area in range(1, 7)]
    shutil.rmtree(tmp_path / "Area_3")
    with pytest.raises(MissingDataError, match=r"Area_3(.|\n)*request form(.|\n)*terms: S3DIS"):
        S3DIS(tmp_path)
    with pytest.raises(ValueError, match=r"numbered 1 to 6, got \[7\]"):
        S3DIS(tmp_path, test_area=7)
    with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
        S3DIS(tmp_path, "val")


def test_structured3d_rooms_lie_two_deep(tmp_path: Path) -> None:
    folder = tmp_path / "val" / "scene_03000" / "room_12"
    folder.mkdir(parents=True)
    np.save(folder / "coord.npy", np.zeros((4, 3), np.float32))
    np.save(folder / "segment.npy", np.array([[0], [24], [-1], [3]], np.int16))
    rooms = Structured3D(tmp_path, "val")
    assert rooms.ids == ["scene_03000_room_12"]
    assert rooms.classes == STRUCTURED3D_CLASSES
    assert rooms[0].segment.tolist() == [0, 24, -1, 3]
    assert rooms[0].instance is None


# The tables


def test_tables_have_their_published_lengths_and_entries() -> None:
    assert (len(SCANNET20), len(SCANNET200), len(STRUCTURED3D_CLASSES), len(S3DIS_CLASSES)) == (20, 200, 25, 13)
    assert len(set(SCANNET200)) == 200
    assert SCANNET20[13:16] == ("curtain", "refrigerator", "shower curtain")
    assert (SCANNET20[19], STRUCTURED3D_CLASSES[9], STRUCTURED3D_CLASSES[-1]) == (
        "otherfurniture",
        "picture",
        "otherprop",
    )
    assert len(SCANNET_VALIDATION_SPACES) == 142
    assert {group: len(names) for group, names in SCANNET200_GROUPS.items()} == {"head": 66, "common": 68, "tail": 66}
    assert sorted(name for names in SCANNET200_GROUPS.values() for name in names) == sorted(SCANNET200)
    assert {"wall", "chair", "object", "closet wall"} <= set(SCANNET200_GROUPS["head"])
    assert {"cushion", "keyboard", "bicycle", "laptop"} <= set(SCANNET200_GROUPS["common"])
    assert {"paper", "plate", "shower head", "fire alarm"} <= set(SCANNET200_GROUPS["tail"])


@pytest.mark.parametrize(
    ("scan", "split"),
    [
        ("scene0000_00", "train"),
        ("scene0011_01", "val"),
        ("scene0704_01", "val"),
        ("scene0706_00", "train"),
        ("scene0707_00", "test"),
        ("scene0806_00", "test"),
    ],
)
def test_official_splits(scan: str, split: str) -> None:
    assert scannet_split(scan) == split


@pytest.mark.parametrize("scan", ["scene0807_00", "scene12_00", "office_1", "scene0011"])
def test_names_that_are_no_scans(scan: str) -> None:
    with pytest.raises(ValueError, match=r"scan must be named like scene0000_00.*got"):
        scannet_split(scan)


def test_a_scan_in_the_wrong_split_is_refused(scannet: Path) -> None:
    shutil.copytree(scannet / SCAN, scannet / "train" / "scene0011_00")
    with pytest.raises(BadFileError, match=r"scene0011_00: lies in train, but officially belongs to val"):
        ScanNet(scannet)
    (scannet / "train" / "scene0011_00").rename(scannet / "train" / "scene0012_00")
    assert ScanNet(scannet).ids == ["scene0012_00", "scene9000_00"]


# Limited reconstructions and annotations


def test_scene_lists_choose_and_order(scannet: Path, tmp_path: Path) -> None:
    shutil.copytree(scannet / SCAN, scannet / "train" / "scene0012_00")
    names = tmp_path / "20.txt"
    names.write_text("scene9000_00\n\n")
    assert ScanNet(scannet, scenes_list=names).ids == ["scene9000_00"]
    names.write_text("scene9000_00\nscene0012_00\nscene0013_00\n")
    with pytest.raises(MissingDataError, match=r"scenes of 20\.txt: 1 file\(s\)(.|\n)*scene0013_00"):
        ScanNet(scannet, scenes_list=names)
    with pytest.raises(MissingDataError, match=r"scene list of ScanNet(.|\n)*5\.txt"):
        ScanNet(scannet, scenes_list=tmp_path / "5.txt")


@pytest.mark.parametrize("form", ["torch-lists", "torch-arrays", "torch-unsigned", "torch-tensors", "json"])
def test_labelled_points_are_the_only_ones_left(scannet: Path, tmp_path: Path, form: str) -> None:
    full = ScanNet(scannet)[0].segment
    rows = (full >= 0).nonzero().flatten()[::100][:20]
    path = tmp_path / ("points20.json" if form == "json" else "points20")
    if form == "json":
        path.write_text(json.dumps({"scene9000_00": rows.tolist()}))
    else:
        arrays = {"torch-arrays": rows.numpy(), "torch-unsigned": rows.numpy().astype(np.uint32)}
        make = {"torch-lists": rows.tolist(), **arrays, "torch-tensors": rows}
        torch.save({"scene9000_00": make[form]}, path)
    cloud = ScanNet(scannet, labelled_points=path)[0]
    assert (cloud.segment >= 0).nonzero().flatten().tolist() == rows.tolist()
    assert torch.equal(cloud.segment[rows], full[rows])
    for transform in (RandomDropout(0.9, 1.0), GridSample(0.5)):
        kept = transform(cloud, torch.Generator().manual_seed(0))
        assert len(kept) < len(cloud)
        assert sorted(kept.segment[kept.segment >= 0].tolist()) == sorted(full[rows].tolist())


def test_bad_labelled_points(scannet: Path, tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"scene9000_00": [3029]}))
    with pytest.raises(BadFileError, match="has 3029 points, labelled_points names 3029 to 3029"):
        ScanNet(scannet, labelled_points=path)[0]
    path.write_text("{}")
    with pytest.raises(MissingDataError, match=r"labelled points of scans in points\.json(.|\n)*scene9000_00"):
        ScanNet(scannet, labelled_points=path)
    path.write_text("[1]")
    with pytest.raises(BadFileError, match="must hold a dictionary from scans to rows"):
        ScanNet(scannet, labelled_points=path)
    evil = tmp_path / "points20"
    torch.save({"scene9000_00": Path("x")}, evil)  # asks for a class that is not part of an array
    with pytest.raises(BadFileError, match="must hold a dictionary from scans to rows"):
        ScanNet(scannet, labelled_points=evil)


# Splits and bad files


def test_splits_are_folders_lists_and_json(scannet: Path) -> None:
    shutil.copytree(scannet / SCAN, scannet / "val" / "scene0011_00")
    assert ScanNet(scannet, ["train", "val"]).ids == ["scene9000_00", "scene0011_00"]
    (scannet / "mine.json").write_text('["val/scene0011_00"]')
    assert ScanNet(scannet, "mine.json").ids == ["scene0011_00"]
    (scannet / "mine.json").write_text('["val/scene0012_00"]')
    with pytest.raises(MissingDataError, match="scene0012_00"):
        ScanNet(scannet, "mine.json")
    (scannet / "mine.json").write_text("{}")
    with pytest.raises(BadFileError, match="must be a list of scene folders"):
        ScanNet(scannet, "mine.json")
    with pytest.raises(ValueError, match="split must name at least one folder"):
        ScanNet(scannet, [])
    with pytest.raises(ValueError, match="classes must be 20 or 200, got 40"):
        ScanNet(scannet, classes=40)
    shutil.copytree(scannet / SCAN, scannet / "more" / "scene9000_00")
    with pytest.raises(BadFileError, match=r"train/scene9000_00: there is another scene of this name, .*more"):
        ScanNet(scannet, ["train", "more"])


def test_what_is_missing_is_said(scannet: Path) -> None:
    with pytest.raises(MissingDataError, match=r"scannet/val(.|\n)*www\.scan-net\.org(.|\n)*terms: ScanNet"):
        ScanNet(scannet, "val")
    (scannet / "val").mkdir()
    with pytest.raises(MissingDataError, match=r"no scenes(.|\n)*coord\.npy"):
        ScanNet(scannet, "val")
    with pytest.raises(MissingDataError, match=r"structured3d-dataset\.org"):
        Structured3D(scannet, "test")


def test_absent_attributes_are_none(scannet: Path) -> None:
    for name in ("color", "normal", "segment20", "instance"):
        (scannet / SCAN / f"{name}.npy").unlink()
    cloud = ScanNet(scannet)[0]
    assert (cloud.rgb, cloud.normal, cloud.segment, cloud.instance) == (None, None, None, None)
    assert ScanNet(scannet, classes=200).classes == SCANNET200
    assert collate([cloud, cloud]).segment is None


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("coord", np.zeros((3, 2), np.float32), r"finite floats of shape \(N, 3\)"),
        ("coord", np.full((3029, 3), np.nan, np.float32), "finite floats"),
        ("coord", np.zeros((3029, 3), np.int32), "finite floats"),
        ("color", np.zeros((5, 3), np.uint8), r"has shape \(5, 3\), coord \(3029, 3\)"),
        ("color", np.full((3029, 3), 256.0), "colours from 0 to 255"),
        ("color", np.full((3029, 3), -0.1, np.float32), "or floats from 0 to 1"),
        ("color", np.full((3029, 3), np.nan, np.float32), "or floats from 0 to 1"),
        ("normal", np.zeros((3029,), np.float32), r"has shape \(3029,\)"),
        ("segment20", np.zeros(3029, np.float32), "must hold 3029 integers"),
        ("segment20", np.full(3029, 20), r"has classes 20 to 20, expected -1 \(none\) to 19"),
        ("segment20", np.full(3029, -100), "has classes -100"),
        ("segment20", np.full(3029, 1, dtype=object), r"holds Python objects .* label\.astype\(numpy\.int64\)"),
        ("instance", np.zeros(7, np.int64), "must hold 3029 integers"),
    ],
)
def test_bad_arrays_are_named(scannet: Path, name: str, values: np.ndarray, message: str) -> None:
    np.save(scannet / SCAN / f"{name}.npy", values)
    with pytest.raises(BadFileError, match=rf"{name}\.npy: .*{message}"):
        ScanNet(scannet)[0]


@pytest.mark.parametrize(("dtype", "factor"), [("uint8", 1), ("float32", 1), ("float32", 255), ("float64", 255)])
def test_colours_of_either_range(scannet: Path, dtype: str, factor: float) -> None:
    path = scannet / SCAN / "color.npy"
    stored = np.load(path)
    np.save(path, (stored / factor).astype(dtype))
    np.testing.assert_allclose(ScanNet(scannet)[0].rgb.numpy(), stored / 255, atol=1e-6)
    # Integers count to 255, however dark.
    np.save(path, (stored > 0).astype(np.uint8))
    assert ScanNet(scannet)[0].rgb.max() == np.float32(1 / 255)


def test_normals_that_are_not_known_are_zero(scannet: Path) -> None:
    path = scannet / SCAN / "normal.npy"
    stored = np.load(path)
    stored[3], stored[5, 1] = np.nan, np.inf
    np.save(path, stored)
    expected = stored.copy()
    expected[[3, 5]] = 0
    np.testing.assert_array_equal(ScanNet(scannet)[0].normal.numpy(), expected)
    stored = np.full_like(expected, -1)
    np.save(path, stored)  # none, as an 8-bit picture of normals says it
    np.testing.assert_array_equal(ScanNet(scannet)[0].normal.numpy(), stored)
    np.save(path, (127 * expected).round().astype(np.int8))  # as some store them, who have to divide them
    with pytest.raises(BadFileError, match=r"normal\.npy: must hold normals of length 1, .* has int8 up to 127"):
        ScanNet(scannet)[0]


def test_truncated_and_vanished_files_are_named(scannet: Path) -> None:
    scans = ScanNet(scannet)
    path = scannet / SCAN / "normal.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadFileError, match=r"normal\.npy: not a readable \.npy file"):
        scans[0]
    (scannet / SCAN / "coord.npy").unlink()
    with pytest.raises(BadFileError, match=r"coord\.npy: is not there"):
        scans[0]


def test_scenes_on_another_disk_are_found(scannet: Path, tmp_path: Path) -> None:
    other = tmp_path / "disk" / "scene0012_00"
    other.parent.mkdir()
    (scannet / SCAN).rename(other)
    (scannet / SCAN.parent / "scene0012_00").symlink_to(other, target_is_directory=True)
    (scannet / "more").symlink_to(other.parent, target_is_directory=True)
    assert ScanNet(scannet).ids == ScanNet(scannet, "more").ids == ["scene0012_00"]


def test_own_scenes_with_own_classes(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        (tmp_path / "all" / name).mkdir(parents=True)
        np.save(tmp_path / "all" / name / "coord.npy", np.ones((2, 3)))
        np.save(tmp_path / "all" / name / "segment.npy", np.array([0, 1]))
    scenes = SceneFolder(tmp_path, "all", classes=["ground", "tree"])
    assert scenes.ids == ["a", "c"]
    assert scenes[1].xyz.dtype == torch.float32
    assert "2 scenes, 2 classes" in repr(scenes)


def test_far_coordinates_keep_their_millimetres(scannet: Path) -> None:
    path = scannet / SCAN / "coord.npy"
    stored = np.load(path) + np.array([500_000.5, 5_400_000.25, 100])
    np.save(path, stored)
    cloud = ScanNet(scannet)[0]
    restored = cloud.xyz.double().numpy() + np.array(cloud.meta["origin"])
    assert np.abs(restored - stored).max() < 1e-3
