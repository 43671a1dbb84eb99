"""The demonstration: what a few minutes of Point-CMAE on the embedded objects bring, against what needs no training."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pc3d._files import replace_atomically, replace_text
from pc3d.data import Household, ObjectSet, PointCloud
from pc3d.evaluation import (
    Encoder,
    PointPCA,
    ProbeResult,
    ShapeDescriptor,
    extract_features,
    linear_svm,
    settle_batch_norm,
)
from pc3d.methods import MaskedAutoencoder
from pc3d.models import PointViT, load_encoder

TRAINED = "Point-CMAE"
UNTRAINED = "untrained encoder"
SETTLED = "untrained encoder, batch norm settled"
DESCRIPTOR = "handcrafted shape descriptor"
PCA = "PCA of raw points"
# Shown in the picture: objects of the test split, chosen for having parts that a mask can hide.
_SHOWN = ("chair", "sofa", "table", "plant", "vehicle", "lamp")


def baselines(architecture: Mapping[str, Any], train: ObjectSet, *, num_points: int, seed: int) -> dict[str, Encoder]:
    """What a trained encoder is compared with, by name.

    An untrained encoder normalises its patches by the initial statistics of its batch norm (mean 0, variance 1), which
    no real patch has, so part of what training seems to bring is only that these numbers get set. The row
    "batch norm settled" sets them by one pass over the training objects and leaves all weights as drawn.

    Args:
        architecture: arguments of :class:`pc3d.models.PointViT`.
        train: the training split, of which no label is used.
        num_points: points per cloud.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    untrained = PointViT(**architecture).eval()
    torch.manual_seed(seed)
    settled = settle_batch_norm(PointViT(**architecture), train, num_points=num_points).eval()
    found = {
        PCA: PointPCA().fit(train, num_points=num_points),
        DESCRIPTOR: ShapeDescriptor(seed),
        UNTRAINED: untrained,
        SETTLED: settled,
    }
    return cast("dict[str, Encoder]", found)


def compare(
    encoders: Mapping[str, Encoder],
    train: ObjectSet,
    test: ObjectSet,
    *,
    num_points: int,
    data: str,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, ProbeResult]:
    """The linear probe of each encoder: SVM with C by cross-validation on the training features, pooling max + mean."""
    results = {}
    for name, encoder in encoders.items():
        features = [
            extract_features(
                encoder, dataset, num_points=num_points, progress=progress, data=data, split=split, name=name
            )
            for dataset, split in ((train, "train"), (test, "test"))
        ]
        results[name] = linear_svm(*features, protocol="tuned", seed=seed)
    return results


def evaluate(run: Path, *, seed: int = 0) -> dict[str, ProbeResult]:
    """Compare the encoder of a finished run on the embedded objects, and write ``demo.json`` and ``demo.csv`` there.

    The hash of the encoder is taken before it is probed, so a table never passes for that of a later encoder.

    Args:
        run: a run folder with ``encoder/``.
        seed: of the untrained weights, the folds and the bootstrap.

    Returns:
        Name to result, the trained encoder last.
    """
    encoder_sha256 = _hash_of_encoder(run)
    encoder = load_encoder(run, expect=PointViT)
    num_points = int(encoder.config["num_points"])
    train, test = Household("train"), Household("test")
    encoders = baselines(encoder.config, train, num_points=num_points, seed=seed)
    encoders[TRAINED] = cast("Encoder", encoder)
    results = compare(encoders, train, test, num_points=num_points, data="household", seed=seed, progress=True)
    write_results(results, run, encoder_sha256=encoder_sha256)
    return results


def is_current(run: Path, *, seed: int) -> bool:
    """Whether ``demo.json`` and ``demo.csv`` are there, of the encoder that the run holds now and of this seed."""
    if not (run / "demo.csv").exists():
        return False
    try:
        last = json.loads((run / "demo.json").read_text(encoding="utf-8"))[TRAINED]
        return bool(last["encoder_sha256"] == _hash_of_encoder(run) and last["seed"] == seed)
    except (OSError, ValueError, KeyError, TypeError):  # not there, half written, or of before the hash was kept
        return False


def remove_results(run: Path) -> None:
    """Remove ``demo.json``, ``demo.csv`` and ``demo.png``."""
    for name in ("demo.json", "demo.csv", "demo.png"):
        (run / name).unlink(missing_ok=True)


def _hash_of_encoder(run: Path) -> str:
    return hashlib.sha256((run / "encoder" / "model.safetensors").read_bytes()).hexdigest()


