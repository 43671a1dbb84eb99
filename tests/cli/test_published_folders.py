"""Published layouts as ``--data``: their lists tell splits and classes, and clouds are centred by their centroid."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pc3d.cli.main import main
from pc3d.models import PointViT, load_encoder, save_encoder
from pc3d.ops import farthest_point_sample

ASSETS = Path(__file__).parents[1] / "assets"
Clouds = dict[str, np.ndarray]
Layout = Callable[[Path, Clouds], Path]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    tiny = PointViT(embed_dim=16, depth=1, num_heads=2, num_groups=8, group_size=16, num_points=128)
    return str(save_encoder(tiny, tmp_path_factory.mktemp("encoder")))


def model_net_cache(root: Path, clouds: Clouds) -> Path:
    """The processed ModelNet as projects after Point-BERT pass it on: lists and a pickle for each split."""
    (root / "modelnet40_shape_names.txt").write_text("chair\nlamp\n")
    for split, points in clouds.items():
        (root / f"modelnet40_{split}.txt").write_text("chair_0001\nlamp_0001\n")
        content = [list(points), [np.array([label], np.int32) for label in range(len(points))]]
        (root / f"modelnet40_{split}_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    return root


def shape_net_part(root: Path, clouds: Clouds) -> Path:
    """ShapeNetPart's layout with two categories of one object a split."""
    (root / "synsetoffset2category.txt").write_text("Chair\t90000001\nLamp\t90000002\n")
    (root / "train_test_split").mkdir()
    for split, points in clouds.items():
        names = []
        for synset, cloud in zip(("90000001", "90000002"), points, strict=True):
            (root / synset).mkdir(exist_ok=True)
            np.savetxt(root / synset / f"{split}.txt", np.hstack([cloud, np.zeros((len(cloud), 1))]), fmt="%.9g")
            names.append(f"shape_data/{synset}/{split}")
        (root / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))
    return root


def shape_net_55(_: Path, clouds: Clouds) -> Path:
    """ShapeNet-55's layout, of the assets; the clouds are replaced by theirs."""
    root = ASSETS / "shapenet55"
    for split in clouds:
        names = (root / "ShapeNet-55" / f"{split}.txt").read_text().split()
        clouds[split] = np.stack([np.load(root / "shapenet_pc" / name) for name in names])
    return root


def prepared(cloud: np.ndarray) -> torch.Tensor:
    points = torch.from_numpy(cloud[:, :3].astype(np.float32))
    points = points[farthest_point_sample(points, 128)]
    points = points - points.mean(0)
    scaled: torch.Tensor = points / points.norm(dim=1).max()
    return scaled


