"""A classifier judged once and by votes, with stubs whose logits are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc3d.data import BadFileError, FirstPoints, PointCloud, PointDataset, Selection, Transform, sample_generator
from pc3d.data.arrays import ArrayDataset
from pc3d.evaluation import (
    ClassificationResult,
    Kept,
    Votes,
    content_hash,
    predict_logits,
    read_rows,
    scores,
    vote_logits,
    write_rows,
)

SELECTION = {
    "epoch": 2,
    "by": "highest accuracy on validation, of 5 epochs",
    "score": "accuracy",
    "validation": 0.7,
    "legacy": None,
}


def dataset(lengths: tuple[int, ...] = (5, 5, 7, 7, 7, 5)) -> PointDataset:
    random = np.random.default_rng(0)
    clouds = [random.normal(size=(length, 3)).astype(np.float32) for length in lengths]
    labels = np.arange(len(lengths)) % 3
    ids = [str(i) for i in range(len(lengths))]
    return ArrayDataset(clouds, labels, ids=ids, classes=["a", "b", "c"], path=Path("nowhere"))


class Shift(Transform):
    """Moves a cloud along x by a random number: the only thing that the stub below looks at."""

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        return cloud.replace(xyz=cloud.xyz + torch.rand((), generator=generator))


def first_point(xyz: Tensor) -> Tensor:
    """Logits that are the coordinates of a cloud's first point."""
    return xyz[:, 0]


