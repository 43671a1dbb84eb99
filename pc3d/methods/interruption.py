"""Ctrl-C and signals of schedulers: finish the step, write the checkpoint, then stop the run."""

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
"""Ctrl-C; what schedulers send before they kill a job; what SLURM's ``--signal=USR1@90`` sends 90 s before the end."""
_ECHO = 2.0  # seconds in which a launcher may repeat a Ctrl-C that the terminal has already sent to all processes


class Interruption:
    """State of a stop request, and whether a checkpoint has been written since."""

    def __init__(self) -> None:
        self.requested = False
        self._decided = self._saved = False
        self._several, self._speaks = False, True
        self._since = 0.0

    def listen(self, *, several: bool = False, speak: bool = True) -> None:
        """Treat the first of :data:`SIGNALS` as a request to stop; :func:`interruptible` restores the handlers.

        Args:
            several: the process is one of several, whose launcher may repeat a Ctrl-C.
            speak: print a message to the user; one process of several does.
        """
        self._several, self._speaks = several, speak
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._request)

    @property
    def stops(self) -> bool:
        """Whether the run should stop; with several processes, their common decision."""
        return self._decided if self._several else self.requested

    def decide(self, together: bool) -> None:
        """Set the common decision of all processes; a later request waits for the next decision.

        Args:
            together: at least one process has a request to stop; the same value on all processes.
        """
        self._decided = together
        if together and not self.requested:
            self.requested, self._since = True, time.monotonic()

    def saved(self) -> None:
        """Note that a checkpoint of the current state is on the disk."""
        self._saved = self.stops

    def leave_if_saved(self) -> None:
        """Stop the run if this was requested before the last checkpoint.

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
        except RuntimeError:  # the signal interrupted a write to the same stream, which allows no second one
            os.write(2, f"{told}\n".encode())


def let_go(trainer: pl.Trainer) -> None:
    """Stop monitoring the processes that Lightning has started for further devices; they end by themselves.

    Lightning kills this process as soon as one of them ends with an exit code other than 0, as they do after a stop
    request. This could happen while this process still writes messages or the exported networks.
    """
    watched = getattr(trainer.strategy.launcher, "procs", None)
    if watched is not None:
        watched.clear()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` where Lightning would exit, and restore the signal handlers.

    Lightning exits with code 1 after Ctrl-C and then ignores signals; it exits with code 0 after a SIGTERM before the
    training.
    """
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
