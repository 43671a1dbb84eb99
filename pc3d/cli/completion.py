"""``pc3d completion``: shell completion of verbs, options and their choices."""

from __future__ import annotations

import argparse
import importlib
import typing
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pc3d._extras import require
from pc3d.cli import _output
from pc3d.cli._inputs import Variant
from pc3d.cli._parser import held_call, run_verb
from pc3d.cli._view_layers import MODES

NESTED = {
    "index": ("build",),
    "classify": ("train", "eval", "predict", "fewshot"),
    "parts": ("train", "eval", "predict"),
    "segment": ("train", "eval", "fold", "predict", "openvocab"),
}
"""Verbs that have verbs of their own."""
_WORDS = {"--variant": typing.get_args(Variant), "view --mode": MODES}
"""Words that an option takes although its type does not say so, or says it where the parser does not look."""
_A_WORD = "word"
_NUMBERS = {int, float, bool, type(None)}


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script for shell completion of pc3d: verbs, options and their choices.

    For bash: pc3d completion bash > ~/.local/share/bash-completion/completions/pc3d

    For zsh: pc3d completion zsh > FOLDER/_pc3d, where FOLDER is in $fpath.

    For tcsh: pc3d completion tcsh > ~/.pc3d.tcsh, and in ~/.tcshrc: source ~/.pc3d.tcsh

    Args:
        shell: The shell; --shell itself may be left out.
    """
    shtab = require("shtab", extra="train", purpose="shell completion")
    text = script(shell, shtab)
    _output.result({"shell": shell, "script": text}, text)


def script(shell: str, shtab: Any) -> str:
    """The script; ``shtab`` writes it from one parser that knows all verbs."""
    from pc3d.cli.main import VERBS

    root = argparse.ArgumentParser(prog="pc3d")
    root.add_argument("-V", "--version", action="store_true", help="print the version")
    verbs = root.add_subparsers()
    for verb, about in VERBS.items():
        if verb not in NESTED:
            verbs.add_parser(verb, help=about, parents=[_options(shtab, verb)])
            continue
        inner = verbs.add_parser(verb, help=about).add_subparsers()
        for name in NESTED[verb]:
            # What pc3d classify fewshot does not know it hands to pc3d classify train.
            handed = [_options(shtab, verb, "train")] if (verb, name) == ("classify", "fewshot") else []
            options = [*handed, _options(shtab, verb, name)]
            inner.add_parser(name, help=f"pc3d {verb} {name}", parents=options, conflict_handler="resolve")
    return str(shtab.complete(root, shell)).rstrip()


def _options(shtab: Any, verb: str, *inner: str) -> argparse.ArgumentParser:
    """The options of a verb, without what parsing them means."""
    from pc3d.cli._training import shipped_configs

    module = importlib.import_module(f"pc3d.cli.{verb}")
    found, arguments = held_call(partial(module.main, [*inner, _A_WORD]))
    plain = argparse.ArgumentParser(add_help=False)
    choices: dict[str, Sequence[str] | None] = {}
    for action in found._actions:
        # What is linked to another option has a text about that for a name; "+" at the end appends to a list.
        names = [name for name in action.option_strings if name.startswith("-") and not name.endswith("+")]
        if action.help is argparse.SUPPRESS or "--help" in names or len(names) < bool(action.option_strings):
            continue
        words = _words(verb, action, names)
        if "--config" in names:
            words = shipped_configs(verb) or words
        choices.update(dict.fromkeys(names, words))
        _add(shtab, plain, action, names, words)
    for name, targets in found.shorthands.items():
        words = choices.get(targets[0]) or _WORDS.get(name)
        _completed(shtab, plain.add_argument(name, choices=words, help=f"short for {targets[0]}"))
    if _A_WORD in arguments[1:2]:  # the verb puts an option in front of a word that stands first
        _completed(shtab, plain.add_argument(_A_WORD, nargs="*", choices=choices[arguments[0]]))
    return plain


def _add(
    shtab: Any, plain: argparse.ArgumentParser, action: Any, names: Sequence[str], words: Sequence[str] | None
) -> None:
    help = (action.help or "").replace("%", "%%")  # argparse fills in what stands after a single one
    if not names:
        _completed(shtab, plain.add_argument(action.dest, nargs="*", choices=words, help=help))
    elif action.nargs == 0:
        plain.add_argument(*names, action="store_true", help=help)
    else:
        # Options are not completed while an option that takes several files is open.
        nargs = "+" if words and action.nargs == "+" else None
        option = plain.add_argument(*names, choices=words, help=help, nargs=nargs)
        if not _takes_numbers(getattr(action, "_typehint", None) or action.type):
            _completed(shtab, option)


def _completed(shtab: Any, option: Any) -> None:
    """Files, where there is no list of words."""
    if option.choices is None:
        option.complete = shtab.FILE


def _words(verb: str, action: Any, names: Sequence[str]) -> Sequence[str] | None:
    known = [_WORDS[key] for name in names for key in (f"{verb} {name}", name) if key in _WORDS]
    return known[0] if known else action.choices or _literals(getattr(action, "_typehint", None))


def _takes_numbers(annotation: Any) -> bool:
    parts = typing.get_args(annotation) or (annotation,)
    leaves = [leaf for part in parts for leaf in typing.get_args(part) or (part,)]
    return annotation is not None and set(leaves) <= _NUMBERS


def _literals(annotation: Any) -> tuple[str, ...] | None:
    """The words of a ``Literal``, alone or in a union; None where any word will do."""
    parts = [annotation, *typing.get_args(annotation)]
    words = [str(word) for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part)]
    return tuple(words) or None


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("completion", completion, argv, words=["shell"])
