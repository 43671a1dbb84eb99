from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from pc3d.data import BadFileError, FolderDataset, MissingDataError, PointLoader


@pytest.fixture
def folder(tmp_path: Path, assets: Path) -> Path:
    """Two classes with files of four formats, and what else lies about in such folders."""
    root = tmp_path / "folder"
    for name in ("bread", "crate"):
        (root / name / "deep").mkdir(parents=True)
        shutil.copy(assets / "meshes" / f"{name}.glb", root / name / "mesh.glb")
        shutil.copy(assets / "meshes" / f"{name}.stl", root / name / "deep" / "mesh.STL")
    shutil.copy(assets / "meshes" / "bread_points.ply", root / "bread")
    np.save(root / "crate" / "points.npy", np.random.default_rng(0).random((50, 3)))
    (root / "bread" / "LICENSE.txt").write_text("CC0")
    (root / "crate" / ".hidden.ply").write_text("")
    return root


def test_files_of_many_formats_by_class(folder: Path) -> None:
    objects = FolderDataset(folder, num_points=300)
    names = [path.relative_to(folder).as_posix() for path in objects.paths]
    assert names == [
        "bread/bread_points.ply",
        "bread/deep/mesh.STL",
        "bread/mesh.glb",
        "crate/deep/mesh.STL",
        "crate/mesh.glb",
        "crate/points.npy",
    ]
    assert objects.classes == ("bread", "crate")
    assert objects.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [len(objects[i]) for i in range(6)] == [4096, 300, 300, 300, 300, 50]
    assert objects[4].rgb is not None
    assert objects[4].label == 1
    assert objects.skipped == ()


def test_what_lies_about_may_be_excused_and_data_of_a_mesh_are(folder: Path) -> None:
    np.savetxt(folder / "crate" / "scan.csv", np.eye(3), delimiter=",", header="x,y,z", comments="")
    for name, data in trimesh.Scene([trimesh.creation.box()]).export(file_type="gltf").items():
        (folder / "bread" / name).write_bytes(data)
    objects = FolderDataset(folder, num_points=20)
    assert {path.name for path in objects.paths} >= {"scan.csv", "model.gltf"}
    assert len(objects) == 8
    assert len(FolderDataset(folder, ignore=(".csv", ".txt", ".gltf", ".bin"))) == 6
    (folder / "crate" / "scan.bin").write_bytes(b"12 bytes more")
    with pytest.raises(BadFileError, match=r"scan\.bin: has the ending '\.bin'"):
        FolderDataset(folder)


def test_sampling_of_a_file_does_not_depend_on_the_others(folder: Path) -> None:
    before = FolderDataset(folder)[4].xyz
    (folder / "bread" / "mesh.glb").unlink()
    assert torch.equal(FolderDataset(folder)[3].xyz, before)
    assert not torch.equal(FolderDataset(folder, seed=1)[3].xyz, before)


@pytest.mark.parametrize("split_first", [True, False])
def test_splits_above_or_below_the_classes(tmp_path: Path, split_first: bool) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            place = tmp_path / split / name if split_first else tmp_path / name / split
            place.mkdir(parents=True)
            np.save(place / f"{split}.npy", np.zeros((4, 3)))
    objects = FolderDataset(tmp_path, "test")
    assert [path.stem for path in objects.paths] == ["test", "test"]
    assert objects.classes == ("a", "b")
    with pytest.raises(MissingDataError, match="split 'val'"):
        FolderDataset(tmp_path, "val")


@pytest.mark.parametrize("split_first", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, split_first: bool, split: str) -> None:
    """Among construction bricks there are boats, planes and trains."""
    for number, (part, name) in enumerate((part, name) for part in ("train", "test") for name in ("boat", "train")):
        place = tmp_path / part / name if split_first else tmp_path / name / part
        place.mkdir(parents=True)
        np.save(place / f"{part}-{name}.npy", np.full((4, 3), float(number)))
    objects = FolderDataset(tmp_path, split)
    assert objects.classes == ("boat", "train")
    assert [path.stem for path in objects.paths] == [f"{split}-boat", f"{split}-train"]


