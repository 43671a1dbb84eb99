"""Scans lifted once into shards, and the script that does it for ScanNet's layout and for the rooms'."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_targets import Colors, frame, scene, write_sens

from pc3d.data import Frame, FrameFolder, LiftedSet, PointCloud, PointDataset, ScanNet, SceneFolder
from pc3d.image import (
    FeatureMismatchError,
    FeatureStore,
    LiveScans,
    Scan,
    ScanFeatures,
    lift_frames,
    load_image_tower,
    precompute,
)
from pc3d.image.features import content_hash
from pc3d.models import DistilledEncoder, SparseUNet
from pc3d.tasks import joint_teacher, open_vocabulary_segmenter

SHOTS = [frame((0.0, 0.0, 0.0)), frame((0.0, 0.4, 0.1)), frame((0.0, -0.3, 0.0))]


def test_an_extractor_keeps_what_was_lifted(tmp_path: Path) -> None:
    cloud = scene()
    lifted = lift_frames(cloud, SHOTS, Colors())
    store = precompute([("a", Scan(cloud, SHOTS))], ScanFeatures(Colors()), tmp_path, shard_size=1)
    stored = store["a"]
    assert torch.equal(stored["num_views"], lifted.num_views.float())
    assert len(stored["feature"]) == int(lifted.mask.sum()) < len(cloud)
    torch.testing.assert_close(stored["feature"], lifted.features[lifted.mask], atol=1e-3, rtol=1e-3)
    joined = LiftedSet(Clouds([cloud]), store)[0]
    assert joined.feature is not None
    torch.testing.assert_close(joined.feature, lifted.features, atol=1e-3, rtol=1e-3)
    assert (joined.feature[~lifted.mask] == 0).all()
    assert joined.meta["teacher"] == "colors"


def test_frames_that_do_not_fit_a_scan_are_told() -> None:
    """With poses from the scene to the camera a few points agree by chance, here none."""
    astray = [replace(shot, pose=np.linalg.inv(frame((3.0, 1.0, 0.5)).pose)) for shot in SHOTS]
    cloud = scene().replace(meta={"id": "office"})
    with pytest.warns(UserWarning, match=rf"office: the frames see \d+ of its {len(cloud)} points\. Are the poses"):
        stored = ScanFeatures(Colors())(Scan(cloud, astray))
    assert len(stored["feature"]) < len(cloud) / 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScanFeatures(Colors())(Scan(cloud, SHOTS))


def test_the_scan_whose_frames_cannot_be_used_is_named(tmp_path: Path) -> None:
    lost = [replace(shot, pose=np.full((4, 4), -np.inf)) for shot in SHOTS]
    items = [("a", Scan(scene(), SHOTS)), ("b", Scan(scene(), lost))]
    with pytest.warns(UserWarning, match="3 frame"), pytest.raises(ValueError, match=r"^b: no frame has a tracked"):
        precompute(items, ScanFeatures(Colors()), tmp_path, shard_size=1)
    assert list(FeatureStore(tmp_path)) == ["a"]


class Clouds(PointDataset):
    def __init__(self, clouds: list[PointCloud]) -> None:
        self.clouds, self.labels = clouds, torch.full((len(clouds),), -1)

    def load(self, index: int) -> PointCloud:
        return self.clouds[index].replace(meta={"id": "abc"[index]})


def test_half_the_frames_are_those_frames() -> None:
    cloud = scene()
    some = ScanFeatures(Colors())(Scan(cloud, SHOTS, step=2))
    lifted = lift_frames(cloud, [SHOTS[0], SHOTS[2]], Colors())
    assert torch.equal(some["feature"], lifted.features[lifted.mask])
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        Scan(cloud, SHOTS, step=0)


def test_what_a_scan_depends_on_is_in_its_hash_and_settings_in_the_identity(tmp_path: Path) -> None:
    cloud = scene()
    hashes = {content_hash(Scan(cloud, SHOTS))}
    for other in (
        Scan(cloud, SHOTS[:2]),
        Scan(cloud, SHOTS, step=2),
        Scan(cloud.replace(xyz=cloud.xyz + 0.1), SHOTS),
        Scan(cloud.replace(normal=None), SHOTS),
    ):
        hashes.add(content_hash(other))
    assert len(hashes) == 5
    precompute([("a", Scan(cloud, SHOTS))], ScanFeatures(Colors()), tmp_path)
    with pytest.raises(FeatureMismatchError, match=r"tolerance: 0\.05, expected 0\.1"):
        precompute([("b", Scan(cloud, SHOTS))], ScanFeatures(Colors(), tolerance=0.1), tmp_path)
    with pytest.raises(FeatureMismatchError, match="'a' was computed from other content"):
        precompute([("a", Scan(cloud, SHOTS[:1]))], ScanFeatures(Colors()), tmp_path)


class Counted:
    """Frames that say which of them were asked for."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames, self.asked = frames, 0

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int, /) -> Frame:
        self.asked += 1
        return self.frames[index]


