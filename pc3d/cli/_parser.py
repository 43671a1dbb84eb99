"""Argument parsing shared by the verbs: options from typed signatures, and the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from pc3d._extras import require

OK, FAILURE, USAGE = 0, 1, 2

_UNKNOWN = (
    re.compile(r"[Oo]ption '([^']+)' is not accepted"),
    re.compile(r'[Kk]ey "([^"]+)" is not (?:expected|accepted)'),
)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the closest of the known names, or an empty string if none is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def unknown_names(message: str) -> list[str]:
    """The option names that an argument parser's message calls unknown."""
    names = [match for pattern in _UNKNOWN for match in pattern.findall(message)]
    if "unrecognized arguments:" in message:
        names += [word for word in message.partition("unrecognized arguments:")[2].split() if word.startswith("-")]
    return names


class NearestName:
    """Mixin for a parser of argparse or jsonargparse: an unknown name is refused with the nearest right one."""

    _actions: list[Any]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with exit code 2, naming the nearest right option."""
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        keys = [option.removeprefix("--") for option in options]
        hints = []
        for name in unknown_names(message):
            bare = name.partition("=")[0]
            hint = nearest(bare, options if bare.startswith("-") else keys)
            hints.append(f"\n{bare} is unknown{hint or '; known are: ' + ', '.join(sorted(keys))}")
        super().error(message + "".join(hints), *([ex] if ex is not None else []))  # type: ignore[misc]
        raise SystemExit(USAGE)


def parser_class(base: type | None = None) -> type:
    """A jsonargparse parser class (``jsonargparse.ArgumentParser`` by default) that also names the nearest option."""
    jsonargparse = require("jsonargparse", extra="train", purpose="the command line")
    return type("Parser", (NearestName, base or jsonargparse.ArgumentParser), {})


def _item_type(annotation: Any) -> Any:
    """The item type of ``list[X]`` or ``list[X] | None``, None for anything else."""
    for kind in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(kind) is list:
            return typing.get_args(kind)[0]
    return None


def run_verb(verb: str, function: Callable[..., int | None], argv: Sequence[str]) -> int | None:
    """Build the options of a verb from the signature and docstring of a function, parse ``argv``, call it.

    A parameter whose default is False becomes a switch: ``--json`` rather than ``--json true``. One whose type is a
    list takes several words: ``--seeds 0 1 2``.
    """
    documentation = require("docstring_parser", extra="train", purpose="the command line").parse_from_object(function)
    parameters = inspect.signature(function).parameters.values()
    switches = [parameter.name for parameter in parameters if parameter.default is False]
    described = {entry.arg_name: entry.description for entry in documentation.params}
    types = typing.get_type_hints(function)
    lists = [parameter for parameter in parameters if _item_type(types[parameter.name]) is not None]
    parser = parser_class()(prog=f"pc3d {verb}", description=documentation.short_description, allow_abbrev=False)
    parser.add_function_arguments(function, as_group=False, skip={*switches, *(entry.name for entry in lists)})
    for entry in lists:
        required = entry.default is inspect.Parameter.empty
        parser.add_argument(
            f"--{entry.name}",
            type=_item_type(types[entry.name]),
            nargs="+",
            required=required,
            default=None if required else entry.default,
            help=described[entry.name],
        )
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true", help=described[name])
    parser.add_argument("--config", action="config", help="Read options from a YAML file; later options override it.")
    options = parser.parse_args(list(argv)).as_dict()
    options.pop("config", None)
    return function(**options)
