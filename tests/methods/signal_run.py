"""Trains in two processes, of which one alone is asked to stop while both validate: ``signal_run.py FOLDER``."""

import signal
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from tiny import QUIET, cmae, data

from pc3d.methods import pretrain


class OneIsAsked(pl.Callback):
    """SIGUSR1 for the second process."""

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_rank == 1 and not trainer.sanity_checking:
            signal.raise_signal(signal.SIGUSR1)


if __name__ == "__main__":
    options: dict[str, Any] = {"max_epochs": 3, "devices": 2, "strategy": "ddp", "callbacks": [OneIsAsked()], **QUIET}
    try:
        pretrain(cmae(), data(60, validation_fraction=0.2), sys.argv[1], **options)
    except KeyboardInterrupt:
        if rank_zero_only.rank == 0:
            time.sleep(6)  # longer than Lightning takes to see that the other one has ended with 130
        sys.exit(130)
