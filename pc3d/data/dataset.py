"""Base class of all data sets of point clouds, and splits of data sets."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

Protocol = Literal["held_out", "legacy"]
"""Whether training leaves the test split alone, or evaluates it after each epoch."""


class MissingDataError(FileNotFoundError):
    """A data set, or a part of it, was not found."""

    @classmethod
    def of(cls, name: str, missing: Sequence[Path | str], root: Path, source: str, terms: str) -> MissingDataError:
        """The error with what is missing, where it was looked for, where to get it and under what terms."""
        shown = [str(path) for path in missing[:5]]
        if len(missing) > 5:
            shown.append(f"... and {len(missing) - 5} more")
        listing = "\n".join(f"  {line}" for line in shown)
        return cls(
            f"{name}: {len(missing)} file(s) or folder(s) missing:\n{listing}\n"
            f"looked for in: {root.absolute()}\nwhere to get it: {source}\nterms: {terms}"
        )


class BadFileError(ValueError):
    """A file exists but cannot be used: truncated, empty, NaN, or not of the format of its name.

    Args:
        path: the file, or with ``reason`` None the whole message: PyTorch's loader makes the error of its worker anew
            from the text of the traceback alone.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path | str, reason: str | None = None) -> None:
        super().__init__(str(path) if reason is None else f"{path}: {reason}")
        self.path = Path(path)
        self.reason = "" if reason is None else reason
        self._given = str(path)  # of an address, not the same as of the path

    def __reduce__(self) -> tuple[type[BadFileError], tuple[str, str | None]]:
        return type(self), (self._given, self.reason or None)


@dataclass(frozen=True)
class SkippedFile:
    """A file that a data set left out under ``on_error="report"``."""

    path: Path
    reason: str


class PointDataset(Dataset[PointCloud], ABC):
    """A finite, indexable collection of point clouds.

    Attributes:
        classes: class names; ``labels`` index into them.
        labels: ``(len,)`` int64 class of each item, -1 for unlabelled.
        groups: ``(len,)`` int64, equal for near-identical items, which a validation split must not separate; None if
            unknown.
        parts: names of the per-point segments; empty if items have none.
        category_parts: the parts of objects of each class; empty if unknown.
        skipped: files left out, with the reason; empty unless ``on_error="report"`` was asked for.
        up: the axis that points up in the stored clouds, according to the data set; files of a folder may differ.
        transform: applied to every item, or None.
    """

    classes: tuple[str, ...] = ()
    labels: Tensor
    groups: Tensor | None = None
    parts: tuple[str, ...] = ()
    category_parts: tuple[tuple[int, ...], ...] = ()
    skipped: tuple[SkippedFile, ...] = ()
    up: Literal["y", "z"] = "z"
    transform: Transform | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:
        labelled = int((self.labels >= 0).sum())
        left_out = f", {len(self.skipped)} files skipped" if self.skipped else ""
        return f"{type(self).__name__}({len(self)} items, {labelled} labelled, {len(self.classes)} classes{left_out})"

    @abstractmethod
    def load(self, index: int) -> PointCloud:
        """Item ``index`` as stored, before the transform. ``0 <= index < len(self)``."""

    def sample(self, index: int, generator: torch.Generator) -> PointCloud:
        """Item ``index`` with the transform, whose random draws come from ``generator`` alone."""
        index = self._checked(index)
        cloud = self.load(index)
        return cloud if self.transform is None else self.transform(cloud, generator)

    def __getitem__(self, index: int) -> PointCloud:
        """Item ``index``; a random transform draws its seed from torch's global generator.

        Use :class:`pc3d.data.PointLoader` for batches that do not depend on the number of workers.
        """
        if self.transform is None:
            return self.load(self._checked(index))
        seed = int(torch.randint(2**31, ()))
        return self.sample(index, torch.Generator().manual_seed(seed))

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {type(self).__name__} of {len(self)} items")
        return index % len(self)


def folder_name(root: Path | str, variant: str | None = None) -> str:
    """How results name a data set in a folder: by the folder, and by the variant where there are several.

    Args:
        root: the folder, or ``"household"`` for the embedded set.
        variant: None where there is one alone.
    """
    name = Path(os.path.abspath(root)).name
    return f"{name} ({variant})" if variant else name


def data_name(dataset: PointDataset) -> str:
    """How results name a data set, see :func:`folder_name`.

    Args:
        dataset: a :class:`Selection` goes by the name of what it is made of. One without a folder goes by its class.
    """
    root = getattr(dataset, "root", None)
    if root is not None:
        return folder_name(root, getattr(dataset, "variant", None))
    return data_name(dataset.dataset) if isinstance(dataset, Selection) else type(dataset).__name__


def check_same_classes(named: Mapping[str, Sequence[str]]) -> None:
    """Refuse splits whose labels do not mean the same.

    Args:
        named: what to call each split, and its classes in the order of labels.

    Raises:
        ValueError: two have other classes, or another order; the message says which.
    """
    first, ours = next(iter(named.items()), ("", ()))
    for second, theirs in named.items():
        if tuple(ours) == tuple(theirs):
            continue
        alone = [
            *(f"{name!r} in {first} alone" for name in ours if name not in theirs),
            *(f"{name!r} in {second} alone" for name in theirs if name not in ours),
        ]
        more = f", and {len(alone) - 6} more" if len(alone) > 6 else ""
        raise ValueError(
            f"{first} and {second} must have the same classes in the same order, or a label would not mean the same in "
            f"both; got {len(ours)} and {len(theirs)}: {', '.join(alone[:6]) or 'the order differs'}{more}. Where a "
            "split has no object of a class, a folder of files takes an empty sub-folder for it; in pc3d's own shards "
            "every SPLIT.json names all classes"
        )


