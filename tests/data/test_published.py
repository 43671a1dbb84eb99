from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pc3d.data import (
    SHAPENET55,
    SHAPENET_PARTS,
    BadFileError,
    Household,
    MissingDataError,
    ModelNetC,
    ModelNetCache,
    ModelNetHDF5,
    ModelNetMeshes,
    ModelNetResampled,
    Normalize,
    ScanObjectNN,
    ShapeNet55,
    ShapeNetPart,
    ShapeNetSTRL,
    collate,
    split_train_validation,
)


@pytest.mark.parametrize(
    "make", [ModelNetMeshes, ModelNetResampled, ModelNetHDF5, ModelNetCache, ShapeNet55, ShapeNetPart, ScanObjectNN]
)
def test_a_missing_set_says_what_where_and_under_which_terms(tmp_path: Path, make: type) -> None:
    with pytest.raises(MissingDataError) as caught:
        make(tmp_path / "nowhere")
    message = str(caught.value)
    assert make.__name__ in message
    assert f"looked for in: {tmp_path / 'nowhere'}" in message
    assert make.source in message
    assert make.terms in message
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    "make", [ModelNetMeshes, ModelNetResampled, ModelNetHDF5, ModelNetCache, ShapeNet55, ShapeNetPart, ScanObjectNN]
)
def test_unknown_split_and_error_policy(tmp_path: Path, make: type, assets: Path) -> None:
    with pytest.raises(ValueError, match=r"split must be .*got 'validation'"):
        make(tmp_path, "validation")


# ModelNet


def test_modelnet_meshes(assets: Path) -> None:
    train, test = (ModelNetMeshes(assets / "modelnet_off", split, num_points=500) for split in ("train", "test"))
    assert train.classes == test.classes == ("chair", "lamp")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert [train[i].meta["id"] for i in range(4)] == ["chair_0001", "chair_0002", "lamp_0001", "lamp_0002"]
    assert test.labels.tolist() == [0, 1]
    assert train[1].xyz.shape == (500, 3)
    assert torch.equal(train[1].xyz, train[1].xyz)
    seeded = ModelNetMeshes(assets / "modelnet_off", "train", num_points=500, seed=1)
    assert not torch.equal(train[1].xyz, seeded[1].xyz)


def test_modelnet_mesh_without_faces_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "chair" / "train"
    folder.mkdir(parents=True)
    (folder / "chair_0001.off").write_text("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n")
    with pytest.raises(BadFileError, match=r"chair_0001\.off: is an empty mesh: it has no faces to sample points from"):
        ModelNetMeshes(tmp_path, "train", num_points=3)[0]
    assert len(ModelNetMeshes(tmp_path, "train", on_error="report").skipped) == 1


def test_modelnet_resampled(assets: Path) -> None:
    root = assets / "modelnet_resampled"
    train = ModelNetResampled(root, "train", transform=Normalize())
    assert len(train) == 4
    assert train.classes == ("chair", "lamp")
    assert train.labels.tolist() == [0, 0, 1, 1]
    raw = np.loadtxt(root / "lamp" / "lamp_0001.txt", delimiter=",")
    cloud = train.load(2)
    np.testing.assert_allclose(cloud.xyz.numpy(), raw[:, :3], atol=1e-6)
    np.testing.assert_allclose(cloud.normal.numpy(), raw[:, 3:], atol=1e-6)
    assert train[2].xyz.norm(dim=1).max().item() == pytest.approx(1, abs=1e-6)
    assert ModelNetResampled(root, "test", variant="modelnet10").labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="variant must be"):
        ModelNetResampled(root, variant="modelnet20")


def test_lists_with_a_byte_order_mark(tmp_path: Path, assets: Path, shapenetpart: Path) -> None:
    """As editors for Windows save them."""
    for root, make in ((assets / "modelnet_resampled", ModelNetResampled), (shapenetpart, ShapeNetPart)):
        marked = tmp_path / f"marked {root.name}"
        shutil.copytree(root, marked)
        for path in (*marked.rglob("*.txt"), *marked.rglob("*.json")):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        first, second = make(root, "train"), make(marked, "train")
        assert first.classes == second.classes
        assert all(torch.equal(first[i].xyz, second[i].xyz) for i in range(len(first)))


