"""``pc3d report``: what is on the page comes from the run, whatever its names are."""

from __future__ import annotations

import base64
import csv
import functools
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pc3d.cli._report_map import _in_plane
from pc3d.cli._report_pictures import objects_of
from pc3d.cli._report_run import NotApplicableError, Run
from pc3d.cli.main import main
from pc3d.data import Household, PointCloud
from pc3d.evaluation import Row, extract_features, write_rows
from pc3d.methods import RunFolder
from pc3d.models import PointViT, load_encoder

NASTY = "<img src=x onerror=alert(1)> & \"co\" 'x' </script>"
RECIPE = """
model:
  class_path: pc3d.methods.PointMAE
  init_args:
    encoder:
      class_path: pc3d.models.PointViT
      init_args: {embed_dim: 16, depth: 1, num_heads: 2, num_groups: 16, group_size: 16, num_points: 128,
                  num_cls_tokens: 0, tokenizer_dims: [8, 16, 16]}
    decoder_depth: 1
    decoder_num_heads: 2
data:
  train: {class_path: pc3d.data.Household, init_args: {split: train, num_points: 128}}
  batch_size: 64
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}
"""


class Page(HTMLParser):
    """What a browser would make of a page: tags in order, texts, and the data of its plots."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.plots: list[dict[str, Any]] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [str(values[name]) for name in ("src", "href") if name in values]
        self._inside = f"{tag} {values.get('type', '')}".strip()

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script application/json":
            self.plots.append(json.loads(data))
        elif self._inside not in ("script", "style"):
            self.texts.append(data)

    def plot(self, title: str) -> dict[str, Any]:
        return next(plot for plot in self.plots if plot["layout"].get("title", {}).get("text") == title)


def unpacked(values: dict[str, str]) -> Any:
    return np.frombuffer(base64.b64decode(values["bdata"]), dtype=np.dtype(f"<{values['dtype']}"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished masked autoencoder in a folder of an awkward name."""
    place = tmp_path_factory.mktemp("runs")
    (place / "recipe.yaml").write_text(RECIPE)
    folder = place / "<b>run<b> & co"
    assert main(["pretrain", "--config", str(place / "recipe.yaml"), "--output", str(folder)]) == 0
    return folder


def test_a_pretraining_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([Row(NASTY, "linear SVM", "fixed", "household", "a-b", 0, {"overall_accuracy": 0.125}, 8, 8)], run)
    assert main(["report", str(run), "--map", "pca", "--pictures", "2"]) == 0
    printed = capsys.readouterr().out
    assert "left out: Confusion matrix: pre-training has none of its own: --probe judges" in printed
    page = Page(run / "report.html")
    assert (run / "report.html").stat().st_size < 10_000_000
    # No text became a tag, and nothing is fetched.
    assert "b" not in page.tags
    assert page.tags.count("img") == 1  # the reconstructions
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert NASTY in page.text
    assert page.texts.count(f"{run.name}: pre-training") == 2  # title and heading
    assert (run / "config.yaml").read_text() in page.text
    assert "12.5 (n=1)" in page.text
    assert f"{sum(p.numel() for p in load_encoder(run).parameters()):,}" in page.text
    # The curves are those of the file.
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for column, name in (("train/loss_step", "train, each step"), ("train/loss_epoch", "train")):
        line = next(trace for trace in page.plot("loss")["data"] if trace["name"] == name)
        expected = [(float(row["step"]), float(row[column])) for row in rows if row[column]]
        np.testing.assert_allclose(np.stack([unpacked(line["x"]), unpacked(line["y"])], 1), expected, rtol=1e-6)
    check_map(page.plots[-1], run)
    # Nothing is replaced unasked.
    assert main(["report", str(run)]) == 1
    assert "add --overwrite to replace it" in capsys.readouterr().err


