"""A training run: a folder, a trainer, and an encoder at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from pc3d._files import replace_atomically
from pc3d._progress import is_hidden
from pc3d.data.loader import sample_generator
from pc3d.data.module import PointDataModule
from pc3d.methods.checkpoint import AtomicCheckpointIO, RunCheckpoint
from pc3d.methods.interruption import interruptible
from pc3d.methods.metrics import CsvMetrics
from pc3d.methods.progress import run_progress
from pc3d.models.hub import check_storable


class Trainable(Protocol):
    """What a run trains: a ``LightningModule`` that can write what leaves the run."""

    def export(self, folder: Path) -> None:
        """Write the trained networks into the run folder, ``encoder/`` last."""


class RunFolder:
    """Where a run writes: ``config.yaml``, ``last.ckpt``, ``metrics.csv``, ``tensorboard/``, in the end ``encoder/``.

    A run of a task also leaves ``head/`` beside the encoder.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoint = self.path / "last.ckpt"
        self.metrics = self.path / "metrics.csv"
        self.tensorboard = self.path / "tensorboard"
        self.encoder = self.path / "encoder"
        self.head = self.path / "head"

    def is_finished(self) -> bool:
        """Whether the encoder of a finished run is there."""
        return (self.encoder / "config.json").exists()

    def is_started(self) -> bool:
        """Whether a run has written anything here."""
        own = (self.config, self.checkpoint, self.metrics, self.tensorboard, self.encoder, self.head)
        return any(entry.exists() for entry in own)

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Say whether a run may start here; changes nothing.

        Args:
            resume: the run goes on from ``last.ckpt``.
            overwrite: an earlier run may be removed.

        Raises:
            ValueError: both flags.
            FileExistsError: there is a run here, and neither flag says what to do with it.
            FileNotFoundError: resuming, and there is no checkpoint.
            NotADirectoryError: the path is a file.
        """
        if resume and overwrite:
            raise ValueError("resume and overwrite exclude each other")
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"the run folder {self.path} is a file")
        if resume and not self.checkpoint.exists():
            started = self.is_started()
            what = "a run that wrote no checkpoint yet" if started else "no run"
            remedy = "pass --overwrite to start it again" if started else "leave out --resume to start one"
            raise FileNotFoundError(
                f"cannot resume: {self.path} holds {what} (there is no {self.checkpoint.name}): {remedy}"
            )
        if resume or overwrite or not self.is_started():
            return
        if self.is_finished():
            raise FileExistsError(
                f"{self.path} holds a finished run: choose another folder, or pass --overwrite to remove it"
            )
        if not self.checkpoint.exists():
            raise FileExistsError(
                f"{self.path} holds a run that ended before its first checkpoint: pass --overwrite to start it again, "
                "or choose another folder"
            )
        raise FileExistsError(
            f"{self.path} holds an unfinished run: pass --resume to go on with it, --overwrite to remove it, "
            "or choose another folder"
        )

    def prepare(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """:meth:`check`, then make the folder; with ``overwrite``, first remove what an earlier run wrote here.

        Files that are not a run's are left alone.
        """
        self.check(resume=resume, overwrite=overwrite)
        if overwrite:
            self._remove_run()
        self.path.mkdir(parents=True, exist_ok=True)

    def _remove_run(self) -> None:
        for folder in (self.encoder, self.head, self.tensorboard):
            if folder.exists():
                shutil.rmtree(folder)
        for file in (self.config, self.checkpoint, self.metrics, *self.path.glob("epoch_*.ckpt")):
            file.unlink(missing_ok=True)


def pretrain(
    method: Trainable,
    data: pl.LightningDataModule,
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    every_n_steps: int | None = None,
    keep_epochs: Sequence[int] = (),
    config: str | None = None,
    **trainer: Any,
) -> pl.Trainer:
    """Pre-train a method, or train a task of :mod:`pc3d.tasks`, keeping everything in one folder (:class:`RunFolder`).

    A run that was killed at any step and is resumed ends with the same weights, bit for bit on a CPU, as one that was
    left alone, because batches, masks and drop path are functions of the seed and the step.

    Args:
        method: what to train.
        data: gives batches of clouds.
        output: the run folder.
        resume: go on from the folder's ``last.ckpt``.
        overwrite: remove an earlier run from the folder.
        every_n_steps: write ``last.ckpt`` also within epochs, after every so many steps.
        keep_epochs: finished epochs whose checkpoint is kept as ``epoch_N.ckpt``.
        config: the resolved configuration as YAML, kept in the folder.
        **trainer: options of ``pytorch_lightning.Trainer``, such as ``max_epochs``, ``devices``, ``strategy``.

    Returns:
        The trainer, after the run.

    Raises:
        FileExistsError: the folder holds a run, and neither ``resume`` nor ``overwrite`` was given.
        FileNotFoundError: nothing to resume.
        TypeError: the encoder of the method is none that could be loaded again; the folder is as it was.
        ValueError: the data give no training batch; the folder is as it was.
        OSError: the data cannot be read, and the folder is as it was; or a checkpoint could not be written, and the
            one before is intact.
        KeyboardInterrupt: Ctrl-C. The first one lets the step end and writes ``last.ckpt``, after the last step the
            encoder, too; a second stops at once, and ``last.ckpt`` is what it was. (With several processes the first
            stops at once.)
    """
    folder = RunFolder(output)
    # The processes that Lightning starts for further devices run this again; the folder is the first one's business.
    if is_first_process():
        folder.check(resume=resume, overwrite=overwrite)
        if isinstance(encoder := getattr(method, "encoder", None), nn.Module):
            check_storable(encoder)
        _check_data(data)  # before an earlier run is removed for one that cannot start
        folder.prepare(resume=resume, overwrite=overwrite)
        if config is not None:
            with replace_atomically(folder.config) as file:
                file.write(config.encode())
    metrics = CsvMetrics(folder.metrics)
    if resume:
        metrics.drop_after(_step_of(folder.checkpoint))
    checkpoint = RunCheckpoint(folder.path, every_n_steps, keep_epochs)
    callbacks = [*_as_list(trainer.pop("callbacks", None)), checkpoint]
    if isinstance(data, PointDataModule) and data.val_dataloader() == []:
        trainer["limit_val_batches"] = 0
    if trainer.get("enable_progress_bar", True) is not False:
        bar = run_progress()
        trainer["enable_progress_bar"] = bar is not None
        callbacks += _as_list(bar)
    if is_hidden():
        trainer["enable_model_summary"] = False
    loggers = [metrics, pl.loggers.TensorBoardLogger(folder.path, name="tensorboard", version="")]
    plugins = [*_as_list(trainer.pop("plugins", None)), AtomicCheckpointIO()]
    engine = pl.Trainer(
        default_root_dir=folder.path, callbacks=callbacks, logger=loggers, plugins=plugins, **_without_none(trainer)
    )
    with interruptible():
        engine.fit(
            cast(pl.LightningModule, method),
            datamodule=data,
            ckpt_path=folder.checkpoint if resume else None,
            weights_only=True,
        )
    if engine.is_global_zero and engine.state.finished:
        method.export(folder.path)
    if checkpoint.asked_to_stop:  # in the last step: the run has ended, but what was to come after it shall not
        raise KeyboardInterrupt
    return engine


def is_first_process() -> bool:
    """Whether this process, of those that train or will train together, is the one that writes."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _check_data(data: pl.LightningDataModule) -> None:
    """Makes the train loader and one sample; whatever is wrong with them is raised."""
    if isinstance(data, PointDataModule):
        data.train_dataloader()
        if data.train is not None:
            data.train.sample(0, sample_generator(0, 0, 0))


def _step_of(checkpoint: Path) -> int:
    """The optimiser steps that a checkpoint has seen."""
    try:
        # Mapped, not read: only the number is needed here.
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        raise ValueError(f"{checkpoint} is not a checkpoint that can be resumed: {error}") from error


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