def test_what_is_broken_off_goes_on_scan_by_scan(tmp_path: Path) -> None:
    cloud = scene()

    def scans(until: int) -> Iterator[tuple[str, Scan]]:
        for number in range(3):
            if number == until:
                raise KeyboardInterrupt
            yield "abc"[number], Scan(cloud, frames[number])

    frames = [Counted(SHOTS[: number + 1]) for number in range(3)]
    with pytest.raises(KeyboardInterrupt):
        precompute(scans(2), ScanFeatures(Colors()), tmp_path, shard_size=1)
    assert list(FeatureStore(tmp_path)) == ["a", "b"]
    frames = [Counted(SHOTS[: number + 1]) for number in range(3)]
    assert list(precompute(scans(3), ScanFeatures(Colors()), tmp_path, shard_size=1)) == ["a", "b", "c"]
    # What is stored is hashed, not lifted again.
    assert [one.asked for one in frames] == [1, 2, 2 * 3]


def test_a_tower_that_is_joint_is_found_again_by_the_name_that_its_features_carry(
    open_clip_vit: tuple[str, str], tmp_path: Path
) -> None:
    name, weights = open_clip_vit
    tower = load_image_tower(f"open_clip:{name}", weights)
    store = precompute([("a", Scan(scene(), SHOTS))], ScanFeatures(tower, short_side=64, unit=True), tmp_path)
    feature = store["a"]["feature"]
    teacher = LiftedSet(Clouds([scene()]), store)[0].meta["teacher"]
    encoder = DistilledEncoder(SparseUNet((4,), (1,), signals="xyz"), feature.shape[1], teacher)
    pair = joint_teacher(encoder, weights=weights)
    assert pair.image.identity() == tower.identity()
    vectors = pair.text.encode(["a red wall", "a green board"])
    assert open_vocabulary_segmenter(encoder, ["wall", "board"], vectors).head.text.shape == (2, feature.shape[1])


# ---- the script --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("data_tools/lift_features.py")


def write_scannet(root: Path, frames: Path) -> None:
    """A prepared scan and its frames as ScanNet's exporter writes them."""
    cloud, name = scene(), "scene0000_00"
    place = root / "train" / name
    place.mkdir(parents=True)
    np.save(place / "coord.npy", cloud.xyz.numpy())
    np.save(place / "normal.npy", cloud.normal.numpy())  # type: ignore[union-attr]
    for kind in ("color", "depth", "pose", "intrinsic"):
        (frames / name / kind).mkdir(parents=True)
    for kind, matrix in (("color", SHOTS[0].intrinsic), ("depth", SHOTS[0].intrinsic_depth)):
        whole = np.eye(4)
        whole[:3, :3] = matrix
        np.savetxt(frames / name / "intrinsic" / f"intrinsic_{kind}.txt", whole)
    for number, shot in enumerate(SHOTS):
        Image.fromarray(shot.color).save(frames / name / "color" / f"{number}.png")
        depth = Image.fromarray((shot.depth * 1000).round().astype(np.uint16))
        depth.save(frames / name / "depth" / f"{number}.png")
        np.savetxt(frames / name / "pose" / f"{number}.txt", shot.pose)


