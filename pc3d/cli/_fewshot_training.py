"""``pc3d classify fewshot``: fine-tune on several few-shot episodes, and average."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from pc3d.cli import _objects
from pc3d.cli._judging import check_rows_folder
from pc3d.cli._parser import verb_parser
from pc3d.cli._several_runs import train_missing

_DESCRIPTION = """Fine-tune on few-shot episodes, as Point-BERT and Point-MAE do on ModelNet40. For each of
--num_episodes episodes, a classifier is trained on --way classes with --shot objects each, and evaluated on
--num_queries other objects of each class. The accuracy is that of the last epoch: mean and sample standard deviation
over the episodes.
--protocol legacy also gives what the literature reports, the best epoch on the test objects of each episode.

All other options are those of pc3d classify train. Its runs are kept in --output, in one folder episode_N each. If
interrupted, repeat the command: finished episodes are not trained again, and an interrupted one continues.

Configurations that ship with pc3d: modelnet40_fewshot (published; --root FOLDER with the pickles of ModelNetFewshot),
household_fewshot (two CPU cores, minutes). They name a data set of episodes, FewShotFile or FewShotSplit."""
_NUMBERS = ("way", "shot", "num_queries")


def main(
    argv: Sequence[str], train: Callable[[Sequence[str]], int | None], resolve: Callable[[Sequence[str]], str]
) -> int | None:
    """Run the verb.

    Args:
        argv: its arguments.
        train: runs ``pc3d classify train``.
        resolve: the configuration that arguments of ``pc3d classify train`` make, as its run folder keeps it.
    """
    from pc3d.evaluation import FewShotTrainingResult
    from pc3d.methods.run_folder import RunFolder

    options, rest = _parse(argv)
    check_rows_folder(options.results, options.method)
    output = Path(options.output)
    path = output / "fewshot.json"
    runs = []
    for number in range(options.num_episodes):
        folder = RunFolder(output / f"episode_{number}")
        runs.append((folder, [*rest, *_of_episode(number, options), "--output", str(folder.path)]))
    results = train_missing(runs, options.overwrite, train, resolve, what="episode")
    _objects.write_result(FewShotTrainingResult.of(results), path, options.results, options.method)
    return None


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = verb_parser("classify fewshot", _DESCRIPTION, argparse.ArgumentParser)
    parser.add_argument("--output", required=True, help="Folder of the runs and of fewshot.json.")
    parser.add_argument("--num_episodes", type=int, default=10, help="Episodes (published: 10).")
    for name, what in zip(_NUMBERS, ("Classes", "Training objects per class", "Test objects per class"), strict=True):
        parser.add_argument(f"--{name}", type=int, help=f"{what}; by default that of the configuration.")
    parser.add_argument("--overwrite", action="store_true", help="Remove earlier runs.")
    parser.add_argument("--results", help="Folder for rows of pc3d results.")
    parser.add_argument("--method", help="Name in the table of results.")
    options, rest = parser.parse_known_args(list(argv))
    if options.num_episodes < 2:
        parser.error(
            f"--num_episodes must be at least 2, or there is no standard deviation; got {options.num_episodes}"
        )
    if "--resume" in rest:
        parser.error("--resume is not needed: what is finished in --output is kept, and the rest goes on")
    if {word.partition("=")[0] for word in rest} & {"--fold", "--folds"}:
        parser.error("every episode is a fold, and all are trained: --num_episodes says how many; leave the option out")
    if "--seeds" in rest:
        parser.error("--seeds is of pc3d classify train: here the episodes are what is averaged over")
    return options, rest


def _of_episode(number: int, options: argparse.Namespace) -> list[str]:
    """The options of ``pc3d classify train`` that make one episode of the configuration's data."""
    numbers = {"fold": number, **{name: getattr(options, name) for name in _NUMBERS}}
    return [
        f"--data.{split}.init_args.{name}={value}"
        for name, value in numbers.items()
        if value is not None
        for split in ("train", "test")
    ]
