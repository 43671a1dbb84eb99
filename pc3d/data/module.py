"""The data module of a Lightning run."""

from __future__ import annotations

from pc3d._extras import require
from pc3d.data.dataset import PointDataset, split_train_validation
from pc3d.data.loader import PointLoader
from pc3d.data.mixing import SceneCollate
from pc3d.data.transforms import Compose, Transform
from pc3d.data.view_pairs import ViewPairs

require("pytorch_lightning", extra="train", purpose="PointDataModule")

import pytorch_lightning as pl  # noqa: E402  # after the check, whose message says how to install it


class PointDataModule(pl.LightningDataModule):
    """Data module with seeded train, validation and test loaders.

    Batches are a function of (seed, epoch), not of the number of workers. Two processes together see the same global
    batch as one process with twice the batch size. A run resumed within an epoch continues with the next batch.
    Validation and test see the same samples in every epoch, including random transforms.

    Log with ``batch_size=len(batch)``: the first dimension of a packed batch is points, not clouds. To overfit a few
    samples, pass ``Selection(train, range(n))``; ``Trainer(overfit_batches=...)`` would have to replace the loader.

    Args:
        train: the training set.
        validation: a validation set; None for none, or for one split from ``train``.
        test: the test set.
        train_transforms: applied in turn to training samples.
        eval_transforms: applied in turn to validation and test samples.
        train_collate: how training samples become a batch, such as ``SceneCollate(mix_probability=0.8)``. With
            :class:`ViewPairs`, batches of the validation set are also made of pairs, the same ones every time.
        validation_fraction: share of ``train`` to set aside for validation, stratified by class; 0 for none.
        batch_size: clouds per training batch and process.
        eval_batch_size: clouds per validation and test batch; None for ``batch_size``.
        num_workers: processes that prepare batches, per loader.
        seed: of the order, the transforms and the validation cut.
        drop_last: leave out the last incomplete training batch.
        pin_memory: hand out batches in page-locked memory; worth it with a GPU.

    Raises:
        ValueError: both ``validation`` and ``validation_fraction`` are given, or a size is out of range.
    """

    def __init__(
        self,
        train: PointDataset | None = None,
        validation: PointDataset | None = None,
        test: PointDataset | None = None,
        *,
        train_transforms: list[Transform] | None = None,
        eval_transforms: list[Transform] | None = None,
        train_collate: SceneCollate | ViewPairs | None = None,
        validation_fraction: float = 0.0,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = True,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if validation_fraction != 0.0:
            train, validation = cut_validation(train, validation, validation_fraction, seed)
        self.train, self.validation, self.test = train, validation, test
        self.train_transform = Compose(train_transforms) if train_transforms else None
        self.eval_transform = Compose(eval_transforms) if eval_transforms else None
        self.train_collate = train_collate
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.seed, self.drop_last, self.pin_memory = num_workers, seed, drop_last, pin_memory

    def __str__(self) -> str:
        # Lightning's would iterate over the loaders, and fail on their batches.
        sets = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("train", "validation", "test"))
        return f"{type(self).__name__}({sets})"

    def train_dataloader(self) -> PointLoader:
        """Batches of the training set, in a new order each epoch.

        Raises:
            ValueError: there is no training set, or it does not fill one batch.
        """
        if self.train is None:
            raise ValueError("this data module has no train set: pass train=")
        loader = PointLoader(
            self.train,
            self.batch_size,
            transform=self.train_transform,
            collate=self.train_collate,
            drop_last=self.drop_last,
            num_workers=self.num_workers,
            seed=self.seed,
            pin_memory=self.pin_memory,
        )
        if len(loader) == 0:
            raise ValueError(
                f"{len(self.train)} training samples do not fill one batch of {self.batch_size} per process: "
                "use a smaller batch_size or drop_last=False"
            )
        return loader

    def val_dataloader(self) -> PointLoader | list[PointLoader]:
        """Batches of the validation set; an empty list without one."""
        # What learns from pairs of views has no other loss.
        pairs = self.train_collate if isinstance(self.train_collate, ViewPairs) else None
        return [] if self.validation is None else self._eval_loader(self.validation, pairs)

    def test_dataloader(self) -> PointLoader:
        """Batches of the test set.

        Raises:
            ValueError: there is no test set.
        """
        if self.test is None:
            raise ValueError("this data module has no test set: pass test=")
        return self._eval_loader(self.test)

    def predict_dataloader(self) -> PointLoader:
        """Batches of the test set, for predictions."""
        return self.test_dataloader()

    def _eval_loader(self, dataset: PointDataset, collate: ViewPairs | None = None) -> PointLoader:
        return PointLoader(
            dataset,
            self.eval_batch_size,
            transform=self.eval_transform,
            collate=collate,
            shuffle=False,
            drop_last=False,
            num_workers=self.num_workers,
            seed=self.seed,
            pin_memory=self.pin_memory,
        )


def cut_validation(
    train: PointDataset | None, validation: PointDataset | None, fraction: float, seed: int
) -> tuple[PointDataset, PointDataset]:
    """The two parts of a training set, where ``validation_fraction`` asks for them.

    Raises:
        ValueError: there is a validation set already, or no training set; or see :func:`split_train_validation`.
    """
    if validation is not None:
        raise ValueError("give validation or validation_fraction, not both")
    if train is None:
        raise ValueError("validation_fraction needs a train set to cut from")
    return split_train_validation(train, fraction, seed)