def test_modelnet_class_names_with_underscores(tmp_path: Path, assets: Path) -> None:
    shutil.copytree(assets / "modelnet_resampled" / "chair", tmp_path / "night_stand")
    (tmp_path / "night_stand" / "chair_0001.txt").rename(tmp_path / "night_stand" / "night_stand_0001.txt")
    (tmp_path / "modelnet40_shape_names.txt").write_text("airplane\nnight_stand\n")
    (tmp_path / "modelnet40_train.txt").write_text("night_stand_0001\n\n")
    assert ModelNetResampled(tmp_path).labels.tolist() == [1]
    (tmp_path / "modelnet40_train.txt").write_text("stand_0001\n")
    with pytest.raises(BadFileError, match="'stand_0001' belongs to none of the classes"):
        ModelNetResampled(tmp_path)
    (tmp_path / "modelnet40_train.txt").write_text("".join(f"night_stand_{i:04}\n" for i in range(1, 10)))
    with pytest.raises(MissingDataError, match=r"8 file\(s\).*\n.*night_stand_0002.txt(\n.*)*and 3 more"):
        ModelNetResampled(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("0,0,0,0,0,1\n1,1,1\n", "not a table of 6 columns"),
        ("0,0,0,0,0,1\n1,1,1,0,0,x\n", "not a table of 6 columns"),
        ("0,0,0\n1,1,1\n", r"table of shape \(2, 3\)"),
        ("0,0,0,0,0,1\nnan,1,1,0,0,1\n", "not finite"),
        ("<html>\n", "not a table"),
    ],
)
def test_bad_modelnet_text_is_refused_or_reported(tmp_path: Path, assets: Path, content: str, message: str) -> None:
    root = tmp_path / "modelnet"
    shutil.copytree(assets / "modelnet_resampled", root)
    bad = root / "chair" / "chair_0002.txt"
    bad.write_text(content)
    refusing = ModelNetResampled(root, "train")
    assert len(refusing[0]) == 1000
    with pytest.raises(BadFileError, match=message) as caught:
        refusing[1]
    assert caught.value.path == bad
    reporting = ModelNetResampled(root, "train", on_error="report")
    assert len(reporting) == 3
    assert reporting.labels.tolist() == [0, 1, 1]
    assert [file.path for file in reporting.skipped] == [bad]
    assert reporting.skipped[0].reason == caught.value.reason
    assert reporting[1].meta["id"] == "lamp_0001"
    with pytest.raises(ValueError, match="on_error must be 'refuse' or 'report', got 'ignore'"):
        ModelNetResampled(root, "train", on_error="ignore")


def test_modelnet_hdf5_in_file_order(modelnet_hdf5: Path, household: Household) -> None:
    train, test = ModelNetHDF5(modelnet_hdf5), ModelNetHDF5(modelnet_hdf5, "test")
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert test.labels.tolist() == [0, 1, 2]
    for row in range(6):
        assert torch.equal(train[row].xyz, household[row].xyz)
    assert train[4].meta["id"] == "ply_data_train1/0"
    assert train.classes == ("airplane", "bathtub", "bed")
    assert collate([train[0], train[5]]).dense("normal").shape == (2, 2048, 3)


