"""Encoders of classes that pc3d does not have: saved, loaded, judged, and under every head."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pc3d.data import Household, PointCloud, PointDataModule, collate
from pc3d.methods import Method, pretrain
from pc3d.models import (
    AlignedShapeEncoder,
    BlockFeatures,
    DistilledEncoder,
    ObjectEncoder,
    PointPartSegmenter,
    PointViT,
    SparseUNet,
    load_encoder,
    object_features,
    save_encoder,
)
from pc3d.models.hub import check_storable


class Shared(ObjectEncoder):
    """One linear layer for every point and the maximum over the cloud."""

    def __init__(self, embed_dim: int = 8, num_points: int = 32) -> None:
        super().__init__()
        self.config = {"embed_dim": embed_dim, "num_points": num_points}
        self.embed_dim = self.local_dim = embed_dim
        self.layer = nn.Linear(3, embed_dim)

    def reset_parameters(self) -> None:
        self.layer.reset_parameters()

    def local_features(self, xyz: Tensor) -> Tensor:
        return self.layer(xyz)

    def encode(self, xyz: Tensor, pooling: str = "max") -> Tensor:
        return self.local_features(xyz).amax(1)


class Forgetful(Shared):
    """Takes an argument that its ``config`` lacks."""

    def __init__(self, embed_dim: int = 8, num_points: int = 32, slope: float = 0.1) -> None:
        super().__init__(embed_dim, num_points)


class Silent(Shared):
    """Does not say how it was built."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        del self.config


class Tied(Shared):
    """Two layers with the same weights."""

    def __init__(self, embed_dim: int = 8, num_points: int = 32) -> None:
        super().__init__(embed_dim, num_points)
        self.second = nn.Linear(3, embed_dim)
        self.second.weight = self.layer.weight


class OwnBlocks(BlockFeatures):
    """Applies an encoder to blocks in a way of one's own."""


class Unpooled(Shared):
    """Its ``encode`` lacks an argument."""

    def encode(self, xyz: Tensor) -> Tensor:  # type: ignore[override]
        return self.local_features(xyz).amax(1)


class OwnScenes(SparseUNet):
    """One of scenes, whose ``encode`` gives levels of voxels and knows no pooling."""


class VectorAlone(ObjectEncoder):
    """Knows no places."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.embed_dim = 3

    def reset_parameters(self) -> None:
        pass

    def encode(self, xyz: Tensor, pooling: str = "max") -> Tensor:
        return xyz.amax(1)


NAME = f"{Shared.__module__}.Shared"


def test_one_of_an_own_class_comes_back_as_it_was(tmp_path: Path) -> None:
    encoder, xyz = Shared(embed_dim=5), torch.randn(2, 9, 3)
    folder = save_encoder(encoder, tmp_path / "own")
    assert json.loads((folder / "config.json").read_text())["class"] == NAME
    loaded = load_encoder(folder, expect=Shared)
    assert loaded.config == encoder.config
    assert not loaded.training
    assert torch.equal(loaded.encode(xyz), encoder.encode(xyz))


@pytest.mark.parametrize("around", [BlockFeatures, AlignedShapeEncoder])
def test_and_within_another(around: type[nn.Module], tmp_path: Path) -> None:
    encoder = around(Shared(embed_dim=5))
    loaded = load_encoder(save_encoder(encoder, tmp_path))
    assert isinstance(loaded, around)
    assert isinstance(loaded.encoder, Shared)
    for name, value in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_tied_weights_are_stored(tmp_path: Path) -> None:
    encoder = Tied()
    loaded = load_encoder(save_encoder(encoder, tmp_path), expect=Tied)
    assert loaded.second.weight is loaded.layer.weight
    assert torch.equal(loaded.layer.weight, encoder.layer.weight)


def test_one_of_scenes_comes_back(tmp_path: Path) -> None:
    loaded = load_encoder(save_encoder(OwnScenes(channels=[6], blocks=[1]), tmp_path), expect=OwnScenes)
    assert loaded.config["channels"] == [6]


def test_an_own_class_around_an_encoder_comes_back(tmp_path: Path) -> None:
    loaded = load_encoder(save_encoder(OwnBlocks(Shared(5), feature_dim=6), tmp_path), expect=OwnBlocks)
    assert isinstance(loaded.encoder, Shared)
    assert loaded.config["encoder"]["arguments"]["embed_dim"] == 5


def test_an_own_class_named_like_one_of_pc3d_is_told_apart(tmp_path: Path) -> None:
    kind = type("PointViT", (Shared,), {"__module__": __name__, "__init__": Shared.__init__})
    sys.modules[__name__].PointViT, theirs = kind, PointViT  # type: ignore[attr-defined]
    try:
        loaded = load_encoder(save_encoder(kind(), tmp_path))
    finally:
        sys.modules[__name__].PointViT = theirs  # type: ignore[attr-defined]
    assert type(loaded) is kind


def test_what_could_not_be_loaded_is_refused() -> None:
    class Local(Shared):
        pass

    in_script = type("InScript", (Shared,), {"__module__": "__main__"})
    for encoder, message in (
        (nn.Linear(2, 2), r"PointViT, .* or of your own an ObjectEncoder .*; got Linear"),
        (Local(), "Local cannot be imported by that name .*file of its own"),
        (in_script(), r"__main__\.InScript cannot be imported"),
        (Unpooled(), "encode of .*Unpooled must take pooling"),
        (Silent(), "Silent does not say how it was built.*self.config"),
        (Forgetful(), r"\(embed_dim, num_points, slope\); it lacks slope"),
        (BlockFeatures(Forgetful()), "it lacks slope"),
        (DistilledEncoder(BlockFeatures(Forgetful()), 4, "clip"), "it lacks slope"),
    ):
        with pytest.raises(TypeError, match=message):
            check_storable(encoder)
    for config, message in (
        ({"embed_dim": 8, "num_points": 32, "width": 3}, "width are none of them"),
        ({"embed_dim": {1: 8}, "num_points": 32}, r"embed_dim=\{1: 8\} is not: the key 1 of a dictionary is no text"),
        ({"embed_dim": torch.tensor(8), "num_points": 32}, r"plain data.*embed_dim=tensor\(8\) is not"),
    ):
        encoder = Shared()
        encoder.config = config
        with pytest.raises(TypeError, match=message):
            check_storable(encoder)


class Idle(Method):
    """Trains nothing; its encoder could not be loaded again."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Silent()

    @property
    def encoder(self) -> nn.Module:
        return self.network

    def configure_optimizers(self) -> None:
        raise AssertionError("it is refused before")


