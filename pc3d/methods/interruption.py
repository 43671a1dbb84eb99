"""Ctrl-C during training: the step ends, the checkpoint is written, and only then the run stops."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interruption:
    """Whether the user asked to stop, and whether what was done is on the disk."""

    def __init__(self) -> None:
        self.requested = False
        self._saved = False

    def listen(self) -> None:
        """Take the first Ctrl-C as a request; :func:`interruptible` undoes this."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._request)

    def saved(self) -> None:
        """A checkpoint of this moment is on the disk."""
        self._saved = self.requested

    def leave_if_saved(self) -> None:
        """Stop the run, if that was asked for before the last checkpoint.

        Raises:
            KeyboardInterrupt: if so.
        """
        if self._saved:
            raise KeyboardInterrupt

    def _request(self, *_: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        told = "\nstopping after this step; Ctrl-C again stops at once"
        try:
            print(told, file=sys.stderr, flush=True)
        except RuntimeError:  # the signal came amidst a line of progress, and the stream takes no other within one
            os.write(2, f"{told}\n".encode())


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Lightning's way out after Ctrl-C, exit code 1 and a deaf process, a ``KeyboardInterrupt`` again."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)
