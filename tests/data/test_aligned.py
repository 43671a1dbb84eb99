"""Shapes with targets: what is chosen how often, joining, ensembles, the released files, shards, and refusals."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import pickle
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from openshape_release import release, shape, write_release
from scipy.stats import chisquare
from torch import Tensor

from pc3d.data import (
    AlignedSet,
    AlignedShards,
    BadFileError,
    ChooseTargets,
    Ensemble,
    Household,
    MissingDataError,
    OpenShapeFiles,
    PointCloud,
    PointLoader,
    Selection,
    Targets,
    TurnSlightly,
    targets_of,
)
from pc3d.data.aligned_files import unpack_cloud, write_index, write_shard
from pc3d.data.shard_files import shard_members

TOOL = Path(__file__).parents[2] / "data_tools" / "convert_openshape.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("release"))


def targets(kinds: tuple[str, ...], images: tuple[str, ...] = ("rendering",)) -> Targets:
    text, image = torch.arange(len(kinds) * 2.0).view(-1, 2), torch.arange(len(images) * 3.0).view(-1, 3)
    return Targets(text, image, tuple(f"text {i}" for i in range(len(kinds))), kinds, images)


def chosen(choose: ChooseTargets, found: Targets, seed: int) -> Targets:
    cloud = PointCloud(torch.zeros(1, 3), meta={"targets": found})
    result = choose(cloud, torch.Generator().manual_seed(seed)).meta["targets"]
    assert isinstance(result, Targets)
    return result


# ---- choosing ----------------------------------------------------------------------------------------------------


def test_kinds_of_text_are_drawn_as_often_as_published() -> None:
    """Raw, caption, retrieved: a third each, but the caption is drawn for nothing where azure's turn comes."""
    found = targets(("raw", "raw", "caption:blip", "retrieval", "retrieval"))
    draws = Counter(chosen(ChooseTargets(), found, seed).texts for seed in range(3000))
    # With a caption (half the time) 1/3 each, else raw and retrieved 1/2 each; within a kind uniform.
    share = {"text 0": 5 / 24, "text 1": 5 / 24, "text 2": 1 / 6, "text 3": 5 / 24, "text 4": 5 / 24}
    counts = [draws[(name,)] for name in share]
    assert sum(counts) == 3000
    assert chisquare(counts, [3000 * value for value in share.values()]).pvalue > 1e-3


def test_pictures_are_drawn_as_often_as_published() -> None:
    found = targets((), ("thumbnail", "rendering", "rendering", "rendering"))
    draws = Counter(int(chosen(ChooseTargets(), found, seed).image_features[0, 0]) // 3 for seed in range(1200))
    assert chisquare([draws[i] for i in range(4)], [600, 200, 200, 200]).pvalue > 1e-3
    assert chosen(ChooseTargets(thumbnail_probability=0.0), targets((), ("thumbnail",)), 0).image_kinds == (
        "thumbnail",
    )


def test_what_is_not_there_is_not_chosen() -> None:
    assert chosen(ChooseTargets(), targets(()), 0).texts == ()
    only_caption = targets(("caption:blip",))
    drawn = Counter(len(chosen(ChooseTargets(), only_caption, seed).texts) for seed in range(200))
    assert 60 < drawn[0] < 140  # half the time azure is drawn, who wrote nothing
    beside = targets(("caption:blip", "caption:vlm"))
    drawn = Counter(chosen(ChooseTargets(), beside, seed).text_kinds for seed in range(300))
    assert drawn.keys() == {("caption:blip",), ("caption:vlm",), ()}
    assert all(60 < count < 140 for count in drawn.values())
    alone = [chosen(ChooseTargets(), targets(("caption:vlm",)), seed).text_kinds for seed in range(20)]
    assert set(alone) == {("caption:vlm",)}
    assert chosen(ChooseTargets(captioners=["azure"]), beside, 0).texts == ()
    own = ChooseTargets(captioners=None)
    assert all(len(chosen(own, only_caption, seed).texts) == 1 for seed in range(20))
    assert chosen(ChooseTargets(kinds=("raw",)), only_caption, 0).texts == ()
    nothing = chosen(ChooseTargets(0, 0), targets(("raw",)), 0)
    assert (nothing.texts, nothing.image_kinds) == ((), ())
    assert chosen(ChooseTargets(), targets(("raw",), ()), 0).image_kinds == ()


def test_several_targets_are_different_ones() -> None:
    found = targets(("raw", "caption:blip", "retrieval", "retrieval"), ("thumbnail", "rendering", "rendering"))
    for seed in range(20):
        result = chosen(ChooseTargets(3, 2), found, seed)
        assert len(set(result.texts)) == 3
        assert len({int(row[0]) for row in result.image_features}) == 2
        for text, row in zip(result.texts, result.text_features, strict=True):
            assert row[0] == 2 * int(text.split()[1])  # features stay with their texts
    assert len(chosen(ChooseTargets(9, 9), found, 0).texts) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_texts": -1}, "num_texts and num_images must not be negative, got -1 and 1"),
        ({"kinds": ("raw", "title")}, r"kinds must be among raw, caption, retrieval, got \['title'\]"),
        ({"captioners": "vlm"}, "captioners must be a list of names, 'published' or None, got 'vlm'"),
        ({"thumbnail_probability": 1.5}, r"thumbnail_probability must be in \[0, 1\], got 1\.5"),
    ],
)
def test_bad_choices_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChooseTargets(**arguments)