def write_results(results: Mapping[str, ProbeResult], folder: Path, *, encoder_sha256: str | None = None) -> None:
    """``demo.json`` with the whole protocols, ``demo.csv`` with the scores in percent.

    Args:
        results: name to result.
        folder: to write to.
        encoder_sha256: of the trained encoder's file; kept with its result (:func:`is_current`).
    """
    rows = {name: result.to_dict() for name, result in results.items()}
    if encoder_sha256 is not None:
        rows[TRAINED]["encoder_sha256"] = encoder_sha256
    replace_text(folder / "demo.json", json.dumps(rows, indent=2))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["encoder", "overall_accuracy", "low", "high", "mean_class_accuracy", "C"])
    for name, result in results.items():
        s = result.scores
        values = (s.overall_accuracy, *s.overall_interval, s.mean_class_accuracy)
        writer.writerow([name, *(f"{100 * value:.1f}" for value in values), f"{result.parameter[1]:g}"])
    replace_text(folder / "demo.csv", file.getvalue())


def table(folder: Path) -> str:
    """The table of a folder's ``demo.json`` as text, with the protocol below it."""
    results: dict[str, dict[str, Any]] = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    width = max(map(len, results))
    lines = [f"{'linear probe, test split':<{width}}  accuracy   95 % interval    class mean"]
    for name, result in results.items():
        s = result["scores"]
        low, high = s["overall_interval"]
        lines.append(
            f"{name:<{width}}  {100 * s['overall_accuracy']:6.1f} %   {100 * low:4.1f} to {100 * high:4.1f} %   "
            f"{100 * s['mean_class_accuracy']:6.1f} %"
        )
    last = results[TRAINED]
    lines += [
        "",
        f"{last['data']}: {last['num_train']} labelled train and {last['num_test']} test objects, "
        f"{last['num_points']} points each; {last['classifier']} on frozen features, pooling {last['pooling']};",
        "C by cross-validation on the training features; the test split chose nothing.",
    ]
    return "\n".join(lines)


def picture(method: MaskedAutoencoder, path: Path, *, seed: int = 0) -> None:
    """Draw a few test objects: the input, what the encoder saw under a mask, and the reconstruction.

    Args:
        method: trained.
        path: the PNG file to write.
        seed: of the masks.
    """
    from pc3d.viz import reconstruction_figure

    test = Household("test")
    shown = [int((test.labels == test.classes.index(name)).nonzero()[0]) for name in _SHOWN]
    rows = reconstruction_rows(method, [test.load(index) for index in shown], seed=seed)
    hidden = f"{100 * method.mask_ratio:.0f} % of the patches hidden"
    figure = reconstruction_figure(rows, title=f"Point-CMAE on objects that it was not trained on, {hidden}")
    with replace_atomically(path) as file:
        figure.savefig(file, format="png")


def reconstruction_rows(method: Any, clouds: Sequence[PointCloud], *, seed: int = 0) -> list[Any]:
    """What a method makes of clouds under a mask, ready for :func:`pc3d.viz.reconstruction_figure`.

    Args:
        method: trained; a :class:`MaskedAutoencoder`, or another with ``encoder`` and ``reconstruct``.
        clouds: of at least as many points as the encoder takes, which are the first ones; titled by their texts.
        seed: of the masks.

    Raises:
        ValueError: a cloud has too few points.
    """
    from pc3d.viz import ReconstructionRow

    num_points = int(method.encoder.config.get("num_points", 1024))
    short = next((cloud for cloud in clouds if len(cloud) < num_points), None)
    if short is not None:
        raise ValueError(
            f"clouds must have at least the encoder's {num_points} points, {short.text!r} has {len(short)}"
        )
    seen = torch.stack([cloud.xyz[:num_points] for cloud in clouds])
    with torch.no_grad():
        made = method.reconstruct(seen, generator=torch.Generator().manual_seed(seed))
    rows = []
    for cloud, patches, mask, predicted in zip(clouds, made.patches, made.mask, made.predicted, strict=True):
        visible = np.unique(patches[~mask].reshape(-1, 3).numpy(), axis=0)  # patches overlap: draw each point once
        rgb = None if cloud.rgb is None else cloud.rgb.numpy()
        hidden = predicted.reshape(-1, 3).numpy()
        rows.append(ReconstructionRow(cloud.text or "", cloud.xyz.numpy(), visible, hidden, rgb))
    return rows
