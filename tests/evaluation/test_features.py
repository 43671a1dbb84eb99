"""Feature extraction: evaluation mode, stored points, whole data set, on the embedded objects."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc3d.data import (
    BadFileError,
    Compose,
    FarthestPointSample,
    Household,
    Jitter,
    Normalize,
    PointCloud,
    PointDataset,
    Selection,
)
from pc3d.evaluation import (
    Features,
    PointPCA,
    ShapeDescriptor,
    extract_features,
    linear_svm,
    save_features,
    settle_batch_norm,
)
from pc3d.evaluation.features import Sampling
from pc3d.models import PointViT


@pytest.fixture(scope="module")
def few() -> PointDataset:
    return Selection(Household("test"), range(0, 124, 6))


@pytest.fixture(scope="module")
def vit() -> PointViT:
    torch.manual_seed(0)
    return PointViT(embed_dim=24, depth=2, num_heads=2, num_groups=16, group_size=16, drop_path=0.5)


def test_features_are_those_of_the_encoder_in_evaluation_mode(vit: PointViT, few: PointDataset) -> None:
    vit.train()
    features = extract_features(vit, few, num_points=256, batch_size=4)
    assert vit.training
    vit.eval()
    with torch.no_grad():
        expected = torch.cat([vit.encode(few.load(i).xyz[None, :256]) for i in range(len(few))])
    np.testing.assert_allclose(features.values, expected.numpy(), atol=1e-5)
    assert features.labels.tolist() == few.labels.tolist()
    assert features.classes == few.classes
    assert features.ids == tuple(few.load(i).meta["id"] for i in range(len(few)))


def test_extraction_changes_no_state_and_repeats_itself(vit: PointViT, few: PointDataset) -> None:
    vit.train()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    first = extract_features(vit, few, num_points=256)
    second = extract_features(vit, few, num_points=256)
    np.testing.assert_array_equal(first.values, second.values)
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())


def test_modes_of_frozen_parts_are_given_back(few: PointDataset) -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.free = nn.Linear(3, 4).eval(), nn.Linear(3, 4)

        def encode(self, xyz: Tensor, pooling: str = "max+mean") -> Tensor:
            assert not self.free.training
            assert not torch.is_grad_enabled()
            return self.free(xyz).amax(1)

    probe = Probe()
    extract_features(probe, few, num_points=64)
    assert probe.free.training
    assert not probe.frozen.training


def test_augmentation_is_left_out(few: PointDataset) -> None:
    shaken = Household("test", transform=Jitter(0.1, 0.2))
    plain = extract_features(ShapeDescriptor(), Household("test"))
    np.testing.assert_array_equal(extract_features(ShapeDescriptor(), shaken).values, plain.values)


def test_items_that_cannot_be_used_may_be_left_out(vit: PointViT, few: PointDataset) -> None:
    class WithBadFiles(Selection):
        def load(self, index: int) -> PointCloud:
            if index in (0, 3):
                raise BadFileError(f"{index}.ply", "is empty")
            return super().load(index)

    bad = WithBadFiles(few, range(len(few)))
    with pytest.raises(BadFileError, match=r"0\.ply: is empty"):
        extract_features(vit, bad, num_points=256)
    told: list[tuple[int, str]] = []
    options: dict[str, Any] = {"num_points": 256, "batch_size": 4}
    found = extract_features(vit, bad, leave_out=lambda index, error: told.append((index, error.reason)), **options)
    assert told == [(0, "is empty"), (3, "is empty")]
    kept = [index for index in range(len(few)) if index not in (0, 3)]
    expected = extract_features(vit, Selection(few, kept), **options)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    assert (found.labels.tolist(), found.ids) == (expected.labels.tolist(), expected.ids)
    assert found.content_hash == expected.content_hash
    assert found.groups is not None
    assert expected.groups is not None
    assert found.groups.tolist() == expected.groups.tolist()
    with pytest.raises(ValueError, match="all 2 items of dataset were left out: nothing to encode"):
        extract_features(vit, Selection(bad, [0, 3]), leave_out=lambda index, error: None, **options)


def test_files_of_too_few_points_for_the_encoder_may_be_left_out(vit: PointViT, few: PointDataset) -> None:
    """Between a file that cannot be read and the end of the set, so that positions have to be counted well."""

    class Uneven(Selection):
        def load(self, index: int) -> PointCloud:
            if index == 1:
                raise BadFileError("1.ply", "is empty")
            cloud = super().load(index)
            return cloud.select(slice(0, 10 if index in (2, 5, 6) else 256)).replace(
                meta={**cloud.meta, "path": f"{index}.ply"}
            )

    uneven = Uneven(few, range(8))
    options: dict[str, Any] = {"num_points": None, "batch_size": 3}
    with pytest.raises(BadFileError, match=r"2\.ply: clouds have 10 points, fewer than num_groups=16"):
        extract_features(vit, Selection(uneven, [0, 2, 3]), **options)
    told: dict[int, str] = {}
    found = extract_features(vit, uneven, leave_out=lambda row, error: told.update({row: str(error.path)}), **options)
    assert told == {1: "1.ply", 2: "2.ply", 5: "5.ply", 6: "6.ply"}
    expected = extract_features(vit, Selection(uneven, [0, 3, 4, 7]), **options)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    assert (found.labels.tolist(), found.ids) == (expected.labels.tolist(), expected.ids)
    assert found.content_hash == expected.content_hash


def test_content_hash_names_points_and_labels(few: PointDataset) -> None:
    def content(dataset: PointDataset, num_points: int = 128, batch_size: int = 32) -> str:
        return extract_features(ShapeDescriptor(), dataset, num_points=num_points, batch_size=batch_size).content_hash

    reference = content(few)
    assert content(few, batch_size=5) == reference
    assert content(few, num_points=127) != reference
    assert content(Selection(few, range(len(few) - 1))) != reference
    relabelled = Selection(few, range(len(few)))
    relabelled.labels = relabelled.labels.clone()
    relabelled.labels[0] += 1
    assert content(relabelled) != reference


def test_all_points_of_clouds_of_different_length() -> None:
    class Ragged(Selection):
        def load(self, index: int):  # type: ignore[no-untyped-def]
            return super().load(index).select(slice(0, 64 if index < 3 else 100))

    dataset = Ragged(Household("test"), range(6))
    features = extract_features(ShapeDescriptor(), dataset, num_points=None)
    alone = ShapeDescriptor().encode(dataset.load(4).xyz[None])
    np.testing.assert_allclose(features.values[4], alone[0].numpy(), atol=1e-6)
    with pytest.raises(ValueError, match=r"num_points=100 exceeds the 64 points of the cloud"):
        extract_features(ShapeDescriptor(), dataset, num_points=100)


@pytest.mark.parametrize("sampling", ["first", "farthest", "random"])
@pytest.mark.parametrize("num_points", [0, -3])
def test_a_cloud_has_a_point_at_least(few: PointDataset, num_points: int, sampling: Sampling) -> None:
    """The first -3 of a list are all but three."""
    with pytest.raises(ValueError, match=f"num_points must be at least 1, got {num_points}"):
        extract_features(ShapeDescriptor(), few, num_points=num_points, sampling=sampling)


def test_what_is_no_data_set_of_clouds_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dataset must be a pc3d\.data\.PointDataset, got list: a class with load"):
        extract_features(ShapeDescriptor(), [torch.zeros(8, 3)])  # type: ignore[arg-type]


def test_farthest_points_in_the_unit_sphere(few: PointDataset) -> None:
    class Recorder:
        seen: list[Tensor] = []  # noqa: RUF012

        def encode(self, xyz: Tensor, pooling: str = "max+mean") -> Tensor:
            self.seen.append(xyz)
            return xyz.mean(1)

    features = extract_features(Recorder(), few, num_points=32, sampling="farthest", normalize="box", batch_size=1)
    assert (features.sampling, features.normalize) == ("farthest", "box")
    for index, xyz in enumerate(Recorder.seen):
        torch.testing.assert_close(xyz[0].norm(dim=1).max(), torch.tensor(1.0))
        torch.testing.assert_close(xyz[0].amax(0), -xyz[0].amin(0))
        stored = few.load(index).xyz
        spread, prefix = (torch.cdist(points, points).fill_diagonal_(9).min() for points in (xyz[0], stored[:32]))
        assert spread > prefix


def test_bad_arguments_are_refused(few: PointDataset) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        extract_features(ShapeDescriptor(), few, batch_size=0)
    with pytest.raises(ValueError, match="sampling must be one of"):
        extract_features(ShapeDescriptor(), few, sampling="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="normalize must be one of"):
        extract_features(ShapeDescriptor(), few, normalize="unit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dataset is empty"):
        extract_features(ShapeDescriptor(), Selection(few, []))


def test_features_that_are_not_finite_name_the_item() -> None:
    values = np.ones((3, 2), dtype=np.float32)
    values[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"item 1 \(lamp\)"):
        Features(values, np.zeros(3, dtype=np.int64), ids=("chair", "lamp", "table"))
    with pytest.raises(ValueError, match=r"\(n, D\)"):
        Features(values[0], np.zeros(3, dtype=np.int64))


def test_saved_features_read_back_without_pickle_and_are_never_lost(tmp_path: Path, few: PointDataset) -> None:
    features = extract_features(ShapeDescriptor(), few, data="household", split="test")
    path = save_features(features, tmp_path / "new" / "features.npz")
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["features"], features.values)
        np.testing.assert_array_equal(archive["label"], features.labels)
        assert archive["id"].tolist() == list(features.ids)
        assert archive["classes"].tolist() == list(few.classes)
        assert str(archive["content_hash"]) == features.content_hash
        assert int(archive["num_points"]) == 1024
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="would be lost"):
        save_features(features, path)
    assert path.read_bytes() == before
    save_features(replace(features, split="other"), path, overwrite=True)
    assert path.read_bytes() != before
    assert [entry.name for entry in path.parent.iterdir()] == ["features.npz"]
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        save_features(features, tmp_path / "features.txt")


def test_descriptor_by_its_definition(few: PointDataset) -> None:
    xyz = few.load(3).xyz[:300].double()
    value = ShapeDescriptor(seed=5).encode(xyz[None])[0].double() ** 2
    assert value.shape == (302,)
    histograms = [value[:32], value[32:48], value[48:64], value[64:80], value[86:]]
    assert [float(h.sum()) for h in histograms] == pytest.approx([1.0] * 5, abs=1e-5)
    first, second = np.random.default_rng(5).integers(0, 300, (2, 4096))
    distances = (xyz[first] - xyz[second]).norm(dim=1)
    expected = torch.histc(distances, 32, 0, 2) / 4096
    np.testing.assert_allclose(value[:32], expected, atol=1e-3)
    extent = (xyz.amax(0) - xyz.amin(0)).tolist()
    np.testing.assert_allclose(value[80:83], [*sorted(extent[:2]), extent[2]], atol=1e-5)
    spread = torch.linalg.svdvals(xyz - xyz.mean(0)).flip(0) / 300**0.5
    np.testing.assert_allclose(value[83:86], spread, atol=1e-5)


def test_descriptor_histograms_ignore_a_turn_about_the_axis(few: PointDataset) -> None:
    xyz = few.load(3).xyz[None, :500]
    turned = torch.stack([-xyz[..., 1], xyz[..., 0], xyz[..., 2]], dim=-1)
    before, after = ShapeDescriptor().encode(xyz), ShapeDescriptor().encode(turned)
    np.testing.assert_allclose(before[:, :86], after[:, :86], atol=2e-3)


def test_pca_has_orthonormal_axes_and_centred_scores() -> None:
    train = Household("train")
    baseline = PointPCA(8).fit(train)
    features = extract_features(baseline, train)
    assert features.values.shape == (487, 8)
    np.testing.assert_allclose(features.values.mean(0), 0, atol=1e-5)
    covariance = np.cov(features.values.T)
    off_diagonal = covariance - np.diag(np.diag(covariance))
    assert np.abs(off_diagonal).max() < 1e-5
    assert (np.diff(np.diag(covariance)) <= 0).all()


def test_pca_of_few_clouds_has_only_components_in_which_they_vary() -> None:
    """N clouds vary in N - 1 directions; an object that occurs twice is no further one."""
    for rows, components in ((range(5), 4), ([0, 1, 2, 0, 1, 2], 2), (range(487), 128)):
        train = Selection(Household("train"), rows)
        values = extract_features(PointPCA().fit(train), train).values
        assert values.shape == (len(rows), components)
        assert (values.std(0) > 1e-3).all()


def test_pca_refuses() -> None:
    with pytest.raises(ValueError, match="num_components must be at least 1"):
        PointPCA(0)
    for components in (3, 4):
        with pytest.raises(ValueError, match=rf"at most 2, .* the 3 clouds .* got {components}: ask for fewer"):
            PointPCA(components).fit(Selection(Household("train"), range(3)))
    with pytest.raises(ValueError, match="all of the 2 of the data set are alike"):
        PointPCA().fit(Selection(Household("train"), [0, 0]))
    with pytest.raises(RuntimeError, match="call fit"):
        PointPCA(4).encode(torch.zeros(1, 8, 3))


def test_baselines_beat_chance_on_real_objects() -> None:
    train, test = Household("train"), Household("test")
    for encoder in (ShapeDescriptor(), PointPCA().fit(train)):
        features = [extract_features(encoder, split) for split in (train, test)]
        result = linear_svm(*features, protocol="tuned")
        assert result.num_unlabelled == (122, 0)
        # The largest class has 9.7 % of the test items.
        assert result.scores.overall_interval[0] > 0.2


def test_settling_batch_norm_sets_statistics_and_no_weight(vit: PointViT, few: PointDataset) -> None:
    torch.manual_seed(0)
    vit = PointViT(embed_dim=24, depth=2, num_heads=2, num_groups=16, group_size=16)
    before = {name: value.clone() for name, value in vit.named_parameters()}
    assert settle_batch_norm(vit, few, num_points=256, batch_size=len(few)) is vit
    assert all(torch.equal(before[name], value) for name, value in vit.named_parameters())
    # One batch of everything: the first layer's statistics are those of its output over all points of all patches.
    _, neighborhood = vit.tokenizer.cut(torch.stack([few.load(i).xyz[:256] for i in range(len(few))]))
    linear, norm = vit.tokenizer.network.first[0], vit.tokenizer.network.first[1]
    rows = linear(neighborhood.reshape(-1, 3))
    torch.testing.assert_close(norm.running_mean, rows.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, rows.var(0), atol=1e-5, rtol=1e-4)


class Moved(Selection):
    """Real objects far from the origin and much too large, sorted along an axis, as files of scans may be."""

    def load(self, index: int) -> PointCloud:
        cloud = super().load(index)
        rows = cloud.xyz[:, 0].argsort()
        return cloud.replace(xyz=cloud.xyz[rows] * 50 + 1000, rgb=None, normal=None)


def test_pca_is_fitted_on_clouds_prepared_like_those_it_encodes() -> None:
    train = Moved(Household("train"), range(40))
    options: dict[str, Any] = {"num_points": 64, "sampling": "farthest", "normalize": "box"}
    features = extract_features(PointPCA(8).fit(train, **options), train, **options)
    np.testing.assert_allclose(features.values.mean(0), 0, atol=1e-5)
    # Fitted on the raw prefixes, every cloud would be in one cell of the grid and all features alike.
    assert (features.values.std(0) > 0.01).all()


def test_batch_norm_is_settled_on_clouds_prepared_like_those_it_encodes() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, xyz: Tensor) -> Tensor:
            return self.norm(xyz.flatten(0, 1))

    train = Moved(Household("train"), range(6))
    recorder = settle_batch_norm(Recorder(), train, num_points=64, sampling="farthest", normalize="box")
    prepare = Compose([FarthestPointSample(64), Normalize("box")])
    points = torch.cat([prepare(train.load(i), torch.Generator()).xyz for i in range(6)])
    torch.testing.assert_close(recorder.norm.running_mean, points.mean(0))


def test_clouds_with_too_few_points_are_named() -> None:
    class Short(Selection):
        def load(self, index: int) -> PointCloud:
            return super().load(index).select(slice(0, 64 if index == 2 else 100))

    train = Short(Household("train"), range(6))
    name = re.escape(train.load(2).meta["id"])
    with pytest.raises(ValueError, match=rf"num_points=100 exceeds the 64 points of the cloud.*{name}"):
        PointPCA(4).fit(train, num_points=100)
    encoder = nn.BatchNorm1d(100)
    with pytest.raises(ValueError, match=rf"num_points=100 exceeds the 64 points of the cloud.*{name}"):
        settle_batch_norm(encoder, train, num_points=100)
    assert encoder.running_mean is not None
    assert not encoder.running_mean.any()
    everything = extract_features(PointPCA(4).fit(train, num_points=None), train, num_points=None)
    np.testing.assert_allclose(everything.values.mean(0), 0, atol=1e-5)


class ColorReader:
    """Gives the mean colour, and what it was handed."""

    reads_rgb = True

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def encode(self, xyz: Tensor, pooling: str = "none", *, rgb: Tensor | None = None) -> Tensor:
        self.seen.append((xyz, rgb))
        return xyz.mean(1) if rgb is None else rgb.mean(1)


def test_encoders_that_read_colors_get_them() -> None:
    household = Selection(Household("test", num_points=50), range(4))
    reader = ColorReader()
    features = extract_features(reader, household, num_points=20, batch_size=2, sampling="random")
    xyz, rgb = reader.seen[0]
    assert rgb is not None
    order = [(household[0].xyz == point).all(1).nonzero().item() for point in xyz[0]]
    assert len(set(order)) == 20
    assert order != sorted(order)
    colors = household[0].rgb
    assert colors is not None
    assert torch.equal(rgb[0], colors[order])
    np.testing.assert_allclose(features.values[0], colors[order].mean(0), rtol=1e-5)
    again = extract_features(ColorReader(), household, num_points=20, sampling="random")
    np.testing.assert_allclose(again.values, features.values, rtol=1e-6)
    assert again.content_hash != extract_features(ColorReader(), household, num_points=20).content_hash
    # More points than there are: all of them, in random order.
    whole = ColorReader()
    extract_features(whole, household, num_points=80, sampling="random")
    assert whole.seen[0][0].shape[1] == 50


def test_clouds_without_colors_take_none_from_their_neighbors() -> None:
    class Partly(Selection):
        def load(self, index: int) -> PointCloud:
            cloud = super().load(index)
            return cloud.replace(rgb=None) if index == 1 else cloud

    household = Partly(Household("test", num_points=50), range(4))
    alone, together = (extract_features(ColorReader(), household, num_points=20, batch_size=n) for n in (1, 4))
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-6)
    assert np.abs(together.values[0] - household[0].xyz[:20].mean(0).numpy()).max() > 0.01  # it is the mean colour
