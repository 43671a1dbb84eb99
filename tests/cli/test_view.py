"""``pc3d view`` without a display: what it opens, what it colours, what it refuses."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pc3d.cli import _view_runs
from pc3d.cli._inputs import open_inputs
from pc3d.cli._view_features import _Speaker
from pc3d.cli._view_inputs import Shown, items_of, open_all, open_dataset, shown_item
from pc3d.cli._view_layers import Request, ask_of, build, choose_modes, cut_top
from pc3d.cli.main import main
from pc3d.data import Household, PointCloud, Rooms
from pc3d.methods import MaskedAutoencoder, MaskedScene
from pc3d.models import AlignedShapeEncoder, OpenShapeFCNN, PointNet, PointViT, ViT3D, load_encoder, save_encoder
from pc3d.viz.camera import Viewpoint, save_path

CONFIGS = """
seed: 0
model:
  class_path: pc3d.methods.PointMAE
  init_args:
    encoder:
      class_path: pc3d.models.PointViT
      init_args: {embed_dim: 24, depth: 1, num_heads: 2, num_groups: 12, group_size: 16, num_points: 256,
                  tokenizer_dims: [8, 8, 16]}
    decoder_depth: 1
    decoder_num_heads: 2
data:
  train: {class_path: pc3d.data.Household, init_args: {split: train}}
  train_transforms:
    - {class_path: pc3d.data.KeepFields, init_args: {fields: [label]}}
    - {class_path: pc3d.data.RandomSubsample, init_args: {num_points: 256}}
  batch_size: 64
trainer: {max_epochs: 1, limit_train_batches: 2, accelerator: cpu, enable_progress_bar: false}
"""
SEGMENT = """
seed: 0
model:
  backbone:
    class_path: pc3d.models.SparseUNet
    init_args: {channels: [8, 12], blocks: [1, 1], voxel_size: 0.3, signals: xyz_rgb_normal}
