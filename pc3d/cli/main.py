"""Entry point of the command ``pc3d``: finds the verb, runs it, turns its errors into a message and an exit code."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from pc3d._version import __version__
from pc3d.cli import _output
from pc3d.cli._parser import FAILURE, INTERRUPTED, OK, USAGE, nearest

VERBS = {
    "pretrain": "pre-train an encoder without labels, from a configuration file",
    "probe": "score frozen features: linear SVM, logistic regression, nearest neighbours, MLP",
    "fewshot": "score frozen features with few labels: N-way K-shot, several episodes",
    "retrieve": "score frozen features by retrieval: mean average precision, recall, precision",
    "robustness": "score a classifier of frozen features on corrupted test clouds, as ModelNet-C does",
    "zeroshot": "classify shapes by class names alone, with an encoder aligned with texts",
    "index": "embed shapes once into an index that pc3d search reads",
    "search": "find shapes in an index by text, picture or shape",
    "embed": "write the features of a data set, or of any files of points, to an .npz file",
    "export": "write a trained model as a program that runs without pc3d's models, from Python or C++",
    "results": "collect rows of results into a table with intervals over seeds, and a figure",
    "classify": "train and evaluate a classifier of objects: fine-tuned, or a head on a frozen encoder",
    "parts": "train and evaluate a part segmentation of objects",
    "segment": "train, evaluate and apply a semantic segmentation of scenes",
    "view": "show points, data, features, predictions and reconstructions: a window or a picture",
    "render": "render a mesh or a point cloud from a set of views, with depth and what is behind every pixel",
    "report": "write one web page about a run: configuration, curves, cost, results, pictures, a map of embeddings",
    "doctor": "show versions, compiled kernels, devices and data sets, and what is missing",
    "completion": "print a script that completes verbs and options in bash, zsh or tcsh",
    "demo": "pre-train a small Point-CMAE on the embedded objects and score it, in minutes",
}

# What PyTorch's loader puts in front of an error of one of its workers: all of its traceback.
_WORKERS = re.compile(r"\ACaught \w+ in DataLoader worker process \d+\.\n.*\n[\w.]*(Error|Exception): ", re.DOTALL)

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [
            "usage: pc3d VERB [options]",
            "",
            "Self-supervised learning on 3D point clouds.",
            "",
            "verbs:",
            *lines,
            "",
            "pc3d VERB --help lists the options of a verb; pc3d --version prints the version. Every verb takes",
            "--json (the result as JSON, alone on standard output) and --quiet (no progress, no notes).",
            "Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted. PC3D_TRACEBACK=1 shows where an error came",
            "from; NO_COLOR=1 turns colours off.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after ``pc3d``; those of the process when left out.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return OK if arguments else USAGE
    verb, *rest = arguments
    if verb in ("-V", "--version"):
        print(f"pc3d {__version__}")
        return OK
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}{nearest(verb, VERBS)}\n\n{_help()}", file=sys.stderr)
        return USAGE
    return _run(verb, rest)


def _run(verb: str, arguments: list[str]) -> int:
    try:
        with _output.command():
            code = importlib.import_module(f"pc3d.cli.{verb}").main(arguments)
    except SystemExit as stop:  # the argument parsers leave this way
        return stop.code if isinstance(stop.code, int) else OK if stop.code is None else FAILURE
    except KeyboardInterrupt as interruption:
        print(f"\ninterrupted{f'; {interruption}' if str(interruption) else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("PC3D_TRACEBACK"):
            raise
        print(f"error: {_WORKERS.sub('', str(error)).rstrip()}{_users_place(error)}", file=sys.stderr)
        return FAILURE
    return OK if code is None else int(code)


def _users_place(error: BaseException) -> str:
    """Where an error passed through code that is neither pc3d's nor installed, as a class that a recipe names."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if _WORKERS.match(str(error)):
        frames += _FRAME.findall(str(error))
    installed = (Path(__file__).parents[1], *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")))
    own = [
        (file, line)
        for file, line in frames
        if Path(file).is_file()
        and not any(map(Path(file).is_relative_to, installed))
        and not {"site-packages", "dist-packages"} & set(Path(file).parts)
    ]
    return f"\n(by way of {own[-1][0]}, line {own[-1][1]}; PC3D_TRACEBACK=1 shows the whole way)" if own else ""


def command() -> int:
    """Run the command line and exit with its code, which another Ctrl-C cannot turn into a signal."""
    try:
        code = main()
    except KeyboardInterrupt:  # while the first one was told
        code = INTERRUPTED
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(command())
