"""Trains until it is killed or done: ``kill_run.py FOLDER fresh|resume``."""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from tiny import QUIET, cmae, data

from pc3d.methods import pretrain


class Mark(pl.Callback):
    """Leaves a file per step, by which the test knows how far the run is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        (self.folder / f"reached_{trainer.global_step}").touch()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    pretrain(
        cmae(),
        data(60),  # 8 steps an epoch
        folder,
        resume=sys.argv[2] == "resume",
        every_n_steps=3,
        max_epochs=5,
        callbacks=[Mark(folder)],
        **QUIET,
    )