def test_bad_modelnet_hdf5(modelnet_hdf5: Path) -> None:
    (modelnet_hdf5 / "train_files.txt").write_text("ply_data_train0.h5\nply_data_train1.h5\nply_data_train2.h5\n")
    with pytest.raises(MissingDataError, match=r"ply_data_train2\.h5"):
        ModelNetHDF5(modelnet_hdf5)
    (modelnet_hdf5 / "train_files.txt").unlink()
    path = modelnet_hdf5 / "ply_data_train1.h5"
    with h5py.File(path, "r+") as file:
        data = file["data"][()]
        data[1, 7] = np.nan
        file["data"][...] = data
    with pytest.raises(BadFileError, match=r"item ply_data_train1/1 has coordinates that are not finite .*report"):
        ModelNetHDF5(modelnet_hdf5)
    reporting = ModelNetHDF5(modelnet_hdf5, on_error="report")
    assert reporting.labels.tolist() == [0, 1, 2, 0, 1]
    assert "ply_data_train1/1" in reporting.skipped[0].reason
    for key, value, message in [
        ("data", np.zeros((2, 3, 2048), np.float32), r"data has shape \(2, 3, 2048\)"),
        ("label", np.zeros(3), r"label \(3,\)"),
        ("label", np.array([0, 7]), "labels go from 0 to 7"),
        ("label", np.array([0, 1.5]), r"labels must be whole numbers, found 1\.5"),
        ("label", np.array([b"chair", b"bed"]), "labels must be numbers, found values of type"),
        ("data", np.zeros((2, 1024, 3), np.float32), "differ in points per object"),
    ]:
        with h5py.File(path, "w") as file:
            file.update({"data": np.zeros((2, 2048, 3), np.float32), "label": np.zeros(2)} | {key: value})
        with pytest.raises(BadFileError, match=message):
            ModelNetHDF5(modelnet_hdf5)
    with h5py.File(path, "w") as file:
        file["points"] = data
    with pytest.raises(BadFileError, match=r"keys \['data', 'label'\] are missing; it has \['points'\]"):
        ModelNetHDF5(modelnet_hdf5)
    with h5py.File(path, "w") as file:
        file.create_group("data")
        file["label"] = np.zeros(2)
    with pytest.raises(BadFileError, match=r"ply_data_train1\.h5: keys \['data'\] are groups"):
        ModelNetHDF5(modelnet_hdf5)
    path.write_bytes(b"")
    with pytest.raises(BadFileError, match=r"ply_data_train1\.h5: cannot be read as HDF5"):
        ModelNetHDF5(modelnet_hdf5)


def test_the_list_of_modelnet_hdf5_files_decides(modelnet_hdf5: Path) -> None:
    (modelnet_hdf5 / "train_files.txt").write_text("data/modelnet40_ply_hdf5_2048/ply_data_train1.h5\r\n" * 2)
    assert [item.meta["id"] for item in ModelNetHDF5(modelnet_hdf5)] == ["ply_data_train1/0", "ply_data_train1/1"]


def test_a_modelnet_hdf5_file_without_objects(modelnet_hdf5: Path) -> None:
    with h5py.File(modelnet_hdf5 / "ply_data_train1.h5", "w") as file:
        file.update({"data": np.zeros((0, 2048, 3), np.float32), "label": np.zeros(0)})
    assert ModelNetHDF5(modelnet_hdf5).labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(("content", "reason"), [(b"ta\xdfle\n", "is not text in UTF-8"), (b"\n", "is an empty list")])
def test_a_list_that_is_none_is_named(modelnet_hdf5: Path, content: bytes, reason: str) -> None:
    (modelnet_hdf5 / "shape_names.txt").write_bytes(content)
    with pytest.raises(BadFileError, match=rf"shape_names\.txt: {reason}"):
        ModelNetHDF5(modelnet_hdf5)


def test_modelnet_cache(tmp_path: Path, household: Household) -> None:
    clouds = [torch.cat([household[i].xyz, household[i].normal], dim=1).numpy() for i in range(3)]
    labels = [np.array([i % 2], dtype=np.int32) for i in range(3)]
    path = tmp_path / "modelnet40_train_8192pts_fps.dat"
    path.write_bytes(pickle.dumps([clouds, labels]))
    (tmp_path / "modelnet40_shape_names.txt").write_text("airplane\nbathtub\n")
    cache = ModelNetCache(tmp_path)
    assert cache.labels.tolist() == [0, 1, 0]
    assert torch.equal(cache[2].xyz, household[2].xyz)
    assert torch.equal(cache[2].normal, household[2].normal)
    for content, message in [
        ([clouds, labels[:2]], "as many clouds"),
        ([[cloud[:, :2] for cloud in clouds], labels], "as many clouds"),
        ({"a": 1}, "not a pair"),
        (5, "not a pair"),
    ]:
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(BadFileError, match=message):
            ModelNetCache(tmp_path)
    path.write_bytes(pickle.dumps([clouds, labels])[:-100])
    with pytest.raises(BadFileError, match="not a pickle of NumPy arrays"):
        ModelNetCache(tmp_path)


