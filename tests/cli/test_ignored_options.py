"""Options that would do nothing beside the others are refused, by name, before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pc3d.cli.main import main
from pc3d.data import Household
from pc3d.models import PointNet, PointViT, save_encoder

PROBE = ["probe", "--encoder", "descriptor", "--num_points", "16"]
VIEW = ["view", "household:test:0"]
PICTURE = [*VIEW, "--output", "a.png"]


@pytest.mark.parametrize(
    ("command", "ignored", "told"),
    [
        (PROBE, "--pooling foo", "pooling: 'foo' is for encoders with tokens, and a ShapeDescriptor has one way, none"),
        (["embed", *PROBE[1:], "--output", "a.npz"], "--pooling foo", "pooling: 'foo' is for encoders with tokens"),
        (
            ["embed", "--encoder", "net", "--output", "a.npz"],
            "--pooling cls",
            "a PointNet has one way, max over",
        ),
        (
            ["embed", "--encoder", "net", "--output", "a.npz"],
            "--seed 3",
            "seed: 3 is for --untrained and the",
        ),
        (
            ["segment", "predict", "run", "scene", "--output", "b"],
            "--drop_invalid",
            "prepared scenes are taken as stored",
        ),
        (PROBE, "--method mine", "method: 'mine' is the name in rows that --results FOLDER keeps"),
        (["fewshot", *PROBE[1:]], "--method mine", "method: 'mine' is the name in rows that --results FOLDER keeps"),
        (["zeroshot", "--encoder", "net"], "--method mine", "method: 'mine' is the name in rows"),
        (["segment", "eval", "run"], "--method mine", "method: 'mine' is the name in rows"),
        (["segment", "fold", "a.json", "b.json"], "--method mine", "method: 'mine' is the name in rows"),
        (["parts", "eval", "run"], "--method mine", "method: 'mine' is the name in rows"),
        (["classify", "eval", "run"], "--method mine", "method: 'mine' is the name in rows"),
        (
            ["classify", "train", "--config", "household_small", "--output", "run", "--seeds", "0", "1"],
            "--method mine",
            "method: 'mine' is the name in rows",
        ),
        (
            ["classify", "train", "--config", "household_small", "--output", "run"],
            "--method mine",
            "method: 'mine' is the name in rows",
        ),
        (
            ["classify", "train", "--config", "household_small", "--output", "run"],
            "--class_token pretrained",
            "class_token: 'pretrained' is that of an encoder, and none is given",
        ),
        (
            ["segment", "train", "--config", "rooms_small_unet", "--output", "run"],
            "--skip [upsamples]",
            "skip: there is no encoder to leave out upsamples of",
        ),
        ([*PROBE, "--classifier", "knn"], "--svm linearsvc_l2", "svm: 'linearsvc_l2' is for classifier svm"),
        ([*PROBE, "--classifier", "knn"], "--C 1", "C: 1.0 is for classifiers svm and logistic, protocol fixed"),
        ([*PROBE, "--protocol", "tuned"], "--C 1", "C: 1.0 is for classifiers svm and logistic, protocol fixed"),
        (PROBE, "--k 3", "k: 3 is for classifier knn, protocol fixed"),
        ([*PROBE, "--classifier", "knn"], "--alpha 1", "alpha: 1.0 is for classifier mlp3, protocol fixed"),
        ([*PROBE, "--classifier", "knn"], "--standardize true", "standardize: True is for classifiers svm, logistic"),
        (PROBE, "--validation_fraction 0.3", "validation_fraction: 0.3 is for protocols validation and legacy"),
        (
            ["render", "mesh.off", "--output", "views"],
            "--drop_invalid",
            "drop_invalid: True is for points, and mesh",
        ),
        (["render", "a.npy", "--output", "views"], "--supersample 3", "supersample: 3 is for meshes, and a.npy holds"),
        (["results", "rows", "--format", "rows"], "--metric map", "metric: 'map' is for tables and figures"),
        (["results", "rows", "--format", "rows"], "--order a b", "order: ['a', 'b'] is for tables and figures"),
        (PICTURE, "--port 8081", "port: 8081 is for --web"),
        (PICTURE, "--frames 3", "frames: 3 is for a GIF (--output NAME.gif)"),
        (PICTURE, "--camera_path path.json", "camera_path: 'path.json' is for a GIF"),
        (PICTURE, "--text_tower offline:minilm", "text_tower: 'offline:minilm' is for --text"),
        (PICTURE, "--up y", "up: 'y' is for files of points, and none is named: data sets are shown as stored"),
        (PICTURE, "--drop_invalid", "drop_invalid: True is for files of points, and none is named"),
        (["view", "a.npy", "--output", "a.png"], "--root rooms", "root: 'rooms' is for a data set, and none is named"),
        (["view", "a.npy", "--output", "a.png"], "--item 3", "item: [3] is for a data set or folder that is"),
        (
            ["view", "a.npy", "--output", "a.png"],
            "--split train",
            "split: 'train' is for a data set that is named without",
        ),
        (PICTURE, "--item 3", "item: [3] is for a data set or folder that is named without its items"),
        (PICTURE, "--split train", "split: 'train' is for a data set that is named without its split, and none is"),
        (
            ["view", "scans/test/hall", "--output", "a.png"],
            "--root b",
            "root: 'b' is for a data set, and none is named",
        ),
        ([*VIEW, "--html", "a.html"], "--columns 2", "columns: 2 is for pictures (--output)"),
        ([*VIEW, "--html", "a.html"], "--view 0 10", "view: [0.0, 10.0] is for pictures and the window"),
    ],
)
def test_what_would_be_ignored_is_refused(
    command: list[str],
    ignored: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", Household("test", num_points=50).load(0).xyz.numpy())
    Path("mesh.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    for scene in (Path("scene"), Path("scans/test/hall")):
        scene.mkdir(parents=True)
        np.save(scene / "coord.npy", np.zeros((5, 3), np.float32))
    save_encoder(PointNet(num_points=16), "net")
    before = sorted(tmp_path.iterdir())
    assert main([*command, *ignored.split()]) == 1
    assert told in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_used_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_encoder(PointViT(embed_dim=24, depth=1, num_heads=2, num_groups=4, group_size=4), "vit")
    assert main(["embed", "--encoder", "vit", "--num_points", "16", "--pooling", "max", "--output", "a.npz"]) == 0
    assert main([*PROBE, "--C", "1", "--results", "rows", "--method", "mine"]) == 0
    assert main([*PROBE, "--classifier", "knn", "--k", "3"]) == 0
    assert main(["results", "rows", "--format", "rows"]) == 0
    assert main(["results", "rows", "--order", "mine"]) == 0
    assert main([*VIEW, "--output", "a.gif", "--frames", "2", "--size", "40", "30"]) == 0


def test_what_a_recipe_has_may_be_overridden_without_all_that_goes_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = [*PROBE, "--config", "modelnet40_svm_unit", "--data", "household"]
    other = ["--classifier", "knn", "--k", "3"]
    assert main([*recipe, *other]) == 0
    told = capsys.readouterr().out
    assert "note: svm: 'linearsvc_l2' is for classifier svm; the configuration has it, and it is not used" in told
    assert "note: C: 1.0 is for classifiers svm and logistic, protocol fixed; the configuration has it" in told
    assert "KNeighborsClassifier(metric='cosine', weights='distance'), n_neighbors = 3" in told
    assert main([*recipe, *other, "--C", "2"]) == 1
    assert "C: 2.0 is for classifiers svm and logistic, protocol fixed: leave the option out" in capsys.readouterr().err
