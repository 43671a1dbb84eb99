"""The folder of a training run: what lies in it, and whether a run may start there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class RunFolder:
    """The folder of a run: ``config.yaml``, ``last.ckpt``, ``metrics.csv``, ``tensorboard/``, finally ``encoder/``.

    A run of a task also writes ``head/``.

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
        """Whether the folder holds the encoder of a finished run."""
        return (self.encoder / "config.json").exists()

    def is_started(self) -> bool:
        """Whether a run has written anything here."""
        own = (self.config, self.checkpoint, self.metrics, self.tensorboard, self.encoder, self.head)
        return any(entry.exists() for entry in own)

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Check whether a run may start here; changes nothing.

        Args:
            resume: the run continues from ``last.ckpt``.
            overwrite: an earlier run may be removed.

        Raises:
            ValueError: both flags.
            FileExistsError: there is a run here, and neither flag is set.
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
                f"{self.path} holds a run that has written no checkpoint: if it is not running still, pass --overwrite "
                "to start it again, or choose another folder"
            )
        raise FileExistsError(
            f"{self.path} holds an unfinished run: pass --resume to go on with it, --overwrite to remove it, "
            "or choose another folder"
        )

    def prepare(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """:meth:`check`, then make the folder; with ``overwrite``, first remove what an earlier run wrote here.

        This also removes partly written files of a killed run. Files that do not belong to a run are kept.
        """
        self.check(resume=resume, overwrite=overwrite)
        if overwrite:
            self._remove_run()
        for name in (self.config.name, self.checkpoint.name, self.metrics.name, "epoch_*.ckpt"):
            for file in self.path.glob(f".{name}.*.partial"):
                file.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)

    def _remove_run(self) -> None:
        for folder in (self.encoder, self.head, self.tensorboard):
            if folder.exists():
                shutil.rmtree(folder)
        for file in (self.config, self.checkpoint, self.metrics, *self.path.glob("epoch_*.ckpt")):
            file.unlink(missing_ok=True)
