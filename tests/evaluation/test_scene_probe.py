"""The linear probe of scenes, on embedded rooms: what it fits, what it leaves alone, and its batch norms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc3d.data import PointBatch, PointCloud, Rooms, Transform, collate
from pc3d.data.dataset import PointDataset
from pc3d.evaluation import ConfusionMatrix
from pc3d.evaluation.scene_probe import fit_linear_head, scene_linear_probe, settle_on_scenes
from pc3d.models import SparseUNet, UpcastFeatures
from pc3d.nn import GlobalBatchNorm


class Corners(PointDataset):
    """Some points of two rooms."""

    def __init__(self, split: str, keep_labels: bool = True) -> None:
        rooms = Rooms(split)
        self.classes, self.labels = rooms.classes, rooms.labels[:2]
        generator = torch.Generator().manual_seed(0)
        picked = [torch.randperm(len(rooms[index]), generator=generator)[:800] for index in (0, 1)]
        self.clouds = [rooms[index].select(rows) for index, rows in enumerate(picked)]
        if not keep_labels:
            self.clouds = [cloud.replace(segment=torch.full((len(cloud),), -1)) for cloud in self.clouds]

    def load(self, index: int) -> PointCloud:
        return self.clouds[index]


class Raw(nn.Module):
    """Height, colour and normal of each point, times a factor for each."""

    def __init__(self, factors: tuple[float, ...] = (1.0,) * 7) -> None:
        super().__init__()
        self.factors = torch.tensor(factors)

    def point_features(self, batch: PointBatch) -> Tensor:
        assert batch.rgb is not None
        assert batch.normal is not None
        return torch.cat([batch.xyz[:, 2:], batch.rgb, batch.normal], 1) * self.factors


def test_it_is_logistic_regression_on_standardised_features() -> None:
    from sklearn.linear_model import LogisticRegression

    train, test = Corners("train"), Corners("test")
    scores = scene_linear_probe(Raw(), train, test, points_per_scene=10_000, weight_decay=1e-2, max_iterations=200)
    features, labels = [], []
    for rooms in (train, test):
        batch = collate([rooms[0], rooms[1]])
        assert batch.segment is not None
        rows = batch.segment >= 0
        features.append(Raw().point_features(batch)[rows].double().numpy())
        labels.append(batch.segment[rows].numpy())
    mean, scale = features[0].mean(0), features[0].std(0, ddof=1)
    oracle = LogisticRegression(C=1 / (1e-2 * len(labels[0])), max_iter=300, tol=1e-5)
    predicted = oracle.fit((features[0] - mean) / scale, labels[0]).predict((features[1] - mean) / scale)
    assert scores.allacc == pytest.approx(float(np.mean(predicted == labels[1])), abs=0.005)
    assert scores.num_points == len(labels[1])


def test_scale_of_features_and_labels_of_points_not_drawn_do_not_matter() -> None:
    train, test = Corners("train"), Corners("test")
    plain = scene_linear_probe(Raw(), train, test, points_per_scene=500)
    scaled = scene_linear_probe(Raw((100.0, 0.01, 1.0, 5.0, 1.0, 1.0, 1.0)), train, test, points_per_scene=500)
    assert scaled.allacc == pytest.approx(plain.allacc, abs=0.005)
    again = scene_linear_probe(Raw(), train, test, points_per_scene=500)
    assert again.confusion == plain.confusion
    other = scene_linear_probe(Raw(), train, test, points_per_scene=500, seed=1)
    assert other.confusion != plain.confusion


@pytest.mark.parametrize("factors", [(1.0,) * 7, (30.0, 0.02, 1.0, 5.0, 1.0, 1.0, 1.0)])
def test_the_head_says_of_features_as_they_are_what_the_probe_says(factors: tuple[float, ...]) -> None:
    train, test, raw = Corners("train"), Corners("test"), Raw(factors)
    weight, bias = fit_linear_head(raw, train, points_per_scene=500, weight_decay=1e-2)
    assert weight.shape == (len(train.classes), 7)
    matrix = ConfusionMatrix(len(train.classes))
    for index in range(2):
        batch = collate([test[index]])
        assert batch.segment is not None
        matrix.update((raw.point_features(batch) @ weight.T + bias).argmax(1), batch.segment)
    expected = scene_linear_probe(raw, train, test, points_per_scene=500, weight_decay=1e-2)
    assert matrix.scores(train.classes).allacc == pytest.approx(expected.allacc, abs=1e-3)


class Upside(Transform):
    """Turns heights over."""

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        return cloud.replace(xyz=-cloud.xyz)


def test_the_head_is_fitted_to_transformed_scenes() -> None:
    train = Corners("train")
    plain = fit_linear_head(Raw(), train, points_per_scene=300, weight_decay=1e-2)
    turned = fit_linear_head(Raw(), train, transform=Upside(), points_per_scene=300, weight_decay=1e-2)
    flipped = plain[0] * torch.tensor([-1.0, 1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(turned[0], flipped, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(turned[0][:, 0], plain[0][:, 0], atol=0.1)


def test_no_more_points_are_taken_than_is_said_and_bars_show_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Corners("train")
    few = fit_linear_head(Raw(), train, points_per_scene=150)
    capped = fit_linear_head(Raw(), train, max_points=301)
    assert torch.equal(few[0], capped[0])
    assert not torch.equal(fit_linear_head(Raw(), train)[0], capped[0])
    with pytest.raises(ValueError, match="max_points must be at least 1 for each of the 2 scenes, got 1"):
        fit_linear_head(Raw(), train, max_points=1)
    monkeypatch.setattr("pc3d._progress.LINE_SECONDS", 0.0)
    fit_linear_head(UpcastFeatures(unet()), train, max_points=300, max_iterations=8)
    assert capsys.readouterr().err == ""
    fit_linear_head(UpcastFeatures(unet()), train, max_points=300, max_iterations=8, progress=True)
    shown = capsys.readouterr().err
    for line in ("statistics of batch norms: 2/2 scenes", "features of points: 2/2 scenes", "fit the head: 8/10 eval"):
        assert line in shown


def unet() -> SparseUNet:
    torch.manual_seed(0)
    return SparseUNet((8, 12), (1, 1), 0.3, "xyz_rgb")


def test_the_probe_leaves_weights_and_mode_as_they_were() -> None:
    backbone = UpcastFeatures(unet()).train()
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    scene_linear_probe(backbone, Corners("train"), Corners("test"), points_per_scene=200, max_iterations=5)
    assert backbone.training
    assert all(module.momentum == 0.1 for module in backbone.modules() if isinstance(module, nn.BatchNorm1d))
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_parameters())


def test_settled_statistics_are_the_mean_over_scenes() -> None:
    model, rooms = unet(), Corners("train")
    seen: list[Tensor] = []
    norm = model.stem.norm
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    settle_on_scenes(model, rooms)
    assert len(seen) == 2
    torch.testing.assert_close(norm.running_mean, torch.stack([rows.mean(0) for rows in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([rows.var(0) for rows in seen]).mean(0))


class Elsewhere(nn.Module):
    """Has its parameters on another device, and demands its input there."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = GlobalBatchNorm(3).to("meta")
        self.calls = 0

    def point_features(self, batch: PointBatch) -> Tensor:  # alone: an encoder of one's own needs no forward
        assert {t.device.type for t in (batch.xyz, batch.offsets, batch.rgb) if t is not None} == {"meta"}
        self.calls += 1
        return torch.ones(batch.xyz.shape)


def test_scenes_go_to_the_device_of_the_backbone() -> None:
    backbone = Elsewhere()
    settle_on_scenes(backbone, Corners("train"))
    assert backbone.calls == 2
    scene_linear_probe(backbone, Corners("train"), Corners("test"), points_per_scene=50, settle=False)
    assert backbone.calls == 6


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)
def test_devices_give_the_same_scores(device: str) -> None:
    scores = [
        scene_linear_probe(UpcastFeatures(unet().to(d)), Corners("train"), Corners("test"), max_iterations=5)
        for d in ("cpu", device)
    ]
    assert scores[0].allacc == pytest.approx(scores[1].allacc, abs=0.02)


def test_bad_data_are_refused() -> None:
    train, test = Corners("train"), Corners("test")
    with pytest.raises(ValueError, match="no point of the training scenes has a label"):
        scene_linear_probe(Raw(), Corners("train", keep_labels=False), test)
    test.classes = test.classes[:-1]
    with pytest.raises(ValueError, match="must have the same classes"):
        scene_linear_probe(Raw(), train, test)
