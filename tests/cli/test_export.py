"""``pc3d export``: the program gives the numbers of the other commands, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pc3d.cli.main import main
from pc3d.data import Household
from pc3d.models import (
    AlignedShapeEncoder,
    OpenShapePointBERT,
    PointNet,
    PointPartSegmenter,
    PointViT,
    classifier_of,
    load_encoder,
    save_encoder,
)
from pc3d.tasks.model_folder import save_model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    tiny = PointViT(embed_dim=16, depth=1, num_heads=2, num_groups=8, group_size=16, num_points=128)
    return str(save_encoder(tiny.eval(), tmp_path_factory.mktemp("encoder")))


def test_the_features_are_those_of_embed(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = 2.0 * Household("test")[0].xyz[:400] - 7.0
    np.save(tmp_path / "chair.npy", points.numpy())
    embed = ["embed", "--encoder", encoder, "--data", str(tmp_path / "chair.npy"), "--num_points", "null"]
    assert main([*embed, "--output", str(tmp_path / "features.npz"), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["export", encoder, "--output", str(tmp_path / "program"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["inputs"]) == ["xyz"]
    assert told["notes"] == []
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()
    right = torch.from_numpy(np.load(tmp_path / "features.npz")["features"])
    torch.testing.assert_close(program(points[None]).detach(), right, rtol=1e-4, atol=1e-5)


def test_the_features_of_an_aligned_encoder_are_those_of_embed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inner = OpenShapePointBERT(16, 16, 1, 2, 16, 16, 8, 0.5, 8, num_points=128)
    encoder = str(save_encoder(AlignedShapeEncoder(inner, 6, 10).eval(), tmp_path / "encoder"))
    points = 2.0 * Household("test")[0].xyz[:400] - 7.0
    np.save(tmp_path / "chair.npy", points.numpy())
    embed = ["embed", "--encoder", encoder, "--data", str(tmp_path / "chair.npy"), "--num_points", "null"]
    assert main([*embed, "--output", str(tmp_path / "features.npz"), "--quiet"]) == 0
    assert main(["export", encoder, "--output", str(tmp_path / "program")]) == 0
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()
    right = torch.from_numpy(np.load(tmp_path / "features.npz")["features"])
    grey = torch.full((1, 400, 3), 0.4)
    torch.testing.assert_close(program(points[None], grey).detach(), right, rtol=1e-4, atol=1e-5)


def test_the_classes_are_those_of_predict(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that centres by the mean of the points, as the recipes for ModelNet40 do."""
    model = classifier_of(load_encoder(encoder), 2).eval()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    config = {"task": "classification", "classes": ["chair", "lamp"], "mode": "full"}
    save_model(tmp_path / "run", model.encoder, state, config)
    (tmp_path / "run" / "config.yaml").write_text("data: {eval_transforms: [{class_path: pc3d.data.Normalize}]}\n")
    points = 2.0 * Household("test")[0].xyz[:400] - 7.0
    np.save(tmp_path / "chair.npy", points.numpy())
    predict = ["classify", "predict", str(tmp_path / "run"), str(tmp_path / "chair.npy"), "--json"]
    assert main([*predict, "--num_points", "null"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "program"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    shares = torch.export.load(tmp_path / "program" / "model.pt2").module()(points[None]).detach().softmax(1)[0]
    assert shares.max().item() == pytest.approx(told["confidence"], abs=1e-4)  # which is told with four digits


def test_the_parts_are_those_of_predict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PointPartSegmenter(PointNet(num_points=128), 2, 1, head_dims=(16, 16, 16, 16)).eval()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    config = {
        "task": "part segmentation",
        "categories": ["chair"],
        "category_parts": [[0, 1]],
        "parts": ["seat", "leg"],
    }
    run, file, out = tmp_path / "run", tmp_path / "chair.npy", tmp_path / "labelled"
    save_model(run, model.encoder, state, {**config, "layers": None, "head_dims": [16, 16, 16, 16]})
    (run / "config.yaml").write_text("data: {eval_transforms: [{class_path: pc3d.data.Normalize}]}\n")
    points = 2.0 * Household("test")[0].xyz[:400] - 7.0
    np.save(file, points.numpy())
    assert main(["parts", "predict", str(run), str(file), "--output", str(out)]) == 0
    assert main(["export", str(run), "--output", str(tmp_path / "program")]) == 0
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()
    shares = program(points, torch.tensor([0])).detach().softmax(1).amax(1)
    told = torch.from_numpy(np.load(out / "chair.npz")["confidence"])
    torch.testing.assert_close(shares, told.float(), rtol=0, atol=1e-5)


def test_a_program_that_is_there_is_not_replaced(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt2").write_bytes(b"mine")
    assert main(["export", encoder, "--output", str(tmp_path)]) == 1
    assert "add --overwrite to replace it" in capsys.readouterr().err
    assert (tmp_path / "model.pt2").read_bytes() == b"mine"
    assert main(["export", encoder, "--output", str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "model.json").is_file()


def test_what_a_run_does_besides_is_told(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier_of(load_encoder(encoder), 2)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    run = tmp_path / "run"
    config = {"task": "classification", "classes": ["chair", "lamp"], "mode": "full"}
    save_model(run, model.encoder, state, config)
    steps = "[{class_path: pc3d.data.FirstPoints, init_args: {num_points: 128}}, {class_path: pc3d.data.RandomRotate}]"
    (run / "config.yaml").write_text(f"data: {{eval_transforms: {steps}}}\n")
    assert main(["export", str(run), "--output", str(tmp_path / "program"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"] == ["chair", "lamp"]
    assert told["notes"] == ["the run also prepares its test data by RandomRotate, which is left to the caller"]
