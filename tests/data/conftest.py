"""Real objects for the tests of pc3d.data, and small copies of published layouts made from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pc3d.data import Household, PointCloud

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside the tests
ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="session")
def assets() -> Path:
    return ASSETS


@pytest.fixture(scope="session")
def household() -> Household:
    return Household("train")


@pytest.fixture(scope="session")
def household_test() -> Household:
    return Household("test")


@pytest.fixture
def chair(household: Household) -> PointCloud:
    return household[int((household.labels == household.classes.index("chair")).nonzero()[0])]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture that grows red to the right and green upwards, for the unit square."""
    pixels = np.zeros((52, 52, 3), np.uint8)
    pixels[:, :, 0] = np.arange(52)[None] * 5
    pixels[:, :, 1] = np.arange(52)[::-1, None] * 5
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a b.png")
    return tmp_path / "images" / "a b.png"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def shapenetpart(tmp_path: Path, household: Household) -> Path:
    """ShapeNetPart's layout: two categories, parts cut by height, objects of different length."""
    root = tmp_path / "shapenetpart"
    categories = {"Table": ("90000001", "table"), "Chair": ("90000002", "chair")}
    lines = [f"{name}\t{synset}" for name, (synset, _) in categories.items()]
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for first_part, (synset, class_name) in zip((0, 2), categories.values(), strict=True):
        (root / synset).mkdir(parents=True)
        rows = (household.labels == household.classes.index(class_name)).nonzero().flatten().tolist()
        for number, (row, split) in enumerate(zip(rows, ("train", "train", "val", "test"), strict=False)):
            cloud = household[row]
            count = 300 + 50 * number
            part = first_part + (cloud.xyz[:count, 2] > 0).float()
            table = torch.cat([cloud.xyz[:count], cloud.normal[:count], part[:, None]], dim=1).numpy()
            np.savetxt(root / synset / f"model{number}.txt", table, fmt="%.6f")
            lists[split].append(f"shape_data/{synset}/model{number}")
    (root / "synsetoffset2category.txt").write_text("\n".join(lines) + "\n")
    (root / "train_test_split").mkdir()
    for split, names in lists.items():
        (root / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))
    return root


@pytest.fixture
def scanobjectnn(tmp_path: Path, household: Household) -> Path:
    """ScanObjectNN's layout: half of each cloud is background in main_split; main_split_nobg has no mask."""
    root = tmp_path / "scanobjectnn"
    for folder in ("main_split", "main_split_nobg"):
        (root / folder).mkdir(parents=True)
    clouds = torch.stack([household[i].xyz for i in range(6)]).numpy()
    mask = np.zeros((6, 2048), dtype=np.int64)
    mask[:, 1024:] = -1
    labels = np.array([3, 4, 9, 3, 4, 9])
    for name in (
        "training_objectdataset",
        "test_objectdataset",
        "training_objectdataset_augmentedrot_scale75",
        "test_objectdataset_augmentedrot_scale75",
    ):
        with h5py.File(root / "main_split" / f"{name}.h5", "w") as file:
            file.update({"data": clouds, "label": labels, "mask": mask})
    for name in ("training_objectdataset", "test_objectdataset"):
        with h5py.File(root / "main_split_nobg" / f"{name}.h5", "w") as file:
            file.update({"data": clouds, "label": labels})
    return root


@pytest.fixture
def modelnet_hdf5(tmp_path: Path, household: Household) -> Path:
    """modelnet40_ply_hdf5_2048's layout: two train files of different length, one test file."""
    root = tmp_path / "modelnet40_ply_hdf5_2048"
    root.mkdir()
    (root / "shape_names.txt").write_text("airplane\nbathtub\nbed\n")
    clouds = torch.stack([household[i].xyz for i in range(9)]).numpy()
    for name, rows in (("train0", [0, 1, 2, 3]), ("train1", [4, 5]), ("test0", [6, 7, 8])):
        labels = np.array([[row % 3] for row in rows], dtype=np.uint8)
        with h5py.File(root / f"ply_data_{name}.h5", "w") as file:
            file.update({"data": clouds[rows], "label": labels, "normal": np.ones_like(clouds[rows])})
    (root / "train_files.txt").write_text("data/x/ply_data_train1.h5\ndata/x/ply_data_train0.h5\n")
    return root