def test_the_script_lifts_frames_of_scannet(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scannet(tmp_path / "scannet", tmp_path / "frames")
    towers = []
    monkeypatch.setattr(script, "load_image_tower", lambda name, weights: towers.append(name) or Colors())
    options = ["--data", "scannet", "--root", str(tmp_path / "scannet"), "--frames", str(tmp_path / "frames")]
    for tower in ([], ["--image_tower", "fake:colors"]):  # the second time there is nothing to do
        script.main([str(tmp_path / "out"), *options, "--frame_step", "2", *tower])
        assert "features of 1 scans, 3 numbers per point, by colors" in capsys.readouterr().out
    assert towers == ["offline:efficientnet-lite0", "fake:colors"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["features-00000.safetensors"]
    scans = ScanNet(tmp_path / "scannet", "train")
    joined = LiftedSet(scans, FeatureStore(tmp_path / "out"))[0]
    frames = FrameFolder(tmp_path / "frames" / "scene0000_00")
    lifted = lift_frames(scans[0], [frames[0], frames[2]], Colors())
    assert joined.feature is not None
    torch.testing.assert_close(joined.feature, lifted.features, atol=1e-3, rtol=1e-3)
    with pytest.raises(SystemExit, match="--frames: say where the frames"):
        script.main([str(tmp_path / "out"), *options[:4]])

    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "precompute", stop)
        with pytest.raises(SystemExit) as end:
            script.main([str(tmp_path / "out"), *options])
    assert end.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted: the same command goes on from here\n")
    # The same frames as they are downloaded: one file, in the place of the folders.
    folder = tmp_path / "frames" / "scene0000_00"
    for kind in ("color", "depth", "pose", "intrinsic"):
        shutil.rmtree(folder / kind)
    write_sens(folder / "scene0000_00.sens", SHOTS)
    script.main([str(tmp_path / "packed"), *options, "--frame_step", "2"])
    packed = LiftedSet(scans, FeatureStore(tmp_path / "packed"))[0]
    assert packed.feature is not None
    # Poses are float32 there and text here: points at the rim of what is seen may fall on the other side.
    assert (packed.feature.any(1) == joined.feature.any(1)).float().mean() > 0.99
    both = packed.feature.any(1) & joined.feature.any(1)
    torch.testing.assert_close(packed.feature[both], joined.feature[both], atol=2e-2, rtol=0)


def test_the_script_lifts_cropped_frames_if_it_is_told(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the right halves of the pictures were kept, so that the axis of the camera lies at their left edge."""
    write_scannet(tmp_path / "prepared", tmp_path / "frames")
    folder = tmp_path / "frames" / "scene0000_00"
    for kind in ("color", "depth"):
        for file in (folder / kind).iterdir():
            picture = Image.open(file)
            left = picture.width // 2
            picture.crop((left, 0, picture.width, picture.height)).save(file)
        file = folder / "intrinsic" / f"intrinsic_{kind}.txt"
        matrix = np.loadtxt(file)
        matrix[0, 2] -= left
        np.savetxt(file, matrix)
    monkeypatch.setattr(script, "load_image_tower", lambda name, weights: Colors())
    options = ["--data", "scenes", "--root", str(tmp_path / "prepared"), "--frames", str(tmp_path / "frames")]
    with pytest.raises(SystemExit, match=r"far from the middle .* or say that they were cropped .*--cropped"):
        script.main([str(tmp_path / "out"), *options])
    script.main([str(tmp_path / "out"), *options, "--cropped"])
    scans, cloud = SceneFolder(tmp_path / "prepared", "train"), scene()
    joined = LiftedSet(scans, FeatureStore(tmp_path / "out"))[0]
    assert joined.feature is not None
    assert cloud.rgb is not None
    seen = joined.feature.any(1)
    assert 0.3 < seen.float().mean() < 0.6
    assert not seen[cloud.xyz[:, 1] > 0.45].any()  # left of the camera that stands farthest to the left
    # Bilinear between pixels, so wrong at the rim of the board alone.
    assert ((joined.feature - cloud.rgb)[seen].abs().amax(1) < 0.01).float().mean() > 0.95
    monkeypatch.setattr("pc3d.image.live.load_image_tower", lambda name, weights: Colors())
    live = LiveScans(scans, "colors", tmp_path / "frames", cropped=True)
    torch.testing.assert_close(LiftedSet(scans, live)[0].feature, joined.feature, atol=1e-3, rtol=1e-3)


def test_the_script_lifts_frames_of_rooms(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = scene()
    files: list[bytes] = []
    for shot in SHOTS:
        depth = (shot.depth * 1000).round().astype(np.uint16)
        # In this format both pictures are of one size.
        for picture in (Image.fromarray(shot.color).resize(depth.shape[::-1], 0), Image.fromarray(depth)):
            picture.save(tmp_path / "picture.png")
            files.append((tmp_path / "picture.png").read_bytes())
    origin = cloud.xyz.amin(0)
    arrays: dict[str, Any] = {
        "coord_mm": ((cloud.xyz - origin) * 1000).round().numpy().astype(np.uint16),
        "origin": origin.numpy(),
        "color": (cloud.rgb * 255).numpy().astype(np.uint8),  # type: ignore[operator]
        "normal": (cloud.normal * 127).numpy().astype(np.int8),  # type: ignore[operator]
        "segment": np.zeros(len(cloud), np.uint8),
        "instance": np.zeros(len(cloud), np.uint8),
        "frames": np.frombuffer(b"".join(files), np.uint8),
        "frame_size": np.array([len(data) for data in files]),
        "pose": np.stack([shot.pose for shot in SHOTS]).astype(np.float32),
        "intrinsic": SHOTS[0].intrinsic_depth.astype(np.float32),
    }
    np.savez(tmp_path / "room_0.npz", **arrays)
    (tmp_path / "train.json").write_text(json.dumps({"classes": ["wall"], "rooms": [{"name": "room_0"}]}))
    monkeypatch.setattr(script, "load_image_tower", lambda name, weights: Colors())
    script.main([str(tmp_path / "out"), "--root", str(tmp_path)])
    stored = FeatureStore(tmp_path / "out")["room_0"]
    shown = stored["num_views"] > 0
    assert 0.5 < shown.float().mean() < 1
    assert cloud.rgb is not None
    # Bilinear between pixels, so wrong at the rim of the board alone.
    assert ((stored["feature"] - cloud.rgb[shown]).abs().amax(1) < 0.01).float().mean() > 0.95


@pytest.mark.parametrize("option", [("--frames", "somewhere"), ("--depth_shift", "5000"), ("--cropped",)])
def test_the_script_refuses_other_frames_for_rooms(
    option: tuple[str, ...], script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "out"), "--root", str(tmp_path), *option])
    assert f"{option[0]} is for frames in folders of their own, and rooms hold theirs" in capsys.readouterr().err


def test_the_script_lifts_frames_of_scans_of_ones_own(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of frames under another name than ScanNet's, its depths in fifths of a millimetre."""
    write_scannet(tmp_path / "prepared", tmp_path / "frames")
    (tmp_path / "prepared" / "train" / "scene0000_00").rename(tmp_path / "prepared" / "train" / "office")
    (tmp_path / "frames" / "scene0000_00").rename(tmp_path / "frames" / "office")
    for number, shot in enumerate(SHOTS):
        depth = Image.fromarray((shot.depth * 5000).round().astype(np.uint16))
        depth.save(tmp_path / "frames" / "office" / "depth" / f"{number}.png")
    monkeypatch.setattr(script, "load_image_tower", lambda name, weights: Colors())
    options = ["--data", "scenes", "--root", str(tmp_path / "prepared"), "--frames", str(tmp_path / "frames")]
    with pytest.raises(SystemExit, match=r"elsewhere/office/pose holds no files like 0\.txt"):
        script.main([str(tmp_path / "out"), *options[:-1], str(tmp_path / "elsewhere")])
    script.main([str(tmp_path / "out"), *options, "--depth_shift", "5000"])
    scans = SceneFolder(tmp_path / "prepared", "train")
    joined = LiftedSet(scans, FeatureStore(tmp_path / "out"))[0]
    lifted = lift_frames(scans[0], SHOTS, Colors())
    assert joined.feature is not None
    assert lifted.mask.float().mean() > 0.5
    assert (joined.feature.any(1) == lifted.mask).float().mean() > 0.99
    both = joined.feature.any(1) & lifted.mask
    torch.testing.assert_close(joined.feature[both], lifted.features[both], atol=2e-2, rtol=0)
    monkeypatch.setattr("pc3d.image.live.load_image_tower", lambda name, weights: Colors())
    live = LiveScans(scans, "colors", tmp_path / "frames", depth_shift=5000)
    torch.testing.assert_close(LiftedSet(scans, live)[0].feature, joined.feature, atol=1e-3, rtol=1e-3)