data:
  train: {class_path: pc3d.data.Rooms}
  test: {class_path: pc3d.data.Rooms, init_args: {split: test}}
  train_transforms:
    - {class_path: pc3d.data.CenterShift}
    - {class_path: pc3d.data.GridSample, init_args: {voxel_size: 0.3}}
  batch_size: 4
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    (folder / "config.yaml").write_text(CONFIGS)
    assert main(["pretrain", "--config", str(folder / "config.yaml"), "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def segment_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segment")
    (folder / "config.yaml").write_text(SEGMENT)
    arguments = ["--config", str(folder / "config.yaml"), "--output", str(folder / "run")]
    assert main(["segment", "train", *arguments]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = ViT3D(embed_dim=24, depth=1, num_heads=3, group_size=16, point_dim=8, num_points=256)
    return save_encoder(made, tmp_path_factory.mktemp("encoder"))


def view(*arguments: str | Path | float) -> int:
    return main(["view", *map(str, arguments)])


def objects(*items: int) -> list[Shown]:
    return items_of(Household("test"), "household", items)


# ---- what is opened ----------------------------------------------------------------------------------------------


def test_items_are_named_as_in_other_verbs() -> None:
    def opened(*what: str, **options: object) -> list[Shown]:
        usual = {"data": None, "root": None, "split": "test", "item": None, "num_points": 500, "up": None}
        return open_all(what, **{**usual, "drop_invalid": False, **options}).shown  # type: ignore[arg-type]

    first = opened("household:test:12,3-4")
    assert [one.name.rpartition(" ")[2] for one in first] == ["(12)", "(3)", "(4)"]
    torch.testing.assert_close(first[0].cloud.xyz, Household("test")[12].xyz)
    assert (first[0].sampling, first[0].normalize) == ("first", "none")
    same = opened(data="household", item=[12])
    torch.testing.assert_close(same[0].cloud.xyz, first[0].cloud.xyz)
    room = opened("rooms")[0]
    assert room.classes == Rooms("test").classes
    assert room.unit == "m"
    assert len(opened("rooms:train:1", "household:train:0")) == 2
    folder = opened(f"{Rooms('test').root}:train:1")[0]  # of the set's files, without its name
    torch.testing.assert_close(folder.cloud.xyz, Rooms("train")[1].xyz)
    assert (folder.classes, folder.unit) == (room.classes, "m")
    for word, message in (
        ("household:test:x", "must be like 12, 3,7 or 3-6; got 'x'"),
        ("household:test:1:2", "is not DATA:SPLIT:ITEM"),
        ("household:test:999", "has items 0 to 123, got 999"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(word)
    with pytest.raises(FileNotFoundError, match=r"'houshold' is no file, no folder .*did you mean"):
        opened("houshold:test:1")
    with pytest.raises(ValueError, match="name something to see"):
        opened()
    with pytest.raises(ValueError, match="goes with a set of scenes"):
        open_dataset("household", "test", "folder")


def test_files_of_points_and_meshes(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box((1, 2, 3))
    box.export(tmp_path / "box.glb")
    box.export(tmp_path / "box.off")
    np.save(tmp_path / "points.npy", np.random.default_rng(0).uniform(0, 1, (200, 3)))
    usual = {"data": None, "root": None, "split": "test", "item": None, "num_points": 400, "drop_invalid": False}
    names = ["box.glb", "box.off", "points.npy"]
    found = open_all([str(tmp_path / name) for name in names], up=None, **usual).shown  # type: ignore[arg-type]
    assert [one.name for one in found] == names
    extents = [one.cloud.xyz.amax(0) - one.cloud.xyz.amin(0) for one in found]
    assert extents[0].round().tolist() == [1, 3, 2]  # y up by the standard of GLB
    assert extents[1].round().tolist() == [1, 2, 3]
    assert [len(one.cloud) for one in found] == [400, 400, 200]


PLY_WITH_CLASSES = """ply
format ascii 1.0
comment class 0 wall
comment class 1 arm chair
element vertex 3
property float x
property float y
property float z
property int label
end_header
0 0 0 1
1 0 0 -1
0 1 0 0
"""


def test_labels_of_a_file_when_they_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled, other = tmp_path / "labelled.ply", tmp_path / "points.npy"
    labelled.write_text(PLY_WITH_CLASSES)
    np.save(other, np.random.default_rng(0).uniform(0, 1, (20, 3)))
    usual: dict[str, Any] = {"data": None, "root": None, "split": "test", "item": None, "num_points": 9, "up": None}
    (one,) = open_all([str(labelled)], drop_invalid=False, labels=True, **usual).shown
    assert one.cloud.segment is not None
    assert one.cloud.segment.tolist() == [1, -1, 0]
    assert one.classes == ("wall", "arm chair")
    # segment predict --class_numbers writes any numbers, in the order of the model's classes.
    gaps = (
        PLY_WITH_CLASSES.replace("class 0", "class 3")
        .replace("arm chair", "arm chair\ncomment class 99999999 far")
        .replace("wall", "voilà")
    )
    labelled.write_text(gaps, encoding="utf-8")
    shown = open_all([str(labelled)], drop_invalid=False, labels=True, **usual).shown
    assert shown[0].classes == ("class 0", "arm chair", "class 2", "voilà")
    assert view(labelled, "--mode", "label", "--output", tmp_path / "label.png", "--size", 64, 48) == 0
    assert "shown: label" in capsys.readouterr().out
    assert view(labelled, "--output", tmp_path / "height.png", "--size", 64, 48) == 0
    assert "shown: height" in capsys.readouterr().out
    assert view(other, "--mode", "label", "--output", tmp_path / "none.png") == 1
    assert "points.npy" in capsys.readouterr().err


def test_objects_with_large_numbers(tmp_path: Path) -> None:
    """As in SemanticKITTI, which packs the class into them; from 2^31 on a page would read them as negative."""
    folder = tmp_path / "test" / "street"
    folder.mkdir(parents=True)
    number = np.array([(3 << 30) + 7, -1, 5, (3 << 30) + 7])
    np.save(folder / "coord.npy", np.eye(4, 3, dtype=np.float32))
    np.save(folder / "instance.npy", number)
    usual: dict[str, Any] = {"root": None, "split": "test", "num_points": 9, "up": None, "drop_invalid": False}
    shown = open_all([], data=str(tmp_path), item=None, **usual).shown
    layer = build(shown, None, Request(), 0.0).clouds[0].layers["instance"]
    assert [layer.text(row) for row in range(4)] == [
        "instance: object 3221225479",
        "instance: unlabelled",
        "instance: object 5",
        "instance: object 3221225479",
    ]
    assert {name for name, _ in layer.legend} == {"unlabelled", "object 5", "object 3221225479"}


def test_a_picture_says_how_many_points_it_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "points.npy", np.random.default_rng(0).uniform(0, 1, (200, 3)))
    target = tmp_path / "some.png"
    assert view(tmp_path / "points.npy", "--output", target, "--size", 64, 48, "--max_points", 50) == 0
    assert "note: 50 of 200 points are drawn, at random" in capsys.readouterr().out
    assert view(tmp_path / "points.npy", "--output", target, "--size", 64, 48, "--overwrite") == 0
    assert "are drawn" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scene", "file", "number", "name"),
    [
        ("Area_5/office_1", "segment", 12, "clutter"),
        ("val/scene_03249/room_7", "segment", 24, "otherprop"),
        ("val/scene0011_00", "segment20", 19, "otherfurniture"),
    ],
)
def test_prepared_benchmarks_are_known_by_their_names(
    tmp_path: Path, scene: str, file: str, number: int, name: str
) -> None:
    """As Pointcept prepares them: nothing in the folder says what its numbers are."""
    folder = tmp_path / scene
    folder.mkdir(parents=True)
    np.save(folder / "coord.npy", np.eye(4, 3, dtype=np.float32))
    np.save(folder / f"{file}.npy", np.array([[-1], [0], [number], [0]], np.int16))
    split = Path(scene).parts[0]
    usual: dict[str, Any] = {"root": None, "item": None, "num_points": 9, "up": None, "drop_invalid": False}
    for what, named in ((folder, "test"), (folder.parent, "test"), (tmp_path, split)):
        (shown,) = open_all([str(what)], data=None, split=named, **usual).shown
        assert shown.cloud.segment is not None
        assert shown.cloud.segment.tolist() == [-1, 0, number, 0]
        assert shown.classes[number] == name
    if file == "segment":  # what a folder says itself counts
        (tmp_path / "classes.txt").write_text("".join(f"kind {i}\n" for i in range(number + 1)))
        (shown,) = open_all([str(tmp_path)], data=None, split=split, **usual).shown
        assert shown.classes[number] == f"kind {number}"


def test_a_scene_of_ones_own_that_is_called_as_in_structured3d(tmp_path: Path) -> None:
    folder = tmp_path / "scene_00001" / "room_7"  # where others have scene_00001 within a split
    folder.mkdir(parents=True)
    np.save(folder / "coord.npy", np.eye(4, 3, dtype=np.float32))
    np.save(folder / "segment.npy", np.array([0, 1, 1, 0]))
    (tmp_path / "classes.txt").write_text("shelf\nbox\n")
    usual: dict[str, Any] = {"root": None, "item": None, "num_points": 9, "up": None, "drop_invalid": False}
    (shown,) = open_all([str(folder)], data=None, split="test", **usual).shown
    assert shown.classes == ("shelf", "box")


def test_an_encoder_sees_the_published_episodes_as_in_other_verbs(tmp_path: Path) -> None:
    folder = tmp_path / "2way_1shot"
    folder.mkdir()
    points = np.random.default_rng(0).uniform(size=(50, 3)).astype(np.float32)
    sides = {side: [(points, new, 3 + new) for new in range(2)] for side in ("train", "test")}
    (folder / "0.pkl").write_bytes(pickle.dumps(sides))
    source = open_inputs(str(folder), "test", None)
    (shown,) = items_of(source.dataset, "episodes", [1])
    assert (shown.sampling, shown.normalize) == (source.sampling, source.normalize) == ("farthest", "centroid")
    assert shown.name == "4 (1)"


def test_prepared_scenes_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "classes.txt").write_text("wall\nfloor\n")
    for number in range(2):
        folder = tmp_path / "test" / f"scan{number}"
        folder.mkdir(parents=True)
        np.save(folder / "coord.npy", np.full((9, 3), number, np.float32))
        np.save(folder / "segment.npy", np.arange(9, dtype=np.int16) % 2)
    usual: dict[str, Any] = {"root": None, "split": "test", "num_points": 100, "up": None, "drop_invalid": False}
    monkeypatch.chdir(tmp_path / "test")
    for what, options in (
        (str(tmp_path), {"item": [1]}),
        (str(tmp_path / "test" / "scan1"), {}),
        ("scan1", {}),
        (str(tmp_path / "test"), {"item": [1]}),
        (".", {"item": [1]}),
        ("scenes:test:1", {"root": str(tmp_path)}),
    ):
        (shown,) = open_all([what], **{"data": None, "item": None, **usual, **options}).shown
        assert shown.cloud.xyz.tolist() == [[1.0, 1.0, 1.0]] * 9
        assert shown.classes == ("wall", "floor")
        assert (shown.unit, shown.name) == ("m", "scan1 (1)")
    with pytest.raises(ValueError, match=r"split: \. is the split 'test' itself, got 'train': name"):
        open_dataset(".", "train", None)


def test_runs_know_their_data(masked_run: Path, segment_run: Path, tmp_path: Path) -> None:
    shown, notes = _view_runs.items_of_run(masked_run, None)
    assert len(shown) == 3
    torch.testing.assert_close(shown[1].cloud.xyz, Household("test")[1].xyz)  # the test split, not that of training
    assert notes == []
    rooms, _ = _view_runs.items_of_run(segment_run, [1])
    torch.testing.assert_close(rooms[0].cloud.xyz, Rooms("test")[1].xyz)
    assert [_view_runs.kind_of(run) for run in (masked_run, segment_run)] == ["pretrain", "segment"]
    assert _view_runs.reconstructs(masked_run)
    assert not _view_runs.reconstructs(segment_run)
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="name what the run shall be shown on"):
        _view_runs.items_of_run(tmp_path, None)
    with pytest.raises(FileNotFoundError, match="let the run get further"):
        _view_runs.kind_of(tmp_path / "nothing")


# ---- what is seen ------------------------------------------------------------------------------------------------


def test_plain_colours_and_their_order() -> None:
    room = build([shown_item(Rooms("test"), 0)], None, Request(), -55.0)
    assert room.modes == ("rgb", "height", "normal", "label", "instance")
    assert choose_modes(room, None) == ("rgb",)
    assert {name.partition(" ")[0] for name, _ in room.legend("instance")} <= {"object", "unlabelled"}
    assert choose_modes(room, ["label", "rgb", "label"]) == ("label", "rgb")
    scale = room.scale("height")
    assert scale is not None
    assert scale.unit == "m"
    bare = PointCloud(xyz=torch.rand(50, 3))
    view = build([Shown("bare", bare)], None, Request(), -55.0)
    assert view.modes == ("height",)
    with pytest.raises(ValueError, match="mode: 'rgb': nothing here has colours; the modes here are height"):
        choose_modes(view, ["rgb"])
    with pytest.raises(ValueError, match="predictions need a run folder"):
        choose_modes(view, ["prediction"])
    with pytest.raises(ValueError, match="'colour': there is no such mode"):
        choose_modes(view, ["colour"])


def test_features_are_joint_and_similarity_is_to_the_chosen_point(encoder: Path) -> None:
    shown = objects(0, 7)
    request = Request(str(encoder), point=[1, 5], attention=[0, 2])
    view = build(shown, None, request, -55.0)
    assert ask_of(view, request) is None  # of texts it knows nothing
    assert view.modes == ("rgb", "height", "normal", "features", "attention 0", "attention 2", "similarity")
    assert choose_modes(view, ["attention"]) == ("attention 0", "attention 2")
    every = build(shown, None, Request(str(encoder), attention=None), -55.0)
    assert choose_modes(every, ["attention"]) == ("attention 0", "attention 1", "attention 2")
    first, second = (cloud.embedding for cloud in view.clouds)
    assert first is not None
    assert second is not None
    assert first.shape == (2048, 24)
    # What the encoder says of the points that it sees, carried to all others.
    from pc3d.models import object_features

    cloud = shown[0].cloud
    expected = object_features(load_encoder(encoder), cloud.xyz[:256], cloud.xyz)
    np.testing.assert_allclose(first.astype(np.float32), expected.numpy(), atol=2e-2)
    from pc3d.viz import feature_colors

    np.testing.assert_array_equal(view.clouds[1].layers["features"].colors, feature_colors([first, second])[1])
    similar = view.clouds[1].layers["similarity"].values
    assert similar is not None
    assert similar.argmax() == 5
    even = view.clouds[0].layers["attention 0"].values
    assert even is not None
    assert 0.5 < even.mean() < 2
    for wrong, message in (
        ({"attention": [7]}, r"attention: the encoder has heads 0\.\.2, got 7"),
        ({"point": [2, 0]}, r"cloud of 0\.\.1; got \[2, 0\]"),
        ({"point": [0, 5000]}, r"has rows 0\.\.2047, got 5000"),
        ({"text": ["a chair"]}, "ViT3D was not aligned with texts and pictures"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            build(shown, None, Request(str(encoder), **wrong), -55.0)  # type: ignore[arg-type]


def test_features_of_a_file_are_those_of_its_points_in_the_unit_sphere(tmp_path: Path) -> None:
    """A cloud in other units and at another place has the same features."""
    torch.manual_seed(0)
    folder = save_encoder(PointNet(16), tmp_path)
    xyz = Household("test")[7].xyz
    moved = [Shown("a", PointCloud(xyz=xyz)), Shown("b", PointCloud(xyz=40 * xyz + torch.tensor([5.0, -3, 100])))]
    first, second = (cloud.embedding for cloud in build(moved, None, Request(str(folder)), 0.0).clouds)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first.astype(np.float32), second.astype(np.float32), atol=0.02)


def test_texts_colour_shapes_of_an_aligned_encoder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from pc3d.image.towers import MissingWeightsError
    from pc3d.models import AlignedShapeEncoder, OpenShapePointBERT

    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32, "patch_dim": 16, "num_groups": 10, "group_size": 8}
    inner = OpenShapePointBERT(8, **sizes, num_points=256)  # type: ignore[arg-type]
    folder = save_encoder(AlignedShapeEncoder(inner, 384, 16, text_space="offline:minilm"), tmp_path)
    try:
        request = Request(str(folder), text=["chair", "plant"])
        view = build(objects(7, 8), None, request, -55.0)
    except MissingWeightsError as missing:
        pytest.skip(str(missing))
    assert view.modes[-3:] == ("features", "text: chair", "text: plant")
    assert choose_modes(view, ["text"]) == ("text: chair", "text: plant")
    scale = view.scale("text: chair")
    assert scale is not None
    assert scale.minimum == -scale.maximum < 0
    chair, plant = (view.clouds[0].layers[f"text: {text}"].values for text in ("chair", "plant"))
    assert chair is not None
    assert plant is not None
    assert np.abs(chair - plant).max() > 1e-4
    # A text that is typed later, in a view without its top.
    cut = cut_top(view, 0.3)
    ask = ask_of(cut, request)
    assert ask is not None
    (later, mode), rows = cut.answering(ask, "plant "), cut.clouds[0].rows
    assert mode == "text: plant"
    assert rows is not None
    assert len(rows) < 2048
    np.testing.assert_allclose(later.clouds[0].layers[mode].values, plant[rows], atol=1e-6)


def test_texts_colour_scenes_of_a_distilled_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cosine of the points' features in the teacher's space with the text, by hand."""
    from types import SimpleNamespace

    from pc3d.models import DistilledEncoder, SparseUNet, scene_features

    torch.manual_seed(0)
    made = DistilledEncoder(SparseUNet((8, 12), (1, 1), 0.3, "xyz_rgb"), 6, "offline:somewhere")
    folder = save_encoder(made, tmp_path)
    text = torch.tensor([1.0, 0, 0, 0, 0, 0])
    tower = SimpleNamespace(text=None)
    monkeypatch.setattr("pc3d.tasks.joint_teacher", lambda encoder, name: tower)
    monkeypatch.setattr("pc3d.cli._alignment.class_vectors", lambda tower, prompts, templates: text[None])
    cloud = Rooms("test")[0].select(slice(None, None, 20))
    view = build([Shown("room", cloud)], None, Request(str(folder), text=["floor"]), -55.0)
    assert view.modes[-2:] == ("features", "text: floor")
    standing = cloud.replace(
        xyz=cloud.xyz
        - torch.tensor([*((cloud.xyz.amin(0) + cloud.xyz.amax(0)) / 2)[:2].tolist(), float(cloud.xyz[:, 2].min())])
    )
    with torch.no_grad():
        expected = torch.nn.functional.normalize(made.in_space(scene_features(made, standing)), dim=1)[:, 0]
    found = view.clouds[0].layers["text: floor"].values
    assert found is not None
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    scale = view.scale("text: floor")
    assert scale is not None
    assert scale.unit == "cosine"
    assert "warning" not in capsys.readouterr().err
    build([Shown("room", cloud)], None, Request(str(folder), text=["floor"], text_tower="offline:else"), -55.0)
    assert "text_tower: the encoder was trained with offline:somewhere" in capsys.readouterr().err


def test_masked_input_and_reconstruction_stand_side_by_side(masked_run: Path) -> None:
    shown = objects(0, 7)
    view = build(shown, masked_run, Request(encoder=str(masked_run), seed=1), -55.0)
    assert [cloud.name for cloud in view.clouds[:3]] == ["Bed (0)", "what the encoder sees", "reconstruction"]
    assert len(view.clouds) == 6
    assert choose_modes(view, None) == ("mask", "features")
    given, seen, rebuilt = view.clouds[:3]
    np.testing.assert_array_equal(given.xyz, shown[0].cloud.xyz[:256].numpy())
    kinds = [cloud.layers["mask"].values for cloud in (given, seen, rebuilt)]
    assert all(kind is not None for kind in kinds)
    # Of 12 patches of 16 points, 7 are hidden; what is predicted stands in their place.
    assert (kinds[2] == _view_runs.PREDICTED).sum() == 7 * 16
    np.testing.assert_array_equal(given.xyz[kinds[0] == _view_runs.VISIBLE], seen.xyz)
    # Each visible point is in one of the 5 patches that the encoder sees, and none of the others is.
    method = _view_runs.masked_method(masked_run)
    assert isinstance(method, MaskedAutoencoder)
    made = method.reconstruct(torch.from_numpy(given.xyz)[None], generator=torch.Generator().manual_seed(1))
    patches = made.patches[0][~made.mask[0]].reshape(-1, 3)
    away = torch.cdist(torch.from_numpy(given.xyz), patches).amin(1).numpy()
    np.testing.assert_array_equal(away < 1e-4, kinds[0] == _view_runs.VISIBLE)
    assert 0 < (kinds[0] == _view_runs.HIDDEN).sum() < 256
    again = build(shown, masked_run, Request(seed=1), -55.0)
    np.testing.assert_array_equal(again.clouds[2].xyz, rebuilt.xyz)
    assert again.clouds[0].embedding is None
    assert given.embedding is not None
    assert seen.embedding is None


def test_why_a_run_is_shown_on_what_it_was_trained_on_is_said(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    cloud = Household("test", num_points=20).load(0)
    np.save(tmp_path / "files" / "cup.npy", cloud.xyz.numpy())
    data = {"class_path": "pc3d.data.FolderDataset", "init_args": {"root": str(tmp_path / "files")}}
    (tmp_path / "config.yaml").write_text(json.dumps({"data": {"train": data}}))
    (tmp_path / "last.ckpt").touch()
    shown, (note,) = _view_runs.items_of_run(tmp_path, None)
    np.testing.assert_array_equal(shown[0].cloud.xyz, cloud.xyz)
    assert note.startswith("these are items that the run was trained on; a test split of its data cannot be shown: ")
    assert "\n" not in note
    assert str(tmp_path / "files") in note


def test_hidden_cubes_of_a_scene_and_what_is_predicted_in_them(masked_scenes: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(masked_scenes)
    run = tmp_path / "run"
    assert main(["pretrain", "--config", str(tmp_path / "config.yaml"), "--output", str(run)]) == 0
    cloud = Rooms("test")[0].select(slice(None, None, 10))
    scene = Shown("room", cloud, Rooms("test").classes, unit="m")
    view = build([scene], run, Request(seed=3), -55.0)
    assert [one.name for one in view.clouds] == ["room", "what the encoder sees", "reconstruction"]
    assert choose_modes(view, None) == ("rgb", "mask")
    given, seen, rebuilt = view.clouds
    kinds = [one.layers["mask"].values for one in view.clouds]
    assert kinds[0] is not None
    hidden = kinds[0] == _view_runs.HIDDEN
    assert 0.3 < hidden.mean() < 0.9
    # Hidden are whole voxels, whose points are grey in their middle; all else is as it was.
    size = 0.1
    np.testing.assert_allclose(seen.xyz[hidden], (np.floor(given.xyz[hidden] / size) + 0.5) * size, atol=1e-5)
    np.testing.assert_array_equal(seen.xyz[~hidden], given.xyz[~hidden])
    assert (np.abs(seen.layers["rgb"].colors[hidden].astype(int) - 127) <= 1).all()
    np.testing.assert_array_equal(seen.layers["rgb"].colors[~hidden], given.layers["rgb"].colors[~hidden])
    # One predicted point for each hidden voxel, where and as the head says, written out.
    method = _view_runs.masked_method(run)
    assert isinstance(method, MaskedScene)
    from pc3d.data import CenterShift, collate

    batch = collate([CenterShift()(cloud, torch.Generator())])
    told = method.hide(batch, 3, 0)
    with torch.no_grad():
        rows = method.head(method.features(told)[told.mask]).numpy()
    new = kinds[2] == _view_runs.PREDICTED
    assert new.sum() == len(rows) == len(np.unique(np.floor(given.xyz[hidden] / size), axis=0))
    expected = np.round(np.clip((rows[:, :3] + 1) / 2, 0, 1) * 255)
    assert np.abs(rebuilt.layers["rgb"].colors[new] - expected).max() <= 1
    inverse, mask, batch_xyz = told.inverse.numpy(), told.mask.numpy(), told.batch.xyz.numpy()
    for number, voxel in enumerate(np.flatnonzero(mask)[:50]):
        middle = batch_xyz[np.flatnonzero(inverse == voxel)[0]]
        np.testing.assert_allclose(rebuilt.xyz[new][number], middle + (rows[number, 6:] - 0.5) * size, atol=1e-4)


def test_classes_of_objects_and_where_they_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier of random weights says what ``pc3d classify eval`` would say of the same items."""
    from pc3d.evaluation import predict_logits
    from pc3d.models import classifier_of
    from pc3d.tasks import load_classifier
    from pc3d.tasks.model_folder import save_model

    names = Household("test").classes
    torch.manual_seed(0)
    model = classifier_of(PointNet(16), len(names))
    head = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    config = {"task": "classification", "classes": list(names), "mode": "full", "training": {}}
    save_model(tmp_path, model.encoder, head, config)
    shown = objects(0, 7, 8)
    view = build(shown, tmp_path, Request(), -55.0)
    found = predict_logits(load_classifier(tmp_path)[0], Household("test", num_points=1024))[0].argmax(1)
    said = capsys.readouterr().out
    for one, cloud, expected in zip(shown, view.clouds, found[[0, 7, 8]], strict=True):
        assert f"{one.name}: {names[expected]}" in said
        assert (cloud.layers["prediction"].values == expected).all()
        right = expected == one.cloud.label
        assert cloud.layers["error"].legend[0][0] == ("right" if right else "wrong")
    assert choose_modes(view, None) == ("rgb", "prediction", "error")
    # Objects of no class, or of other classes than the run's, have predictions alone.
    other = [Shown("a", shown[0].cloud, categories=("x", "y")), Shown("b", shown[0].cloud.replace(label=None))]
    request = Request()
    assert "error" not in build(other, tmp_path, request, -55.0).modes
    assert request.notes == ["a: labelled with other classes than the run's, so no errors are shown"]


def test_names_of_embedded_sets_come_before_files_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    note = "note: '{0}' is the embedded data set; the file or folder of that name here is ./{0}"
    wanted: dict[str, Any] = {"split": "test", "item": None, "num_points": 100, "up": None, "drop_invalid": False}

    def shown(word: str, data: str | None = None) -> PointCloud:
        return open_all([word] if word else [], data=data, root=None, **wanted).shown[0].cloud

    assert view("household", "--output", "a.png", "--size", "40", "30") == 0
    assert "is the embedded data set" not in capsys.readouterr().out
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    for name, embedded in (("household", Household("test")), ("rooms", Rooms("test"))):
        Path(name).mkdir()
        np.save(Path(name, "cloud.npy"), points)
        capsys.readouterr()
        for words in ((name,), (f"{name}:test:0",), ("", name)):
            assert torch.equal(shown(*words).xyz, embedded.load(0).xyz)
            assert note.format(name) in capsys.readouterr().out
        for word in (f"./{name}", f"{name}/"):
            np.testing.assert_array_equal(shown(word).xyz, points)
        assert capsys.readouterr().out == ""
    Path("scannet").mkdir()  # a set that is not embedded
    np.save("scannet/cloud.npy", points)
    np.testing.assert_array_equal(shown("scannet").xyz, points)
    embed = ["embed", "--encoder", "descriptor", "--num_points", "16", "--output", "features.npz", "--overwrite"]
    assert main(embed) == 0
    assert capsys.readouterr().out.count(note.format("household")) == 1
    assert main(["probe", "--encoder", "descriptor", "--num_points", "16", "--C", "1"]) == 0
    assert capsys.readouterr().out.count(note.format("household")) == 1  # for both of its splits
    Path("household").rename("folder")
    np.save("file.npy", points)
    Path("file.npy").rename("household")  # and no format that could be read
    assert main(embed) == 0
    assert capsys.readouterr().out.count(note.format("household")) == 1


def test_predictions_and_errors(segment_run: Path) -> None:
    from pc3d.tasks import load_segmenter, segment_scene

    shown = [shown_item(Rooms("test"), 0)]
    view = build(shown, segment_run, Request(), -55.0)
    assert choose_modes(view, None) == ("rgb", "label", "prediction", "error")
    layers = view.clouds[0].layers
    expected = segment_scene(load_segmenter(segment_run), shown[0].cloud, use_fragments=False).label.numpy()
    np.testing.assert_array_equal(layers["prediction"].values, expected)
    label = shown[0].cloud.segment
    assert label is not None
    wrong = np.array([214, 38, 41])
    np.testing.assert_array_equal((layers["error"].colors == wrong).all(1), expected != label.numpy())
    # Other labels than the run's: a prediction without errors, and it is said.
    request = Request()
    other = [Shown("other", shown[0].cloud.select(slice(None, None, 50)), ("a", "b"))]
    assert "error" not in build(other, segment_run, request, -55.0).modes
    assert "other classes than the run's" in request.notes[0]


def test_parts_need_the_class_of_the_object(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pc3d.models import PointPartSegmenter

    torch.manual_seed(0)
    made = PointPartSegmenter(
        PointViT(embed_dim=24, depth=3, num_heads=2, num_groups=12, group_size=16, num_points=256),
        num_parts=4,
        num_categories=2,
        head_dims=(8, 8, 8, 8),
    ).eval()
    config = {"categories": ["a", "b"], "parts": ["w", "x", "y", "z"], "category_parts": [[0, 1], [2, 3]]}
    monkeypatch.setattr("pc3d.tasks.load_part_segmenter", lambda run: (made, config))
    monkeypatch.setattr(_view_runs, "kind_of", lambda run: "parts")
    cloud = PointCloud(xyz=Household("test")[7].xyz, label=1)
    found, names = _view_runs.predictions(tmp_path, [Shown("a", cloud)], "cpu")
    assert names == ("w", "x", "y", "z")
    assert found[0].shape == (2048,)
    assert set(np.unique(found[0])) <= {2, 3}  # those of its category
    with pytest.raises(ValueError, match="has no class, and parts are named of objects whose class is known"):
        _view_runs.predictions(tmp_path, [Shown("a", cloud.replace(label=None))], "cpu")


def test_scenes_are_prepared_as_networks_know_them(segment_run: Path) -> None:
    shown = [shown_item(Rooms("test"), 0)]
    cloud = shown[0].cloud.select(slice(None, None, 5))
    raised = cloud.replace(xyz=cloud.xyz + torch.tensor([10.0, 20, 30]), rgb=None)
    request = Request(str(segment_run))
    speaker = _Speaker(load_encoder(segment_run), request)
    scene = _view_runs.seen_scene(speaker.encoder, Shown("raised", raised), request.notes)
    assert float(scene.xyz[:, 2].min()) == pytest.approx(0, abs=1e-4)
    assert "no colours: the model was trained with them" in request.notes[0]
    assert speaker.features(Shown("raised", raised), raised.xyz.numpy()).shape == (len(raised), 20)


def test_features_of_points_of_sparse_convolutions_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    inner = OpenShapeFCNN(8, channels=(4, 6, 6, 8, 8), merged_dim=8, hidden_dim=8, num_points=300)
    save_encoder(AlignedShapeEncoder(inner).eval(), tmp_path / "encoder")
    command = ["view", "household:test:7", "--encoder", str(tmp_path / "encoder"), "--mode", "features"]
    assert main([*command, "--output", str(tmp_path / "a.png")]) == 0
    assert "shown: features" in capsys.readouterr().out


def test_the_top_is_cut_off() -> None:
    view = build([shown_item(Rooms("test"), 0)], None, Request(), -55.0)
    z = view.clouds[0].xyz[:, 2]
    cut = cut_top(view, 0.2).clouds[0]
    low, high = np.percentile(z, [0.1, 99.9])
    assert len(cut) == (z <= high - 0.2 * (high - low)).sum() < len(z)
    assert cut_top(view, 0.0) is view
    with pytest.raises(ValueError, match="must be a share of the height in"):
        cut_top(view, 1.0)


# ---- the verb ----------------------------------------------------------------------------------------------------


def test_a_picture_on_one_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "pictures" / "chair.png"
    assert view("household:test:7", "--output", output, "--size", 120, 90, "--view", -30, 10) == 0
    told = capsys.readouterr().out
    assert "Stool (7): 2,048 points" in told
    assert "shown: rgb; also there: height, normal" in told
    assert "not there: label, instance, features" in told
    picture = np.asarray(Image.open(output))
    assert picture.shape == (90 + 24, 120, 3)
    assert 0.03 < (picture[24:] < 200).any(2).mean() < 0.9
    assert view("household:test:7", "--output", output) == 1
    assert "exists: add --overwrite" in capsys.readouterr().err
    arguments = ["household:test:7", "--output", output, "--overwrite", "--size", 120, 160]
    assert view(*arguments, "--mode", "normal", "height", "--view", 60, 10) == 0
    assert np.asarray(Image.open(output)).shape[1] > 240


def test_clouds_without_a_mode_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "bare.npy", np.random.default_rng(0).uniform(0, 1, (200, 3)))
    options = ["--size", 80, 60, "--output", tmp_path / "both.png"]
    assert view("household:test:7", tmp_path / "bare.npy", *options) == 0
    assert "grey, since without rgb: bare.npy" in capsys.readouterr().out


def test_a_room_through_a_run_to_a_picture(segment_run: Path, tmp_path: Path) -> None:
    options = ["--top", 0.15, "--view", -55, 50, "--size", 160, 120, "--output", tmp_path / "room.jpg"]
    assert view(segment_run, *options, "--mode", "prediction", "features") == 0
    assert Image.open(tmp_path / "room.jpg").size[0] > 320


def test_turning_and_along_a_path(tmp_path: Path) -> None:
    arguments = ["household:test:7", "--size", 60, 50, "--frames", 3]
    assert view(*arguments, "--output", tmp_path / "turn.gif") == 0
    assert Image.open(tmp_path / "turn.gif").n_frames == 3  # type: ignore[attr-defined]
    path = [Viewpoint((0.0, 0.0, 0.0), 4.0), Viewpoint((0.0, 0.0, 0.0), 8.0)]
    save_path(path, tmp_path / "path.json")
    assert view(*arguments, "--camera_path", tmp_path / "path.json", "--output", tmp_path / "away.gif") == 0
    gif = Image.open(tmp_path / "away.gif")
    covered = []
    for frame in range(3):
        gif.seek(frame)
        covered.append((np.asarray(gif.convert("L")) < 200).mean())
    assert covered[0] > 2 * covered[2] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["household:test:7", "--output", "a.pdf"], "output: must end in .png"),
        (["household:test:7", "--html", "a.png"], "html: must end in .html, got a.png"),
        (["household:test:7", "--html", "a.html", "--web"], "--html and --web exclude each other"),
        (["household:test:7", "--output", "no.png", "--size", "0", "10"], "size: the width must be positive, got 0"),
        (["household:test:7", "--output", "no.png", "--columns", "0"], "columns: must be positive, got 0"),
        (["household:test:7", "--output", "no.png", "--point_size", "-1"], "point_size: must be positive, got -1.0"),
        (["household:test:7", "--output", "no.png", "--max_points", "0"], "max_points: must be positive, got 0"),
        (["household:test:7", "--output", "no.png", "--view", "0", "100"], "view: the elevation, its second number"),
        (["household:test:7", "--output", "no.png", "--top", "2"], "error: top: must be a share of the height"),
        (["household:test:7", "--web", "--port", "-1"], "port must be between 0 and 65535, got -1"),
        (["household:test:7", "--output", "a.png", "--view", "1"], "view: takes two numbers, got 1"),
        (["household:test:7", "--output", "a.png", "--text", "chair"], "text: is a question to an encoder"),
        (["household:test:7", "--output", "a.png", "--mode", "label"], "nothing here has labels of points"),
        (["missing.ply", "--output", "a.png"], "'missing.ply' is no file, no folder and no data set"),
        (["--output", "a.png"], "name something to see"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_page_starts_in_the_mode_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    call = ["view", "household:test:7", "household:test:9", "--mode", "normal", "--html", str(page)]
    assert main(call) == 0
    assert f"written: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    manifest = json.loads(text.partition('<script id="manifest" type="application/json">')[2].partition("</script>")[0])
    assert manifest["modes"][manifest["first"]]["name"] == "normal"
    assert [cloud["count"] for cloud in manifest["clouds"]] == [2048, 2048]
    assert main(call) == 1
    assert "add --overwrite to replace it" in capsys.readouterr().err


def test_the_server_gets_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("pc3d.viz.web.serve", lambda *arguments, **options: calls.append((arguments, options)))
    assert main(["view", "household:test:7", "--web", "--host", "0.0.0.0", "--port", "9", "--max_points", "5"]) == 0
    assert main(["view", "household:test:7", "--web"]) == 0
    (view, *address), options = calls[0]
    assert view.num_points == 2048
    assert address == ["0.0.0.0", 9]
    assert (options["mode"], options["max_points"]) == ("rgb", 5)
    assert calls[1][0][1:] == ("127.0.0.1", 8080)
    assert calls[1][1]["max_points"] == 1_000_000
    assert calls[1][1]["ask"] is None  # there is no encoder
    # The address is told whether or not notes are.
    capsys.readouterr()
    monkeypatch.setattr("pc3d.viz.web.serve", lambda *arguments, **options: options["ready"]("http://here:1"))
    assert main(["view", "household:test:7", "--web", "--quiet"]) == 0
    assert capsys.readouterr().out == "serving on http://here:1 (Ctrl-C ends it)\n"
    assert main(["view", "household:test:7", "--web", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"url": "http://here:1"}