def test_modelnet_c_by_the_names_of_its_files(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(40)]
    clouds = {
        name: np.random.default_rng(k).random((2, 9 - k, 3)) for k, name in enumerate(("clean", "dropout_local_4"))
    }
    for name, data in clouds.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.update({"data": data, "label": np.array([[39], [4]])})
    clean, holes = ModelNetC(tmp_path, classes=names), ModelNetC(tmp_path, "drop_local", 5, classes=names)
    assert clean.labels.tolist() == holes.labels.tolist() == [39, 4]
    np.testing.assert_array_equal(clean[1].xyz.numpy(), clouds["clean"][1].astype(np.float32))
    np.testing.assert_array_equal(holes[0].xyz.numpy(), clouds["dropout_local_4"][0].astype(np.float32))
    with pytest.raises(MissingDataError, match=r"dropout_global_0\.h5"):
        ModelNetC(tmp_path, "drop_global", 1, classes=names)
    for wrong in (("fog", 1), ("scale", 0), ("density", 1)):
        with pytest.raises(ValueError, match="corruption must be 'clean' or one of scale, jitter"):
            ModelNetC(tmp_path, *wrong, classes=names)


# ShapeNet


def test_shapenet55(assets: Path) -> None:
    train, test = ShapeNet55(assets / "shapenet55"), ShapeNet55(assets / "shapenet55", "test")
    assert len(train.classes) == 55
    assert [train.classes[i] for i in train.labels] == ["chair", "lamp"]
    assert [train.synsets[i] for i in test.labels] == ["03001627", "03636649"]
    cloud = train[0]
    assert cloud.xyz.shape == (8192, 3)
    np.testing.assert_array_equal(
        cloud.xyz.numpy(), np.load(assets / "shapenet55" / "shapenet_pc" / "03001627-94ab4f76920d2d1c.npy")
    )
    assert list(SHAPENET55) == sorted(SHAPENET55)
    # Both lists, on which PCP-MAE pre-trains: no object twice, none left out.
    everything = ShapeNet55(assets / "shapenet55", "all")
    assert sorted(map(str, everything.paths)) == sorted(map(str, [*train.paths, *test.paths]))
    assert everything.labels.tolist() == [*train.labels.tolist(), *test.labels.tolist()]
    with pytest.raises(ValueError, match="split must be 'train', 'test' or 'all', got 'val'"):
        ShapeNet55(assets / "shapenet55", "val")  # type: ignore[arg-type]


def test_shapenet55_lists_decide(tmp_path: Path, assets: Path) -> None:
    shutil.copytree(assets / "shapenet55", tmp_path / "s")
    points = tmp_path / "s" / "shapenet_pc"
    np.save(points / "99999999-abc.npy", np.zeros((10, 3)))  # not in a list: not part of the data set
    assert len(ShapeNet55(tmp_path / "s")) == 2
    with (tmp_path / "s" / "ShapeNet-55" / "train.txt").open("a") as listing:
        listing.write("99999999-abc.npy\n")
    longer = ShapeNet55(tmp_path / "s")
    assert longer.labels.tolist() == [18, 30, 55]
    assert longer.classes[55] == "99999999"
    np.save(points / "99999999-abc.npy", np.full((10, 3), np.inf))
    with pytest.raises(BadFileError, match="not finite"):
        longer[2]
    np.save(points / "99999999-abc.npy", np.zeros((10, 4)))
    with pytest.raises(BadFileError, match=r"shape \(10, 4\)"):
        longer[2]
    (points / "99999999-abc.npy").write_bytes(b"\x93NUMPY\x01")
    assert [file.path.name for file in ShapeNet55(tmp_path / "s", on_error="report").skipped] == ["99999999-abc.npy"]
    (points / "99999999-abc.npy").unlink()
    with pytest.raises(MissingDataError, match=r"99999999-abc\.npy"):
        ShapeNet55(tmp_path / "s")