@pytest.mark.parametrize("layout", [model_net_cache, shape_net_part, shape_net_55])
def test_embed_takes_a_split_as_its_lists_say(layout: Layout, encoder: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    clouds = {split: draw.random((2, 300, 6)).astype(np.float32) for split in ("train", "test")}
    folder = layout(tmp_path, clouds)
    for split, points in clouds.items():
        out = tmp_path / f"{split}-features.npz"
        command = ["embed", "--encoder", encoder, "--data", str(folder), "--split", split, "--output", str(out)]
        assert main([*command, "--num_points", "128"]) == 0
        with np.load(out) as file:
            features, labels, classes = file["features"], file["label"], file["classes"]
        model: Any = load_encoder(encoder)
        with torch.no_grad():
            expected = model.encode(torch.stack([prepared(cloud) for cloud in points]))
        np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
        assert [str(classes[label]).lower() for label in labels] == ["chair", "lamp"]


@pytest.mark.parametrize("layout", [model_net_cache, shape_net_part, shape_net_55])
def test_probe_reads_both_splits(
    layout: Layout, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(1)
    clouds = {split: draw.random((2, 300, 6)).astype(np.float32) for split in ("train", "test")}
    folder = layout(tmp_path, clouds)
    command = ["probe", "--encoder", encoder, "--data", str(folder), "--num_points", "128", "--classifier", "knn"]
    assert main([*command, "--k", "1", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_train"], found["num_test"], found["normalize"]) == (2, 2, "centroid")


def test_text_files_of_model_net_are_taken_before_their_cache(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clouds = {split: np.random.default_rng(2).random((2, 300, 6)).astype(np.float32) for split in ("train", "test")}
    folder = model_net_cache(tmp_path, clouds)
    for name in ("chair", "lamp"):
        (folder / name).mkdir()
    assert main(["embed", "--encoder", encoder, "--data", str(folder), "--output", str(tmp_path / "out.npz")]) == 1
    assert "chair_0001.txt" in capsys.readouterr().err


def few_shot_episode(root: Path, clouds: Clouds) -> Path:
    folder = root / "2way_1shot"
    folder.mkdir()
    sides = {split: [(cloud, row, row) for row, cloud in enumerate(points)] for split, points in clouds.items()}
    (folder / "0.pkl").write_bytes(pickle.dumps(sides))
    return folder


@pytest.mark.parametrize("layout", [model_net_cache, few_shot_episode])
def test_bad_clouds_of_pickles_are_left_out_where_that_is_asked(
    layout: Layout, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(4)
    clouds = {split: draw.random((2, 300, 6)).astype(np.float32) for split in ("train", "test")}
    clouds["test"][0, 7, 1] = np.nan
    out = tmp_path / "features.npz"
    command = ["embed", "--encoder", encoder, "--data", str(layout(tmp_path, clouds)), "--output", str(out)]
    command += ["--split", "test", "--num_points", "128"]
    assert main(command) == 1
    assert "not finite numbers (1 such items)" in capsys.readouterr().err
    assert main([*command, "--on_error", "report"]) == 0
    assert "not finite" in capsys.readouterr().out
    with np.load(out) as file:
        np.testing.assert_array_equal(file["label"], [1])
        expected = load_encoder(encoder).encode(prepared(clouds["test"][1])[None])  # type: ignore[operator]
        np.testing.assert_allclose(file["features"], expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("beside", [".ipynb_checkpoints", "__MACOSX"])
def test_a_folder_of_no_class_beside_the_cache_changes_nothing(
    beside: str, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clouds = {split: np.random.default_rng(3).random((2, 300, 6)).astype(np.float32) for split in ("train", "test")}
    folder = model_net_cache(tmp_path, clouds)
    (folder / beside).mkdir()
    command = ["probe", "--encoder", encoder, "--data", str(folder), "--num_points", "128", "--classifier", "knn"]
    assert main([*command, "--k", "1", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["num_test"] == 2


@pytest.mark.parametrize("layout", [model_net_cache, shape_net_part])
def test_the_folder_around_a_data_set_is_told_from_it(
    layout: Layout, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where an archive is unpacked into a folder of its name."""
    inner = tmp_path / "h5_files"
    inner.mkdir()
    layout(inner, {split: np.zeros((2, 300, 6), np.float32) for split in ("train", "test")})
    assert main(["probe", "--encoder", encoder, "--data", str(tmp_path)]) == 1
    assert f"is no data set, but there is one in it: {inner}" in capsys.readouterr().err


def test_robustness_on_the_files_of_modelnet_c(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The training split is that of --data, the test clouds are the clean file's."""
    root, files, draw = tmp_path / "modelnet40_ply_hdf5_2048", tmp_path / "modelnet_c", np.random.default_rng(4)
    for folder in (root, files):
        folder.mkdir()
    (root / "shape_names.txt").write_text("plane\nball\n")
    labels = np.array([[0], [1]] * 4)
    for path in (root / "ply_data_train0.h5", root / "ply_data_test0.h5", files / "clean.h5", files / "rotate_2.h5"):
        clouds = draw.normal(size=(8, 64, 3))
        clouds[::2, :, 2] *= 0.01
        kept = slice(6) if path.parent == files else slice(8)
        with h5py.File(path, "w") as file:
            file.update({"data": clouds[kept].astype(np.float32), "label": labels[kept]})
    command = ["robustness", "--encoder", "descriptor", "--data", str(root), "--num_points", "64", "--C", "100"]
    command += ["--corruptions", "rotate", "--severities", "3", "--files", str(files)]
    assert main([*command, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_train"], found["num_test"], found["clean"]) == (8, 6, 1.0)
    assert found["clouds"].startswith("modelnet_c [")
    assert main([*command, "--baseline", "dgcnn"]) == 1
    assert "at all five levels, got modelnet_c" in capsys.readouterr().err
    assert main([*command[:-2], "--baseline", "dgcnn"]) == 1
    assert "add --files" in capsys.readouterr().err


def test_objects_of_too_few_points_are_refused_with_what_the_command_can_do(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    folder = shape_net_part(tmp_path, {split: draw.random((2, 300, 6)) for split in ("train", "test")})
    probe = ["probe", "--encoder", encoder, "--data", str(folder), "--classifier", "knn", "--k", "1"]
    assert main(probe) == 1
    told = capsys.readouterr().err
    assert "num_points=1024 exceeds the 300 points of the cloud" in told
    # Not of the command: its user would look for an option of that name.
    assert "ask for fewer; as a transform of a configuration, FarthestPointSample keeps smaller clouds whole" in told
    assert main([*probe, "--num_points", "128"]) == 0
