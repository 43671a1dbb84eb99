"""How much a classifier trained on clean features loses when test clouds are corrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pc3d._progress import track
from pc3d.data import (
    CORRUPTIONS,
    MODELNET_C,
    SEVERITIES,
    Corrupt,
    Corruption,
    ModelNetC,
    PointCloud,
    PointDataset,
)
from pc3d.data.dataset import folder_name
from pc3d.data.loader import sample_generator
from pc3d.evaluation.features import Encoder, Features, Labels, extract_features, preparation
from pc3d.evaluation.kept import Kept
from pc3d.evaluation.probe import C_GRID, cross_validated
from pc3d.evaluation.result import UNSCALED, FrozenResult, data_fields, note_on_one_class, percent
from pc3d.evaluation.rows import Row
from pc3d.evaluation.svm import svm_form

PROTOCOL = "robustness, linear SVM trained on clean features"
DGCNN = {
    "clean": 0.926,
    "scale": 0.906,
    "jitter": 0.684,
    "rotate": 0.785,
    "drop_global": 0.752,
    "drop_local": 0.793,
    "add_global": 0.705,
    "add_local": 0.725,
}
"""The baseline of ModelNet-C (released code): accuracy of DGCNN on its files, the mean over the levels."""
_COLOR = "drop_color"
_SHAPE = tuple(kind for kind in CORRUPTIONS if kind != _COLOR)


@dataclass(frozen=True)
class RelativeErrors:
    """Corruption errors of ModelNet-C (section 3.3), relative to another result on the same corrupted clouds.

    Attributes:
        mce: mean over corruptions of the error summed over severities, over that of the baseline. Below 1 is better
            than the baseline.
        rmce: the same for the decrease from the clean accuracy; None if some corruption does not decrease the
            baseline's accuracy, so that the ratio has no meaning.
        ce: corruption to its term of ``mce``.
    """

    mce: float
    rmce: float | None
    ce: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RobustnessResult(FrozenResult):
    """Accuracy under every corruption and severity, with the whole protocol; fractions.

    Attributes:
        C: of the linear SVM.
        tuned: whether it was chosen by cross-validation; otherwise it was fixed beforehand.
        selection: how it was found, in words.
        severities: levels evaluated.
        clean: overall accuracy on the test split as it is.
        accuracies: corruption of the shape to overall accuracy at each severity.
        without_color: overall accuracy at each severity of ``"drop_color"``; None if it was not evaluated. It is in no
            mean, so that encoders with and without colours are compared under the same corruptions.
        clouds: the files that the corrupted clouds are from, and a hash of them; empty where they were made here.
        reads_rgb: whether the encoder was given colours, clean and corrupted.
        only_class: the class that every clean test object is said to be of; None where there are several.
        baseline: what :attr:`relative` is relative to; None where nothing was given.
        relative: ModelNet-C's errors relative to it, see :meth:`relative_to`.

    The other fields are those of :class:`pc3d.evaluation.FrozenResult`.
    """

    C: float
    tuned: bool
    selection: str
    severities: tuple[int, ...]
    clean: float
    accuracies: dict[str, tuple[float, ...]]
    without_color: tuple[float, ...] | None = None
    clouds: str = ""
    reads_rgb: bool = False
    only_class: str | None = None
    baseline: str | None = None
    relative: RelativeErrors | None = None

    def relative_to(self, row: Row) -> RobustnessResult:
        """The result with its errors relative to those of another method, which must have seen the same clouds.

        Args:
            row: of another result of this kind.

        Raises:
            ValueError: of another kind, of other data or another seed, or of other corruptions or severities.
        """
        ours = self.to_row()
        for name in ("protocol", "data_hash", "seed"):
            if getattr(row, name) != getattr(ours, name):
                raise ValueError(
                    f"the baseline must have the same {name}, got {getattr(row, name)!r} for {getattr(ours, name)!r}"
                )
        if row.config["severities"] != ours.config["severities"]:
            raise ValueError(
                f"the baseline must have the same severities, got {row.config['severities']} for "
                f"{ours.config['severities']}"
            )
        if row.config.get("clouds", "") != self.clouds:
            raise ValueError(
                "the baseline must be judged on the same corrupted clouds, got "
                f"{row.config.get('clouds') or 'those made by pc3d'} for {self.clouds or 'those made by pc3d'}"
            )
        clean, accuracies = row.metrics["clean_accuracy"], row.details["accuracies"]
        found = relative_errors(self.clean, self.accuracies, clean, accuracies)
        return replace(self, baseline=row.method, relative=found)

    def relative_to_dgcnn(self) -> RobustnessResult:
        """The result with its errors relative to the published ones of DGCNN on the files of ModelNet-C.

        Raises:
            ValueError: the clouds are not from files, or not of all levels.
        """
        if not self.clouds or self.severities != SEVERITIES:
            raise ValueError(
                "the published errors of DGCNN are those on the files of ModelNet-C at all five levels, got "
                f"{self.clouds or 'clouds made by pc3d'} at levels {', '.join(map(str, self.severities))}"
            )
        published = {kind: (DGCNN[kind],) * len(values) for kind, values in self.accuracies.items()}
        found = relative_errors(self.clean, self.accuracies, DGCNN["clean"], published)
        return replace(self, baseline="DGCNN (published)", relative=found)

    @property
    def curves(self) -> dict[str, tuple[float, ...]]:
        """Corruption to overall accuracy at each severity, that of colours included."""
        return {**self.accuracies, **({} if self.without_color is None else {_COLOR: self.without_color})}

    @property
    def mean(self) -> float:
        """Mean accuracy over corruptions of the shape and severities."""
        return float(np.mean(list(self.accuracies.values())))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        return {**asdict(self), "mean": self.mean}

    def to_row(self, method: str | None = None, cost: dict[str, float] | None = None) -> Row:
        """The result as a row of a table, the mean over corruptions of the shape and severities first.

        Args:
            method: name in the table; by default what computed the features.
            cost: see :class:`pc3d.evaluation.Row`.
        """
        per_kind = {f"accuracy under {kind}": float(np.mean(values)) for kind, values in self.curves.items()}
        choice = {"tried": C_GRID} if self.tuned else {"C": self.C}
        return Row(
            **self.row_fields(method, cost),
            protocol=PROTOCOL,
            selection="tuned" if self.tuned else "fixed",
            metrics={
                "mean_corrupted_accuracy": self.mean,
                "clean_accuracy": self.clean,
                **per_kind,
                **({} if self.relative is None else {"mce": self.relative.mce}),
                **({} if self.relative is None or self.relative.rmce is None else {"rmce": self.relative.rmce}),
            },
            config={
                **self.feature_settings(),
                **choice,
                "severities": self.severities,
                "corruptions": list(self.accuracies),
                "baseline": self.baseline,
                **({"clouds": self.clouds} if self.clouds else {}),
                # Only where there are some: rows of encoders without colours stay what they are.
                **({"colors": "kept"} if self.reads_rgb else {}),
                **({} if self.without_color is None else {"color_corruptions": [_COLOR]}),
            },
            details={
                "encoder": self.encoder,
                "C": self.C,
                "accuracies": self.accuracies,
                **({} if self.without_color is None else {"without_color": self.without_color}),
            },
        )

    def __str__(self) -> str:
        width = max(map(len, self.curves))
        levels = "".join(f"{f'level {level}':>10}" for level in self.severities)
        return "\n".join(
            [
                f"{PROTOCOL}, of {self.encoder}",
                *self.describe_data(),
                f"  classifier  SVC(kernel='linear'), C = {self.C:g}, trained on clean training features alone",
                f"  selection   {self.selection}",
                self._describe_clouds(),
                self.describe_versions(),
                f"  {'clean':<{width}}  {percent(self.clean):>10}",
                f"  {'':<{width}}{levels}      mean",
                *(_line(kind, values, width) for kind, values in self.accuracies.items()),
                f"  mean over corruptions and levels  {percent(self.mean)}",
                *(
                    []
                    if self.without_color is None
                    else [f"{_line(_COLOR, self.without_color, width)}  (not in the mean)"]
                ),
                *self._describe_relative(),
                *([] if self.only_class is None else [note_on_one_class(self.only_class, UNSCALED)]),
            ]
        )

    def _describe_clouds(self) -> str:
        if self.clouds:
            return f"  corrupted test clouds of {self.clouds}, as stored; seed {self.seed}"
        return (
            f"  corruptions of the test clouds after sampling, seed {self.seed}; beside ModelNet-C's 'density' and "
            f"'occlusion'{'; points keep their colours' if self.reads_rgb else ''}"
        )

    def _describe_relative(self) -> list[str]:
        if self.relative is None:
            return []
        fall = "not told: the baseline does not fall under every corruption"
        rmce = fall if self.relative.rmce is None else f"{self.relative.rmce:.3f}"
        return [
            f"  relative to {self.baseline} (1 is as good, below is better):",
            f"  mean corruption error mCE  {self.relative.mce:.3f}; relative to the clean accuracy RmCE  {rmce}",
        ]


def _line(kind: str, values: Sequence[float], width: int) -> str:
    levels = "".join(f"{percent(value):>10}" for value in values)
    return f"  {kind:<{width}}{levels}{percent(float(np.mean(values))):>10}"


def relative_errors(
    clean: float,
    accuracies: Mapping[str, Sequence[float]],
    baseline_clean: float,
    baseline: Mapping[str, Sequence[float]],
) -> RelativeErrors:
    """Mean corruption error and relative mean corruption error.

    The paper's baseline is DGCNN on ModelNet40, whose numbers mean nothing on other data. Use a result on the same test
    split instead, such as that of the handcrafted descriptor.

    Args:
        clean: accuracy without corruption.
        accuracies: corruption to accuracy at each severity.
        baseline_clean: of the baseline.
        baseline: of the baseline, for the same corruptions and severities.

    Raises:
        ValueError: the two are not of the same corruptions and severities, or the baseline makes no error.
    """
    if {k: len(v) for k, v in accuracies.items()} != {k: len(v) for k, v in baseline.items()}:
        raise ValueError(
            f"the baseline must be judged under the same corruptions and severities, got {_shape(baseline)} for "
            f"{_shape(accuracies)}"
        )
    ce, falls = {}, []
    for kind, values in accuracies.items():
        theirs = baseline[kind]
        error = sum(1 - value for value in theirs)
        if error == 0:
            raise ValueError(f"the baseline makes no error under {kind}: nothing can be told relative to it")
        ce[kind] = sum(1 - value for value in values) / error
        falls.append((sum(clean - value for value in values), sum(baseline_clean - value for value in theirs)))
    rmce = float(np.mean([ours / theirs for ours, theirs in falls])) if min(b for _, b in falls) > 0 else None
    return RelativeErrors(float(np.mean(list(ce.values()))), rmce, ce)


def _shape(accuracies: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{kind} x {len(values)}" for kind, values in accuracies.items())


def robustness(
    encoder: Encoder,
    train: Features,
    test: Features,
    test_set: PointDataset,
    *,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    files: Path | str | None = None,
    C: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
    kept: Kept | None = None,
) -> RobustnessResult:
    """Train a linear SVM on clean training features, and evaluate it on corrupted test clouds.

    Clouds are sampled and normalised as for the clean features and corrupted after that, each with draws that are a
    function of the seed, the corruption, the severity and the item, so that every encoder sees the same clouds. Points
    keep their colours, for encoders that read them. The effect of losing colours is reported separately.

    Args:
        encoder: what made the features.
        train: features of the training split.
        test: features of the clean test split.
        test_set: the clouds behind ``test``.
        corruptions: of :data:`pc3d.data.CORRUPTIONS`; None takes all of them, ``"drop_color"`` only if the encoder
            reads colours and all clouds have them.
        severities: from 1 to 5.
        files: the folder of ModelNet-C: corrupted clouds are read from its files, as stored, instead of being made.
            ``test_set`` must be its clean file (:class:`pc3d.data.ModelNetC`). ``corruptions`` None then takes its
            seven.
        C: of the SVM; None chooses it from the usual grid by cross-validation on the clean training features.
        batch_size: clouds per call of ``encode``.
        seed: of the corruptions and the folds.
        progress: show a progress bar on standard error, a step for each corruption and severity.
        kept: gives back what was encoded before an interruption, see :func:`extract_features`.

    Raises:
        ValueError: nothing to judge, an unknown corruption or severity, ``"drop_color"`` without colours or alone, a
            ``C`` that is not positive, or splits and data set that do not match.
    """
    fields = data_fields(train, test)
    if (corruptions is not None and not corruptions) or not severities:
        raise ValueError("corruptions and severities must each name at least one")
    check_corruptions(corruptions or (), severities)
    if C is not None and not C > 0:
        raise ValueError(f"C must be positive, got {C}")
    if len(test_set) != len(test) or test_set.labels.tolist() != test.labels.tolist():
        raise ValueError("test_set must be the data set that the test features were made of")
    if files is not None and test.num_points not in (None, stored := len(test_set.load(0))):
        raise ValueError(
            f"num_points: clouds of files are judged as stored, so those of the clean one must have all their {stored} "
            f"points, got {test.num_points}"
        )
    colored = files is None and _colored(encoder, test_set, test)
    chosen = _chosen(MODELNET_C if corruptions is None and files is not None else corruptions, colored)
    levels = [(kind, severity) for kind in chosen for severity in severities]
    (x, y), (x_test, y_test) = train.labelled(), test.labelled()
    kind, _ = svm_form("svc_linear", seed)
    value, selection = (
        cross_validated(kind, x, y, C_GRID, False, seed, train.labelled_groups(), progress=progress)
        if C is None
        else (C, f"C = {C:g} fixed beforehand")
    )
    model = kind.build(value, False).fit(x, y)
    found: dict[str, list[float]] = {name: [] for name in chosen}
    seen = hashlib.sha256()
    for name, severity in track(levels, "judge", "corrupted test sets", visible=progress):
        clouds: PointDataset
        if files is None:
            clouds = _Corrupted(test_set, test, Corrupt(cast(Corruption, name), severity), seed)
        else:
            clouds = _read(files, name, severity, test)
        corrupted = extract_features(
            encoder, clouds, num_points=None, pooling=test.pooling, batch_size=batch_size, kept=kept
        )
        seen.update(corrupted.content_hash.encode())
        found[name].append(float(model.score(corrupted.values, y_test)))
    predicted = model.predict(x_test)
    judged = {name: tuple(values) for name, values in found.items()}
    return RobustnessResult(
        **fields,
        C=float(value),
        tuned=C is None,
        selection=selection,
        severities=tuple(severities),
        clean=float((predicted == y_test).mean()),
        only_class=_only_class(predicted, y_test, train.classes),
        without_color=judged.pop(_COLOR, None),
        accuracies=judged,
        clouds="" if files is None else f"{folder_name(files)} [{seen.hexdigest()[:16]}]",
        reads_rgb=colored,
        seed=seed,
    )


def check_corruptions(corruptions: Sequence[str], severities: Sequence[int]) -> None:
    """Refuses names and levels that there are not.

    Raises:
        ValueError: naming one of them, and those that there are.
    """
    for kind in corruptions:
        if kind not in CORRUPTIONS:
            raise ValueError(f"corruptions must be among {', '.join(CORRUPTIONS)}, got {kind!r}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise ValueError(f"severities must be among {', '.join(map(str, SEVERITIES))}, got {severity!r}")


def _chosen(corruptions: Sequence[str] | None, colored: bool) -> tuple[str, ...]:
    """The corruptions to judge under: those that are named, or all that make a difference."""
    if corruptions is None:
        return (*_SHAPE, _COLOR) if colored else _SHAPE
    if _COLOR in corruptions and not colored:
        raise ValueError(
            f"corruptions: {_COLOR} makes no difference here: the encoder reads no colours, or not all clouds of the "
            "test split have some; leave it out"
        )
    if set(corruptions) == {_COLOR}:
        raise ValueError(f"corruptions: {_COLOR} stands beside corruptions of the shape: name at least one of those")
    return tuple(corruptions)


def _only_class(predicted: Labels, truth: Labels, classes: Sequence[str]) -> str | None:
    said = np.unique(predicted)
    if said.size > 1 or np.unique(truth).size < 2:
        return None
    return classes[said[0]] if said[0] < len(classes) else str(said[0])


def _colored(encoder: Encoder, dataset: PointDataset, features: Features) -> bool:
    """Whether the encoder reads colours and all labelled clouds have some."""
    if not getattr(encoder, "reads_rgb", False):
        return False
    return all(dataset.load(int(row)).rgb is not None for row in np.flatnonzero(features.labels >= 0))


def _read(files: Path | str, kind: str, severity: int, test: Features) -> PointDataset:
    """A file of ModelNet-C, which must be of the objects of the clean one."""
    clouds = ModelNetC(files, kind, severity, classes=test.classes)
    if clouds.labels.tolist() != test.labels.tolist():
        raise ValueError(f"files: the labels of {clouds.path} are not those of the clean clouds")
    return clouds


class _Corrupted(PointDataset):
    """The labelled clouds of a test split, prepared as for its features, then corrupted."""

    def __init__(self, dataset: PointDataset, features: Features, transform: Corrupt, seed: int) -> None:
        self.dataset, self.corrupt, self.seed = dataset, transform, seed
        self.rows = np.flatnonzero(features.labels >= 0)
        self.labels = dataset.labels[torch.from_numpy(self.rows)]
        self.prepare = preparation(features.num_points, features.sampling, features.normalize)
        self.draw = CORRUPTIONS.index(transform.kind) * len(SEVERITIES) + transform.severity

    def load(self, index: int) -> PointCloud:
        row = int(self.rows[index])
        generator = sample_generator(self.seed, self.draw, row)
        return self.corrupt(self.prepare(self.dataset.load(row), generator), generator)
