"""What a command says, and where: its result on standard output, as text or JSON; notes for people unless quiet."""

from __future__ import annotations

import json as json_format
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from pc3d import _progress


class _Output:
    """The choices of one command."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.is_part = False
        self.said: set[str] = set()
        self.result_to: TextIO | None = None
        self.stack = ExitStack()


_current: ContextVar[_Output | None] = ContextVar("output_of_the_command", default=None)


@contextmanager
def command() -> Iterator[None]:
    """Everything that one call of ``pc3d`` says; a command within another says things as the outer one does."""
    if _current.get() is not None:
        yield
        return
    output = _Output()
    token = _current.set(output)
    try:
        with output.stack, warnings.catch_warnings(), _without_tips():
            # Lightning builds what a later torch wants built otherwise: nothing that a user could mend.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            yield
    finally:
        _current.reset(token)


def choose(*, json: bool, quiet: bool) -> None:
    """Take the choices ``--json`` and ``--quiet`` of the command that is running.

    With ``json``, standard output holds the result alone: whatever else is printed goes to standard error.
    """
    output = _current.get()
    if output is None:
        return
    if json and not output.json:
        output.json = True
        output.result_to, sys.stdout = sys.stdout, sys.stderr
        output.stack.callback(setattr, sys, "stdout", output.result_to)
    if quiet and not output.quiet:
        output.quiet = True
        output.stack.enter_context(_progress.hidden())
        output.stack.enter_context(_warnings_only("pytorch_lightning"))


def is_quiet() -> bool:
    """Whether the command says nothing but its result."""
    output = _current.get()
    return output is not None and output.quiet


def say(text: object) -> None:
    """A note for whoever watches; not with ``--quiet``."""
    if not is_quiet():
        print(text, flush=True)


def say_once(text: str) -> None:
    """As :func:`say`, unless this command has said it."""
    output = _current.get() or _Output()
    if text not in output.said:
        output.said.add(text)
        say(text)


def warn_once(text: str) -> None:
    """A warning on standard error, also with ``--quiet``, unless this command has given it."""
    output = _current.get() or _Output()
    if text not in output.said:
        output.said.add(text)
        print(f"warning: {text}", file=sys.stderr, flush=True)


def result(data: Any, text: object) -> None:
    """What the command was for: ``data`` with ``--json``, else ``text``."""
    output = _current.get()
    if output is not None and output.is_part:
        say(text)
    elif output is not None and output.json:
        print(json_format.dumps(data, indent=2), file=output.result_to, flush=True)
    else:
        print(text, flush=True)


@contextmanager
def parts() -> Iterator[None]:
    """Results of verbs that are called within the block are steps on the way to another: no more than notes."""
    output = _current.get() or _Output()
    before, output.is_part = output.is_part, True
    try:
        yield
    finally:
        output.is_part = before


@contextmanager
def _without_tips() -> Iterator[None]:
    """What Lightning advertises when it begins to train is no note on the work."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")

    def is_note(record: logging.LogRecord) -> bool:
        return "Tip: For seamless cloud" not in record.getMessage()

    logger.addFilter(is_note)
    try:
        yield
    finally:
        logger.removeFilter(is_note)


@contextmanager
def _warnings_only(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
