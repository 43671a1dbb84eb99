"""Progress of long work on standard error: a bar on a terminal, a line now and then elsewhere, nothing when hidden."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

from pc3d._extras import require

LINE_SECONDS = 30.0
"""Seconds between two lines where standard error is no terminal: a log of hours stays short."""
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, which counts kibibytes on Linux
_T = TypeVar("_T")
_hidden: ContextVar[bool] = ContextVar("progress_hidden", default=False)


def is_hidden() -> bool:
    """Whether the caller asked for silence."""
    return _hidden.get()


@contextmanager
def hidden() -> Iterator[None]:
    """No progress of any kind within the block."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


@contextmanager
def progress_bar(total: int, description: str, unit: str, *, visible: bool = True) -> Iterator[Callable[[int], Any]]:
    """Show how far a piece of work is, with its rate, the time that is left, and the memory it took.

    Args:
        total: steps in all.
        description: what is being done.
        unit: of the steps, in the plural.
        visible: False shows nothing.

    Yields:
        A function to call with the number of steps done since the last call.
    """
    if not visible or is_hidden():
        yield lambda count: None
        return
    if not sys.stderr.isatty():
        yield _Lines(total, description, unit).advance
        return
    with _rich_bar(unit) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def track(items: Sequence[_T], description: str, unit: str, *, visible: bool = True) -> Iterable[_T]:
    """The items, one by one, with a :func:`progress_bar`."""
    with progress_bar(len(items), description, unit, visible=visible) as advance:
        for item in items:
            yield item
            advance(1)


def peak_memory() -> str:
    """The most memory that this process has held so far, such as ``"812 MB"``, with that of its GPU if it has one."""
    text = _bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        text += f" + {_bytes(torch.cuda.max_memory_allocated())} GPU"
    return text


def duration(seconds: float) -> str:
    """``"0:01:30"``."""
    return str(timedelta(seconds=round(seconds)))


def progress_line(description: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """One line on how far a piece of work is.

    Args:
        description: what is being done.
        done: steps done in ``seconds``.
        total: steps in all; None where nobody knows.
        unit: of the steps.
        seconds: since the beginning.
    """
    rate = done / seconds if seconds > 0 and done else 0.0
    left = f", {duration((total - done) / rate)} left" if rate and total else ""
    share = f"/{total:,} {unit} ({100 * done // total} %)" if total else f" {unit}"
    return f"{description}: {done:,}{share}, {rate:.3g} {unit}/s{left}, peak memory {peak_memory()}"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


class _Lines:
    """A line on standard error every :data:`LINE_SECONDS`."""

    def __init__(self, total: int, description: str, unit: str) -> None:
        self._total, self._description, self._unit = total, description, unit
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            line = progress_line(self._description, self._done, self._total, self._unit, now - self._start)
            print(line, file=sys.stderr, flush=True)


def _rich_bar(unit: str) -> Any:
    rich = require("rich.progress", extra="train", purpose="the progress bar")
    console = require("rich.console", extra="train").Console(stderr=True)

    class Rate(rich.ProgressColumn):  # type: ignore[misc, name-defined]
        def render(self, task: Any) -> Any:
            speed = task.finished_speed or task.speed
            return require("rich.text", extra="train").Text("" if speed is None else f"{speed:.3g} {unit}/s")

    class Memory(rich.ProgressColumn):  # type: ignore[misc, name-defined]
        def render(self, task: Any) -> Any:
            return require("rich.text", extra="train").Text(peak_memory())

    columns = ("[progress.description]{task.description}", rich.BarColumn(), rich.MofNCompleteColumn(), Rate())
    return rich.Progress(*columns, rich.TimeRemainingColumn(), Memory(), console=console, transient=True)