def test_kinds_that_nobody_draws_are_refused() -> None:
    for kinds, message in (
        (("raw", "sketch"), "image_kinds must be among thumbnail, rendering, got 'sketch'"),
        (("title", "rendering"), "text_kinds must be among raw, retrieval, caption, got 'title'"),
    ):
        with pytest.raises(ValueError, match=message):
            Targets(torch.ones(1, 2), torch.ones(1, 2), ("a",), kinds[:1], kinds[1:])


def test_clouds_without_targets_are_refused() -> None:
    cloud = PointCloud(torch.zeros(1, 3), meta={"id": "chair"})
    with pytest.raises(ValueError, match=r"the cloud \(chair\) has no targets to choose from"):
        ChooseTargets()(cloud, torch.Generator())
    batch = next(iter(PointLoader(Household("test", num_points=8), 2)))
    with pytest.raises(ValueError, match="clouds have no targets"):
        targets_of(batch)
    with pytest.raises(ValueError, match=r"must have a row per entry of its lists \[1, 1\], got \(2, 3\)"):
        Targets(torch.zeros(2, 3), torch.zeros(0, 3), ("a",), ("raw",), ())


# ---- turning -----------------------------------------------------------------------------------------------------


def test_small_turns_are_rotations_within_their_bounds() -> None:
    eye = PointCloud(torch.eye(3, dtype=torch.float64), normal=torch.eye(3, dtype=torch.float64))
    angles = []
    for seed in range(200):
        turned = TurnSlightly()(eye, torch.Generator().manual_seed(seed))
        matrix = turned.xyz
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64))
        assert torch.det(matrix) > 0
        assert turned.normal is not None
        assert torch.equal(turned.normal, matrix)
        # R = Rz Ry Rx has Ry's angle alone in its lower left corner.
        angles.append(float(-matrix[2, 0].asin()))
    assert max(map(abs, angles)) <= 0.18 + 1e-9
    assert 0.05 < float(np.std(angles)) < 0.07
    still = TurnSlightly(0.0)(eye, torch.Generator())
    torch.testing.assert_close(still.xyz, eye.xyz, rtol=0, atol=0)
    # Almost every angle of such a spread is clipped: sin 5 degrees, by a table.
    turns = [TurnSlightly(90.0, 5.0)(eye, torch.Generator().manual_seed(seed)).xyz[2, 0].item() for seed in range(20)]
    assert max(map(abs, turns)) == pytest.approx(0.0871557, abs=1e-6)
    with pytest.raises(ValueError, match=r"std_degrees and max_degrees must not be negative, got 3.4.* and -1"):
        TurnSlightly(max_degrees=-1.0)


