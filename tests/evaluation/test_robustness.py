"""Robustness: the classifier sees clean training features alone, every encoder the same corrupted clouds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from pc3d.data import CORRUPTIONS, Corrupt, Household, MissingDataError, ModelNetC, PointCloud, Selection
from pc3d.data.loader import sample_generator
from pc3d.evaluation import Features, ShapeDescriptor, extract_features, linear_svm, relative_errors, robustness

OPTIONS: dict[str, Any] = {"corruptions": ("jitter", "drop_global"), "severities": (1, 5), "C": 1.0}


@pytest.fixture(scope="module")
def train() -> Features:
    return extract_features(ShapeDescriptor(), Household("train"), num_points=128)


@pytest.fixture(scope="module")
def test_set() -> Selection:
    return Selection(Household("test"), range(0, 124, 3))


@pytest.fixture(scope="module")
def test(test_set: Selection) -> Features:
    return extract_features(ShapeDescriptor(), test_set, num_points=128)


def test_accuracies_are_those_of_a_plain_loop(train: Features, test: Features, test_set: Selection) -> None:
    result = robustness(ShapeDescriptor(), train, test, test_set, seed=4, **OPTIONS)
    x, y = train.labelled()
    model = SVC(kernel="linear", C=1.0).fit(x, y)
    assert result.clean == model.score(test.values, test.labels)
    # jitter is the second corruption, five draws each, level 5.
    clouds = []
    for index in range(len(test_set)):
        generator = sample_generator(4, 1 * 5 + 5, index)
        clouds.append(Corrupt("jitter", 5)(test_set.load(index).select(slice(0, 128)), generator).xyz)
    values = ShapeDescriptor().encode(torch.stack(clouds)).numpy()
    assert result.accuracies["jitter"][1] == model.score(values, test.labels)
    assert result.accuracies.keys() == {"jitter", "drop_global"}
    assert result.mean == pytest.approx(np.mean([*result.accuracies["jitter"], *result.accuracies["drop_global"]]))


@pytest.fixture
def files(tmp_path: Path, test_set: Selection) -> Path:
    """A folder of ModelNet-C's layout: clean clouds, and for jitter those shrunk towards a plane, level by level."""
    xyz = torch.stack([test_set.load(i).xyz[:128] for i in range(len(test_set))]).numpy()
    for level in range(-1, 5):
        flat = xyz * np.array([1, 1, 1 - 0.15 * (level + 1)], np.float32)
        with h5py.File(tmp_path / ("clean.h5" if level < 0 else f"jitter_{level}.h5"), "w") as file:
            file.update({"data": flat, "label": test_set.labels.numpy()})
    return tmp_path


def test_corrupted_clouds_can_be_those_of_files(train: Features, test_set: Selection, files: Path) -> None:
    clean = ModelNetC(files, classes=test_set.classes)
    test = extract_features(ShapeDescriptor(), clean, num_points=128)
    options: dict[str, Any] = {"files": files, "corruptions": ["jitter"], "C": 1.0}
    result = robustness(ShapeDescriptor(), train, test, clean, **options)
    model = SVC(kernel="linear", C=1.0).fit(*train.labelled())
    expected = []
    for level in range(5):
        with h5py.File(files / f"jitter_{level}.h5") as file:
            values = ShapeDescriptor().encode(torch.from_numpy(file["data"][()])).numpy()
        expected.append(float(model.score(values, test.labels)))
    assert result.accuracies == {"jitter": tuple(expected)}
    assert f"corrupted test clouds of {files.name} [" in str(result)
    # By hand from the paper's formulas; DGCNN is right in 68.4 % under jitter and in 92.6 % without.
    relative = result.relative_to_dgcnn().relative
    assert relative is not None
    assert relative.mce == pytest.approx((1 - np.mean(expected)) / (1 - 0.684))
    assert relative.rmce == pytest.approx((result.clean - np.mean(expected)) / (0.926 - 0.684))
    some = robustness(ShapeDescriptor(), train, test, clean, **options, severities=(1, 5))
    made = robustness(ShapeDescriptor(), train, test, clean, corruptions=["jitter"], C=1.0)
    for other in (some, made):
        with pytest.raises(ValueError, match="those on the files of ModelNet-C at all five levels"):
            other.relative_to_dgcnn()
    with pytest.raises(ValueError, match="same corrupted clouds, got those made by pc3d for"):
        result.relative_to(made.to_row())


