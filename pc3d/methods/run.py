"""A training run: Lightning's trainer in a run folder, and an encoder at the end."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from pc3d._files import alone_in, replace_text
from pc3d._progress import is_hidden
from pc3d.data.aligned_stream import AlignedStream
from pc3d.data.loader import sample_generator
from pc3d.data.module import PointDataModule
from pc3d.methods.checkpoint import AtomicCheckpointIO, RunCheckpoint, global_batch_size
from pc3d.methods.interruption import interruptible, let_go
from pc3d.methods.memory import keep_freed_memory
from pc3d.methods.metrics import CsvMetrics
from pc3d.methods.progress import run_progress
from pc3d.methods.run_folder import RunFolder
from pc3d.models.hub import check_storable

_HALF = ("16-true", "bf16-true")


class Trainable(Protocol):
    """A ``LightningModule`` that can be trained in a run folder and can export its networks."""

    def export(self, folder: Path) -> None:
        """Write the trained networks into the run folder, ``encoder/`` last."""


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
    """Pre-train a method, or train a task of :mod:`pc3d.tasks`, in one folder (:class:`RunFolder`).

    A run that was killed at any step and resumed ends with the same weights as an uninterrupted run (bit for bit on a
    CPU), because batches, masks and drop path are functions of the seed and the step.

    Args:
        method: what to train.
        data: the data module with batches of clouds.
        output: the run folder.
        resume: continue from the folder's ``last.ckpt``.
        overwrite: remove an earlier run from the folder.
        every_n_steps: also write ``last.ckpt`` within epochs, after this many steps.
        keep_epochs: finished epochs whose checkpoint is kept as ``epoch_N.ckpt``.
        config: the resolved configuration as YAML, stored in the folder.
        **trainer: options of ``pytorch_lightning.Trainer``, such as ``max_epochs``, ``devices``, ``strategy``;
            ``callbacks``, ``plugins`` and ``logger`` are used besides those of the run folder. On a Mac,
            ``accelerator="auto"`` is the CPU.

    Returns:
        The trainer, after the run.

    Raises:
        FileExistsError: the folder holds a run, and neither ``resume`` nor ``overwrite`` was given.
        FileNotFoundError: nothing to resume.
        TypeError: the encoder of the method could not be loaded again; the folder is unchanged.
        ValueError: the data give no training batch, an option of the trainer is wrong or leaves nothing to train, or
            the global batch size is not that of the run; the folder is unchanged. Or the checkpoint holds weights of
            another model; or no step was trained in ``max_time``, or the weights became NaN or infinite, and nothing
            is exported.
        BlockingIOError: another process trains in this folder.
        OSError: the data cannot be read, and the folder is unchanged; or a checkpoint could not be written, and the
            previous one is intact.
        KeyboardInterrupt: Ctrl-C. The first one finishes the step and writes ``last.ckpt``, after the last step also
            the encoder. A second one stops at once and does not change ``last.ckpt``. SIGTERM and SIGUSR1, which
            schedulers send before they kill a job, act like the first.
    """
    folder = RunFolder(output)
    # The processes that Lightning starts for further devices also run this; only the first one checks the folder. If a
    # run cannot start, nothing is written and no earlier run is removed.
    if is_first_process(trainer.get("num_nodes", 1)):
        folder.check(resume=resume, overwrite=overwrite)
        if isinstance(encoder := getattr(method, "encoder", None), nn.Module):
            check_storable(encoder)
        _check_data(data)
    before = _content_of(folder.checkpoint) if resume else {}
    metrics = CsvMetrics(folder.metrics)
    metrics.drop_after(before.get("global_step"))
    checkpoint = RunCheckpoint(folder.path, every_n_steps, keep_epochs)
    engine = _trainer(folder, data, checkpoint, metrics, trainer)
    _check_same_batches(before.get("global_batch_size"), data, engine.world_size)
    if isinstance(data, AlignedStream):
        data.check_readers(engine.world_size)
    if engine.strategy.root_device.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        if engine.is_global_zero:
            folder.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(folder.path))
            folder.prepare(resume=resume, overwrite=overwrite)
            if config is not None:
                replace_text(folder.config, config)
        if _has_no_validation(data):  # Lightning would warn of methods without validation_step that these are unused
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "You passed in a `val_dataloader`")
        with interruptible(), _refusals_of_lightning(trainer), _refusal_of_weights(folder.checkpoint):
            engine.fit(
                cast(pl.LightningModule, method),
                datamodule=data,
                ckpt_path=folder.checkpoint if resume else None,
                weights_only=True,
            )
        let_go(engine)
        # For any reason. With spawned processes, only they have counted the steps, so the checkpoint is checked.
        if engine.state.finished and engine.global_step == 0 and not folder.checkpoint.exists():
            raise ValueError("not one step was trained, and nothing is exported: is trainer.max_time too short?")
        if engine.is_global_zero and engine.state.finished:
            method.export(folder.path)
    if checkpoint.asked_to_stop:  # in the last step: the run is complete, but the caller should stop, too
        raise KeyboardInterrupt
    return engine


def _trainer(
    folder: RunFolder,
    data: pl.LightningDataModule,
    checkpoint: RunCheckpoint,
    metrics: CsvMetrics,
    trainer: dict[str, Any],
) -> pl.Trainer:
    """Lightning's trainer with the callbacks, loggers and plugins of a run folder.

    Raises:
        ValueError: an option that Lightning does not accept, or with which the training would fail.
    """
    _check_options(trainer)
    if trainer.get("accelerator") in (None, "auto") and torch.backends.mps.is_available():
        trainer["accelerator"] = "cpu"  # Lightning would choose mps, and pc3d has kernels for CPUs and CUDA only
    callbacks = [*_as_list(trainer.pop("callbacks", None)), checkpoint]
    if _has_no_validation(data):
        trainer["limit_val_batches"] = 0
    if trainer.get("enable_progress_bar", True) is not False:
        bar = run_progress()
        trainer["enable_progress_bar"] = bar is not None
        callbacks += _as_list(bar)
    if is_hidden():
        trainer["enable_model_summary"] = False
    own = [metrics, pl.loggers.TensorBoardLogger(folder.path, name="tensorboard", version="")]
    loggers = [*own, *_as_list(trainer.pop("logger", None))]
    plugins = [*_as_list(trainer.pop("plugins", None)), AtomicCheckpointIO()]
    with _refusals_of_lightning(trainer):
        return pl.Trainer(
            default_root_dir=folder.path, callbacks=callbacks, logger=loggers, plugins=plugins, **_without_none(trainer)
        )


@contextmanager
def _refusals_of_lightning(trainer: dict[str, Any]) -> Iterator[None]:
    """Raise ``ValueError`` in place of Lightning's ``MisconfigurationException``."""
    try:
        yield
    except MisconfigurationException as error:
        accelerator = trainer.get("accelerator", "auto")
        hint = "" if accelerator in ("auto", "cpu", None) else "; pc3d doctor shows which devices there are"
        raise ValueError(f"trainer: {str(error).rstrip('.!')}{hint}") from error