def test_shapenet_of_strl(tmp_path: Path) -> None:
    path, data = tmp_path / "shapenet57448xyzonly.npz", np.random.default_rng(0).random((3, 20, 6))
    np.savez_compressed(path, data=data)
    shapes = ShapeNetSTRL(path)
    assert shapes.labels.tolist() == [-1, -1, -1]
    np.testing.assert_array_equal(shapes[2].xyz.numpy(), data[2, :, :3].astype(np.float32))
    assert shapes[2].meta["id"] == "shapenet57448xyzonly/2"
    data[1, 3] = np.nan
    np.savez(path, data=data)
    with pytest.raises(BadFileError, match="item shapenet57448xyzonly/1 has coordinates that are not finite"):
        ShapeNetSTRL(path)
    assert len(ShapeNetSTRL(path, on_error="report")) == 2
    for content in ({"points": data}, {"data": data[0]}, {"data": data[:, :, :2]}):
        np.savez(path, **content)
        with pytest.raises(BadFileError, match=r"'data'|data has shape"):
            ShapeNetSTRL(path)
    for raw in (b"", b"PK\x03\x04 and no more"):
        path.write_bytes(raw)
        with pytest.raises(BadFileError, match=r"cannot be read as \.npz"):
            ShapeNetSTRL(path)
    with pytest.raises(MissingDataError, match=r"github\.com/yichen928/STRL"):
        ShapeNetSTRL(tmp_path / "nowhere.npz")


def test_shapenetpart(shapenetpart: Path, household: Household) -> None:
    sizes = {split: len(ShapeNetPart(shapenetpart, split)) for split in ("train", "val", "trainval", "test")}
    assert sizes == {"train": 4, "val": 2, "trainval": 6, "test": 2}
    train = ShapeNetPart(shapenetpart, "train")
    assert train.classes == ("Table", "Chair")
    assert train.labels.tolist() == [0, 0, 1, 1]
    table = household[int((household.labels == household.classes.index("table")).nonzero()[0])]
    cloud = train[0]
    torch.testing.assert_close(cloud.xyz, table.xyz[:300], atol=1e-6, rtol=0)
    assert torch.equal(cloud.segment, (table.xyz[:300, 2] > 0).long())
    assert set(train[2].segment.tolist()) == {2, 3}
    batch = collate([train[i] for i in range(4)])
    assert batch.lengths.tolist() == [300, 350, 300, 350]


def test_shapenetpart_names_and_limits_the_official_parts(shapenetpart: Path) -> None:
    covered = [part for first, last in SHAPENET_PARTS.values() for part in range(first, last + 1)]
    assert covered == list(range(50))
    lines = [f"{name}\t{90000001 + i}" for i, name in enumerate(SHAPENET_PARTS)]
    (shapenetpart / "synsetoffset2category.txt").write_text("\n".join(lines))
    official = ShapeNetPart(shapenetpart, "train")
    assert len(official.parts) == 50
    assert official.parts[3:5] == ("Airplane 3", "Bag 0")
    path = official.paths[0]
    table = np.loadtxt(path)
    for value, message in [(50, "has part 50"), (-1, "counting numbers"), (0.5, "counting numbers")]:
        table[5, 6] = value
        np.savetxt(path, table)
        with pytest.raises(BadFileError, match=message):
            official[0]


def test_shapenetpart_of_other_categories_has_the_parts_of_all_splits(shapenetpart: Path) -> None:
    """By hand: numbers 0 and 1 of tables, 2 and 3 of chairs; one test object alone has an 8, one chair a 1."""
    for split, synset, number, part in (("test", 90000001, 3, 8), ("train", 90000002, 0, 1)):
        path = shapenetpart / str(synset) / f"model{number}.txt"
        table = np.loadtxt(path)
        table[0, 6] = part
        np.savetxt(path, table, fmt="%.6f")
        dataset = ShapeNetPart(shapenetpart, split)  # type: ignore[arg-type]
        assert part in {int(value) for i in range(len(dataset)) for value in dataset[i].segment}
    for split in ("train", "val", "test"):
        dataset = ShapeNetPart(shapenetpart, split)  # type: ignore[arg-type]
        assert dataset.category_parts == ((0, 1, 8), (1, 2, 3))
        assert dataset.parts == (
            "Table 0",
            "part 1",
            "Chair 1",
            "Chair 2",
            *(f"part {n}" for n in (4, 5, 6, 7)),
            "Table 8",
        )
    bad = shapenetpart / "90000001" / "model0.txt"
    bad.write_text("1 2 3\n")
    with pytest.raises(BadFileError, match="7 columns are expected"):
        ShapeNetPart(shapenetpart, "test")
    reported = ShapeNetPart(shapenetpart, "train", on_error="report")
    assert [file.path for file in reported.skipped] == [bad]
    assert reported.category_parts[0] == (0, 1, 8)
    bad.unlink()
    with pytest.raises(MissingDataError, match="model0"):
        ShapeNetPart(shapenetpart, "test")