def check_map(plot: dict[str, Any], run: Path) -> None:
    """The map is the principal components of the features, in the order of the items, with their own pictures."""
    from PIL import Image

    test = Household("test", pictures=True)
    items = [test.load(index) for index in range(len(test))]
    assert plot["items"]["names"] == [item.text for item in items]
    assert plot["items"]["classes"] == [test.classes[k] for k in test.labels.tolist()]
    xy = np.zeros((len(test), 2))
    for trace in plot["data"]:
        rows = trace["customdata"]
        assert {plot["items"]["classes"][row] for row in rows} == {trace["name"]}
        xy[rows] = np.stack([unpacked(trace["x"]), unpacked(trace["y"])], 1)
    values = extract_features(load_encoder(run, expect=PointViT), test, num_points=128).values.astype(np.float64)
    left, sizes, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    expected = (left * sizes)[:, :2]
    signs = np.sign((expected * xy).sum(0))
    np.testing.assert_allclose(xy * signs, expected, atol=1e-4 * np.abs(expected).max())
    # Each picture is the preview of its item, and not that of the next one; 16 x 16 means see through the JPEG.
    data, columns = plot["sheet"]["source"].partition(",")[2], plot["sheet"]["columns"]
    whole = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=np.float64)
    tiles = [whole[64 * (i // columns) :, 64 * (i % columns) :][:64, :64] for i in range(len(test))]
    shown = np.stack([tile.reshape(16, 4, 16, 4, 3).mean((1, 3)) for tile in tiles])
    own = np.stack([icon(item).reshape(16, 6, 16, 6, 3).mean((1, 3)) for item in items])
    assert np.abs(shown - own).mean((1, 2, 3)).max() < 5
    assert np.median(np.abs(shown - np.roll(own, 1, 0)).mean((1, 2, 3))) > 15


def icon(item: PointCloud) -> Any:
    assert item.image is not None
    return item.image.numpy().astype(np.float64)


def test_probes_are_judged_when_asked_for_and_where_it_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "page.html"
    moved: list[object] = []
    to = PointViT.to
    monkeypatch.setattr(PointViT, "to", lambda self, *where: (moved.extend(where), to(self, *where))[1])
    options = ["--output", str(output), "--map", "none", "--pictures", "0", "--probe", "--device", "cpu:0"]
    assert main(["report", str(run), *options]) == 0
    assert moved == [torch.device("cpu", 0)] * 2  # the encoder, and the same untrained
    page = Page(output)
    assert "Map of the embeddings: not asked for (--map none)" in page.text
    assert "Reconstructions: not asked for (--pictures 0)" in page.text
    cells = page.texts[page.texts.index("the encoder of this run") :]
    assert cells[1:4] == ["household", "kNN", "fixed"]
    from pc3d.evaluation import knn_probe, linear_svm

    sets = {split: Household(split) for split in ("train", "test")}
    encoder = load_encoder(run, expect=PointViT)
    features = [extract_features(encoder, dataset, num_points=128) for dataset in sets.values()]
    accuracy = knn_probe(*features, k=5).scores.overall_accuracy
    assert f"{100 * accuracy:.1f} (n=1)" in cells[5]
    # The matrix is that of the linear SVM on the features of this run's encoder.
    expected = linear_svm(*features, protocol="tuned", seed=0).scores
    plot = page.plot("linear SVM on frozen features")
    assert plot["data"][0]["customdata"] == expected.confusion


def write_chairs_and_lamps(folder: Path) -> None:
    """Twelve of each to train on and four to test, in folders of their classes."""
    for split, count in (("train", 12), ("test", 4)):
        objects = Household(split)
        for name in ("chair", "lamp"):
            (folder / split / name).mkdir(parents=True)
            for index in (objects.labels == objects.classes.index(name)).nonzero()[:count, 0].tolist():
                np.savetxt(folder / split / name / f"{index}.xyz", objects[index].xyz[:200].numpy())


def test_it_goes_on_after_an_interruption(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = PointViT.encode
    sizes: list[int] = []
    stop_at = 3  # of both splits with the encoder and with the untrained one, and of the test split for the map
    write_chairs_and_lamps(tmp_path / "data")

    @functools.wraps(encode)
    def interrupted(self: PointViT, xyz: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if len(sizes) == stop_at:
            raise KeyboardInterrupt
        sizes.append(len(xyz))
        return encode(self, xyz, *args, **options)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    def report(name: str, *options: str) -> int:
        arguments = [str(run), "--output", str(tmp_path / name), "--data", str(tmp_path / "data"), "--map", "pca"]
        return main(["report", *arguments, "--pictures", "0", "--quiet", *(options or ("--probe",))])

    assert report("alone.html") == 0
    monkeypatch.setattr(PointViT, "encode", interrupted)
    assert report("page.html") == 130
    (kept,) = tmp_path.glob(".page*")
    assert f"interrupted; {kept} keeps what was computed: the same command goes on" in capsys.readouterr().err
    stop_at = -1
    sizes.clear()
    assert report("page.html", "--seed", "1", "--overwrite") == 0
    assert sizes == [8]
    assert kept.exists()  # a command with another choice neither finds nor removes it
    (tmp_path / "page.html").unlink()
    sizes.clear()
    with monkeypatch.context() as patch:
        patch.setattr("pc3d.viz.report.write_report", stop)
        assert report("page.html") == 130
    assert sizes == [8]  # of the untrained encoder; what the map shows was there
    sizes.clear()
    assert report("page.html") == 0
    assert sizes == []
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "alone.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.html", "data", "page.html"]


def test_files_that_cannot_be_used_are_left_out_if_it_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One in each split, the one of the test split among those that are drawn."""
    write_chairs_and_lamps(tmp_path / "data")
    for split in ("train", "test"):
        (tmp_path / "data" / split / "chair" / "000.xyz").write_text("1 2 3\n4 5\n")
    output = tmp_path / "page.html"
    options = ["--output", str(output), "--data", str(tmp_path / "data"), "--map", "pca", "--probe", "--pictures", "2"]
    assert main(["report", str(run), *options]) == 1
    error = capsys.readouterr().err
    assert "000.xyz" in error
    assert "--on_error report leaves such files out" in error
    assert main(["report", str(run), *options, "--on_error", "report", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    bad = [str(tmp_path / "data" / split / "chair" / "000.xyz") for split in ("train", "test")]
    assert sorted(file["path"] for file in found["left_out_files"]) == sorted(bad)
    assert {"Map of the embeddings", "Frozen features", "Reconstructions"}.isdisjoint(found["left_out"])
    items = Page(output).plots[-1]["items"]
    assert items["classes"] == ["chair"] * 4 + ["lamp"] * 4
    assert "000" not in items["names"]
    assert "of all 9 objects, without 1 that cannot be used: " in output.read_text()


def judged_run(folder: Path, model: dict[str, Any], name: str, result: dict[str, Any]) -> Path:
    """A run of a task as far as its configuration and its results go; it has no weights."""
    (folder / "eval").mkdir(parents=True)
    data = {"train": {"class_path": "pc3d.data.Household", "init_args": {"split": "train"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "model": model, "data": data, "trainer": {}}))
    (folder / "eval" / f"{name}.json").write_text(json.dumps(result))
    return folder


def test_a_classification_shows_scores_and_confusion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {
        "overall_accuracy": 0.75,
        "overall_interval": [0.3, 0.9],
        "per_class_accuracy": {NASTY: 0.5, "b": 1.0},
        "per_class_count": {NASTY: 2, "b": 2},
        "confusion": [[1, 1, 0], [0, 2, 0], [0, 0, 0]],
        "confusion_classes": [NASTY, "b", "nowhere"],
    }
    model = {"backbone": {"class_path": "pc3d.models.PointViT"}, "mode": "full"}
    result = {"scores": scores, "selection": {"by": "highest accuracy on validation"}, "data": NASTY, "num_test": 4}
    run = judged_run(tmp_path / "run", model, "test", result)
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert "Map of the embeddings: the run has not finished" in capsys.readouterr().out
    page = Page(tmp_path / "page.html")
    assert "img" not in page.tags
    assert page.texts.count(NASTY) == 2  # the class and the data
    for text in ("75.0 %", "30.0 to 90.0 %", "highest accuracy on validation", "not finished"):
        assert text in page.texts
    matrix = page.plot("test")
    (heat,) = matrix["data"]
    assert heat["z"] == [[50, 50], [0, 100]]
    assert heat["customdata"] == [[1, 1], [0, 2]]
    # Plotly reads tags in names: they must reach it escaped.
    assert matrix["layout"]["xaxis"]["ticktext"][0].startswith("&lt;img")


def test_the_table_of_a_demonstration_is_shown(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "run", {"class_path": "pc3d.methods.PointCMAE"}, "test", {"scores": {}})
    scores = {"overall_accuracy": 0.25, "overall_interval": [0.2, 0.375], "mean_class_accuracy": 0.125}
    result = {"scores": scores, "task": "linear SVM", "selection": "by cross-validation"}
    (run / "demo.json").write_text(json.dumps({NASTY: result}))
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    page = Page(tmp_path / "page.html")
    place = page.texts.index(NASTY)
    assert page.texts[place : place + 4] == [NASTY, "25.0 %", "12.5 %", "20.0 to 37.5 %"]
    assert "demo.json: linear SVM, by cross-validation" in page.texts


def test_a_scene_segmentation_shows_its_scores(tmp_path: Path) -> None:
    per_class = {
        "wall": {"iou": 0.25, "accuracy": 0.5, "points": 4321},
        "floor": {"iou": 0, "accuracy": 0, "points": 0},
    }
    scores = {"miou": 0.125, "macc": 0.25, "allacc": 0.5, "miou_present": 0.25, "context": 2.0}
    result = {"data": "rooms_test", **scores, "per_class": per_class, "confusion": [[2000, 0, 2321], [0, 0, 0]]}
    model = {"backbone": {"class_path": "pc3d.models.SparseUNet"}}
    run = judged_run(tmp_path / "run", model, "rooms_test", result)
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    page = Page(tmp_path / "page.html")
    assert "12.5 %" in page.texts
    assert "4,321" in page.texts
    assert "200.0 %" not in page.texts  # the context is no score
    (heat,) = page.plot("rooms test")["data"]
    assert heat["customdata"] == [[2000, 2321]]
    assert "an encoder of scenes has no single vector for a cloud" in page.text


def test_scenes_are_shown_under_a_mask_and_predicted(
    masked_scenes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as are asked for, with as much of each masked, and all three kinds of points drawn in their colours."""
    from PIL import Image

    from pc3d.viz import class_colors

    (tmp_path / "scenes.yaml").write_text(masked_scenes)
    run = tmp_path / "run"
    assert main(["pretrain", "--config", str(tmp_path / "scenes.yaml"), "--output", str(run)]) == 0
    capsys.readouterr()
    assert main(["report", str(run), "--pictures", "2"]) == 0
    printed, page = capsys.readouterr().out, Page(run / "report.html")
    assert "left out: Reconstructions" not in printed
    assert "--freeze true --model.head linear" in printed
    assert "--probe" not in printed  # which has nothing to say of scenes
    assert sum(text.endswith("test split; 50 % of the cubes hidden, masks by seed 0") for text in page.texts) == 2
    pictures = [address for address in page.addresses if address.startswith("data:image/jpeg")]
    assert len(pictures) == 2
    for address in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))), dtype=int)
        lower = pixels[len(pixels) // 2 :, : 3 * pixels.shape[1] // 4]  # the masks stand below the colours
        for color, least in zip(255 * class_colors(3), (5000, 5000, 300), strict=True):
            assert (np.abs(lower - color).max(-1) < 80).sum() > least
    # Where the scenes are not, the rest of the page is made.
    config = (run / "config.yaml").read_text()
    for name, reason in (("nowhere.Scenes", "the run's data cannot be shown"), ("pc3d.data.SceneFolder", "root")):
        (run / "config.yaml").write_text(config.replace("pc3d.data.Rooms", name))
        assert main(["report", str(run), "--overwrite"]) == 0
        assert re.search(f"left out: Reconstructions: .*{reason}", capsys.readouterr().out)
    # So it is where one of them cannot be read.
    (tmp_path / "set" / "test" / "hall").mkdir(parents=True)
    (tmp_path / "set" / "test" / "hall" / "coord.npy").write_bytes(b"words")
    settings = yaml.safe_load(config)
    settings["data"]["train"] = {"class_path": "pc3d.data.SceneFolder", "init_args": {"root": str(tmp_path / "set")}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["report", str(run), "--overwrite"]) == 0
    assert re.search(
        r"left out: Reconstructions: the run's data cannot be shown \(.*coord\.npy", capsys.readouterr().out
    )


def test_wrong_use_is_explained(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    for arguments, message in (
        ([str(tmp_path / "nothing")], "give a run folder of pc3d pretrain, classify train"),
        ([str(tmp_path)], "is not the configuration of a run: it names no model"),
        ([str(run), "--output", "page.pdf"], "output: must end in .html, got 'page.pdf'"),
        ([str(run), "--output", str(tmp_path / "x.html"), "--pictures", "-1"], "pictures: must be at least 0, got -1"),
    ):
        assert main(["report", *arguments]) == 1
        assert message in capsys.readouterr().err
    # A data set or rows that are not there are a reason to leave a section out, and said.
    options = ["--data", str(tmp_path / "none"), "--results", str(tmp_path / "none"), "--pictures", "1"]
    assert main(["report", str(run), *options, "--output", str(tmp_path / "x.html")]) == 0
    told = capsys.readouterr().out
    assert "left out: Frozen features: there is no folder" in told
    assert "left out: Map of the embeddings: data:" in told


def test_a_long_embedding_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    xy, words = _in_plane(values, "tsne", 0)
    assert xy.shape == (12, 2)
    assert words.startswith("t-SNE (perplexity 4")
    assert capsys.readouterr().out == "t-SNE of the features of 12 objects (--map pca is faster)\n"


def test_a_run_on_a_stream_has_no_objects_to_show(tmp_path: Path) -> None:
    config = {"data": {"class_path": "pc3d.data.AlignedStream", "init_args": {"urls": "a.tar"}}}
    run = Run(RunFolder(tmp_path), config, "pretrain")
    with pytest.raises(NotApplicableError, match=r"^pc3d\.data\.AlignedStream names no data set to show objects of"):
        objects_of(run, "run", "test", "refuse", {})
