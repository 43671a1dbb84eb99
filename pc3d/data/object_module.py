"""The data module for fine-tuning on objects, with a validation part to choose the epoch."""

from __future__ import annotations

from functools import cached_property
from typing import get_args

from pc3d._extras import require
from pc3d.data.dataset import (
    PointDataset,
    Protocol,
    check_labelled,
    check_same_classes,
    parts_of_categories,
)
from pc3d.data.loader import PointLoader
from pc3d.data.transforms import Transform

require("pytorch_lightning", extra="train", purpose="ObjectDataModule")

from pc3d.data.module import PointDataModule, cut_validation  # noqa: E402  # after the check, whose message says how to install it


class ObjectDataModule(PointDataModule):
    """Data module of labelled objects: :class:`PointDataModule` with a validation part that no run's seed changes.

    Args:
        train: the training split.
        validation: a validation set; None for none, or for one split from ``train``.
        test: the test split.
        train_transforms: applied in turn to training samples.
        eval_transforms: applied in turn to validation and test samples.
        validation_fraction: share of ``train`` to set aside for validation, stratified by class, groups of
            near-duplicates kept together; 0 for none.
        validation_seed: of that split. Runs with other seeds share it, so their spread does not include that of the
            split.
        protocol: ``"held_out"``: the test split is not used during training; ``"legacy"``: it is evaluated after each
            epoch, as in much of the literature, and the best epoch is reported next to the one that validation chose.
        batch_size: clouds per training batch and process.
        eval_batch_size: clouds per validation and test batch.
        num_workers: processes that prepare batches, per loader.
        seed: of the order and the transforms.
        drop_last: leave out the last incomplete training batch.
        pin_memory: hand out batches in page-locked memory; worth it with a GPU.

    Raises:
        ValueError: an argument is out of range, two exclude each other, there are unlabelled objects, or splits have
            different classes.
    """

    def __init__(
        self,
        train: PointDataset | None = None,
        validation: PointDataset | None = None,
        test: PointDataset | None = None,
        *,
        train_transforms: list[Transform] | None = None,
        eval_transforms: list[Transform] | None = None,
        validation_fraction: float = 0.0,
        validation_seed: int = 0,
        protocol: Protocol = "held_out",
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = True,
        pin_memory: bool = False,
    ) -> None:
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol must be one of {', '.join(get_args(Protocol))}, got {protocol!r}")
        if protocol == "legacy" and test is None:
            raise ValueError("protocol 'legacy' judges the test split after each epoch, and there is none: give test")
        for name, dataset in (("train", train), ("validation", validation), ("test", test)):
            check_labelled(name, dataset)
        splits = {"train": train, "validation": validation, "test": test}
        check_same_classes({name: dataset.classes for name, dataset in splits.items() if dataset is not None})
        if validation_fraction != 0.0:
            train, validation = cut_validation(train, validation, validation_fraction, validation_seed)
        super().__init__(
            train,
            validation,
            test,
            train_transforms=train_transforms,
            eval_transforms=eval_transforms,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            drop_last=drop_last,
            pin_memory=pin_memory,
        )
        self.protocol = protocol

    @property
    def watched(self) -> tuple[str, ...]:
        """What is evaluated after each epoch, in the order of :meth:`val_dataloader`: ``"validation"``, ``"test"``."""
        validation = () if self.validation is None else ("validation",)
        return (*validation, "test") if self.protocol == "legacy" else validation

    def val_dataloader(self) -> list[PointLoader]:
        """Batches of what is watched, a loader each."""
        sets = {"validation": self.validation, "test": self.test}
        return [self._eval_loader(dataset) for name in self.watched if (dataset := sets[name]) is not None]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        known = self.train if self.train is not None else self.test
        return () if known is None else known.classes

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of objects; empty if there are none."""
        known = self.train if self.train is not None else self.test
        return () if known is None else known.parts

    @cached_property
    def category_parts(self) -> tuple[tuple[int, ...], ...]:
        """The parts of each class in the training split, its validation part included; see :func:`parts_of_categories`.

        Raises:
            ValueError: there is no training set, or its objects have no parts.
        """
        if self.train is None:
            raise ValueError("this data module has no train set to tell the parts of each class: pass train=")
        own = parts_of_categories(self.train)
        held_out = ((),) * len(own) if self.validation is None else parts_of_categories(self.validation)
        return tuple(tuple(sorted({*ours, *theirs})) for ours, theirs in zip(own, held_out, strict=True))
