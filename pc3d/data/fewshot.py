"""Few-shot episodes: the published ones from pickles, and seeded ones from any labelled data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pc3d.data.arrays import ArrayDataset
from pc3d.data.dataset import BadFileError, MissingDataError, PointDataset, Selection
from pc3d.data.files import OnError, check_on_error
from pc3d.data.pickles import load_array_pickle
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

_SOURCE = (
    "ModelNetFewshot as published with Point-BERT (Yu et al. 2022), github.com/lulutang0608/Point-BERT, DATASET.md"
)
Split = Literal["train", "test"]
_TERMS = "ModelNet's: academic research only, rights stay with the authors of the models"
_FOLDER = re.compile(r"(\d+)way_?(\d+)shot")


@dataclass(frozen=True)
class FewShotEpisode:
    """One N-way K-shot problem.

    Attributes:
        train: ``way * shot`` items with labels 0 to way - 1.
        test: items of the same classes that are not in ``train``.
        way: number of classes.
        shot: training items of each class.
        fold: number of the episode.
        class_indices: the classes' original labels; position is the new label.
    """

    train: PointDataset
    test: PointDataset
    way: int
    shot: int
    fold: int
    class_indices: tuple[int, ...]


class _Relabelled(Selection):
    def __init__(self, dataset: PointDataset, indices: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
        super().__init__(dataset, indices)
        self.labels, self.classes = labels, classes

    def load(self, index: int) -> PointCloud:
        return super().load(index).replace(label=int(self.labels[index]))


def few_shot_episodes(
    train: PointDataset,
    test: PointDataset,
    *,
    way: int,
    shot: int,
    num_queries: int = 20,
    num_episodes: int = 10,
    seed: int = 0,
) -> Iterator[FewShotEpisode]:
    """Draw episodes: ``way`` classes, ``shot`` training items and ``num_queries`` test items of each.

    The published protocol: way 5 or 10, shot 10 or 20, 20 queries, 10 episodes, whose numbers are called folds. An
    episode depends on (seed, way, shot, fold) alone.

    Args:
        train: where the training items come from.
        test: where the queries come from; its classes must be those of ``train``.
        way: classes per episode.
        shot: training items per class.
        num_queries: test items per class.
        num_episodes: how many.
        seed: decides all of them.

    Raises:
        ValueError: a number is not positive, the classes differ, or too few classes have enough items.
    """
    _check_positive(way=way, shot=shot, num_queries=num_queries, num_episodes=num_episodes)
    members = _members(train, test)
    usable = _usable(members, way, shot, num_queries)
    # Checked now rather than at the first episode that is asked for.
    return (
        _episode(train, test, members, usable, (way, shot, num_queries, fold, seed)) for fold in range(num_episodes)
    )


class FewShotSplit(_Relabelled):
    """The training or test side of a drawn episode, as a data set for configurations.

    Args:
        train: where the training items come from.
        test: where the queries come from; its classes must be those of ``train``.
        split: ``"train"`` or ``"test"``: the side of the episode.
        way: classes per episode.
        shot: training items per class.
        num_queries: test items per class.
        fold: number of the episode.
        seed: decides all episodes.

    Raises:
        ValueError: a number out of range, an unknown split, or too few classes have enough items.
    """

    def __init__(
        self,
        train: PointDataset,
        test: PointDataset,
        split: Split = "train",
        way: int = 5,
        shot: int = 10,
        num_queries: int = 20,
        fold: int = 0,
        seed: int = 0,
    ) -> None:
        _check_positive(way=way, shot=shot, num_queries=num_queries)
        _check_side(split, fold)
        members = _members(train, test)
        episode = _episode(
            train, test, members, _usable(members, way, shot, num_queries), (way, shot, num_queries, fold, seed)
        )
        side = episode.train if split == "train" else episode.test
        assert isinstance(side, _Relabelled)
        super().__init__(side.dataset, side.indices, side.labels, side.classes)


class FewShotFile(Selection):
    """The training or test side of a published episode (:func:`load_few_shot_pickle`), for configurations.

    Args:
        root: the folder ``ModelNetFewshot``.
        split: ``"train"`` or ``"test"``: the side of the episode.
        way: 5 or 10 in the published files.
        shot: 10 or 20.
        fold: 0 to 9.
        on_error: ``"refuse"`` or ``"report"`` clouds with coordinates that are not finite.

    Raises:
        MissingDataError: the file is not there.
        BadFileError: it holds anything but arrays, or not what is described or the name of the folder says.
        ValueError: an unknown split, or a negative fold.
    """

    def __init__(
        self,
        root: Path | str,
        split: Split = "train",
        way: int = 5,
        shot: int = 10,
        fold: int = 0,
        on_error: OnError = "refuse",
    ) -> None:
        _check_side(split, fold)
        episode = load_few_shot_pickle(root, way, shot, fold, on_error=on_error)
        side = episode.train if split == "train" else episode.test
        super().__init__(side, range(len(side)))
        self.root = Path(root)


class FewShotFiles(PointDataset):
    """The training or test sides of all published episodes of one kind, for protocols on frozen features.

    Classes are the original ones that occur in the files, by their numbers, so that a label means the same in each
    episode. Files are read one at a time.

    Args:
        folder: ``5way_10shot`` or another folder of ``ModelNetFewshot``, with ``0.pkl``, ``1.pkl``, ...
        split: ``"train"`` or ``"test"``: the side of the episodes.
        on_error: ``"refuse"`` or ``"report"`` clouds with coordinates that are not finite.

    Attributes:
        folds: ``(len,)`` int64, the episode of each item, ascending.
        way: classes of each episode.
        shot: training items of each class.

    Raises:
        MissingDataError: the folder is not there, or has no episodes.
        BadFileError: a file holds anything but arrays, or not what is described or the name of the folder says.
        ValueError: an unknown split.
    """

    up = "y"

    def __init__(self, folder: Path | str, split: Split = "train", on_error: OnError = "refuse") -> None:
        _check_side(split, 0)
        check_on_error(on_error)
        self.root, self.split, self._on_error = Path(folder), split, on_error
        numbers = _FOLDER.fullmatch(self.root.absolute().name)
        self._numbers = sorted(int(path.stem) for path in self.root.glob("*.pkl") if path.stem.isdigit())
        if numbers is None or not self._numbers:
            raise MissingDataError.of(type(self).__name__, [self.root / "0.pkl"], self.root, _SOURCE, _TERMS)
        self.way, self.shot = int(numbers[1]), int(numbers[2])
        originals, folds, known = [], [], set()
        for fold in self._numbers:
            episode = self._episode(fold)
            side = self._side(episode)
            originals.append(torch.tensor(episode.class_indices)[side.labels])
            self.skipped += side.skipped
            folds.append(torch.full_like(originals[-1], fold))
            known |= set(episode.class_indices)
        self.classes = tuple(map(str, sorted(known)))
        self.labels, self.folds = torch.bucketize(torch.cat(originals), torch.tensor(sorted(known))), torch.cat(folds)
        self._read: tuple[int, PointDataset] | None = None

    def load(self, index: int) -> PointCloud:
        fold = int(self.folds[index])
        if self._read is None or self._read[0] != fold:
            self._read = fold, self._side(self._episode(fold))
        row = index - int((self.folds < fold).sum())
        return self._read[1].load(row).replace(label=int(self.labels[index]))

    def _episode(self, fold: int) -> FewShotEpisode:
        return _read_episode(self.root / f"{fold}.pkl", self.way, self.shot, fold, self._on_error)

    def _side(self, episode: FewShotEpisode) -> PointDataset:
        return episode.train if self.split == "train" else episode.test


def few_shot_folders(root: Path | str) -> list[Path]:
    """The folders of published episodes in ``ModelNetFewshot``; the folder itself, where it is one."""
    root = Path(root)
    folders = [root, *root.iterdir()] if root.is_dir() else []
    return sorted(
        folder for folder in folders if _FOLDER.fullmatch(folder.absolute().name) and any(folder.glob("*.pkl"))
    )


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _check_side(split: str, fold: int) -> None:
    if split not in get_args(Split):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if fold < 0:
        raise ValueError(f"fold must be at least 0, got {fold}")


def _members(train: PointDataset, test: PointDataset) -> list[tuple[Any, Any]]:
    """The items of each class in both splits."""
    if train.classes != test.classes:
        raise ValueError("train and test have different classes: an episode needs the same ones in both")
    return [
        (np.flatnonzero(train.labels.numpy() == label), np.flatnonzero(test.labels.numpy() == label))
        for label in range(len(train.classes))
    ]


def _usable(members: list[tuple[Any, Any]], way: int, shot: int, num_queries: int) -> list[int]:
    usable = [label for label, (own, other) in enumerate(members) if len(own) >= shot and len(other) >= num_queries]
    if len(usable) < way:
        raise ValueError(
            f"{len(usable)} of {len(members)} classes have {shot} training and {num_queries} test items, way={way} "
            "asks for more: lower way, shot or num_queries"
        )
    return usable


def _episode(
    train: PointDataset,
    test: PointDataset,
    members: list[tuple[Any, Any]],
    usable: list[int],
    numbers: tuple[int, int, int, int, int],
) -> FewShotEpisode:
    way, shot, num_queries, fold, seed = numbers
    rng = np.random.default_rng([seed, way, shot, fold])
    chosen = [int(label) for label in rng.permutation(usable)[:way]]
    classes = tuple(train.classes[label] for label in chosen)
    own = np.concatenate([rng.permutation(members[label][0])[:shot] for label in chosen])
    other = np.concatenate([rng.permutation(members[label][1])[:num_queries] for label in chosen])
    return FewShotEpisode(
        train=_Relabelled(train, torch.from_numpy(own), torch.arange(way).repeat_interleave(shot), classes),
        test=_Relabelled(test, torch.from_numpy(other), torch.arange(way).repeat_interleave(num_queries), classes),
        way=way,
        shot=shot,
        fold=fold,
        class_indices=tuple(chosen),
    )


def load_few_shot_pickle(
    root: Path | str,
    way: int,
    shot: int,
    fold: int,
    *,
    on_error: OnError = "refuse",
    transform: Transform | None = None,
) -> FewShotEpisode:
    """Read a published episode: ``root/{way}way_{shot}shot/{fold}.pkl`` (or without the underscore).

    Args:
        root: the folder ``ModelNetFewshot``.
        way: 5 or 10 in the published files.
        shot: 10 or 20.
        fold: 0 to 9.
        on_error: ``"refuse"`` or ``"report"`` clouds with coordinates that are not finite.
        transform: applied to every item. Clouds are 8,192 points with normals, not normalised, y up.

    Raises:
        MissingDataError: the file is not there.
        BadFileError: it holds anything but arrays, or not what is described or the name of the folder says.
    """
    root = Path(root)
    places = [root / folder / f"{fold}.pkl" for folder in (f"{way}way_{shot}shot", f"{way}way{shot}shot")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise MissingDataError.of(f"few-shot episode {fold}", places[:1], root, _SOURCE, _TERMS)
    return _read_episode(path, way, shot, fold, on_error, transform)


def _read_episode(
    path: Path, way: int, shot: int, fold: int, on_error: OnError = "refuse", transform: Transform | None = None
) -> FewShotEpisode:
    content = load_array_pickle(path)
    if not isinstance(content, dict) or not {"train", "test"} <= set(content):
        raise BadFileError(path, "must be a dictionary with 'train' and 'test'")
    pairs = sorted(
        {(int(new), int(old)) for part in ("train", "test") for _, new, old in _triples(content[part], path)}
    )
    folder = path.parent.absolute().name
    if [new for new, _ in pairs] != list(range(way)):
        raise BadFileError(path, f"must map {way} classes to labels 0 to {way - 1} ({folder}), it has {pairs}")
    counts = Counter(new for _, new, _ in _triples(content["train"], path))
    if any(counts[label] != shot for label in range(way)):
        found = ", ".join(str(counts[label]) for label in range(way))
        raise BadFileError(path, f"has {found} training objects of its {way} classes, and {folder} says {shot} of each")
    classes = [str(old) for _, old in pairs]
    train, test = (
        _from_triples(content[part], path, f"{path.stem}/{part}", classes, on_error, transform)
        for part in ("train", "test")
    )
    return FewShotEpisode(train, test, way, shot, fold, tuple(old for _, old in pairs))


def _triples(items: Any, path: Path) -> list[tuple[Any, int, int]]:
    try:
        return [
            (np.asarray(points), int(np.asarray(new).item()), int(np.asarray(old).item())) for points, new, old in items
        ]
    except (TypeError, ValueError) as error:
        raise BadFileError(path, f"must list (points, new label, original label): {error}") from error


def _from_triples(
    items: Any, path: Path, name: str, classes: list[str], on_error: OnError, transform: Transform | None
) -> ArrayDataset:
    triples = _triples(items, path)
    if any(points.ndim != 2 or points.shape[1] not in (3, 6) for points, _, _ in triples):
        raise BadFileError(path, "has clouds that are not of shape (N, 3) or (N, 6)")
    with_normals = all(points.shape[1] == 6 for points, _, _ in triples)
    return ArrayDataset(
        [points[:, :3] for points, _, _ in triples],
        np.array([new for _, new, _ in triples]),
        ids=[f"{name}/{i}" for i in range(len(triples))],
        classes=classes,
        path=path,
        normals=[points[:, 3:] for points, _, _ in triples] if with_normals else None,
        on_error=on_error,
        transform=transform,
    )