def check_labelled(name: str, dataset: PointDataset | None) -> None:
    """Refuse a data set with unlabelled objects.

    Args:
        name: of the split: train, validation or test.
        dataset: None is fine.

    Raises:
        ValueError: some objects have no class.
    """
    if dataset is None:
        return
    missing = int((dataset.labels < 0).sum())
    if missing:
        raise ValueError(
            f"{missing} of the {len(dataset)} objects of {name} have no class: leave them out, in pc3d's own sets with "
            f"--data.{name}.init_args.labelled_only true"
        )


class Selection(PointDataset):
    """A subset of the items of another data set, in the given order.

    Args:
        dataset: where the items come from; its transform still applies.
        indices: positions in ``dataset``.

    Raises:
        IndexError: a position is out of range.
    """

    def __init__(self, dataset: PointDataset, indices: Sequence[int] | Tensor) -> None:
        self.dataset = dataset
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        out_of_range = (self.indices < 0) | (self.indices >= len(dataset))
        if out_of_range.any():
            raise IndexError(f"indices must be in 0..{len(dataset) - 1}, got {int(self.indices[out_of_range][0])}")
        self.classes, self.parts, self.skipped = dataset.classes, dataset.parts, dataset.skipped
        self.category_parts, self.transform = dataset.category_parts, dataset.transform
        self.labels, self.up = dataset.labels[self.indices], dataset.up
        self.groups = None if dataset.groups is None else dataset.groups[self.indices]

    def load(self, index: int) -> PointCloud:
        return self.dataset.load(int(self.indices[index]))


def split_train_validation(dataset: PointDataset, fraction: float, seed: int) -> tuple[Selection, Selection]:
    """Split a validation part off a training set, class by class.

    Every class (unlabelled items count as one) contributes ``round(fraction * its size)`` items to validation: at least
    one if it has two or more, and never all. If the data set has ``groups``, a whole group goes to one side, counted
    with the class of its first item, so a class may contribute a few items fewer. The same data set, fraction and seed
    give the same split.

    Args:
        dataset: the training split.
        fraction: share of the validation part, between 0 and 1, both excluded.
        seed: decides which items.

    Returns:
        The training rest and the validation part, each in the order of ``dataset``.

    Raises:
        ValueError: ``fraction`` is out of range or the data set has fewer than two items.
    """
    groups = None if dataset.groups is None else dataset.groups.numpy()
    in_validation = validation_mask(dataset.labels.numpy(), groups, fraction, seed)
    return (
        Selection(dataset, torch.from_numpy(np.flatnonzero(~in_validation))),
        Selection(dataset, torch.from_numpy(np.flatnonzero(in_validation))),
    )


def validation_mask(
    labels: NDArray[np.int64], groups: NDArray[np.int64] | None, fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Mask of the items that :func:`split_train_validation` puts into the validation part.

    Args:
        labels: ``(n,)`` class of each item, -1 for unlabelled.
        groups: ``(n,)`` equal for items that stay together; None if there are no groups.
        fraction: share of the validation part, between 0 and 1, both excluded.
        seed: decides which items.

    Returns:
        ``(n,)`` bool.

    Raises:
        ValueError: ``fraction`` is out of range or there are fewer than two items.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(
            f"fraction must be between 0 and 1 (both excluded), got {fraction}: a validation_fraction of 0.2 "
            "holds out a fifth of the training items"
        )
    if len(labels) < 2:
        raise ValueError(f"a data set of {len(labels)} item(s) cannot be split: two or more are needed")
    names = np.arange(len(labels)) if groups is None else groups
    _, first, group, size = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(labels):
        chosen += _some_groups(rng.permutation(np.flatnonzero(labels[first] == label)), size, fraction)
    in_validation = np.isin(group, chosen)
    if not in_validation.any():
        raise ValueError("every class has a single item (or group of items): nothing can be spared for validation")
    return in_validation


def _some_groups(members: NDArray[np.int64], size: NDArray[np.int64], fraction: float) -> list[int]:
    """Of the groups of one class, in the given order, those that go to validation."""
    if len(members) < 2:
        return []
    total = int(size[members].sum())
    room = min(max(round(fraction * total), 1), total - 1)
    taken = []
    for member in members.tolist():
        if size[member] <= room:
            taken.append(member)
            room -= int(size[member])
    return taken or [int(members[size[members].argmin()])]


def parts_of_categories(dataset: PointDataset) -> tuple[tuple[int, ...], ...]:
    """The parts of objects of each class: those that the data set names, else those found in its objects.

    Args:
        dataset: a training split; without ``category_parts`` every object of it is read.

    Returns:
        For each class its parts, ascending; none for a class without an object.

    Raises:
        ValueError: an object has no segments, or no class.
    """
    if dataset.category_parts:
        return dataset.category_parts
    found: list[set[int]] = [set() for _ in dataset.classes]
    for index, label in enumerate(dataset.labels.tolist()):
        segment = dataset.load(index).segment
        if segment is None or label < 0:
            raise ValueError(
                f"object {index} of {type(dataset).__name__} has no {'segment' if segment is None else 'class'}: part "
                "segmentation needs the part of each point and the class of each object"
            )
        found[label].update(segment[segment >= 0].unique().tolist())
    return tuple(tuple(sorted(parts)) for parts in found)
