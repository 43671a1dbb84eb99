"""Progress of a training run: Lightning's progress bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl

from pc3d._progress import LINE_SECONDS, duration, is_hidden, peak_memory, progress_line


def run_progress() -> pl.callbacks.ProgressBar | None:
    """The callback that shows the progress of a run on standard error; None if progress is hidden."""
    if is_hidden():
        return None
    return RunBar(console_kwargs={"stderr": True}) if sys.stderr.isatty() else RunLines()


class RunBar(pl.callbacks.RichProgressBar):
    """A progress bar for each epoch with its rate and remaining time, and the remaining time of the whole run."""

    _clock: _Clock | None = None  # None while Lightning runs its sanity check of validation before the first step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._clock = _Clock(trainer)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        """The logged values, the remaining time of the whole run, and its peak memory."""
        values = super().get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        left = None if self._clock is None else self._clock.left(trainer)
        return {**values, "run_left": "-:--:--" if left is None else duration(left), "memory": peak_memory()}


class RunLines(pl.callbacks.ProgressBar):
    """A line of text every half minute, for standard error that is a file or a pipe."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def disable(self) -> None:
        """Print nothing; Lightning calls this on all processes except the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._clock = _Clock(trainer)
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Print a line if it is due."""
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
    """Steps and seconds since a run was started or resumed.

    Attributes:
        total: number of steps from then on; None if the run has no known end.
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
