"""``pc3d completion``: what a shell needs to complete verbs, options and their choices."""

from __future__ import annotations

import argparse
import importlib
import typing
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pc3d._extras import require
from pc3d.cli import _output
from pc3d.cli._parser import held_parser, run_verb

NESTED = {
    "index": ("build",),
    "classify": ("train", "eval", "fewshot"),
    "parts": ("train", "eval"),
    "segment": ("train", "eval", "fold", "predict", "openvocab"),
}
"""Verbs that have verbs of their own."""
_FOLDERS = {"pretrain": "pretrain", "classify": "classify", "parts": "parts", "segment": "segment"}


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script that completes pc3d in a shell: its verbs, their options, and the choices of these.

    For bash: pc3d completion bash > ~/.local/share/bash-completion/completions/pc3d
    For zsh: pc3d completion zsh > FOLDER/_pc3d, where FOLDER is in $fpath.

    Args:
        shell: The shell; given first, it needs no --shell.
    """
    shtab = require("shtab", extra="train", purpose="shell completion")
    text = script(shell, shtab)
    _output.result({"shell": shell, "script": text}, text)


def script(shell: str, shtab: Any) -> str:
    """The script; ``shtab`` writes it from one parser that knows all verbs."""
    from pc3d.cli.main import VERBS

    root = argparse.ArgumentParser(prog="pc3d")
    verbs = root.add_subparsers()
    for verb, about in VERBS.items():
        if verb not in NESTED:
            verbs.add_parser(verb, help=about, parents=[_options(shtab, verb)])
            continue
        inner = verbs.add_parser(verb, help=about).add_subparsers()
        for name in NESTED[verb]:
            inner.add_parser(name, help=f"pc3d {verb} {name}", parents=[_options(shtab, verb, name)])
    return str(shtab.complete(root, shell)).rstrip()


def _options(shtab: Any, verb: str, *inner: str) -> argparse.ArgumentParser:
    """The options of a verb, without what parsing them means."""
    from pc3d.cli._training import shipped_configs

    module = importlib.import_module(f"pc3d.cli.{verb}")
    found = held_parser(partial(module.main, list(inner)))
    plain = argparse.ArgumentParser(add_help=False)
    for action in found._actions:
        if action.help is argparse.SUPPRESS or set(action.option_strings) == {"-h", "--help"}:
            continue
        choices = action.choices or _literals(getattr(action, "_typehint", None))
        if "--config" in action.option_strings and verb in _FOLDERS:
            choices = shipped_configs(_FOLDERS[verb])
        if not action.option_strings:
            plain.add_argument(action.dest, nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.nargs == 0:
            plain.add_argument(*action.option_strings, action="store_true", help=action.help)
        else:
            option = plain.add_argument(*action.option_strings, choices=choices, help=action.help)
            if choices is None:
                option.complete = shtab.FILE  # type: ignore[attr-defined]
    return plain


def _literals(annotation: Any) -> tuple[str, ...] | None:
    """The words of a ``Literal``, alone or in a union; None where any word will do."""
    parts = [annotation, *typing.get_args(annotation)]
    words = [str(word) for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part)]
    return tuple(words) or None


def main(argv: Sequence[str]) -> int | None:
    """Run the verb; the shell may stand first, without its option."""
    arguments = list(argv)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--shell")
    return run_verb("completion", completion, arguments)
