"""What ``pc3d report`` says of results: scores and confusion matrices of ``eval/``, and rows of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pc3d.cli._report_run import KIND_NAMES, NotApplicableError, Run, is_of_scenes

if TYPE_CHECKING:
    from pc3d.evaluation import ProbeResult, Row
    from pc3d.viz.report import Grid, Part, Section

_SCENE_SCORES = ("miou", "macc", "allacc", "miou_present")


def stored_results(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Name and content of the files in ``eval/``.

    Raises:
        NotApplicableError: there are none.
    """
    paths = sorted((run.folder.path / "eval").glob("*.json"))
    if not paths:
        if run.kind == "pretrain":
            raise NotApplicableError(
                "pre-training has none of its own: the linear probe of an encoder of scenes is a run of its own, pc3d "
                "segment train --config CONFIG --encoder RUN --freeze true --model.head linear"
                if is_of_scenes(run)
                else "pre-training has none of its own: --probe judges the frozen encoder now, under Frozen features, "
                "and draws the confusion matrix of its linear SVM"
            )
        raise NotApplicableError(f"there are no results in eval/; pc3d {run.kind} eval writes them")
    return [(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def results(run: Run) -> Section:
    """The scores in ``eval/``, with what chose the epoch, and those of single classes."""
    from pc3d.viz.report import Grid, Section

    parts: list[Part] = []
    for name, result in stored_results(run):
        scores = result.get("scores", result)
        names = [key for key, value in scores.items() if isinstance(value, float)]
        rows = [
            (key.replace("_", " "), f"{100 * scores[key]:.1f} %", _interval(scores, key))
            for key in (names if "scores" in result else _SCENE_SCORES)
        ]
        told = [("chosen by", str((result.get("selection") or {}).get("by", "")), "")]
        told += [(key.replace("_", " "), str(result.get(key, "")), "") for key in ("data", "num_test", "preparation")]
        head = ("score", name.replace("_", " "), "95 % interval")
        parts.append(Grid(head, [*rows, *(row for row in told if row[1])]))
        parts += _per_class(scores)
    return Section("Results on held-out data", parts)


def _interval(scores: Mapping[str, Any], key: str) -> str:
    """The interval of a score, whose name ends in what is measured: ``overall_accuracy``, ``overall_interval``."""
    span = scores.get(f"{key.rpartition('_')[0]}_interval")
    return f"{100 * span[0]:.1f} to {100 * span[1]:.1f} %" if span else ""


def _per_class(scores: Mapping[str, Any]) -> list[Part]:
    from pc3d.viz.report import Grid

    def shown(value: float) -> str:
        return f"{100 * value:.1f} %"

    if "per_class" in scores:  # of scenes
        rows = [(n, shown(c["iou"]), shown(c["accuracy"]), f"{c['points']:,}") for n, c in scores["per_class"].items()]
        return [Grid(("class", "IoU", "found", "points"), rows)]
    for values, counts, head in (
        ("per_class_accuracy", "per_class_count", ("class", "accuracy", "objects")),
        ("category_iou", "category_count", ("category", "IoU", "objects")),
    ):
        if values in scores:
            return [Grid(head, [(n, shown(v), str(scores[counts][n])) for n, v in scores[values].items()])]
    return []


def confusion(run: Run, probed: ProbeResult | None) -> Section:
    """The confusion matrices in ``eval/``, and that of a probe of the frozen encoder.

    Args:
        run: whose.
        probed: what a classifier on its frozen features said of the test split; None where none was asked for.

    Raises:
        NotApplicableError: no result has one.
    """
    import numpy as np

    from pc3d.viz.report import Confusion, Section

    found = []
    if probed is not None:
        words = f"{probed.task} on frozen features"
        found.append(Confusion(np.array(probed.scores.confusion), probed.scores.confusion_classes, "objects", words))
    for name, result in [] if found and run.kind == "pretrain" else stored_results(run):
        scores = result.get("scores", result)
        if "confusion" not in scores:
            continue
        classes = scores.get("confusion_classes") or list(scores.get("per_class", ()))
        unit = "points" if run.kind == "segment" else "objects"
        found.append(Confusion(np.array(scores["confusion"]), classes, unit, name.replace("_", " ")))
    if not found:
        raise NotApplicableError(f"results of {KIND_NAMES[run.kind]} have none")
    return Section("Confusion matrix", found)


def demo_table(run: Run) -> Grid | None:
    """What ``pc3d demo`` found, the encoder beside its baselines; None where the run is not of the demonstration."""
    from pc3d.viz.report import Grid

    path = run.folder.path / "demo.json"
    if not path.is_file():
        return None
    rows = []
    for name, result in json.loads(path.read_text(encoding="utf-8")).items():
        scores = result["scores"]
        means = (f"{100 * scores[key]:.1f} %" for key in ("overall_accuracy", "mean_class_accuracy"))
        rows.append((name, *means, _interval(scores, "overall_accuracy")))
    head = ("encoder", "overall accuracy", "mean class accuracy", "95 % interval of the former")
    return Grid(head, rows, f"{path.name}: {result['task']}, {result['selection']}")


def probe_table(run: Run, rows: Sequence[Row], note: str) -> Section:
    """Rows of results, those that differ in the seed alone put together, and the table of a demonstration.

    Raises:
        NotApplicableError: there is neither.
    """
    from pc3d.evaluation.table import LEGACY_MARK, tabulate
    from pc3d.viz.report import Grid, Section

    demo = demo_table(run)
    if demo is not None and not rows:
        return Section("Frozen features", [demo], note)
    if not rows:
        raise NotApplicableError(
            "there are no rows of results under the run; judging verbs write them with --results, --results names "
            "another folder" + ("" if is_of_scenes(run) else ", and --probe judges the encoder now")
        )
    table = tabulate(rows)
    lines = [
        (
            method,
            column.data,
            column.protocol,
            LEGACY_MARK if column.selection == "legacy" else column.selection,
            column.metric.replace("_", " "),
            str(cell),
        )
        for method in table.methods
        for column in table.columns
        if (cell := table.cells.get((method, column)))
    ]
    head = ("method", "data", "protocol", "choices", "score", "% ± deviation over seeds (95 % interval; seeds)")
    return Section("Frozen features", [*([demo] if demo else []), Grid(head, lines)], note)
