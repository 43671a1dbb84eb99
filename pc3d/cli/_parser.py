"""Argument parsing shared by the verbs: options from typed signatures, and the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn

from pc3d._extras import require
from pc3d.cli import _output

OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130  # 128 + SIGINT, as shells report it

_COMMON = {
    "json": "Print the result as JSON on standard output; all else goes to standard error.",
    "quiet": "Print the result, warnings and errors alone: no progress, no notes.",
}
_UNKNOWN = (
    re.compile(r"[Oo]ption '([^']+)' is not accepted"),
    re.compile(r'[Kk]ey "([^"]+)" is not (?:expected|accepted)'),
)
# Lines of jsonargparse about its own doing: which types it tried, and whole configurations as it holds them.
_NOISE = re.compile(
    r"\s*(?:(?:- )?Does not validate against any|Subtypes: |Errors:$|- Expected a <class 'NoneType'>|Given value type: "
    r"|Given value: (?:Namespace|NestedArg|\{))"
)
_ANY_MODULE = re.compile(r"known subclasses: (torch\.nn\.Module, .*)\)")
_MODEL = re.compile(r"\bpc3d\.models\.[A-Z]\w+")
_NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")

# jsonargparse advises a call that no user of the command can make.
_NO_SUBCLASS = re.compile(r"Subclasses are disabled for (\w+), thus '([\w.]+)' is not accepted.*")
_OTHER_CLASS = (
    r"\1 is set by its fields, and no other class (\2) can take its place: its field optimizer takes the class of "
    r"another optimiser; for another schedule, override configure_optimizers in a subclass of the pre-training method"
)
_OPTIMIZER = re.compile(r"Type <class '[\w.]+\.OptimizerFactory'> expects a function or a callable class: ")
_NO_OPTION_OF_OPTIMIZER = re.compile(r"Option '(lr|weight_decay)' is not accepted")
_NO_MODULE = re.compile(r"Expected a dot import path string: (\w+)")
# What other programs call options: the letters of these are near to others.
_CALLED_ELSEWHERE = {"--fold": "--num_episodes", "--folds": "--num_episodes"}


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


def gist(message: str) -> str:
    """What an argument parser says is wrong, without how it came to think so."""
    lines = [line for line in message.splitlines() if not _NOISE.match(line)]
    found = _NO_SUBCLASS.sub(_OTHER_CLASS, "\n".join(lines))
    found = _NO_MODULE.sub(r"no class \1 is known here: give its whole name, MODULE.\1", found)
    if _OPTIMIZER.search(found):
        if "class_path='torch.optim.Optimizer'" in found:  # what jsonargparse assumes where no class is named
            return "an option of an optimiser needs its class before it, such as torch.optim.SGD or torch.optim.AdamW"
        found = re.sub(r"\.? Got value: Namespace\(.*", "", _OPTIMIZER.sub("", found))
        found = _NO_OPTION_OF_OPTIMIZER.sub(r"Option '\1' is not accepted: it is set by the optimisation", found)
    for module, name in _NO_CLASS.findall(found):
        there = sys.modules.get(module)
        classes = [key for key, value in vars(there).items() if isinstance(value, type)] if there else []
        known = getattr(there, "__all__", classes)
        said = f"has no attribute '{name}'"
        if f"{said};" not in found:  # what is nested has not said it
            found = found.replace(said, f"{said}{nearest(name, known)}")
    return found


class ParserHeld(Exception):
    """Carries the parser that :func:`held_call` asked for, and what it would have read."""

    def __init__(self, parser: Any, arguments: Sequence[str]) -> None:
        super().__init__("a parser was held")
        self.parser, self.arguments = parser, list(arguments)


_hold: ContextVar[bool] = ContextVar("hold_the_parser", default=False)


def held_parser(call: Callable[[], object]) -> Any:
    """The parser that a verb would have read its arguments with.

    Args:
        call: runs the verb, without arguments.
    """
    return held_call(call)[0]


def held_call(call: Callable[[], object]) -> tuple[Any, list[str]]:
    """The parser that a verb would have read its arguments with, and these, as the verb has made them up.

    Args:
        call: runs the verb.
    """
    token = _hold.set(True)
    try:
        call()
    except ParserHeld as held:
        return held.parser, held.arguments
    finally:
        _hold.reset(token)
    raise TypeError("the verb reads its arguments without verb_parser()")


_typed: ContextVar[frozenset[str] | None] = ContextVar("options_that_were_typed", default=None)


class VerbHelp:
    """Mixin for a formatter of help: see :func:`verb_parser`."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraph by paragraph: filled as one, a command at the end of a paragraph would run on into the next."""
        fill = partial(textwrap.fill, width=width, initial_indent=indent, subsequent_indent=indent)
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        return "\n\n".join(fill(paragraph, break_on_hyphens=False) for paragraph in paragraphs)

    def _get_help_string(self, action: Any) -> str:
        """Of what takes any module of PyTorch, the models of pc3d alone: jsonargparse lists all eight hundred."""
        text = str(super()._get_help_string(action))  # type: ignore[misc]
        found = _ANY_MODULE.search(text)
        return f"{text[: found.start(1)]}{', '.join(_MODEL.findall(found[1]))})" if found else text