@contextmanager
def _refusal_of_weights(checkpoint: Path) -> Iterator[None]:
    """Raise ``ValueError`` in place of PyTorch's page of names where a checkpoint does not fit the model."""
    try:
        yield
    except RuntimeError as error:
        said, _, details = str(error).partition(":\n")
        if not said.startswith("Error(s) in loading state_dict"):
            raise
        lines = [line.strip() for line in details.splitlines()]
        shown = "\n".join(f"  {line[:150]}{' ...' if len(line) > 150 else ''}" for line in lines[:5])
        raise ValueError(
            f"cannot resume: the weights in {checkpoint} are not those of this model (has its class changed since, or "
            f"is the file of another run?):\n{shown}"
        ) from error


def is_first_process(num_nodes: int = 1) -> bool:
    """Whether this process is the one of a training, running or not yet started, that writes files.

    Args:
        num_nodes: number of machines of the training.
    """
    # If Lightning starts the processes itself, the first one on each machine knows only the rank of the machine yet.
    node = os.environ.get("NODE_RANK", "0") if num_nodes > 1 and "RANK" not in os.environ else "0"
    return int(getattr(rank_zero_only, "rank", 0)) == 0 and int(node) == 0


def _check_options(trainer: dict[str, Any]) -> None:
    """Check for options that Lightning accepts but with which training fails or gives poor results."""
    for name in ("limit_train_batches", "max_epochs", "max_steps"):
        if trainer.get(name) == 0:
            raise ValueError(
                f"trainer.{name}: 0 trains nothing, and what was never trained would be exported: give 1 or more, or "
                "leave it out"
            )
    if isinstance(trainer.get("logger"), bool):
        raise ValueError(
            f"trainer.logger: {trainer['logger']} is no logger; metrics.csv and tensorboard/ are always written: name "
            "loggers to write besides them, or leave it out"
        )
    accelerator = trainer.get("accelerator")
    if accelerator == "mps" or (accelerator == "gpu" and torch.backends.mps.is_available()):
        raise ValueError(
            f"trainer.accelerator: {accelerator} cannot be used: pc3d has kernels for CPUs and CUDA, not for mps: give "
            "cpu"
        )
    if trainer.get("precision") in _HALF:
        raise ValueError(
            f"trainer.precision: {trainer['precision']} keeps the weights in 16 bits, where small steps of the "
            "optimiser are lost: use bf16-mixed or 16-mixed, which compute in 16 bits and keep them in 32"
        )
    if trainer.get("overfit_batches"):
        raise ValueError(
            "trainer.overfit_batches: batches are drawn anew each epoch here; to overfit a few samples, train on a "
            "pc3d.data.Selection of them"
        )


def _check_same_batches(before: int | None, data: pl.LightningDataModule, processes: int) -> None:
    """Check that the global batch size is that of the run so far."""
    now = global_batch_size(data, processes)
    if before is None or now is None or now == before:
        return
    share, rest = divmod(before, processes)
    remedy = f"take a number of processes that divides {before}" if rest else f"--data.batch_size {share}"
    raise ValueError(
        f"cannot resume with batches of {now // processes} on each of {processes} processes: those of the run are of "
        f"{before} together: {remedy}"
    )


def _has_no_validation(data: pl.LightningDataModule) -> bool:
    return isinstance(data, PointDataModule) and data.val_dataloader() == []


def _check_data(data: pl.LightningDataModule) -> None:
    """Create the training loader and load one sample, so that errors in the data are raised early."""
    if isinstance(data, PointDataModule):
        data.train_dataloader()
        if data.train is not None:
            data.train.sample(0, sample_generator(0, 0, 0))


def _content_of(checkpoint: Path) -> dict[str, Any]:
    """Step and global batch size of a checkpoint."""
    try:
        # Memory-mapped, because only two numbers are needed.
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return {"global_step": int(content["global_step"]), "global_batch_size": content.get("global_batch_size")}
    except Exception as error:
        raise ValueError(f"{checkpoint} is not a checkpoint that can be resumed: {error}") from error


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
