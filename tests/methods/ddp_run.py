"""Trains on N processes and writes losses and weights: ``ddp_run.py OUT DEVICES BATCH_SIZE``."""

import sys
from typing import Any

import pytorch_lightning as pl
import torch
from tiny import QUIET, cmae, data


class Losses(pl.Callback):
    """Keeps the global loss terms of every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        names = ("loss", "reconstruction", "contrast", "token_cosine")
        self.rows.append({name: float(trainer.callback_metrics[f"train/{name}_step"]) for name in names})


def main(out: str, devices: int, batch_size: int) -> None:
    losses = Losses()
    trainer = pl.Trainer(
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        limit_train_batches=4,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        **QUIET,
    )
    method = cmae()
    trainer.fit(method, datamodule=data(batch_size))
    if trainer.is_global_zero:
        torch.save({"losses": losses.rows, "weights": method.state_dict()}, out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