# ---- joining -----------------------------------------------------------------------------------------------------


def test_any_set_is_joined_with_features_by_id() -> None:
    household = Household("test", num_points=16)
    names = [str(household[i].meta["id"]) for i in range(3)]
    texts = {names[0]: {"original": torch.ones(1, 4), "prompt_avg": torch.zeros(1, 4)}}
    images = {name: {"image": torch.full((2, 5), float(i))} for i, name in enumerate(names)}
    joined = AlignedSet(household, texts, images)
    assert len(joined) == len(household)
    found = joined[0].meta["targets"]
    assert (found.texts, found.text_kinds, found.image_kinds) == ((household[0].text,), ("raw",), ("rendering",) * 2)
    assert torch.equal(found.text_features, torch.zeros(1, 4))
    assert torch.equal(
        AlignedSet(household, texts, text_feature="original")[0].meta["targets"].text_features[0], torch.ones(4)
    )
    without = joined[1].meta["targets"]
    assert without.texts == ()
    assert without.image_features[0, 0] == 1
    assert joined[5].meta["targets"].image_kinds == ()
    with pytest.raises(ValueError, match="texts and images are both None"):
        AlignedSet(household)


def test_ensembles_visit_each_set_as_often_as_its_weight_says() -> None:
    household = Household("test", num_points=16)
    first, second = Selection(household, range(4)), Selection(household, range(4, 10))
    both = Ensemble([first, second], [2.5, 0.5])
    assert len(both) == 10 + 3
    assert both.labels.tolist() == [-1] * 13
    names = [str(household[i].meta["id"]) for i in range(10)]
    visits: Counter[str] = Counter()
    for epoch in range(100):
        for index in range(len(both)):
            generator = torch.Generator().manual_seed(1000 * epoch + index)
            visits[str(both.sample(index, generator).meta["id"])] += 1
    assert all(visits[name] >= 200 for name in names[:4])
    assert sum(visits[name] for name in names[:4]) == 1000
    assert chisquare([visits[name] for name in names[4:]]).pvalue > 1e-3
    assert len(Ensemble([first, second])) == 10
    assert both[-1].label is None
    with pytest.raises(ValueError, match=r"one positive number for each of the 2 data sets, got \[1\.0\]"):
        Ensemble([first, second], [1.0])
    with pytest.raises(ValueError, match=r"weights: 0\.05 of the 6 items of data set 1 is no visit per epoch"):
        Ensemble([first, second], [1.0, 0.05])


# ---- the released files ------------------------------------------------------------------------------------------


def test_released_shapes(root: Path) -> None:
    found = OpenShapeFiles(root)
    assert len(found) == 5
    cloud, real = found[0], Household("test", num_points=60)[0]
    torch.testing.assert_close(cloud.xyz, real.xyz)  # z up again
    torch.testing.assert_close(cloud.rgb, real.rgb)
    assert (cloud.meta["id"], cloud.meta["dataset"], cloud.label) == ("uid.0", "Objaverse", -1)
    loaded = cloud.meta["targets"]
    assert loaded.text_kinds == ("raw", "caption:blip", "retrieval", "retrieval")
    assert loaded.text_features[:, 1].tolist() == [0, 10, 20, 21]
    assert loaded.text_features[:, 2].tolist() == [1, 1, 0, 0]  # retrieved texts have no prompts
    assert loaded.image_kinds == ("thumbnail", *["rendering"] * 3)
    assert loaded.image_features[:, 1].tolist() == [99, 100, 101, 102]
    assert OpenShapeFiles(root, prompted=False)[0].meta["targets"].text_features[:, 2].tolist() == [0, 0, 0, 0]
    nothing = found[2].meta["targets"]
    assert (nothing.texts, nothing.text_features.shape[0]) == ((), 0)
    other = found[4].meta["targets"]
    assert other.text_kinds == ("raw", "raw", "caption:blip", "caption:azure", "retrieval", "retrieval")
    assert "thumbnail" not in other.image_kinds