def test_bad_shapenetpart_lists(shapenetpart: Path) -> None:
    listing = shapenetpart / "train_test_split" / "shuffled_train_file_list.json"
    for content, message in [
        ("[1", "not a JSON list"),
        (json.dumps(["model0"]), "'model0' is not shape_data/SYNSET/MODEL"),
        (json.dumps(["shape_data/123/model0"]), "with a known synset"),
    ]:
        listing.write_text(content)
        with pytest.raises(BadFileError, match=message):
            ShapeNetPart(shapenetpart, "train")
    for content, message in [
        ("Table\n", "a name and a synset on each line"),
        ("Table\t90000001\nDesk\t90000001\n", "a name or a synset twice"),
    ]:
        (shapenetpart / "synsetoffset2category.txt").write_text(content)
        with pytest.raises(BadFileError, match=message):
            ShapeNetPart(shapenetpart, "test")


def test_shapenetpart_names_of_several_words(shapenetpart: Path) -> None:
    (shapenetpart / "synsetoffset2category.txt").write_bytes(b"Coffee table\t90000001\r\nChair\t90000002\r\n")
    assert ShapeNetPart(shapenetpart, "train").classes == ("Coffee table", "Chair")


def test_a_wrong_part_number_does_not_make_billions_of_parts(shapenetpart: Path) -> None:
    path = shapenetpart / "90000001" / "model0.txt"
    table = np.loadtxt(path)
    table[0, 6] = 4e9
    np.savetxt(path, table, fmt="%.6f")
    with pytest.raises(BadFileError, match=r"model0\.txt: has part 4000000000, and a data set has at most 10,000"):
        ShapeNetPart(shapenetpart, "train")


# ScanObjectNN


@pytest.mark.parametrize("variant", ["obj_bg", "pb_t50_rs"])
def test_scanobjectnn_with_background(scanobjectnn: Path, household: Household, variant: str) -> None:
    train = ScanObjectNN(scanobjectnn, variant=variant)
    assert len(train.classes) == 15
    assert [train.classes[i] for i in train.labels] == ["cabinet", "chair", "table"] * 2
    assert torch.equal(train[1].xyz, household[1].xyz)
    assert train[1].segment.tolist() == [1] * 1024 + [0] * 1024
    assert train.parts == ("background", "object")
    only = ScanObjectNN(scanobjectnn, "test", variant=variant, object_points_only=True)
    assert torch.equal(only[1].xyz, household[1].xyz[:1024])


def test_scanobjectnn_without_background(scanobjectnn: Path) -> None:
    only = ScanObjectNN(scanobjectnn, variant="obj_only")
    assert only[0].segment is None
    assert only.path.parent.name == "main_split_nobg"
    with pytest.raises(BadFileError, match="no key 'mask'"):
        ScanObjectNN(scanobjectnn, variant="obj_only", object_points_only=True)
    flat = ScanObjectNN(scanobjectnn / "main_split")
    assert len(flat) == 6
    # A folder that holds background must not pass for the variant without.
    with pytest.raises(
        MissingDataError, match=r"ScanObjectNN obj_only(.*\n)*.*object_points_only=True takes the object"
    ):
        ScanObjectNN(scanobjectnn / "main_split", variant="obj_only")
    assert len(ScanObjectNN(scanobjectnn / "main_split_nobg", variant="obj_only")) == 6
    for root, fold in ((scanobjectnn / "main_split_nobg", "main_split"), (scanobjectnn, "main_split_nobg")):
        with pytest.raises(ValueError, match=r"'obj_bg' has the background, and .*_nobg is the folder without"):
            ScanObjectNN(root, fold=fold)
    # The folder without background holds files of the perturbed variants, too, by the same names.
    perturbed = scanobjectnn / "main_split_nobg" / "training_objectdataset_augmentedrot_scale75.h5"
    perturbed.write_bytes(only.path.read_bytes())
    with pytest.raises(ValueError, match=r"'pb_t50_rs' has the background, and .*_nobg is the folder without"):
        ScanObjectNN(perturbed.parent, variant="pb_t50_rs")
    assert ScanObjectNN(scanobjectnn, variant="pb_t50_rs", fold="main_split_nobg").path == perturbed


