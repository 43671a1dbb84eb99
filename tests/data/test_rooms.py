from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from pc3d.data import BadFileError, Household, MissingDataError, PointLoader, Rooms, collate

EMBEDDED = Path(__file__).parents[2] / "pc3d" / "data" / "rooms"


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return Rooms("train")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with one test room, to spoil."""
    text = json.loads((EMBEDDED / "test.json").read_text(encoding="utf-8"))
    text["rooms"] = text["rooms"][:1]
    (tmp_path / "test.json").write_text(json.dumps(text), encoding="utf-8")
    shutil.copy(EMBEDDED / "test_001.npz", tmp_path)
    return tmp_path


def rewrite(path: Path, **changes: np.ndarray | None) -> None:
    with np.load(path) as stored:
        arrays = {**{key: stored[key] for key in stored.files}, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def test_embedded_rooms_are_metric_furnished_and_attributed(rooms: Rooms) -> None:
    assert (len(rooms), len(Rooms("test"))) == (8, 3)
    # Its classes are the shell of a room and then those of the models that furnish it.
    assert rooms.classes == ("wall", "floor", "ceiling", *Household("train").classes)
    for split in (rooms, Rooms("test")):
        for index, cloud in enumerate(split):
            assert len(cloud) == split.rooms[index]["points"]
            size = cloud.xyz.amax(dim=0) - cloud.xyz.amin(dim=0)
            assert (size - torch.tensor(cloud.meta["size_m"])).abs().max() < 0.4  # walls are thick and noisy
            assert (cloud.normal.norm(dim=1) - 1).abs().max() < 1e-5
            assert 0 <= cloud.rgb.min() < cloud.rgb.max() <= 1
            assert cloud.segment.min() >= 0
            floor, ceiling = (cloud.xyz[cloud.segment == c, 2].median() for c in (1, 2))
            assert floor.abs() < 0.05
            assert ceiling > 2
            for thing in cloud.meta["objects"]:
                assert thing["creator"]
                assert thing["licence"]
                # Every point of an object is of its class.
                segment = cloud.segment[cloud.instance == thing["instance"]]
                assert (segment == split.classes.index(thing["label"])).all()


def test_no_model_is_in_both_splits(rooms: Rooms) -> None:
    train, test = ({thing["item"] for room in s.rooms for thing in room["objects"]} for s in (rooms, Rooms("test")))
    assert train
    assert not train & test
    assert test <= {item["id"] for item in Household("test").items}


def test_values_are_those_of_the_file(rooms: Rooms) -> None:
    with np.load(EMBEDDED / "train_003.npz") as stored:
        metres = stored["coord_mm"].astype(np.float64) / 1000 + stored["origin"]
        index = [room["name"] for room in rooms.rooms].index("train_003")
        cloud = rooms[index]
        np.testing.assert_allclose(cloud.xyz.numpy(), metres, atol=1e-6)
        np.testing.assert_array_equal((cloud.rgb * 255).round().numpy(), stored["color"])
        np.testing.assert_array_equal(cloud.segment.numpy(), stored["segment"])
        np.testing.assert_array_equal(cloud.instance.numpy(), stored["instance"])
    assert rooms[index].xyz.data_ptr() != cloud.xyz.data_ptr()


def test_the_manifest_is_of_these_files() -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "manifest.sha256"], cwd=EMBEDDED, check=True)
    listed = (EMBEDDED / "manifest.sha256").read_text().split()[1::2]
    assert sorted([*listed, "manifest.sha256"]) == sorted(path.name for path in EMBEDDED.iterdir())


def test_rooms_batch_with_their_instances(rooms: Rooms) -> None:
    batch = next(iter(PointLoader(rooms, 2, seed=1)))
    assert batch.lengths.sum() == len(batch.instance) == len(batch.xyz)
    for cloud, meta in zip(batch.unbind(), batch.meta, strict=True):
        assert cloud.instance.max() == meta["objects"][-1]["instance"]
    with pytest.raises(ValueError, match="1 of 2 clouds have no instance"):
        collate([rooms[0], rooms[1].replace(instance=None)])


def test_frames_are_decoded_and_posed(copied: Path) -> None:
    color = np.full((6, 8, 3), 200, np.uint8)
    depth = np.zeros((6, 8), np.uint16)
    depth[2, 5] = 1500
    files = []
    for picture, kind in ((color, "JPEG"), (depth, "PNG")):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, kind)
        files.append(file.getvalue())
    pose = np.eye(4, dtype=np.float32)
    pose[:3, 3] = 1, 2, 3
    intrinsic = np.array([[10, 0, 4], [0, 10, 3], [0, 0, 1]], np.float32)
    rewrite(
        copied / "test_001.npz",
        frames=np.frombuffer(b"".join(files * 2), np.uint8),
        frame_size=np.array([len(file) for file in files * 2]),
        pose=np.stack([pose, pose]),
        intrinsic=intrinsic,
    )
    frames = Rooms("test", copied).frames(0)
    assert len(frames) == 2
    assert np.abs(frames[1].color.astype(int) - 200).max() <= 2  # JPEG
    assert frames[1].depth.dtype == np.float32
    assert frames[1].tracked
    # The one pixel with depth: 0.15 m to the right of the axis, 0.15 m above it, 1.5 m ahead.
    np.testing.assert_allclose(frames[1].points(), [[1.15, 1.85, 4.5]], atol=1e-6)
    rewrite(copied / "test_001.npz", pose=pose[None])
    with pytest.raises(BadFileError, match=r"test_001\.npz: frames, frame_size and pose do not go together"):
        Rooms("test", copied).frames(0)


def test_the_embedded_set_has_no_frames(rooms: Rooms) -> None:
    with pytest.raises(MissingDataError, match=r"pictures of Rooms(.|\n)*frames in train_000\.npz(.|\n)*large form"):
        rooms.frames(0)


def test_what_is_missing_is_said(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"split 'val'; splits found there: \['test', 'train'\]"):
        Rooms("val")
    (copied / "train.json").unlink(missing_ok=True)  # a part that was not copied
    with pytest.raises(
        MissingDataError, match=r"found there: \['test'\](.|\n)*train\.json(.|\n)*in the same format\nterms"
    ):
        Rooms("train", copied)
    with pytest.raises(MissingDataError, match="CC BY"):
        Rooms("test", tmp_path / "nowhere")
    (copied / "test_001.npz").unlink()
    with pytest.raises(MissingDataError, match=r"test_001\.npz"):
        Rooms("test", copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment": None}, r"keys \['segment'\] are missing"),
        ({"segment": np.zeros(3, np.uint8)}, r"segment has shape \(3,\)"),
        ({"segment": np.full(102534, 24, np.uint8)}, r"has class 24, test\.json names 24"),
    ],
)
def test_bad_rooms_are_named(copied: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    rewrite(copied / "test_001.npz", **changes)
    with pytest.raises(BadFileError, match=rf"test_001\.npz: .*{message}"):
        Rooms("test", copied)[0]


def test_a_truncated_room_is_named(copied: Path) -> None:
    path = copied / "test_001.npz"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(BadFileError, match=r"test_001\.npz: not a readable .npz file"):
        Rooms("test", copied)[0]
    (copied / "test.json").write_text("{")
    with pytest.raises(BadFileError, match="not valid JSON"):
        Rooms("test", copied)
    (copied / "test.json").write_text("{}")
    with pytest.raises(BadFileError, match="'classes' and a list 'rooms'"):
        Rooms("test", copied)


def test_unlabelled_points_are_minus_one(copied: Path) -> None:
    segment = np.zeros(102534, np.uint8)
    segment[:5] = 255
    rewrite(copied / "test_001.npz", segment=segment)
    cloud = Rooms("test", copied)[0]
    assert cloud.segment[:6].tolist() == [-1] * 5 + [0]


@pytest.fixture
def build_rooms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    tools = Path(__file__).parents[2] / "data_tools"
    monkeypatch.syspath_prepend(str(tools))
    spec = importlib.util.spec_from_file_location("build_rooms", tools / "build_rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("build_household", None)


def test_building_from_the_built_gives_it_again(
    tmp_path: Path, build_rooms: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "large"
    shutil.copytree(EMBEDDED, source)
    for split in ("train", "test"):
        text = json.loads((source / f"{split}.json").read_text(encoding="utf-8"))
        for room in text["rooms"]:
            room["frames"] = 8
            room["objects"] = [{k: o[k] for k in ("instance", "label", "item")} for o in room["objects"]]
        (source / f"{split}.json").write_text(json.dumps(text), encoding="utf-8")
    monkeypatch.setattr(build_rooms, "ROOMS", {"train": ("003",), "test": ("006",)})
    build_rooms.main([str(source), "--output", str(tmp_path / "out")])
    build_rooms.main([str(source), "--output", str(tmp_path / "out"), "--check"])
    assert torch.equal(Rooms("test", tmp_path / "out")[0].xyz, Rooms("test")[2].xyz)
    assert Rooms("train", tmp_path / "out").rooms[0] == Rooms("train").rooms[2]
    rewrite(tmp_path / "out" / "test_006.npz", segment=np.zeros(3, np.uint8))
    with pytest.raises(SystemExit, match="split test differs"):
        build_rooms.main([str(source), "--output", str(tmp_path / "out"), "--check"])