def test_of_objaverse_the_first_raw_text_counts(tmp_path: Path) -> None:
    """The released training code reads the name of an Objaverse shape, and any raw text of the other sets."""
    texts = {"text": ["name", "tag"], "text_feat": shape(3, "ABO")["text_feat"]}
    write_release(tmp_path, [shape(0, "Objaverse", **texts), shape(1, "ABO", **texts)])
    found = [cloud.meta["targets"] for cloud in OpenShapeFiles(tmp_path)]
    raw = [[text for text, kind in zip(t.texts, t.text_kinds, strict=True) if kind == "raw"] for t in found]
    assert raw == [["name"], ["name", "tag"]]


def test_filtered_texts_go_and_shapes_stay(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpt4_filtering.json"
    path.write_text(json.dumps({"uid.0": {"flag": "N", "name": "x"}, "uid.1": {"flag": "Y", "name": "y"}}))
    found = OpenShapeFiles(root, text_filter=path)
    assert found[0].meta["targets"].text_kinds == ("caption:blip", "retrieval", "retrieval")
    assert found[1].meta["targets"].text_kinds == ("raw",)
    path.write_text("[1]")
    with pytest.raises(BadFileError, match="is not a JSON object of id"):
        OpenShapeFiles(root, text_filter=path)
    with pytest.raises(MissingDataError, match=r"text_filter: 1 .* missing:\n.*none\.json\n(.|\n)*filter_texts\.py"):
        OpenShapeFiles(root, text_filter=tmp_path / "none.json")


def test_categories_are_classes_in_the_order_of_their_names(root: Path, tmp_path: Path) -> None:
    write_release(tmp_path, [shape(0, "Objaverse")], "lvis.json", uid="uid.0", category="zebra")
    records = json.loads((tmp_path / "split/lvis.json").read_text())
    (tmp_path / "split/lvis.json").write_text(json.dumps([*records, {**records[0], "category": "apple"}]))
    found = OpenShapeFiles(tmp_path, "split/lvis.json")
    assert found.classes == ("apple", "zebra")
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize("prefix", ["/mnt/data/objaverse-processed/merged_for_training_final", "/", "elsewhere"])
def test_the_release_may_lie_elsewhere_than_on_the_disk_of_its_authors(tmp_path: Path, prefix: str) -> None:
    write_release(tmp_path, [shape(0, "Objaverse"), shape(3, "ABO")])
    path = tmp_path / "split" / "train_all.json"
    records = json.loads(path.read_text())
    moved = [{**record, "data_path": f"{prefix}/{record['data_path']}"} for record in records]
    path.write_text(json.dumps(moved))
    found = OpenShapeFiles(tmp_path)
    assert [found[row].meta["dataset"] for row in range(2)] == ["Objaverse", "ABO"]
    (tmp_path / records[0]["data_path"]).unlink()
    with pytest.raises(MissingDataError, match=r"000-000/uid\.0\.npy"):
        OpenShapeFiles(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("run from a data file",)


def test_released_files_that_are_not_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingDataError, match=r"train_all\.json"):
        OpenShapeFiles(tmp_path)
    write_release(tmp_path, [shape(0, "Objaverse")])
    found = OpenShapeFiles(tmp_path)
    path = tmp_path / found.records[0]["data_path"]
    data = path.read_bytes()
    path.write_bytes(data[:-50])
    with pytest.raises(BadFileError, match="is not a pickle of NumPy arrays"):
        found[0]
    np.save(path, np.array(Evil(), dtype=object), allow_pickle=True)
    with pytest.raises(BadFileError, match=r"it asks for builtins\.print"):
        found[0]
    assert "run from" not in capsys.readouterr().out
    np.save(path, np.zeros(3))
    with pytest.raises(BadFileError, match="holds a ndarray, expected a dictionary"):
        found[0]
    np.save(path, np.array({"xyz": np.zeros((3, 3))}, dtype=object), allow_pickle=True)
    with pytest.raises(BadFileError, match="is not a shape of OpenShape"):
        found[0]
    path.write_bytes(pickle.dumps({"xyz": 1}))
    with pytest.raises(BadFileError, match=r"is not a \.npy file"):
        found[0]
    path.unlink()
    with pytest.raises(MissingDataError, match=r"uid\.0\.npy"):
        OpenShapeFiles(tmp_path)
    (tmp_path / "split/train_all.json").write_text('[{"id": "x"}]')
    with pytest.raises(BadFileError, match="must be a list of records with 'data_path'"):
        OpenShapeFiles(tmp_path)


# ---- shards ------------------------------------------------------------------------------------------------------


def convert(root: Path, out: Path, *options: str) -> str:
    """What the tool prints; what it says when it stops."""
    spec = importlib.util.spec_from_file_location("convert_openshape", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            tool.main([str(root), "split/train_all.json", str(out), "--workers", "1", *options])
        except SystemExit as stop:
            return f"stopped: {stop.code}"
    return printed.getvalue()


@pytest.fixture(scope="module")
def shards(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    assert "5 shapes in 3 shards, 0 left out" in convert(root, out, "--shard_size", "2")
    return out


def same_targets(a: Targets, b: Targets) -> bool:
    lists = a.texts == b.texts and a.text_kinds == b.text_kinds and a.image_kinds == b.image_kinds
    return lists and torch.equal(a.image_features, b.image_features) and torch.equal(a.text_features, b.text_features)


def test_shards_hold_what_the_released_files_hold(root: Path, shards: Path) -> None:
    files, packed = OpenShapeFiles(root), AlignedShards(shards)
    assert len(packed) == 5
    assert packed.key(0) == "Objaverse/uid_0"
    for index in range(5):
        one, other = files[index], packed[index]
        assert torch.equal(one.xyz, other.xyz)
        torch.testing.assert_close(one.rgb, other.rgb, rtol=0, atol=0.5 / 255 + 1e-6)
        assert one.meta["id"] == other.meta["id"]
        assert one.meta["dataset"] == other.meta["dataset"]
        assert same_targets(one.meta["targets"], other.meta["targets"])  # small whole numbers are exact in float16


def test_features_keep_the_name_of_their_tower(root: Path, shards: Path, tmp_path: Path) -> None:
    released = "open_clip:ViT-bigG-14/laion2b_s39b_b160k"
    convert(root, tmp_path, "--teacher", "open_clip:ViT-B-32/openai")
    for dataset, tower in (
        (OpenShapeFiles(root), released),
        (OpenShapeFiles(root, tower=""), ""),
        (AlignedShards(shards), released),
        (AlignedShards(tmp_path), "open_clip:ViT-B-32/openai"),
    ):
        found = ChooseTargets()(dataset[0], torch.Generator()).meta["targets"]
        assert (found.text_tower, found.image_tower) == (tower, tower)
    assert re.match(r"stopped: .*made with other options", convert(root, tmp_path))
    # Shards from before there were names have none.
    data = (shards / "train-000000.tar").read_bytes()
    key, start, size = shard_members(shards / "train-000000.tar")[0]
    with np.load(io.BytesIO(data[start : start + size])) as file:
        arrays = {name: file[name] for name in file.files if not name.endswith("_tower")}
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    assert unpack_cloud(packed.getvalue(), key).meta["targets"].text_tower == ""


def test_webdataset_reads_the_same_shapes(shards: Path) -> None:
    paths = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    packed = AlignedShards(shards)
    assert [sample["__key__"] for sample in samples] == [packed.key(i) for i in range(5)]
    for index, sample in enumerate(samples):
        cloud = unpack_cloud(sample["npz"], "stream")
        assert torch.equal(cloud.xyz, packed[index].xyz)


def test_batches_do_not_depend_on_workers(shards: Path) -> None:
    def batches(workers: int) -> list[list[Tensor]]:
        loader = PointLoader(AlignedShards(shards, transform=ChooseTargets()), 2, num_workers=workers, seed=3)
        return [[t.image_features for t in targets_of(batch)] + [batch.xyz] for batch in loader]

    one, other = batches(0), batches(2)
    assert len(one) == len(other) == 2
    assert all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_an_interrupted_conversion_goes_on(root: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    (out / "train-000001.tar").unlink()
    (out / "train-index.npz").unlink()
    (out / "train-000001.tar.partial").write_bytes(b"half")
    kept = (out / "train-000000.tar").stat().st_mtime_ns
    assert "5 shapes in 3 shards" in convert(root, out, "--shard_size", "2")
    assert (out / "train-000000.tar").stat().st_mtime_ns == kept
    assert AlignedShards(out)[3].meta["id"] == "uid.3"
    assert re.match(r"stopped: .*made with other options", convert(root, out, "--shard_size", "3"))


def test_damaged_files_stop_the_conversion_or_are_listed(tmp_path: Path) -> None:
    root = write_release(tmp_path, [shape(0, "Objaverse"), shape(1, "ABO")])
    path = root / "ABO" / "000-000" / "uid.1.npy"
    path.write_bytes(path.read_bytes()[:200])
    assert re.match(r"stopped: .*uid\.1\.npy", convert(root, tmp_path / "out"))
    assert not (tmp_path / "out" / "train-000000.tar").exists()
    listed = convert(root, tmp_path / "out", "--on_error", "report")  # nothing is there that forbids other options
    assert "1 shapes in 1 shards, 1 left out" in listed
    assert "ABO/000-000/uid.1.npy" in listed
    assert len(AlignedShards(tmp_path / "out")) == 1


def test_shards_that_are_missing_or_damaged_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"train-index\.npz"):
        AlignedShards(tmp_path)
    for path in shards.glob("*"):
        shutil.copy(path, tmp_path)
    last = tmp_path / "train-000002.tar"
    data = last.read_bytes()
    last.write_bytes(data[:600])
    with pytest.raises(BadFileError, match=r"train-000002\.tar: is not a whole, uncompressed tar file"):
        shard_members(last)
    with pytest.raises(BadFileError, match="does not hold a packed shape where the index says so"):
        AlignedShards(tmp_path)[4]
    last.unlink()
    with pytest.raises(MissingDataError, match=r"train-000002\.tar"):
        AlignedShards(tmp_path)
    (tmp_path / "train-index.npz").write_bytes(b"nothing")
    with pytest.raises(BadFileError, match="is not an index of shards"):
        AlignedShards(tmp_path)


def test_shapes_that_cannot_be_packed_are_refused(tmp_path: Path) -> None:
    huge = Targets(torch.full((1, 2), 1e6), torch.zeros(0, 0), ("a",), ("raw",), ())
    cloud = PointCloud(torch.zeros(2, 3), meta={"id": "big", "targets": huge})
    with pytest.raises(ValueError, match="text_features of big has values that are not finite as float16"):
        write_shard(tmp_path / "x.tar", [cloud])
    write_shard(tmp_path / "x.tar", [cloud], "float32")
    write_shard(tmp_path / "y.tar", [cloud], "float32")
    with pytest.raises(BadFileError, match="the shards have shapes/big more than once"):
        write_index(tmp_path / "train-index.npz", [tmp_path / "x.tar", tmp_path / "y.tar"])
    write_index(tmp_path / "train-index.npz", [tmp_path / "x.tar"], {"big": 1}, ("a", "b"))
    found = AlignedShards(tmp_path)
    assert (found[0].label, found.classes) == (1, ("a", "b"))
    assert found[0].rgb is None
