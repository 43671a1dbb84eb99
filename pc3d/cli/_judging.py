"""What the verbs that judge frozen features have in common: one seed or several, and rows for a table."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._alignment import inputs_for, points_for
from pc3d.cli._inputs import (
    HANDCRAFTED,
    LeftOut,
    OnError,
    Points,
    UpAxis,
    Variant,
    extract,
    is_few_shot,
    left_out_lines,
    note_points,
    open_encoder,
    open_split,
    pooling_of,
)

if TYPE_CHECKING:
    from pc3d.data import PointDataset
    from pc3d.evaluation import Encoder, Features, Kept


@dataclass(frozen=True)
class Frozen:
    """An encoder and what it makes of the two splits of a data set, and where more of that is kept meanwhile.

    ``test_set`` has the clouds behind ``test``, ``left_out`` the files of both splits that cannot be used.
    """

    encoder: Encoder
    train: Features
    test: Features
    test_set: PointDataset
    num_parameters: int
    kept: Kept | None
    left_out: list[dict[str, str]]


def judge_frozen(
    judge: Callable[[Frozen, int], Any],
    encoder: str,
    data: str,
    *,
    variant: Variant | None,
    pooling: str | None,
    num_points: Points,
    up: UpAxis | None,
    batch_size: int,
    device: str,
    on_error: OnError,
    drop_invalid: bool,
    untrained: bool,
    seed: int,
    seeds: Sequence[int] | None,
    results: str | None,
    method: str | None,
    options: Sequence[object] = (),
    episodes: bool = False,
    draw: Callable[[list[Any]], None] | None = None,
) -> list[Any]:
    """Judge the features of an encoder with each seed, print the results, and keep their rows.

    Args:
        judge: from features and a seed to a result, which has ``to_dict`` and ``to_rows`` and prints itself.
        encoder: see :func:`pc3d.cli._inputs.open_encoder`.
        data: see :func:`pc3d.cli._inputs.open_split`.
        variant: of the data set.
        pooling: None for the encoder's own.
        num_points: points per cloud, see :func:`pc3d.cli._alignment.points_for`.
        up: see :func:`pc3d.cli._alignment.inputs_for`.
        batch_size: clouds per forward pass.
        device: where the encoder computes.
        on_error: what to do with files that cannot be used, see :class:`pc3d.cli._inputs.LeftOut`.
        drop_invalid: leave out points of files that are not finite.
        untrained: draw fresh weights from the seed.
        seed: where there are no ``seeds``.
        seeds: several.
        results: folder for rows.
        method: name in rows.
        options: of ``judge``: what is kept of one choice outlives a command with another.
        episodes: whether ``judge`` keeps the published episodes of a data set apart, see :func:`features_of`.
        draw: makes a picture of the results.

    Returns:
        The results, one for each seed.
    """
    from pc3d.evaluation import Kept, write_rows
    from pc3d.evaluation.cost import measured

    check_rows_folder(results, method)
    outcomes, rows = [], []
    frozen: Frozen | None = None
    extraction: dict[str, float] = {}
    how = (encoder, data, variant, num_points, pooling, batch_size, device)
    policy: dict[str, Any] = {"on_error": on_error, "drop_invalid": drop_invalid, "episodes": episodes}
    chosen = (*how, up, on_error, drop_invalid, untrained, seed, seeds, *options)
    with Kept(interrupted(judge.__qualname__, *chosen)) as kept:
        for number in chosen_seeds(seed, seeds):
            before = kept.given_back
            # Features of a trained encoder are the same for every seed.
            if frozen is None or untrained or encoder in HANDCRAFTED:
                with measured() as extraction:
                    frozen = features_of(*how, up=up, untrained=untrained, seed=number, kept=kept, **policy)
                if kept.given_back > before:  # of what came before an interruption nobody knows the cost
                    del extraction["cpu_seconds"]
            with measured() as cost:
                outcome = judge(frozen, number)
            if kept.given_back > before or "cpu_seconds" not in extraction:
                del cost["cpu_seconds"]
            else:
                cost["cpu_seconds"] += extraction["cpu_seconds"]
            rows.append(outcome.to_rows(method, {**cost, "parameters": frozen.num_parameters}))
            outcomes.append(outcome)
        # While what was computed is still kept: a disk may be full, and there may be another result of that name.
        found, said = (outcomes[0].to_dict(), str(outcomes[0])) if seeds is None else gathered(outcomes, rows)
        if on_error == "report" and frozen is not None:
            found = {**found, "left_out": frozen.left_out}
            said = "\n".join([said, *left_out_lines(frozen.left_out)])
        _output.result(found, said)
        if results is not None:
            write_rows([row for of_seed in rows for row in of_seed], results)
        if draw is not None:
            draw(outcomes)
    return outcomes


def check_rows_folder(results: str | None, method: str | None) -> None:
    """Refuse, before any work, a folder for rows that cannot be written, and a name that no row would have.

    Raises:
        NotADirectoryError, PermissionError: see :func:`pc3d._files.check_writable`.
        ValueError: a name without a folder.
    """
    if method is not None and results is None:
        raise ValueError(f"method: {method!r} is the name in rows that --results FOLDER keeps: add it, or leave it out")
    if results is not None:
        check_writable(Path(results), "results")


def chosen_seeds(seed: int, seeds: Sequence[int] | None) -> list[int]:
    """``seeds``, or ``seed`` alone.

    Raises:
        ValueError: a seed stands twice, or none at all.
    """
    if seeds is None:
        return [seed]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: must be different numbers, at least one, got {list(seeds)}")
    return list(seeds)


def gathered(outcomes: Sequence[Any], rows: Sequence[Sequence[Any]]) -> tuple[dict[str, Any], str]:
    """Results of several seeds and what they have in common, as plain data and in words.

    Args:
        outcomes: one for each seed.
        rows: of each outcome, in the same order of protocols.
    """
    summaries = [(alike[0], over_seeds(alike)) for alike in zip(*rows, strict=True)]
    seeds = ", ".join(str(of_seed[0].seed) for of_seed in rows)
    lines = ["\n\n".join(map(str, outcomes)), f"\nover {len(rows)} seed(s) {seeds}"]
    for row, summary in summaries:
        lines += [f"  {row.protocol}, {row.selection}:"] if len(summaries) > 1 else []
        lines += in_words(summary)
    found = {"results": [result.to_dict() for result in outcomes], "summary": summaries[0][1]}
    if len(summaries) > 1:
        found["summaries"] = [
            {"protocol": row.protocol, "selection": row.selection, **summary} for row, summary in summaries
        ]
    return found, "\n".join(lines)


def in_words(summary: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each metric of :func:`over_seeds`."""
    lines = []
    for name, values in summary.items():
        spread = ""
        if values["interval"] is not None:
            low, high = values["interval"]
            spread = (
                f" ± {100 * values['standard_deviation']:.1f} % (sample standard deviation), "
                f"95 % interval of the mean {100 * low:.1f} to {100 * high:.1f} % (Student's t over seeds)"
            )
        lines.append(f"  {name.replace('_', ' '):<20} {100 * values['mean']:.1f} %{spread}")
    return lines