@pytest.mark.parametrize("layout", ["{part}/{name}", "{name}/{part}"])
def test_splits_that_are_read_together_are_told(tmp_path: Path, layout: str, recwarn: pytest.WarningsRecorder) -> None:
    for part in ("train", "test"):
        for name in ("boat", "wheel"):
            place = tmp_path / layout.format(part=part, name=name)
            place.mkdir(parents=True)
            np.save(place / "one.npy", np.zeros((4, 3)))
    FolderDataset(tmp_path, "train")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"has splits, and all of them are read: .*--data\.train\.split train"):
        assert len(FolderDataset(tmp_path)) == 4


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    objects = FolderDataset(tmp_path)
    assert objects.classes == ()
    assert objects.labels.tolist() == [-1]


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="looked for in"):
        FolderDataset(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(MissingDataError, match=r"no files to read \(.*\.ply"):
        FolderDataset(tmp_path)
    with pytest.raises(ValueError, match=r"suffixes must be among .*got \['.doc'\]"):
        FolderDataset(tmp_path, suffixes=[".doc"])


def test_nothing_is_left_out_unnoticed(folder: Path) -> None:
    (folder / "crate" / "model.step").write_text("ISO-10303-21;")
    with pytest.raises(BadFileError, match=r"model\.step: has the ending '\.step'; 1 file\(s\) would be left out"):
        FolderDataset(folder)
    assert len(FolderDataset(folder, ignore=[".step", ".txt"])) == 6
    (folder / "bread" / "bad.ply").write_text("<html>")
    (folder / "bread" / "nan.npy").write_bytes(b"")
    objects = FolderDataset(folder, on_error="report")
    assert len(objects) == 6
    assert {file.path.name: file.reason[:20] for file in objects.skipped} == {
        "model.step": "has the ending '.ste",
        "bad.ply": "cannot be read as PL",
        "nan.npy": "is empty",
    }


def test_refusing_names_the_file_when_it_is_asked_for(folder: Path) -> None:
    bad = folder / "crate" / "points.npy"
    np.save(bad, np.full((5, 3), np.nan))
    objects = FolderDataset(folder)
    assert [file.path for file in objects.verify()] == [bad]
    with pytest.raises(BadFileError, match=r"crate/points\.npy: 5 of 5 points are not finite"):
        objects[5]


def test_an_error_of_a_file_survives_the_way_between_processes() -> None:
    error = BadFileError("a//b.ply", "is empty")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.path, again.reason) == (BadFileError, str(error), error.path, "is empty")
    whole = pickle.loads(pickle.dumps(BadFileError("Caught BadFileError in a//worker")))
    assert str(whole) == "Caught BadFileError in a//worker"


def test_a_worker_of_a_loader_names_the_bad_file(folder: Path) -> None:
    (folder / "bread" / "bad.ply").write_text("<html>")
    loader = PointLoader(FolderDataset(folder), batch_size=1, num_workers=1)
    with pytest.raises(BadFileError, match=r"bad\.ply: cannot be read as PLY"):
        list(loader)


@pytest.mark.parametrize("layout", ["classes", "split of classes", "classes of splits"])
@pytest.mark.parametrize("stray", ["loose.npy", "b.step"])
def test_files_beside_the_class_folders_are_not_dropped_unnoticed(tmp_path: Path, layout: str, stray: str) -> None:
    split = None if layout == "classes" else "train"
    folder = {"classes": "cup", "split of classes": "train/cup", "classes of splits": "cup/train"}[layout]
    (tmp_path / folder).mkdir(parents=True)
    np.save(tmp_path / folder / "a.npy", np.zeros((4, 3)))
    (tmp_path / folder).with_name("README.md").write_text("ignored by its ending")
    assert len(FolderDataset(tmp_path, split)) == 1
    for place in sorted({tmp_path, (tmp_path / folder).parent}):
        path = place / stray
        path.write_bytes((tmp_path / folder / "a.npy").read_bytes())
        with pytest.raises(BadFileError, match=f"{path}: lies beside the folders that hold the classes"):
            FolderDataset(tmp_path, split)
        objects = FolderDataset(tmp_path, split, on_error="report")
        assert [file.path for file in objects.skipped] == [path]
        assert len(objects) == 1
        path.unlink()
    (tmp_path / "b.step").write_text("")
    assert len(FolderDataset(tmp_path, split, ignore=[".step", ".md"])) == 1


def test_an_ignored_ending_that_is_read_is_refused_beside_the_class_folders(tmp_path: Path) -> None:
    (tmp_path / "cup").mkdir()
    for path in (tmp_path / "cup" / "a.txt", tmp_path / "loose.txt"):
        np.savetxt(path, np.zeros((4, 3)))
    with pytest.raises(BadFileError, match=r"loose\.txt: lies beside"):
        FolderDataset(tmp_path, suffixes=[".txt"])


def test_links_are_followed_or_told(tmp_path: Path) -> None:
    root, other = tmp_path / "set", tmp_path / "other"
    for folder in (root / "chair", other / "deep"):
        folder.mkdir(parents=True)
    np.save(root / "chair" / "a.npy", np.eye(4, 3))
    np.save(other / "deep" / "b.npy", np.eye(4, 3))
    (root / "chair" / "linked").symlink_to(other)
    (root / "chair" / "c.npy").symlink_to(other / "deep" / "b.npy")
    (root / "chair" / "round").symlink_to(root)  # what lies below is found once
    (other / "deep" / "back").symlink_to(root / "chair")
    found = FolderDataset(root)
    assert sorted(path.relative_to(root / "chair").as_posix() for path in found.paths) == [
        "a.npy",
        "c.npy",
        "linked/deep/b.npy",
    ]
    (root / "chair" / "lost.npy").symlink_to(tmp_path / "gone.npy")
    with pytest.raises(BadFileError, match=r"lost\.npy: is a link to a file that is not there; 1 file\(s\)"):
        FolderDataset(root)
    assert [bad.path.name for bad in FolderDataset(root, on_error="report").skipped] == ["lost.npy"]


def test_files_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    for name in ("chair/1/model.npy", "chair/2/model.npy", "table/3/model.npy", "table/top.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, np.eye(4, 3))
    found = FolderDataset(tmp_path)
    ids = ["chair/1/model.npy", "chair/2/model.npy", "table/3/model.npy", "top"]
    assert [found.load(index).meta["id"] for index in range(4)] == ids
