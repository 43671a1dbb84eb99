"""Training scenes with few labels, and what a cut for validation leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pc3d.data import Compose, GridSample, LimitedLabels, RandomDropout, Rooms, SceneCollate, SceneDataModule


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return Rooms("train")


def labelled(segment: Tensor | None) -> Tensor:
    assert segment is not None
    return (segment >= 0).nonzero()[:, 0]


def test_a_share_of_the_labelled_points_is_kept_and_the_points_all_are(rooms: Rooms) -> None:
    before = rooms[0]
    after = LimitedLabels(rooms, label_fraction=0.1)[0]
    assert torch.equal(after.xyz, before.xyz)
    kept = labelled(after.segment)
    assert len(kept) == round(0.1 * len(labelled(before.segment)))
    assert before.segment is not None
    assert after.segment is not None
    assert torch.equal(after.segment[kept], before.segment[kept])
    assert LimitedLabels(rooms, labelled_points=20)[0].meta["limited_annotations"]
    assert "limited_annotations" not in before.meta


def test_which_points_is_fixed_by_seed_and_scene_and_nested(rooms: Rooms) -> None:
    def kept(scene: int = 1, seed: int = 0, **how: float) -> set[int]:
        return set(labelled(LimitedLabels(rooms, seed=seed, **how)[scene].segment).tolist())  # type: ignore[arg-type]

    twenty = kept(labelled_points=20)
    assert len(twenty) == 20
    assert twenty == kept(labelled_points=20)
    assert twenty < kept(labelled_points=50) < kept(label_fraction=0.5)
    assert twenty != kept(labelled_points=20, seed=1)
    assert twenty != kept(labelled_points=20, scene=2)
    assert kept(labelled_points=10**7) == set(labelled(rooms[1].segment).tolist())


def test_sampling_keeps_the_annotated_points(rooms: Rooms) -> None:
    module = SceneDataModule(rooms, labelled_points=20, train_transforms=[GridSample(0.3)], batch_size=2)
    for batch in module.train_dataloader():
        assert [len(labelled(cloud.segment)) for cloud in batch.unbind()] == [20, 20]
        assert len(batch.xyz) < 20_000


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_of_labels_leaves_sampling_as_it_is(rooms: Rooms, share: float) -> None:
    room = LimitedLabels(rooms, label_fraction=share)[0]
    sampled = GridSample(0.3)(room, torch.Generator().manual_seed(0))
    cells = torch.div(sampled.xyz, 0.3, rounding_mode="floor").unique(dim=0)
    assert len(sampled) == len(cells)
    dropped = RandomDropout(0.5, probability=1.0)(room, torch.Generator().manual_seed(0))
    assert len(dropped) == len(room) // 2


def test_validation_rooms_are_cut_from_training_rooms_by_the_seed_and_keep_their_labels(rooms: Rooms) -> None:
    def cut(seed: int, **limits: float) -> tuple[set[str], set[str]]:
        module = SceneDataModule(rooms, validation_fraction=0.25, seed=seed, **limits)  # type: ignore[arg-type]
        assert module.train is not None
        assert module.validation is not None
        train, validation = ({c.meta["id"] for c in part} for part in (module.train, module.validation))
        assert not train & validation
        assert not any("limited_annotations" in cloud.meta for cloud in module.validation)
        return train, validation

    train, validation = cut(0)
    assert (len(train), len(validation)) == (6, 2)
    assert cut(0) == (train, validation)
    assert len({frozenset(cut(seed)[1]) for seed in range(6)}) > 1
    # Fewer labels or scenes leave the validation rooms as they are.
    assert cut(0, label_fraction=0.1) == (train, validation)
    fewer = cut(0, scene_fraction=0.5)
    assert fewer[1] == validation
    assert len(fewer[0]) == 3
    assert cut(0, scene_fraction=0.2)[0] < fewer[0] < train


def test_classes_and_mixing(rooms: Rooms) -> None:
    module = SceneDataModule(rooms, test=Rooms("test"), train_collate=SceneCollate(1.0), batch_size=2)
    assert module.classes == rooms.classes
    assert len(next(iter(module.train_dataloader()))) == 1  # two rooms in one
    other = Rooms("test")
    other.classes = ("wall",)
    with pytest.raises(ValueError, match="train and test must have the same classes"):
        _ = SceneDataModule(rooms, test=other).classes
    with pytest.raises(ValueError, match="has no data set"):
        _ = SceneDataModule().classes


def test_a_module_in_words_reads_no_data(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rooms, "load", None)
    assert str(SceneDataModule(rooms)) == f"SceneDataModule(train={rooms!r}, validation=None, test=None)"


def test_a_transform_of_the_data_set_stays_in_force(rooms: Rooms) -> None:
    limited = LimitedLabels(Rooms("train", transform=Compose([GridSample(0.5)])), label_fraction=0.01)
    assert len(limited[0]) < len(rooms[0]) / 10


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"label_fraction": 0.0}, r"label_fraction must be in \(0, 1\], got 0.0"),
        ({"label_fraction": 1.5}, "label_fraction must be"),
        ({"labelled_points": 0}, "labelled_points must be at least 1, got 0"),
        ({"labelled_points": 5, "label_fraction": 0.5}, "give one of label_fraction and labelled_points"),
        ({"scene_fraction": 0.0}, r"scene_fraction must be in \(0, 1\], got 0.0"),
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, float], message: str, rooms: Rooms) -> None:
    with pytest.raises(ValueError, match=message):
        SceneDataModule(rooms, **limits)  # type: ignore[arg-type]