def test_fewer_clean_points_than_the_files_have_are_refused(train: Features, test_set: Selection, files: Path) -> None:
    clean = ModelNetC(files, classes=test_set.classes)
    some = extract_features(ShapeDescriptor(), clean, num_points=64)
    alike = replace(train, num_points=64)
    with pytest.raises(ValueError, match=r"num_points: .* must have all their 128 points, got 64"):
        robustness(ShapeDescriptor(), alike, some, clean, files=files, corruptions=["jitter"], C=1.0)


def test_files_of_other_objects_or_corruptions_are_refused(train: Features, test_set: Selection, files: Path) -> None:
    clean = ModelNetC(files, classes=test_set.classes)
    test = extract_features(ShapeDescriptor(), clean, num_points=128)
    options: dict[str, Any] = {"files": files, "C": 1.0, "severities": [1]}
    with h5py.File(files / "jitter_0.h5", "r+") as file:
        file["label"][0] = (int(test.labels[0]) + 1) % 21
    with pytest.raises(ValueError, match=r"labels of .*jitter_0\.h5 are not those of the clean clouds"):
        robustness(ShapeDescriptor(), train, test, clean, corruptions=["jitter"], **options)
    with pytest.raises(MissingDataError, match=r"scale_0\.h5"):
        robustness(ShapeDescriptor(), train, test, clean, **options)
    with pytest.raises(ValueError, match="corruption must be 'clean' or one of scale"):
        robustness(ShapeDescriptor(), train, test, clean, corruptions=["occlusion"], **options)


