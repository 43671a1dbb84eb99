"""Several runs of a verb that trains, which differ in the seed or the episode: what is finished there is kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d._files import check_writable, read_config
from pc3d.cli import _output, _training
from pc3d.cli._judging import check_rows_folder, chosen_seeds, gathered

if TYPE_CHECKING:
    from pc3d.methods import RunFolder

HELP = """--seeds 0 1 2 trains a run for each seed, one after the other on one device, in OUTPUT/seed_N, and writes
their mean, sample standard deviation and 95 % interval to OUTPUT/seeds.json. If interrupted, repeat the command:
finished runs are not trained again, and an interrupted one continues."""
Train = Callable[[Sequence[str]], Any]
Resolve = Callable[[Sequence[str]], str]


def add_options(parser: Any) -> None:
    """The options of a verb that trains and judges, beside those of the run."""
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="A run for each of several seeds.")
    parser.add_argument("--results", type=str | None, default=None, help="Folder for rows of pc3d results.")
    parser.add_argument(
        "--method", type=str | None, default=None, help="Name in the table of results; by default encoder and start."
    )


def split_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the arguments say of several runs, and the rest; ``seeds`` is None where there is one run."""
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--seeds", type=int, nargs="+")
    for name in ("output", "results", "method", "seed"):
        look.add_argument(f"--{name}")
    for name in ("resume", "overwrite"):
        look.add_argument(f"--{name}", action="store_true")
    return look.parse_known_args(list(argv))


def train_seeds(options: argparse.Namespace, rest: Sequence[str], train: Train, resolve: Resolve, result: Any) -> None:
    """A run for each seed, and what they have in common.

    Args:
        options: from :func:`split_arguments`.
        rest: arguments of the verb, without those.
        train: runs the verb for one seed.
        resolve: the configuration that arguments make, as the run folder keeps it.
        result: class of the results, with ``from_dict`` and ``to_rows``.

    Raises:
        ValueError: seeds that are not different numbers, or an option that does not go with them.
    """
    from pc3d._files import replace_text
    from pc3d.evaluation import write_rows
    from pc3d.methods import RunFolder

    seeds = chosen_seeds(0, options.seeds)
    check_rows_folder(options.results, options.method)
    for given, name, remedy in (
        (options.seed is not None, "seed", "give one of the two"),
        (options.resume, "resume", "leave it out: what is finished in --output is kept, and the rest goes on"),
        (options.output is None, "output", "name the folder of the runs"),
    ):
        if given:
            raise ValueError(f"--seeds {'needs' if name == 'output' else 'does not go with'} --{name}: {remedy}")
    runs = []
    for seed in seeds:
        folder = RunFolder(Path(options.output) / f"seed_{seed}")
        runs.append((folder, [*rest, "--seed", str(seed), "--output", str(folder.path)]))
    found = [
        result.from_dict(outcome) for outcome in train_missing(runs, options.overwrite, train, resolve, what="seed")
    ]
    rows = [outcome.to_rows(options.method) for outcome in found]
    data, text = gathered(found, rows)
    path = Path(options.output) / "seeds.json"
    replace_text(path, json.dumps(data, indent=2) + "\n")
    if options.results is not None:
        write_rows([row for of_seed in rows for row in of_seed], options.results)
    _output.result(data, f"{text}\n\nwritten: {path}")


def train_missing(
    runs: Sequence[tuple[RunFolder, Sequence[str]]], overwrite: bool, train: Train, resolve: Resolve, *, what: str
) -> list[dict[str, Any]]:
    """Train each run, go on with it, or keep it; their results on the test split.

    Args:
        runs: the folder of each, and the arguments of the verb, without ``--resume`` and ``--overwrite``.
        overwrite: train what is finished again.
        train: runs the verb.
        resolve: the configuration that arguments make, as the run folder keeps it.
        what: the runs differ in.

    Raises:
        ValueError: what is finished is of another configuration.
        NotADirectoryError, PermissionError: a run folder is a file, or see :func:`pc3d._files.check_writable`.
    """
    check_writable(runs[0][0].path.parent, "output")
    if overwrite:
        resolve(runs[0][1])  # wrong options cost no result
        _begin_anew(folder for folder, _ in runs)
    same = "the same command without --overwrite" if overwrite else "the same command"
    return [_train_missing(folder, arguments, train, resolve, what, same) for folder, arguments in runs]


def _begin_anew(folders: Iterable[RunFolder]) -> None:
    """Let no run count as begun or finished, also those whose turn has not come when an interruption does."""
    from pc3d.methods import is_first_process

    folders = list(folders)
    for folder in folders:
        folder.check(overwrite=True)
    for folder in folders if is_first_process() else ():
        _result_of(folder).unlink(missing_ok=True)
        folder.checkpoint.unlink(missing_ok=True)


def _result_of(folder: RunFolder) -> Path:
    return folder.path / "eval" / "test.json"


def _train_missing(
    folder: RunFolder, arguments: Sequence[str], train: Train, resolve: Resolve, what: str, same: str
) -> dict[str, Any]:
    path = _result_of(folder)
    if folder.is_finished() and path.exists():
        _check_unchanged(resolve(arguments), folder.config, what)
        _output.say(f"{folder.path}: finished already")
    else:
        goes_on = folder.checkpoint.exists()
        if not goes_on:
            path.unlink(missing_ok=True)  # of an earlier run
        try:
            with _output.parts():
                train([*arguments, "--resume" if goes_on else "--overwrite"])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{folder.path.parent} keeps what is done: {same} goes on") from None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _check_unchanged(resolved: str, stored: Path, what: str) -> None:
    """Refuses to take a run of another configuration for the one that is asked for."""
    import yaml

    changed = _training.changed_sections(resolved, stored)
    configs = (read_config(stored), yaml.safe_load(resolved))
    epochs = [config["trainer"]["max_epochs"] for config in configs]
    if epochs[0] != epochs[1]:
        changed.append(f"trainer.max_epochs ({epochs[0]}, now {epochs[1]})")
    if changed:
        raise ValueError(
            f"{stored.parent} is a finished {what} of another configuration, which differs in {' and '.join(changed)}"
            f": choose another --output, or add --overwrite to train all {what}s again"
        )
