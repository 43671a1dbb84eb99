"""Ctrl-C and a scheduler's signals: the step ends, the checkpoint is written, and only then the run stops."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what schedulers send before they kill; what SLURM's ``--signal=USR1@90`` sends 90 s before the time is up."""
_ECHO = 2.0  # seconds in which a launcher may pass a Ctrl-C on that the terminal has sent to all processes already


class Interruption:
    """Whether a run was asked to stop, and whether what was done is on the disk."""

    def __init__(self) -> None:
        self.requested = False
        self._decided = self._saved = False
        self._several, self._speaks = False, True
        self._since = 0.0

    def listen(self, *, several: bool = False, speak: bool = True) -> None:
        """Take the first of :data:`SIGNALS` as a request; :func:`interruptible` undoes this.

        Args:
            several: the process is one of several, whose launcher may repeat a Ctrl-C.
            speak: tell the user; one process of several does.
        """
        self._several, self._speaks = several, speak
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._request)

    @property
    def stops(self) -> bool:
        """Whether the run is to stop: with several processes, whether they have decided so together."""
        return self._decided if self._several else self.requested

    def decide(self, together: bool) -> None:
        """Take what all processes have found, alike on each; a request that comes later waits for the next time.

        Args:
            together: one of them or more were asked to stop.
        """
        self._decided = together
        if together and not self.requested:
            self.requested, self._since = True, time.monotonic()

    def saved(self) -> None:
        """A checkpoint of this moment is on the disk."""
        self._saved = self.stops

    def leave_if_saved(self) -> None:
        """Stop the run, if that was asked for before the last checkpoint.

        Raises:
            KeyboardInterrupt: if so.
        """
        if self._saved:
            raise KeyboardInterrupt

    def _request(self, number: int, _: Any) -> None:
        if self.requested:
            if number == signal.SIGINT and not (self._several and time.monotonic() - self._since < _ECHO):
                raise KeyboardInterrupt
            return
        self.requested, self._since = True, time.monotonic()
        if not self._speaks:
            return
        by = "" if number == signal.SIGINT else f"{signal.Signals(number).name}: "
        told = f"\n{by}stopping after this step; Ctrl-C again stops at once"
        try:
            print(told, file=sys.stderr, flush=True)
        except RuntimeError:  # the signal came amidst a line of progress, and the stream takes no other within one
            os.write(2, f"{told}\n".encode())


def let_go(trainer: pl.Trainer) -> None:
    """Stop watching the processes that Lightning has started for further devices; they end by themselves.

    Lightning kills this process as soon as one of them has ended with another code than 0, as those do that were asked
    to stop: at any time within the seconds in which this one tells the user, or writes what leaves the run.
    """
    watched = getattr(trainer.strategy.launcher, "procs", None)
    if watched is not None:
        watched.clear()


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Lightning's ways out, exit code 1 and a deaf process after Ctrl-C, exit code 0 after a SIGTERM that came
    before training began, a ``KeyboardInterrupt`` again."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        if isinstance(stop, SIGTERMException):
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            if main and handler is not None:
                signal.signal(number, handler)
