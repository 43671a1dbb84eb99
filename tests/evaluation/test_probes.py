"""Probes on features whose right answer is known, and the promise not to look at the test split."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC, LinearSVC

from pc3d import _progress
from pc3d.data import Household, validation_mask
from pc3d.evaluation import (
    C_GRID,
    Features,
    ProbeResult,
    ShapeDescriptor,
    extract_features,
    knn_probe,
    linear_svm,
    logistic_regression,
    mlp_probe,
)

Make = Callable[..., Features]
Probe = Callable[..., ProbeResult]


def svm_of_unit_length(*features: Features, **options: Any) -> ProbeResult:
    return linear_svm(*features, form="linearsvc_l2", **options)


def perceptron(*features: Features, **options: Any) -> ProbeResult:
    """Small, with few values to try: the tests train it hundreds of times."""
    return mlp_probe(*features, hidden=16, **{"grid": (1e-4, 1e-2), **options})


PROBES = [linear_svm, svm_of_unit_length, logistic_regression, knn_probe, perceptron]
every_probe = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)


@every_probe
@pytest.mark.parametrize("protocol", ["fixed", "tuned", "validation", "legacy"])
def test_planted_classes_are_found(probe: Probe, protocol: str, planted: Make) -> None:
    result = probe(planted(signal=40, seed=1), planted(5, signal=40, seed=2), protocol=protocol)
    assert result.scores.overall_accuracy == 1.0
    assert result.scores.mean_class_accuracy == 1.0


@every_probe
def test_shuffled_labels_give_chance(probe: Probe, planted: Make) -> None:
    train, test = planted(60, seed=1), planted(100, seed=2)
    shuffled = replace(train, labels=np.random.default_rng(0).permutation(train.labels))
    accuracy = probe(shuffled, test).scores.overall_accuracy
    # Four classes; the shuffled classifiers of the four directions agree or not as whole classes, hence the width.
    assert 0.0 <= accuracy < 0.55
    assert probe(train, test).scores.overall_accuracy > 0.9


def test_linear_svm_is_scikit_learns_with_the_published_c(planted: Make) -> None:
    train, test = planted(signal=1.0, seed=1), planted(25, signal=1.0, seed=2)
    expected = SVC(kernel="linear", C=0.012).fit(train.values, train.labels).score(test.values, test.labels)
    result = linear_svm(train, test)
    assert result.scores.overall_accuracy == pytest.approx(expected)
    assert result.parameter == ("C", 0.012)


@every_probe
@pytest.mark.parametrize("protocol", ["tuned", "validation"])
def test_tuning_never_sees_test_labels(probe: Probe, protocol: str, planted: Make) -> None:
    train, test = planted(10, signal=1.0, seed=1), planted(15, signal=1.0, seed=2)
    chosen = set()
    for seed in range(2):
        mutated = replace(test, labels=np.random.default_rng(seed).permutation(test.labels))
        result = probe(train, mutated, protocol=protocol)
        chosen.add((result.parameter, result.selection))
    assert len(chosen) == 1
    assert "the test split was not looked at" in chosen.pop()[1]


@pytest.mark.parametrize("probe", PROBES[:-1], ids=lambda probe: probe.__name__)  # the last one takes long
def test_legacy_follows_test_labels(probe: Probe, planted: Make) -> None:
    train, test = planted(10, signal=1.0, seed=1), planted(15, signal=1.0, seed=2)
    results = [
        probe(train, replace(test, labels=np.random.default_rng(seed).permutation(test.labels)), protocol="legacy")
        for seed in range(8)
    ]
    assert len({result.parameter for result in results}) > 1
    assert all("LEGACY" in result.selection and str(result).startswith("*** LEGACY") for result in results)


def test_legacy_is_the_best_of_the_grid_and_never_below_tuned(planted: Make) -> None:
    train, test = planted(10, signal=1.0, seed=1), planted(15, signal=1.0, seed=2)
    by_hand = max(
        SVC(kernel="linear", C=C).fit(train.values, train.labels).score(test.values, test.labels) for C in C_GRID
    )
    legacy = linear_svm(train, test, protocol="legacy").scores.overall_accuracy
    assert legacy == pytest.approx(by_hand)
    assert legacy >= linear_svm(train, test, protocol="tuned").scores.overall_accuracy


def test_legacy_has_the_honest_result_beside_it(planted: Make) -> None:
    train, test = planted(10, signal=1.0, seed=1), planted(15, signal=1.0, seed=2)
    for probe in (linear_svm, knn_probe):
        legacy = probe(train, test, protocol="legacy", seed=3, validation_fraction=0.4)
        honest = probe(train, test, protocol="validation", seed=3, validation_fraction=0.4)
        assert legacy.honest == honest
        assert honest.honest is None
        assert [row.selection for row in legacy.to_rows("a")] == ["legacy", "validation"]
        assert legacy.to_rows("a")[1] == honest.to_row("a")
        _, beside = str(legacy).split("beside it, chosen without the test split:")
        assert honest.selection in beside
        assert f"{100 * honest.scores.overall_accuracy:.1f} %" in beside
        assert legacy.to_dict()["honest"]["protocol"] == "validation"


@every_probe
def test_unlabelled_items_take_no_part_and_are_counted(probe: Probe, planted: Make) -> None:
    plain = probe(planted(seed=1), planted(5, seed=2))
    more = probe(planted(seed=1, unlabelled=7), planted(5, seed=2, unlabelled=3))
    assert more.scores == plain.scores
    assert more.num_unlabelled == (7, 3)
    assert (more.num_train, more.num_test) == (plain.num_train, plain.num_test) == (48, 20)
    assert "7 train, 3 test" in str(more)


def test_standardising_uses_the_training_split_alone(planted: Make) -> None:
    train, test = planted(seed=1), planted(5, seed=2)
    moved = replace(test, values=test.values[:1].repeat(len(test), axis=0))
    # With its own statistics a constant test split would become all zeros and every prediction the same by accident.
    result = linear_svm(train, moved, C=1.0, standardize=True)
    scaled = (moved.values - train.values.mean(0)) / train.values.std(0)
    reference = SVC(kernel="linear", C=1.0).fit(
        (train.values - train.values.mean(0)) / train.values.std(0), train.labels
    )
    assert result.scores.overall_accuracy == pytest.approx(reference.score(scaled, moved.labels))


def test_the_protocol_is_printed(planted: Make) -> None:
    train = replace(planted(seed=1, unlabelled=2), content_hash="0123456789abcdef", num_points=1024)
    test = replace(planted(5, seed=2), content_hash="fedcba9876543210", num_points=1024)
    text = str(linear_svm(train, test, protocol="tuned"))
    for piece in (
        "planted: 48 train [0123456789abcdef], 20 test [fedcba9876543210]",
        "1024 points (first) of each cloud, as stored",
        "pooling max+mean, 16 dimensions",
        "SVC(kernel='linear'), C = ",
        "stratified 5-fold cross-validation",
        "seed        0",
        "scikit-learn",
        "overall accuracy",
        "95 % Wilson interval",
        "mean class accuracy",
        "95 % bootstrap interval",
    ):
        assert piece in text, piece


def test_few_items_in_a_class_lower_the_number_of_folds_and_say_so(planted: Make) -> None:
    result = linear_svm(planted(3, seed=1), planted(5, seed=2), protocol="tuned")
    assert "stratified 3-fold" in result.selection
    assert "smallest class 3" in result.selection


def twins(num_groups: int = 20, copies: int = 3) -> Features:
    """Noise with labels of its own for each group of copies: only who has seen a copy can tell the class."""
    generator = np.random.default_rng(0)
    values = np.repeat(generator.normal(size=(num_groups, 16)), copies, axis=0).astype(np.float32)
    labels = np.repeat(np.arange(num_groups) % 2, copies)
    return Features(values, labels, ("a", "b"), data="twins", groups=np.repeat(np.arange(num_groups), copies))


def test_folds_keep_near_identical_objects_together() -> None:
    def accuracy(train: Features) -> float:
        selection = knn_probe(train, train, protocol="tuned", grid=(1,)).selection
        return float(selection.partition("accuracy ")[2].partition(" %")[0])

    train = twins()
    assert accuracy(replace(train, groups=None)) == 100.0
    assert accuracy(train) < 80
    text = str(linear_svm(train, train, protocol="tuned"))
    assert "5-fold cross-validation on the training features (folds keep near-identical objects together;" in text
    assert "near-identical" not in str(linear_svm(replace(train, groups=None), train, protocol="tuned"))


def test_groups_of_unlabelled_items_are_left_out_with_them() -> None:
    train = twins()
    some = replace(train, labels=np.where(np.arange(60) < 6, -1, train.labels))
    assert some.labelled_groups().tolist() == train.groups[6:].tolist()
    assert "folds keep" in linear_svm(some, train, protocol="tuned").selection


@pytest.mark.parametrize("groups", [None, np.arange(3)])
def test_classes_of_single_items_leave_no_folds(groups: Any) -> None:
    alone = Features(np.eye(3, dtype=np.float32), np.arange(3), ("a", "b", "c"), groups=groups)
    with pytest.raises(ValueError, match="every class has a single training item"):
        linear_svm(alone, alone, protocol="tuned")


def test_groups_that_no_folds_can_keep_together_are_refused() -> None:
    train = twins()
    with pytest.raises(ValueError, match="of one group of near-identical ones: use protocol='fixed'"):
        linear_svm(replace(train, groups=np.zeros_like(train.groups)), train, protocol="tuned")
    with pytest.raises(ValueError, match="training items of one class only, because"):
        linear_svm(replace(train, groups=train.labels), train, protocol="tuned")
    with pytest.raises(ValueError, match=r"groups must be \(n,\)"):
        replace(train, groups=train.groups[:3])


def test_groups_of_a_data_set_reach_the_folds() -> None:
    train = Household("train", labelled_only=True)
    features = extract_features(ShapeDescriptor(), train, num_points=64)
    assert features.groups.tolist() == train.groups.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "best"}, "protocol must be one of"),
        ({"C": 0.0}, "C must be positive"),
        ({"C": float("nan")}, "C must be positive"),
        ({"protocol": "tuned", "grid": ()}, "grid must hold positive values"),
        ({"protocol": "legacy", "grid": (1.0, -1.0)}, "grid must hold positive values"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, planted: Make) -> None:
    with pytest.raises(ValueError, match=message):
        linear_svm(planted(seed=1), planted(seed=2), **options)


def test_bad_splits_are_refused(planted: Make) -> None:
    train, test = planted(seed=1), planted(seed=2)
    with pytest.raises(ValueError, match="agree in pooling"):
        linear_svm(train, replace(test, pooling="mean"))
    with pytest.raises(ValueError, match=r"same classes.*'other' in test alone"):
        linear_svm(train, replace(test, classes=("other",)))
    with pytest.raises(ValueError, match="features of one length"):
        linear_svm(train, replace(test, values=test.values[:, :8]))
    with pytest.raises(ValueError, match="one class only"):
        linear_svm(replace(train, labels=np.zeros_like(train.labels)), test)
    with pytest.raises(ValueError, match="no item of planted"):
        linear_svm(train, replace(test, labels=np.full_like(test.labels, -1)))
    with pytest.raises(ValueError, match="k must be between 1 and the 48"):
        knn_probe(train, test, k=49)


def test_neighbours_are_no_more_than_a_fold_leaves(planted: Make) -> None:
    """A class of two items makes two folds, so that 13 or 14 of 26 items are left to learn from: not 20."""
    whole, test = planted(12, 3, seed=1), planted(12, 3, seed=2)
    few = replace(whole, values=whole.values[:26], labels=whole.labels[:26])
    result = knn_probe(few, test, protocol="tuned")
    assert "2-fold" in result.selection
    assert result.tried == (1.0, 3.0, 5.0, 10.0)
    assert knn_probe(few, test, protocol="validation", validation_fraction=0.6).tried == (1.0, 3.0, 5.0, 10.0)


def test_forms_of_the_linear_svm_are_scikit_learns(planted: Make) -> None:
    train, test = planted(signal=1.0, seed=1), planted(25, signal=1.0, seed=2)
    unit = [features.values / np.linalg.norm(features.values, axis=1, keepdims=True) for features in (train, test)]
    for C in (1.0, 0.05):
        expected = LinearSVC(C=C, random_state=0).fit(unit[0], train.labels).predict(unit[1])
        result = linear_svm(train, test, form="linearsvc_l2", C=C)
        assert result.scores.overall_accuracy == pytest.approx(np.mean(expected == test.labels))
    assert linear_svm(train, test, form="linearsvc_l2").parameter == ("C", 1.0)
    rows = [linear_svm(train, test, form=form).to_row() for form in ("svc_linear", "linearsvc_l2")]
    assert rows[0].protocol != rows[1].protocol
    with pytest.raises(ValueError, match="form must be one of"):
        linear_svm(train, test, form="svm")  # type: ignore[arg-type]


def test_the_perceptron_is_scikit_learns_and_follows_the_seed(planted: Make) -> None:
    train, test = planted(10, signal=1.0, seed=1), planted(25, signal=1.0, seed=2)
    mean, std = train.values.mean(0), train.values.std(0)
    model = MLPClassifier(hidden_layer_sizes=(32, 32), solver="lbfgs", max_iter=1000, alpha=0.001, random_state=3)
    expected = model.fit((train.values - mean) / std, train.labels).predict((test.values - mean) / std)
    result = mlp_probe(train, test, hidden=32, alpha=0.001, seed=3)
    assert result.scores.overall_accuracy == pytest.approx(np.mean(expected == test.labels), abs=0.011)  # one item
    assert (result.task, result.parameter) == ("MLP-3", ("alpha", 0.001))
    confusions = [mlp_probe(train, test, hidden=32, alpha=0.001, seed=seed).scores.confusion for seed in (3, 3, 4)]
    assert confusions[0] == confusions[1] != confusions[2]


def test_validation_chooses_what_is_best_on_the_part_held_out(planted: Make) -> None:
    train, test = planted(20, signal=1.0, seed=1), planted(25, signal=1.0, seed=2)
    part = validation_mask(train.labels, None, 0.25, 5)
    accuracy = [
        SVC(kernel="linear", C=C)
        .fit(train.values[~part], train.labels[~part])
        .score(train.values[part], train.labels[part])
        for C in C_GRID
    ]
    result = linear_svm(train, test, protocol="validation", validation_fraction=0.25, seed=5)
    best = C_GRID[int(np.argmax(accuracy))]
    assert result.parameter == ("C", best)
    # What is judged has learnt from all training items.
    assert result.scores == linear_svm(train, test, C=best, seed=5).scores
    assert f"{part.sum()} items held out of the training split (share 0.25, seed 5" in result.selection
    assert result.to_row().selection == "validation"


@pytest.mark.parametrize(("protocol", "fits"), [("tuned", [15]), ("validation", [3]), ("legacy", [3, 3])])
def test_what_is_tried_shows_how_far_it_is(
    protocol: str, fits: list[int], planted: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three values with five folds, with one part held out, and by the test split and then by one part held out."""
    monkeypatch.setattr(_progress, "LINE_SECONDS", 0.0)
    train, test = planted(), planted()
    linear_svm(train, test, protocol=protocol, grid=(0.1, 1.0, 10.0))
    assert capsys.readouterr().err == ""
    linear_svm(train, test, protocol=protocol, grid=(0.1, 1.0, 10.0), progress=True)
    shown = re.findall(r"try C: (\d+)/(\d+) fits .* fits/s.*peak memory", capsys.readouterr().err)
    assert shown == [(str(done), str(count)) for count in fits for done in range(1, count + 1)]


def test_validation_keeps_near_identical_objects_on_one_side() -> None:
    def accuracy(train: Features) -> float:
        selection = knn_probe(train, train, protocol="validation", grid=(1,)).selection
        return float(selection.partition("; accuracy ")[2].partition(" %")[0])

    train = twins(60)
    assert accuracy(replace(train, groups=None)) > 90
    assert accuracy(train) < 80
    # The only item of class 1 is in a group that counts as one of class 0: for some seed it is all held out.
    lone = replace(train, labels=np.where(np.arange(180) == 1, 1, 0))
    seed = next(k for k in range(99) if validation_mask(lone.labels, lone.groups, 0.2, k)[1])
    with pytest.raises(ValueError, match="leaves training items of one class only"):
        linear_svm(lone, train, protocol="validation", seed=seed)
    with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
        linear_svm(train, train, protocol="validation", validation_fraction=1.0)