def test_it_is_refused_before_a_run_begins(tmp_path: Path) -> None:
    data = PointDataModule(train=Household("test"), batch_size=1)
    with pytest.raises(TypeError, match="does not say how it was built"):
        pretrain(Idle(), data, tmp_path / "run", max_epochs=1)
    assert not (tmp_path / "run").exists()


def test_its_features_of_places_are_read() -> None:
    encoder, xyz = Shared(embed_dim=4), torch.randn(20, 3)
    assert torch.allclose(object_features(encoder, xyz), encoder.layer(xyz), atol=1e-5)

    segmenter = PointPartSegmenter(encoder, num_parts=3, num_categories=2, head_dims=(8, 8, 8, 8)).eval()
    features = encoder.layer(xyz)
    of_points = segmenter.propagation(torch.cat([xyz, features], dim=1))
    kind = segmenter.category(torch.tensor([[0.0, 1.0]]))[0]
    of_cloud = torch.cat([features.amax(0), features.mean(0), kind]).expand(20, -1)
    expected = segmenter.head(torch.cat([of_points, of_cloud], dim=1)).log_softmax(1)
    assert torch.allclose(segmenter(xyz[None], torch.tensor([1]))[0], expected, atol=1e-5)

    scene = collate([PointCloud(xyz), PointCloud(torch.randn(7, 3))])
    assert BlockFeatures(encoder, feature_dim=6).eval()(scene).shape == (27, 6)


def test_one_without_them_is_told_what_it_lacks() -> None:
    for build in (PointPartSegmenter, BlockFeatures, lambda one: object_features(one, torch.rand(4, 3))):
        with pytest.raises(TypeError, match=r"local_features\(xyz\) and local_dim"):
            build(VectorAlone())
    coloured = Shared()
    coloured.reads_rgb = True
    with pytest.raises(TypeError, match="got Shared, which reads colours"):
        PointPartSegmenter(coloured)
    with pytest.raises(ValueError, match="layers: a Shared has no blocks"):
        PointPartSegmenter(Shared(), layers=(0, 1, 2))
    encoder = Shared()
    encoder.config["k"] = None  # what it means is the class's own affair
    BlockFeatures(encoder)
    del encoder.config["num_points"]
    with pytest.raises(ValueError, match="num_points: Shared does not say how many"):
        BlockFeatures(encoder)
