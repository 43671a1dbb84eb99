"""What ``pc3d report`` reads from the files of a run: configuration, curves, cost."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pc3d._files import read_config

if TYPE_CHECKING:
    from pc3d.methods import RunFolder
    from pc3d.viz.report import Section

Kind = Literal["pretrain", "classify", "parts", "segment"]
KIND_NAMES: dict[Kind, str] = {
    "pretrain": "pre-training",
    "classify": "classification",
    "parts": "part segmentation",
    "segment": "semantic segmentation",
}
_UNFINISHED = "the run has not finished, so there is no trained encoder yet"
_STAGES = ("train", "validation", "test")
_SCENES = ("Rooms", "S3DIS", "ScanNet", "Structured3D", "SceneFolder")


class NotApplicableError(Exception):
    """A section that this run cannot have; the message says why."""


@dataclass(frozen=True)
class Run:
    """A run folder and what its configuration says.

    Attributes:
        folder: its files.
        config: the resolved configuration.
        kind: the verb that trained it.
    """

    folder: RunFolder
    config: dict[str, Any]
    kind: Kind

    @property
    def title(self) -> str:
        """What the run is, for headings."""
        return f"{self.folder.path.resolve().name}: {KIND_NAMES[self.kind]}"

    def need_encoder(self) -> Path:
        """The folder of the run.

        Raises:
            NotApplicableError: there is no encoder in it.
        """
        if not self.folder.is_finished():
            raise NotApplicableError(_UNFINISHED)
        return self.folder.path


def training_set(run: Run) -> dict[str, Any]:
    """The section of the configuration that names the data set, within features that were joined to it."""
    entry = (run.config.get("data") or {}).get("train") or {}
    options = entry.get("init_args") or {}
    return options["dataset"] if isinstance(options.get("dataset"), dict) else entry  # that of an AlignedSet


def is_of_scenes(run: Run) -> bool:
    """Whether a run trains on scenes."""
    return run.kind == "segment" or _class_name(training_set(run)) in _SCENES


def spread(length: int, count: int) -> list[int]:
    """Positions spread evenly over a data set, the first one included."""
    number = min(count, length)
    return [position * length // number for position in range(number)]


def open_run(path: str) -> Run:
    """A run folder of ``pc3d pretrain``, ``classify``, ``parts`` or ``segment``.

    Raises:
        FileNotFoundError: there is no such folder, or no configuration in it.
        ValueError: the configuration is not one of a run.
    """
    from pc3d.methods import RunFolder

    folder = RunFolder(path)
    if not folder.config.is_file():
        raise FileNotFoundError(
            f"run: {folder.config} does not exist: give a run folder of pc3d pretrain, classify train, parts train or "
            "segment train"
        )
    config = read_config(folder.config)
    model = config.get("model")
    if not isinstance(model, dict) or not ("class_path" in model or "backbone" in model):
        raise ValueError(f"run: {folder.config} is not the configuration of a run: it names no model")
    kind: Kind = "segment"
    if "class_path" in model:
        kind = "pretrain"
    elif "mode" in model:
        kind = "classify"
    elif "head_dims" in model:
        kind = "parts"
    return Run(folder, config, kind)


def configuration(run: Run) -> Section:
    """The main settings as a table, all of them as text."""
    from pc3d.viz.report import Grid, Listing, Section

    model, data, trainer = (run.config.get(name) or {} for name in ("model", "data", "trainer"))
    options = model.get("init_args") or model
    network = options.get("encoder") if run.kind == "pretrain" else model.get("backbone")
    rows = [
        ("task", KIND_NAMES[run.kind]),
        ("method", _class_name(model)),
        ("encoder", _class_name(network)),
        ("starts from", str(model.get("encoder") or "fresh weights") if run.kind != "pretrain" else "fresh weights"),
        *((f"{split} data", _in_words(data[split])) for split in _STAGES if data.get(split)),
        ("epochs", str(trainer.get("max_epochs", "not given"))),
        ("batch size", str(data.get("batch_size", "not given"))),
        ("seed", str(run.config.get("seed", "not given"))),
        ("state", "finished" if run.folder.is_finished() else "not finished"),
    ]
    text = run.folder.config.read_text(encoding="utf-8")
    return Section("Configuration", [Grid((), [row for row in rows if row[1]]), Listing("config.yaml", text)])


def _class_name(entry: Any) -> str:
    return str(entry.get("class_path", "")).rpartition(".")[2] if isinstance(entry, dict) else ""


def _in_words(entry: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in (entry.get("init_args") or {}).items() if value)
    return f"{_class_name(entry)} ({options})" if options else _class_name(entry)


def curves(run: Run) -> Section:
    """One plot for each quantity in ``metrics.csv``, the loss first.

    Raises:
        NotApplicableError: nothing was logged.
    """
    from pc3d.viz.report import Curves, Section

    lines = read_metrics(run.folder.metrics)
    plots: dict[str, dict[str, Any]] = {}
    for column, (steps, values) in lines.items():
        stage, _, name = column.rpartition("/")
        every_step = name.endswith("_step")
        title = name.removesuffix("_step").removesuffix("_epoch").replace("_", " ")
        line = f"{stage}, each step" if every_step else stage or title
        plots.setdefault(title, {})[line] = (steps, values)
    if not plots:
        raise NotApplicableError(f"{run.folder.metrics.name} is not there or holds no values")
    order = sorted(plots, key=lambda title: (title != "loss", title == "learning rate"))
    return Section("Training curves", [Curves(title, plots[title]) for title in order])


def read_metrics(path: Path) -> dict[str, Any]:
    """Column of ``metrics.csv`` to its steps and values; columns without numbers and the epoch are left out."""
    import numpy as np

    found: dict[str, tuple[list[float], list[float]]] = {}
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for column, text in row.items():
                if text and column not in ("step", "epoch"):
                    steps, values = found.setdefault(column, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(text))
    lines = {}
    for column, (steps, values) in found.items():
        x, y = np.array(steps), np.array(values)
        lines[column] = (x[np.isfinite(y)], y[np.isfinite(y)])
    return {column: line for column, line in lines.items() if len(line[0])}


def cost(run: Run) -> Section:
    """Parameters, steps, and what time the files of the run tell."""
    from pc3d.models import load_encoder
    from pc3d.viz.report import Grid, Section

    rows = []
    if run.folder.is_finished():
        encoder = load_encoder(run.folder.path)
        rows.append(("parameters of the encoder", f"{sum(p.numel() for p in encoder.parameters()):,}"))
    lines = read_metrics(run.folder.metrics)
    if lines:
        last = max(float(steps[-1]) for steps, _ in lines.values())
        rows.append(("optimiser steps", f"{last + 1:,.0f}"))
    training = _head(run).get("training", {})
    if "cpu_seconds" in training:
        rows.append(("CPU seconds of the training", f"{training['cpu_seconds']:,.0f}"))
    clock = _clock_seconds(run.folder.tensorboard)
    if clock is not None:
        rows.append(("time between the first and the last record, pauses left out", f"{clock:,.0f} s"))
    if run.folder.checkpoint.is_file():
        rows.append(("size of last.ckpt", f"{run.folder.checkpoint.stat().st_size / 1e6:,.1f} MB"))
    if not rows:
        raise NotApplicableError("the folder holds neither an encoder nor metrics")
    return Section("Cost", [Grid((), rows)])


def _clock_seconds(folder: Path) -> float | None:
    """Seconds from the first to the last record of each start of the run, added up; None where there are none."""
    from pc3d._extras import require

    loader = require("tensorboard.backend.event_processing.event_file_loader", extra="train")
    total = 0.0
    files = sorted(folder.glob("events.out.tfevents.*"))
    for file in files:
        # The first record is the file's own header; its time is that of the start.
        times = [event.wall_time for event in loader.EventFileLoader(str(file)).Load()]
        total += max(times) - min(times) if times else 0.0
    return total if files else None


def _head(run: Run) -> dict[str, Any]:
    path = run.folder.head / "config.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