def test_progress_counts_corrupted_test_sets(
    train: Features,
    test: Features,
    test_set: Selection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pc3d._progress.LINE_SECONDS", 0.0)
    for progress, count in ((True, 4), (False, 0)):
        robustness(ShapeDescriptor(), train, test, test_set, progress=progress, **OPTIONS)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == count
        assert all(line.startswith(f"judge: {i}/4 corrupted test sets") for i, line in enumerate(lines, start=1))


def test_every_encoder_sees_the_same_clouds(train: Features, test: Features, test_set: Selection) -> None:
    class Recorder(ShapeDescriptor):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def encode(self, xyz: Tensor, pooling: str = "none") -> Tensor:
            self.seen.append(xyz)
            return super().encode(xyz)

    recorders = [Recorder(), Recorder(), Recorder()]
    for recorder, seed, size in zip(recorders, (0, 0, 1), (32, 7, 32), strict=True):
        robustness(recorder, train, test, test_set, seed=seed, batch_size=size, **OPTIONS)
    first, again, other = (
        [torch.cat([xyz for xyz in recorder.seen if xyz.shape[1] == n]) for n in (128, 32)] for recorder in recorders
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_classifier_that_tells_no_classes_apart_is_told(train: Features, test: Features, test_set: Selection) -> None:
    """The features' differences are too small for the penalty on weights: one class for all, until they are scaled."""
    options: dict[str, Any] = {"corruptions": ["jitter"], "severities": [1], "C": 1.0}
    plain = robustness(ShapeDescriptor(), train, test, test_set, **options)
    assert plain.only_class is None
    assert "every test item" not in str(plain)
    small, small_test = (replace(f, values=1e-4 * f.values) for f in (train, test))
    found = robustness(ShapeDescriptor(), small, small_test, test_set, **options)
    majority = found.only_class
    assert majority is not None
    labels = test.labels[test.labels >= 0]
    assert found.clean == (labels == test.classes.index(majority)).mean()
    note = f"every test item is said to be of one class, {majority!r}, because features may be too small"
    assert note in str(found)
    assert "pc3d probe --standardize true" in str(found)
    probed = linear_svm(small, small_test, C=1.0)
    assert note in str(probed)
    assert "every test item" not in str(linear_svm(small, small_test, C=1.0, standardize=True))
    assert "every test item" not in str(linear_svm(train, test, C=1.0))


def test_c_is_chosen_on_clean_training_features(train: Features, test: Features, test_set: Selection) -> None:
    options = {**OPTIONS, "C": None, "severities": (1,), "corruptions": ("jitter",)}
    result = robustness(ShapeDescriptor(), train, test, test_set, **options)
    assert "cross-validation on the training features" in result.selection
    row = result.to_row("descriptor")
    assert (row.selection, next(iter(row.metrics))) == ("tuned", "mean_corrupted_accuracy")
    assert row.metrics["clean_accuracy"] == result.clean
    assert row.metrics["accuracy under jitter"] == result.accuracies["jitter"][0]
    fixed = robustness(ShapeDescriptor(), train, test, test_set, **OPTIONS).to_row()
    assert (fixed.selection, fixed.config["C"]) == ("fixed", 1.0)
    assert "level 5" in str(robustness(ShapeDescriptor(), train, test, test_set, **OPTIONS))


def test_unlabelled_items_take_no_part(train: Features, test: Features, test_set: Selection) -> None:
    some = Selection(test_set, range(len(test_set)))
    some.labels = some.labels.clone()
    some.labels[:5] = -1
    fewer = replace(test, labels=some.labels.numpy())
    result = robustness(ShapeDescriptor(), train, fewer, some, **OPTIONS)
    assert (result.num_test, result.num_unlabelled[1]) == (len(test) - 5, 5)


def test_relative_errors_by_hand() -> None:
    ours, theirs = {"scale": (0.8, 0.6), "jitter": (0.5, 0.5)}, {"scale": (0.6, 0.4), "jitter": (0.7, 0.3)}
    found = relative_errors(0.9, ours, 0.8, theirs)
    # scale: (0.2 + 0.4) / (0.4 + 0.6), jitter: (0.5 + 0.5) / (0.3 + 0.7).
    assert found.ce == {"scale": pytest.approx(0.6), "jitter": pytest.approx(1.0)}
    assert found.mce == pytest.approx(0.8)
    # scale: (0.1 + 0.3) / (0.2 + 0.4), jitter: (0.4 + 0.4) / (0.1 + 0.5).
    assert found.rmce == pytest.approx((2 / 3 + 4 / 3) / 2)
    itself = relative_errors(0.8, theirs, 0.8, theirs)
    assert (itself.mce, itself.rmce) == (pytest.approx(1.0), pytest.approx(1.0))
    assert relative_errors(0.9, ours, 0.5, theirs).rmce is None  # the baseline is better with some corruption
    with pytest.raises(ValueError, match="got scale x 2 for scale x 2, jitter x 2"):
        relative_errors(0.9, ours, 0.8, {"scale": (0.6, 0.4)})
    with pytest.raises(ValueError, match="makes no error under scale"):
        relative_errors(0.9, ours, 1.0, {**theirs, "scale": (1.0, 1.0)})


def test_bad_options_are_refused(train: Features, test: Features, test_set: Selection) -> None:
    def call(**options: Any) -> None:
        robustness(ShapeDescriptor(), train, test, **{"test_set": test_set, **OPTIONS, **options})

    for options, message in (
        ({"corruptions": ()}, "must each name at least one"),
        ({"corruptions": ("fog",)}, "corruptions must be among scale, .*, got 'fog'"),
        ({"severities": (0,)}, "severities must be among 1, 2, 3, 4, 5, got 0"),
        ({"C": -1.0}, "C must be positive"),
        ({"test_set": Household("test")}, "must be the data set that the test features were made of"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**options)


def test_a_row_is_the_baseline(train: Features, test: Features, test_set: Selection) -> None:
    result = robustness(ShapeDescriptor(), train, test, test_set, **OPTIONS)
    row = result.to_row("descriptor")
    weaker = robustness(ShapeDescriptor(), train, test, test_set, **{**OPTIONS, "C": 0.001}).relative_to(row)
    assert weaker.relative == relative_errors(weaker.clean, weaker.accuracies, result.clean, result.accuracies)
    assert weaker.relative is not None
    assert weaker.to_row().metrics["mce"] == weaker.relative.mce > 1
    assert f"mean corruption error mCE  {weaker.relative.mce:.3f}" in str(weaker)
    for change, message in (
        ({"seed": 1}, "same seed"),
        ({"data_hash": "x"}, "same data_hash"),
        ({"protocol": "kNN"}, "same protocol"),
        ({"config": {**row.config, "severities": [2, 3]}}, "same severities"),
    ):
        with pytest.raises(ValueError, match=message):
            result.relative_to(replace(row, **change))


class ColorHistogram:
    """Reads nothing but colours."""

    reads_rgb = True

    def encode(self, xyz: Tensor, pooling: str = "none", *, rgb: Tensor | None = None) -> Tensor:
        assert rgb is not None
        return torch.cat([rgb.mean(1), rgb.std(1)], 1)


def test_corruptions_of_the_shape_leave_colors_and_lost_colors_stand_apart(test_set: Selection) -> None:
    encoder = ColorHistogram()
    train, test = (extract_features(encoder, data, num_points=128) for data in (Household("train"), test_set))
    result = robustness(encoder, train, test, test_set, severities=(3, 5), C=1.0)
    # Points that only move have the colours that they had.
    for kind in ("scale", "jitter", "rotate"):
        assert result.accuracies[kind] == (result.clean, result.clean)
    assert set(result.accuracies) == {*CORRUPTIONS} - {"drop_color"}
    assert result.mean == pytest.approx(np.mean(list(result.accuracies.values())))
    # All grey, every object is the same one: the accuracy is the share of one class.
    x, y = train.labelled()
    grey = SVC(kernel="linear", C=1.0).fit(x, y).predict([[0.4] * 3 + [0.0] * 3])[0]
    assert result.without_color is not None
    assert result.without_color[1] == np.mean(test.labels == grey)
    assert "drop_color" in result.curves
    row = result.to_row("colours")
    assert row.metrics["mean_corrupted_accuracy"] == result.mean
    assert row.metrics["accuracy under drop_color"] == np.mean(result.without_color)
    assert "(not in the mean)" in str(result)
    # ModelNet-C's errors are of the shape alone, whether or not the baseline saw colours.
    row.details.pop("without_color")
    assert result.relative_to(row).relative is not None


def test_without_colors_there_is_nothing_of_them(train: Features, test: Features, test_set: Selection) -> None:
    result = robustness(ShapeDescriptor(), train, test, test_set, severities=(1,), C=1.0)
    assert (result.without_color, result.reads_rgb) == (None, False)
    row = result.to_row()
    assert not any("color" in name for name in (*row.metrics, *row.config, *row.details))
    with pytest.raises(ValueError, match="drop_color makes no difference here: the encoder reads no colours"):
        robustness(ShapeDescriptor(), train, test, test_set, corruptions=("jitter", "drop_color"), C=1.0)

    class Bleached(Selection):
        def load(self, index: int) -> PointCloud:
            return super().load(index).replace(rgb=None)

    class Reader(ShapeDescriptor):
        reads_rgb = True

    bleached = Bleached(test_set, range(len(test_set)))
    assert robustness(Reader(), train, test, bleached, severities=(1,), C=1.0).without_color is None
    with pytest.raises(ValueError, match="drop_color stands beside corruptions of the shape"):
        robustness(ColorHistogram(), train, test, test_set, corruptions=("drop_color",), C=1.0)