class VerbParser:
    """Mixin for a parser of argparse or jsonargparse: what all verbs have in common, see :func:`verb_parser`."""

    _actions: list[Any]
    prog: str
    is_verb = False  # jsonargparse makes parsers of the same class for what is nested
    shorthands: Mapping[str, Sequence[str]] = {}
    """Options that the verb writes out before it parses, and what each stands for; what completes them asks."""

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """The options of the verb, without those that all verbs have."""
        if not self.is_verb:
            # A null for a class within a class arrives as the text of Python's None (jsonargparse 4.53).
            nested = [[re.sub("=None$", "=null", word) for word in words] for words in args]
            return super().parse_args(*nested, **options)  # type: ignore[misc]
        if _hold.get():
            raise ParserHeld(self, *args)
        return _without_common(super().parse_args(*args, **options))  # type: ignore[misc]

    def add_class_arguments(self, theclass: Any, *args: Any, **options: Any) -> Any:
        """As jsonargparse does, but never with what an optimiser is given by the optimisation.

        jsonargparse 4.53 forgets to skip these in its help, and where it merges two configurations.
        """
        from torch.optim import Optimizer

        if isinstance(theclass, type) and issubclass(theclass, Optimizer):
            options["skip"] = {1, "lr", "weight_decay", *options.get("skip", ())}
        return super().add_class_arguments(theclass, *args, **options)  # type: ignore[misc]

    def add_function_arguments(self, *args: Any, linked_targets: object = None, **options: Any) -> Any:
        """As jsonargparse does, which for a preset within a class (Swin3D.tiny) gives a name that is for classes alone.

        It tells which arguments must not be required because they come from elsewhere (jsonargparse 4.53).
        """
        return super().add_function_arguments(*args, **options)  # type: ignore[misc]

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """As :meth:`parse_args`, and the arguments that are not known here."""
        if self.is_verb and _hold.get():
            raise ParserHeld(self, *args)
        found, rest = super().parse_known_args(*args, **options)  # type: ignore[misc]
        return (_without_common(found) if self.is_verb else found), rest

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with exit code 2, naming the nearest right option."""
        message = gist(message)
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        keys = [option.removeprefix("--") for option in options]
        known = ", ".join(sorted(keys))
        if not self.is_verb and known == "help":
            known = "none (a preset, as Swin3D.tiny, has arguments of its own: name its class to choose them)"
        hints = []
        for name in unknown_names(message):
            bare = name.partition("=")[0]
            if re.search(rf"^\s*{re.escape(bare)} is unknown", message, re.MULTILINE):
                continue  # what is nested has said so, and knows better what there is
            called = _CALLED_ELSEWHERE.get(bare, bare)
            hint = nearest(called if called in options else bare, options if bare.startswith("-") else keys)
            hints.append(f"\n{bare} is unknown{hint or '; known are: ' + known}")
        if re.search(r"required: .*\bmodel\b", message):
            hints.append(
                f"\nmodel: a recipe says it, --config NAME; {self.prog} --help lists those that ship with pc3d"
            )
        super().error(message + "".join(hints), *([ex] if ex is not None else []))  # type: ignore[misc]
        raise SystemExit(USAGE)


def _without_common(found: Any) -> Any:
    """Follow the options that all verbs have, and take them out."""
    chosen = {name: bool(getattr(found, name, False)) for name in _COMMON}
    for name in chosen:
        if hasattr(found, name):
            delattr(found, name)
    _output.choose(**chosen)
    return found


def verb_parser(verb: str, description: str | None, base: type | None = None) -> Any:
    """The parser of a verb.

    It takes ``--json`` and ``--quiet``, as every verb does, which :mod:`pc3d.cli._output` follows, and refuses an
    unknown name with the nearest right one. Its help keeps the paragraphs of the description.

    Args:
        verb: as typed after ``pc3d``.
        description: printed by ``--help``.
        base: parser class; that of jsonargparse by default.
    """
    base = base or require("jsonargparse", extra="train", purpose="the command line").ArgumentParser
    parser = type("Parser", (VerbParser, base), {})(prog=f"pc3d {verb}", description=description, allow_abbrev=False)
    parser.formatter_class = type("Help", (VerbHelp, parser.formatter_class), {})
    parser.is_verb = True
    for name, text in _COMMON.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser


def _item_type(annotation: Any) -> Any:
    """The item type of ``list[X]`` or ``list[X] | None``, None for anything else."""
    for kind in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(kind) is list:
            return typing.get_args(kind)[0]
    return None


def check_used(function: Callable[..., object], given: Mapping[str, object], needs: Mapping[str, str | None]) -> None:
    """Refuse options that would do nothing beside the others; of those of a configuration, say so.

    Args:
        function: of the verb; what is its default is not given.
        given: values of its options.
        needs: for each option that needs others, what these would be; None where they are there.

    Raises:
        ValueError: an option would be ignored.
    """
    parameters, typed = inspect.signature(function).parameters, _typed.get()
    for option, missing in needs.items():
        value = given[option]
        if missing is None or value == parameters[option].default:
            continue
        told = f"{option}: {value!r} is for {missing}"
        if typed is None or f"--{option}" in typed:
            raise ValueError(f"{told}: leave the option out")
        _output.say_once(f"note: {told}; the configuration has it, and it is not used")


def words_first(parser: Any, argv: Sequence[str], names: Sequence[str] = (), lists: Sequence[str] = ()) -> list[str]:
    """The arguments, with words that stand without an option before all others: a parser wants them side by side.

    Args:
        parser: of the verb.
        argv: the arguments.
        names: options that the words are for, in this order, which are written out; those given otherwise need none.
        lists: which of them take all words that are left.
    """
    takes = {option: action.nargs for action in parser._actions for option in action.option_strings}
    loose: list[str] = []
    others: list[str] = []
    open_for = 0
    for word in argv:
        if word.startswith("--") or (word.startswith("-") and not open_for):
            nargs = 0 if "=" in word else takes.get(word)
            open_for = 1 if nargs is None else len(argv) if nargs == "+" else 0
            others.append(word)
        elif open_for:
            open_for -= 1
            others.append(word)
        else:
            loose.append(word)
    found = []
    for name in names:
        count = len(loose) if name in lists else 1
        if loose and f"--{name}" not in _options_in(others):
            found += [f"--{name}", *loose[:count]]
            loose = loose[count:]
    return [*loose, *found, *others]  # what is still loose is refused


def _options_in(argv: Sequence[str]) -> frozenset[str]:
    return frozenset(word.partition("=")[0] for word in argv if word.startswith("--"))


def run_verb(
    verb: str, function: Callable[..., int | None], argv: Sequence[str], words: Sequence[str] = ()
) -> int | None:
    """Build the options of a verb from the signature and docstring of a function, parse ``argv``, call it.

    A parameter whose default is False becomes a switch: ``--exact`` rather than ``--exact true``. One whose type is a
    list takes several words: ``--seeds 0 1 2``.

    Args:
        verb: as typed after ``pc3d``.
        function: what it does.
        argv: the arguments.
        words: options whose names may be left out, in the order of their words; a list takes all words that are left.
    """
    documentation = require("docstring_parser", extra="train", purpose="the command line").parse_from_object(function)
    parameters = inspect.signature(function).parameters.values()
    switches = [parameter.name for parameter in parameters if parameter.default is False]
    described = {entry.arg_name: entry.description for entry in documentation.params}
    types = typing.get_type_hints(function)
    lists = [parameter for parameter in parameters if _item_type(types[parameter.name]) is not None]
    parser = verb_parser(verb, documentation.description)
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
    from pc3d.cli._training import configs_first, shipped_configs, with_config

    shipped = shipped_configs(verb)
    named = f"YAML file, or one of: {', '.join(shipped)}" if shipped else "Read options from a YAML file"
    parser.add_argument("--config", action="config", help=f"{named}; options override it.")
    arguments = words_first(parser, argv, words, [entry.name for entry in lists])
    options = parser.parse_args(with_config(arguments, verb) if shipped else configs_first(arguments)).as_dict()
    options.pop("config", None)
    token = _typed.set(_options_in(arguments))
    try:
        return function(**options)
    finally:
        _typed.reset(token)
