"""Objects that configurations describe, and what is said where one cannot be made."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

# What the parser tells of a class in a list, among what it tells of the other forms that a value may have.
_IN_A_LIST = re.compile(r"^  - (Problem with given class_path .*?)(?=^  - |^Given value type)", re.M | re.S)


def stored_objects(parser: Any, stored: Mapping[str, Any], path: Path) -> Any:
    """The objects that a part of the configuration of a run describes.

    Args:
        parser: of jsonargparse, with ``exit_on_error=False`` and an argument for each name of ``stored``.
        stored: the part.
        path: file of the configuration.

    Raises:
        ValueError: a class or an option that is not known here; or whatever the constructor of a class raises.
    """
    try:
        options = parser.parse_object(deepcopy(dict(stored)))  # a copy: the parser changes what it is given
    except ArgumentError as error:
        raise ValueError(f"{path}: {error}") from error
    return instantiate(parser, options)


def instantiate(parser: Any, options: Any) -> Any:
    """The objects that parsed options describe; an error of a constructor is raised as the constructor raised it."""
    try:
        return parser.instantiate(options)
    except ValueError as error:
        # The parser wraps what a constructor says, once for each class that it is nested in, and what is said of two
        # arguments that do not go together; that is better said alone.
        cause: BaseException | None = error
        while cause is not None and _is_wrapped(cause):
            cause = cause.__cause__
        if cause is not None and str(cause).startswith("Not a valid subclass of"):
            # Where a list or one object may stand (trainer.logger), the cause of the parser's error is that the list is
            # no object. What was wrong in the list stands in the text alone.
            said = _IN_A_LIST.search(str(error))
            raise ValueError(said[1].rstrip() if said else str(error)) from None
        if cause is not None and cause is not error:
            raise cause from None
        raise


def _is_wrapped(error: BaseException) -> bool:
    """Whether an error is the parser's, about what a constructor or the function of a link said."""
    text = str(error)
    starts = ("Parser key", "Problem with", "Call to compute_fn of link")
    wrapped = "Does not validate against any" in text or text.startswith(starts)
    return wrapped and not isinstance(error, FileNotFoundError)