def over_seeds(rows: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Mean, sample standard deviation and interval of each metric."""
    import statistics

    from pc3d.evaluation.table import seed_interval

    summary = {}
    for name in rows[0].metrics:
        values = [row.metrics[name] for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary[name] = {
            "mean": statistics.mean(values),
            "standard_deviation": deviation,
            "interval": seed_interval(values),
            "n": len(values),
        }
    return summary


def features_of(
    encoder: str,
    data: str,
    variant: Variant | None,
    num_points: Points,
    pooling: str | None,
    batch_size: int,
    device: str = "cpu",
    *,
    up: UpAxis | None = None,
    untrained: bool,
    seed: int,
    kept: Kept | None = None,
    on_error: OnError | None = None,
    drop_invalid: bool = False,
    episodes: bool = False,
) -> Frozen:
    """Features of both splits, prepared as the encoder wants them, with a progress bar.

    Files that cannot be used are refused where ``on_error`` is None: by verbs that do not let choose.

    Raises:
        ValueError: the data are published episodes, and they will not be kept apart (``episodes``).
    """
    import torch

    from pc3d.data import Selection

    if not episodes and data != "household" and is_few_shot(Path(data)):
        raise ValueError(
            f"data: {data} holds published few-shot episodes, and one object may be in several, in one to train on and "
            "in another to be tested: judge with pc3d fewshot, which keeps them apart"
        )
    policy: dict[str, Any] = {"on_error": on_error or "refuse", "drop_invalid": drop_invalid}
    model, name = open_encoder(
        encoder,
        untrained=untrained,
        seed=seed,
        data=data,
        num_points=num_points,
        variant=variant,
        device=device,
        **policy,
    )
    points = points_for(model, num_points)
    note_points(model, points)
    opened = partial(open_split, **policy)
    sources = {split: inputs_for(model, data, split, points, variant, up, opened) for split in ("train", "test")}
    unusable = {split: LeftOut(data, source.dataset, policy["on_error"]) for split, source in sources.items()}
    options: dict[str, Any] = {
        "num_points": points,
        "pooling": pooling_of(model, pooling),
        "batch_size": batch_size,
        "kept": kept,
    }
    train, test = (
        extract(model, name, source, data, split, leave_out=None if on_error is None else unusable[split], **options)
        for split, source in sources.items()
    )
    used = [row for row in range(len(sources["test"].dataset)) if row not in unusable["test"].rows]
    test_set = Selection(sources["test"].dataset, used) if unusable["test"].rows else sources["test"].dataset
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    size = sum(parameter.numel() for parameter in parameters)
    left_out = [file for found in unusable.values() for file in found.files]
    return Frozen(model, train, test, test_set, size, kept, left_out)


def kept_beside(path: Path, *choice: object) -> Path:
    """The folder beside a result that keeps what is computed for it, if the command is interrupted.

    Args:
        path: of the result.
        choice: what the command computes. Each has a folder of its own: a command with another one must not take what
            this one's interruption left.
    """
    return path.with_name(f".{path.stem}.{hashlib.sha256(repr(choice).encode()).hexdigest()[:8]}.kept")


def interrupted(*what: object) -> Path:
    """The folder in the user's cache that keeps what a command has computed, if it is interrupted.

    Args:
        what: tells the command from others.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(repr((os.getcwd(), *what)).encode()).hexdigest()[:16]
    return cache / "pc3d" / f"interrupted-{name}"
