"""How far a training run is: Lightning's bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl

from pc3d._progress import LINE_SECONDS, duration, is_hidden, peak_memory, progress_line


def run_progress() -> pl.callbacks.ProgressBar | None:
    """What shows the progress of a run on standard error; None where it is hidden."""
    if is_hidden():
        return None
    return RunBar(console_kwargs={"stderr": True}) if sys.stderr.isatty() else RunLines()


class RunBar(pl.callbacks.RichProgressBar):
    """A bar for each epoch with its rate and remaining time, beside the time that the whole run will take."""

    _clock: _Clock | None = None  # none yet while Lightning tries validation before the first step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the clock."""
        super().on_train_start(trainer, pl_module)
        self._clock = _Clock(trainer)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        """The logged values, the time left of the whole run, and the most memory it held."""
        values = super().get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        left = None if self._clock is None else self._clock.left(trainer)
        return {**values, "run_left": "-:--:--" if left is None else duration(left), "memory": peak_memory()}


class RunLines(pl.callbacks.ProgressBar):
    """A line every half minute, where standard error is a file or a pipe."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def disable(self) -> None:
        """Say nothing, as Lightning asks of all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Speak."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the clock."""
        super().on_train_start(trainer, pl_module)
        self._clock = _Clock(trainer)
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """A line, if it is time."""
        super().on_train_batch_end(trainer, pl_module, *rest)
        now = time.monotonic()
        if self._enabled and now - self._last >= LINE_SECONDS:
            self._last = now
            print(self._line(trainer, pl_module), file=sys.stderr, flush=True)

    def _line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        done, seconds = self._clock.done(trainer)
        description = f"epoch {trainer.current_epoch + 1}" + (f" of {trainer.max_epochs}" if trainer.max_epochs else "")
        values = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        told = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, float | int))
        line = progress_line(description, done, self._clock.total, "steps", seconds)
        return f"{line}, {told}" if told else line


class _Clock:
    """Steps and seconds since a run began or went on.

    Attributes:
        total: steps that are to be done from then on; None where the run has no known end.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._first = trainer.global_step
        self._start = time.monotonic()
        steps = trainer.estimated_stepping_batches
        self.total = None if steps == float("inf") else int(steps) - self._first

    def done(self, trainer: pl.Trainer) -> tuple[int, float]:
        return trainer.global_step - self._first, max(time.monotonic() - self._start, 1e-9)

    def left(self, trainer: pl.Trainer) -> float | None:
        done, seconds = self.done(trainer)
        return None if self.total is None or done == 0 else (self.total - done) * seconds / done
