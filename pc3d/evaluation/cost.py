"""Measure CPU time and memory of a piece of work."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, which counts kibibytes on Linux


def cpu_seconds() -> float:
    """CPU seconds of this process so far, all threads, and of child processes that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fill a dictionary with ``cpu_seconds`` of the block and ``peak_memory_bytes`` of the process so far.

    CPU seconds are used instead of wall-clock time, because they hardly depend on other work of the machine.
    """
    cost: dict[str, float] = {}
    started = cpu_seconds()
    try:
        yield cost
    finally:
        cost["cpu_seconds"] = cpu_seconds() - started
        cost["peak_memory_bytes"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT)