def test_scanobjectnn_of_other_classes_names_them_in_a_file(scanobjectnn: Path) -> None:
    for place in sorted(scanobjectnn.glob("*/training_objectdataset.h5")):
        with h5py.File(place, "r+") as file:
            file["label"][:] = np.arange(6) * 4
    with pytest.raises(BadFileError, match=r"labels go to 20, and ScanObjectNN has 15 classes: .*shape_names\.txt"):
        ScanObjectNN(scanobjectnn)
    (scanobjectnn / "shape_names.txt").write_text("".join(f"class {k}\n" for k in range(21)))
    for variant in ("obj_bg", "obj_only"):
        own = ScanObjectNN(scanobjectnn, variant=variant)  # type: ignore[arg-type]
        assert [own.classes[k] for k in own.labels] == [f"class {k}" for k in range(0, 21, 4)]


def test_scans_of_one_item_stay_on_one_side_of_a_split(scanobjectnn: Path) -> None:
    path = scanobjectnn / "main_split" / "training_objectdataset.h5"
    with h5py.File(path, "r+") as file:
        file["item"] = [b"cupboard", b"stool", b"desk", b"cupboard", b"stool", b"bench"]
        file["label"][:] = [3, 4, 4, 3, 4, 4]
    scans = ScanObjectNN(scanobjectnn)
    assert (scans.groups[:, None] == scans.groups).nonzero().tolist() == [
        *([0, 0], [0, 3], [1, 1], [1, 4], [2, 2]),
        *([3, 0], [3, 3], [4, 1], [4, 4], [5, 5]),
    ]
    for seed in range(5):
        train, validation = split_train_validation(scans, 0.5, seed)
        assert not set(train.groups.tolist()) & set(validation.groups.tolist())
    with h5py.File(path, "r+") as file:
        file["mask"][0] = -1
    left = ScanObjectNN(scanobjectnn, object_points_only=True, on_error="report")
    assert torch.equal(left.groups, scans.groups[1:])
    assert ScanObjectNN(scanobjectnn, "test").groups is None
    with h5py.File(path, "r+") as file:
        del file["item"]
        file["item"] = np.array([3, 1, 7, 3, 1, 2])[:, None]  # in a column, as labels are in some files
    assert torch.equal(ScanObjectNN(scanobjectnn).groups, torch.tensor([2, 0, 3, 2, 0, 1]))
    with h5py.File(path, "r+") as file:
        del file["item"]
        file["item"] = np.arange(5)
    with pytest.raises(BadFileError, match=r"item has shape \(5,\), expected one for each of 6 clouds"):
        ScanObjectNN(scanobjectnn)
    with h5py.File(path, "r+") as file:
        del file["item"]
        file["item"] = "one for all"
    with pytest.raises(BadFileError, match=r"item has shape \(\), expected one for each of 6 clouds"):
        ScanObjectNN(scanobjectnn)


def test_bad_scanobjectnn(scanobjectnn: Path) -> None:
    with pytest.raises(MissingDataError, match=r"main_split/training_objectdataset_augmented25rot\.h5"):
        ScanObjectNN(scanobjectnn, variant="pb_t25_r")
    with pytest.raises(ValueError, match=r"variant must be one of .*'pb_t50_rs'.*got 'hardest'"):
        ScanObjectNN(scanobjectnn, variant="hardest")
    with pytest.raises(BadFileError, match="labels go from 3 to 9, which does not go with the 3 classes a, b, c"):
        ScanObjectNN(scanobjectnn, classes=["a", "b", "c"])
    path = scanobjectnn / "main_split" / "training_objectdataset.h5"
    with h5py.File(path, "r+") as file:
        file["mask"][2] = -1
    with pytest.raises(BadFileError, match="item training_objectdataset/2 has no points"):
        ScanObjectNN(scanobjectnn, object_points_only=True)
    assert len(ScanObjectNN(scanobjectnn, object_points_only=True, on_error="report")) == 5
    with h5py.File(path, "r+") as file:
        del file["mask"]
        file["mask"] = np.zeros((6, 100))
    with pytest.raises(BadFileError, match=r"mask has shape \(6, 100\)"):
        ScanObjectNN(scanobjectnn)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadFileError, match="cannot be read as HDF5"):
        ScanObjectNN(scanobjectnn)