class Linear(nn.Module):
    """Logits that are a linear function of a cloud's first point; counts the clouds it has seen."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 3), 0
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, xyz: Tensor) -> Tensor:
        self.seen += len(xyz)
        logits: Tensor = self.layer(xyz[:, 0])
        return logits


def test_logits_are_in_the_order_of_the_data_set_whatever_the_batches() -> None:
    data = dataset()
    expected = np.stack([data.load(i).xyz[0].numpy() for i in range(len(data))])
    hashes = set()
    for batch_size in (1, 2, 64):
        logits, digest = predict_logits(first_point, data, batch_size=batch_size)
        np.testing.assert_array_equal(logits, expected)
        hashes.add(digest)
    assert len(hashes) == 1
    assert predict_logits(first_point, data, FirstPoints(3))[1] not in hashes


def test_objects_whose_files_cannot_be_used_are_left_out_or_refused() -> None:
    class Bad(Transform):
        def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
            if len(cloud) == 5:
                raise BadFileError(f"{cloud.meta['id']}.ply", "is bad")
            return cloud

    def note(position: int, error: BadFileError) -> None:
        told.append((position, str(error)))

    told: list[tuple[int, str]] = []
    logits, digest = predict_logits(first_point, dataset(), Bad(), batch_size=2, leave_out=note)
    assert told == [(0, "0.ply: is bad"), (1, "1.ply: is bad"), (5, "5.ply: is bad")]
    expected = predict_logits(first_point, Selection(dataset(), [2, 3, 4]))
    np.testing.assert_array_equal(logits, expected[0])
    assert digest == expected[1]
    assert predict_logits(first_point, dataset((5, 5)), Bad(), leave_out=note)[0].shape == (0, 0)
    with pytest.raises(BadFileError, match=r"0\.ply: is bad"):
        predict_logits(first_point, dataset(), Bad())


def test_votes_go_on_where_they_were_interrupted(tmp_path: Path) -> None:
    model, options = Linear(), {"seed": 3, "batch_size": 2}
    expected = vote_logits(model, dataset(), Shift(), 3, **options)  # 6 objects, in batches of 2, 2, 1, 1
    model.seen = 0

    def stop(module: Linear, _: object) -> None:
        if module.seen == 10:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"), Kept(tmp_path / "kept") as kept:
        vote_logits(model, dataset(), Shift(), 3, kept=kept, **options)
    hook.remove()
    model.seen = 0
    with Kept(tmp_path / "kept") as kept:
        found = vote_logits(model, dataset(), Shift(), 3, kept=kept, **options)
        assert (model.seen, kept.given_back) == (18 - 10, 6)
    np.testing.assert_array_equal(found, expected)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda options: {**options, "model": Linear(seed=1)},
        lambda options: {**options, "seed": 1},
        lambda options: {**options, "draw": 1},
        lambda options: {**options, "transform": None},
        lambda options: {**options, "dataset": dataset((5, 6, 7, 8, 9, 10))},
        lambda options: {**options, "batch_size": 3},
    ],
)
def test_no_logits_of_other_work_are_given_back(
    change: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"model": Linear(), "dataset": dataset((6,) * 6), "transform": Shift(), "batch_size": 2}
    store = Kept(tmp_path)
    predict_logits(kept=store, **options)
    store.save()
    again, changed = Kept(tmp_path), Kept(tmp_path)
    predict_logits(kept=again, **options)
    assert again.given_back == 3
    options = change(options)
    found, _ = predict_logits(kept=changed, **options)
    assert changed.given_back == 0
    np.testing.assert_array_equal(found, predict_logits(**options)[0])


def test_votes_average_logits_over_views_that_are_drawn_per_object() -> None:
    data = dataset()
    found = vote_logits(first_point, data, Shift(), 4, seed=9, first_draw=2)
    for index in range(len(data)):
        views = [data.load(index).xyz[0] + torch.rand((), generator=sample_generator(9, d, index)) for d in range(2, 6)]
        np.testing.assert_allclose(found[index], torch.stack(views).double().mean(0), rtol=1e-6)


def test_votes_average_logits_and_not_classes() -> None:
    """One confident view outweighs two doubtful ones."""
    views = iter([[0.0, 9.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = vote_logits(lambda xyz: torch.tensor([next(views)]), dataset((5,)), FirstPoints(5), 3)
    assert found.argmax() == 1
    np.testing.assert_allclose(found[0], [2 / 3, 3, 0], rtol=1e-6)


def test_the_first_round_of_votes_is_the_figure_and_the_best_is_told_beside() -> None:
    truth = np.array([0, 1, 2, 0])
    right = [2, 3, 1]
    rounds = [np.eye(3, dtype=np.float32)[[t if i < n else (t + 1) % 3 for i, t in enumerate(truth)]] for n in right]
    votes = Votes.of(truth, rounds, 10)
    assert (votes.accuracy, votes.best, votes.mean, votes.repeats) == (0.5, 0.75, 0.5, 3)
    text = str(result(votes))
    assert "with 10 votes        50.0 %" in text
    assert "OFFICIAL BEST OF N" in text
    assert "best of 3 rounds   75.0 %  (their mean 50.0 %)" in text
    assert "OFFICIAL" not in str(result(Votes.of(truth, rounds[:1], 10)))


def result(votes: Votes | None = None, **selection: object) -> ClassificationResult:
    return ClassificationResult(
        mode="full",
        encoder="PointViT",
        start="fresh weights",
        run="run",
        data="Household",
        split="test",
        train_hash="4567",
        test_hash="0123",
        num_train=80,
        num_validation=20,
        num_test=4,
        preparation="as stored",
        selection={**SELECTION, **selection},
        seed=0,
        scores=scores(np.array([0, 1, 2, 0]), np.array([0, 1, 2, 1])),
        votes=votes,
    )


def test_a_model_that_tells_no_classes_apart_is_told() -> None:
    names = ("bed", "chair", "lamp")
    apart = [0, 1, 2, 0]
    for predicted, truth, said in (([1] * 4, apart, "chair"), ([1, 1, 1, 0], apart, None), ([1] * 4, [1] * 4, None)):
        text = str(replace(result(), scores=scores(np.array(truth), np.array(predicted), names)))
        note = f"every test item is said to be of one class, {said!r}: train longer or at another learning rate; "
        assert (note + "pc3d report run shows the curves" in text) == (said is not None)
        assert ("every test item" in text) == (said is not None)


def test_a_result_says_how_it_came_about() -> None:
    text = str(result())
    assert "epoch 2: highest accuracy on validation, of 5 epochs (70.0 %)" in text
    assert "overall accuracy     75.0 %" in text
    assert "LEGACY" not in text
    legacy = str(result(legacy={"epoch": 4, "test": 0.95}))
    assert "*** LEGACY: selected on the test split; an upper envelope, not an estimate ***" in legacy
    assert "overall accuracy of the best test epoch (4): 95.0 %" in legacy
    assert legacy.index("75.0 %") < legacy.index("LEGACY")  # the honest figure first
    assert result().to_dict()["scores"]["overall_accuracy"] == 0.75


def test_a_result_becomes_rows_and_what_the_test_split_chose_is_called_legacy(tmp_path: Path) -> None:
    truth = np.array([0, 1, 2, 0])
    rounds = [np.eye(3, dtype=np.float32)[[0, 1, 2, n]] for n in (1, 0)]
    rows = result(Votes.of(truth, rounds, 10), legacy={"epoch": 4, "test": 0.95}).to_rows("mine")
    write_rows(rows, tmp_path)
    found = {(row.protocol, row.selection): row.metrics["overall_accuracy"] for row in read_rows([tmp_path])}
    assert found == {
        ("fine-tuning (full)", "validation"): 0.75,
        ("fine-tuning (full)", "legacy"): 0.95,
        ("fine-tuning (full), 10 votes", "validation"): 0.75,
        ("fine-tuning (full), 10 votes, best of 2 rounds", "legacy"): 1.0,
    }
    (only,) = result(validation=None).to_rows()
    assert (only.method, only.selection, only.num_train) == ("PointViT, from scratch", "fixed", 80)


def test_what_is_stored_has_a_hash() -> None:
    assert content_hash(dataset()) == content_hash(dataset())
    assert len({content_hash(dataset()), content_hash(dataset((5, 5))), content_hash(dataset((5, 5, 7, 7, 7, 6)))}) == 3


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="votes must be at least 1, got 0"):
        vote_logits(first_point, dataset(), Shift(), 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        predict_logits(first_point, dataset(), batch_size=0)
    with pytest.raises(ValueError, match="dataset is empty"):
        predict_logits(first_point, dataset(()))
