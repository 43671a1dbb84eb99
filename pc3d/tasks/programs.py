"""Trained models as programs of PyTorch (``torch.export``), which run without the code that built them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pc3d._files import replace_atomically
from pc3d._version import __version__
from pc3d.data.transforms import Normalize
from pc3d.data.types import PointBatch
from pc3d.models import (
    BlockFeatures,
    PointPartSegmenter,
    PointTransformerV3,
    UpcastFeatures,
    is_aligned,
    load_encoder,
    points_meant_for,
    reads_scenes,
)
from pc3d.models.point_features import scene_describer
from pc3d.ops import farthest_point_sample
from pc3d.ops._library import SCHEMAS, kernel_file
from pc3d.tasks.model_folder import CONFIG
from pc3d.tasks.segmenter import fields_read, load_segmenter
from pc3d.tasks.trained_objects import load_classifier, load_part_segmenter, stored_preparation


class Program(NamedTuple):
    """A model that was traced.

    Attributes:
        exported: takes the inputs in their order; saved by ``torch.export.save``.
        inputs: what it takes, in words, by name.
        output: what it returns, in words.
        classes: the names of the columns that it returns, if they have names.
        num_points: points of a cloud that the model was trained with, if it says so.
    """

    exported: ExportedProgram
    inputs: dict[str, str]
    output: str
    classes: tuple[str, ...] = ()
    num_points: int | None = None


def export_program(source: str | os.PathLike[str], *, normalize: Sequence[Normalize] | None = None) -> Program:
    """Trace a trained model, on the CPU, for inputs of any size.

    The program prepares its input as the commands of pc3d prepare files, and returns the numbers that they use:
    features of an encoder (``pc3d embed``), logits of a classifier, part segmenter or segmenter of scenes (``predict``;
    scenes in one pass, undivided). It consists of operators of PyTorch and of :mod:`pc3d.ops`.

    Args:
        source: run folder of any training command, or folder or Hub id of an exported encoder.
        normalize: how the program centres and scales an object, step by step. By default as commands prepare files: by
            the middle of the bounding box (for encoders aligned with texts and pictures by the mean of the points),
            and for the classifier or part segmenter of a run then by each ``Normalize`` of its test objects. Whatever
            else a run does to them is left to the caller.

    Raises:
        FileNotFoundError: there is no such model, or its training has not finished.
        ValueError: a model whose steps depend on the points: :class:`pc3d.models.BlockFeatures`,
            :class:`pc3d.models.PointTransformerV3`.
    """
    task = _task(Path(source))
    steps = (Normalize("box"), *_own_normalize(Path(source))) if normalize is None else tuple(normalize)
    if task == "classification":
        classifier, config = load_classifier(source)
        network = _Objects(classifier, steps)
        return _of_objects(network, classifier.encoder, "logits (B, K) of the classes", tuple(config["classes"]))
    if task == "part segmentation":
        segmenter, config = load_part_segmenter(source)
        return _of_parts(_Parts(segmenter, steps), config)
    if task is not None:
        scenes = load_segmenter(source)
        return _of_scenes(scenes, scenes.backbone, f"logits (N, {len(scenes.classes)}) of the classes", scenes.classes)
    encoder = load_encoder(source).eval()
    if reads_scenes(encoder):
        described = scene_describer(encoder)
        return _of_scenes(described, described, f"features (N, {described.feature_dim}) of the points")
    if normalize is None and is_aligned(encoder):
        steps = (Normalize("centroid"),)
    colored = bool(getattr(encoder, "reads_rgb", False))
    return _of_objects(_Objects(_Encode(encoder), steps), encoder, "features (B, C) of the clouds", colored=colored)


def save_program(program: Program, folder: str | os.PathLike[str], *, compiled: bool = False) -> Path:
    """Write a program, and what has to be known to call it.

    Args:
        program: from :func:`export_program`.
        folder: receives ``model.pt2`` and ``model.json``; created if need be.
        compiled: compile the program for the processor of this machine, by AOTInductor with a C++ compiler, in minutes.
            Such a ``model.pt2`` runs without Python; for C++, the folder also receives ``pc3d_operators.h``, which
            declares pc3d's operators, and ``libpc3d_operators.so`` with their kernels.

    Returns:
        The file of the program.

    Raises:
        RuntimeError: ``compiled``, where pc3d's kernels are not.
    """
    folder = Path(folder)
    path, kernels = folder / "model.pt2", kernel_file()
    if compiled and kernels is None:
        raise RuntimeError("pc3d's kernels are not compiled here, and a compiled program needs them: see pc3d doctor")
    if compiled and kernels is not None:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / ".model.pt2"  # the compiler insists on the ending
        torch._inductor.aoti_compile_and_package(program.exported, package_path=str(unfinished))
        os.replace(unfinished, path)
        shutil.copy(kernels, folder / "libpc3d_operators.so")
        _write(folder / "pc3d_operators.h", _header())
    else:
        with replace_atomically(path) as file:
            torch.export.save(program.exported, file)
    told = {
        "format": "AOTInductor" if compiled else "torch.export",
        "inputs": program.inputs,
        "output": program.output,
        "classes": list(program.classes),
        "num_points": program.num_points,
        "pc3d_version": __version__,
        "torch_version": str(torch.__version__),
    }
    _write(folder / "model.json", json.dumps(told, indent=2) + "\n")
    return path


def _write(path: Path, text: str) -> None:
    with replace_atomically(path) as file:
        file.write(text.encode())


def _header() -> str:
    """C++ that declares the operators, as Python does when it imports :mod:`pc3d.ops`."""
    lines = [f'  m.def("{schema}");' for schema in SCHEMAS]
    return "\n".join(
        [
            f"// The operators of pc3d {__version__}, for programs without Python. Include this in one source file.",
            "#pragma once",
            "",
            "#include <torch/library.h>",
            "",
            "TORCH_LIBRARY(pc3d, m) {",
            *lines,
            "}",
            "",
        ]
    )


def _task(folder: Path) -> str | None:
    """What the model in a run folder is for; None if it is an encoder only."""
    path = folder / "head" / CONFIG
    if not path.is_file():
        return None
    return str(json.loads(path.read_text()).get("task", "scenes"))


def _own_normalize(run: Path) -> list[Normalize]:
    """How a run normalises the objects that it is tested on; nothing for a model without a run or a head."""
    if not (run / "config.yaml").is_file() or _task(run) not in ("classification", "part segmentation"):
        return []
    return [step for step in stored_preparation(run).transforms if isinstance(step, Normalize)]


def _of_objects(
    network: _Objects, encoder: nn.Module, output: str, classes: tuple[str, ...] = (), *, colored: bool = False
) -> Program:
    """Trace a network of clouds, which takes their colours, too, if it is ``colored``."""
    usual = points_meant_for(encoder)
    inputs = {"xyz": "(B, N, 3) float32, clouds with the axes of the training data, in any unit and place"}
    if colored:
        inputs["rgb"] = "(B, N, 3) float32 in [0, 1]"
    example = tuple(torch.rand(2, usual or 1024, 3) for _ in inputs)
    exported = _traced(network, encoder, example, [(0, 1) for _ in inputs])
    return Program(exported, inputs, output, classes, usual)


def _of_parts(network: _Parts, config: dict[str, Any]) -> Program:
    """Trace a segmenter of objects."""
    example = torch.rand(network.num_points + 100, 3), torch.zeros(1, dtype=torch.int64)
    exported = _traced(network, network.segmenter.encoder, example, [(0,), ()])
    categories = ", ".join(f"{number} {name}" for number, name in enumerate(config["categories"]))
    inputs = {
        "xyz": f"(N, 3) float32, one object of at least {network.num_points} points",
        "category": f"(1,) int64: {categories}",
    }
    parts = tuple(config["parts"])
    return Program(exported, inputs, f"log-probabilities (N, {len(parts)}) of the parts", parts, network.num_points)


def _of_scenes(network: nn.Module, backbone: Any, output: str, classes: tuple[str, ...] = ()) -> Program:
    """Trace a network of scenes."""
    fields = fields_read(backbone)
    words = {"rgb": "(N, 3) float32 in [0, 1]", "normal": "(N, 3) float32, of unit length"}
    inputs = {"xyz": "(N, 3) float32 metres, z up"} | {name: words[name] for name in fields}
    # Random points of a room: a few hundred voxels at every level.
    example = tuple(4.0 * torch.rand(4000, 3) if name == "xyz" else torch.rand(4000, 3) for name in inputs)
    exported = _traced(_Scene(network, fields), backbone, example, [(0,) for _ in inputs])
    return Program(exported, inputs, output, classes)


def _traced(
    network: nn.Module, encoder: nn.Module, example: tuple[Tensor, ...], varying: Sequence[Sequence[int]]
) -> ExportedProgram:
    """Trace a network, for inputs of any size along the dimensions that vary of each."""
    whole = encoder.encoder if isinstance(encoder, UpcastFeatures) else encoder
    if isinstance(whole, BlockFeatures | PointTransformerV3):
        raise ValueError(
            f"a {type(whole).__name__} cannot be traced: its steps depend on the points of the scene (a "
            "BlockFeatures goes block by block, a PointTransformerV3 along curves). Train a SparseUNet or a Swin3D"
        )
    first, *others = [dict.fromkeys(dimensions, Dim.DYNAMIC) for dimensions in varying]
    with torch.no_grad():
        # For PyTorch, inputs after the first are one argument, a tuple.
        sizes = (first, tuple(others)) if others else (first,)
        return torch.export.export(network.eval(), example, dynamic_shapes=sizes)


class _Encode(nn.Module):
    """An encoder's own features of clouds."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, xyz: Tensor, rgb: Tensor | None = None) -> Tensor:
        colors = {} if rgb is None else {"rgb": rgb}
        features: Tensor = self.encoder.encode(xyz, **colors)  # type: ignore[operator]
        return features


class _Objects(nn.Module):
    """A network of prepared clouds, applied to clouds as they are."""

    def __init__(self, network: nn.Module, normalize: Sequence[Normalize]) -> None:
        super().__init__()
        self.network, self.normalize = network, normalize

    def forward(self, xyz: Tensor, *others: Tensor) -> Tensor:
        result: Tensor = self.network(_normalized(xyz, self.normalize), *others)
        return result


class _Parts(nn.Module):
    """Parts of every point of one object, from an even selection of them, as :func:`segment_object` segments it."""

    def __init__(self, segmenter: PointPartSegmenter, normalize: Sequence[Normalize]) -> None:
        super().__init__()
        self.segmenter, self.normalize = segmenter, normalize
        self.num_points = int(segmenter.encoder.config["num_points"])

    def forward(self, xyz: Tensor, *others: Tensor) -> Tensor:
        (category,) = others
        query = _normalized(xyz[None], self.normalize)[0]
        seen = farthest_point_sample(query, self.num_points)
        ends = torch.full((1,), query.shape[0], dtype=torch.int64, device=query.device)
        offsets = torch.cat([torch.zeros_like(ends), ends])
        return self.segmenter.segment(query[seen][None], category, query, offsets)


class _Scene(nn.Module):
    """A network of batches of scenes, applied to the arrays of one."""

    def __init__(self, network: nn.Module, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.fields = network, fields

    def forward(self, xyz: Tensor, *others: Tensor) -> Tensor:
        low, high = xyz.amin(0), xyz.amax(0)
        corner = torch.cat([((low + high) / 2)[:2], low[2:]])
        ends = torch.full((1,), xyz.shape[0], dtype=torch.int64, device=xyz.device)
        offsets = torch.cat([torch.zeros_like(ends), ends])
        fields: dict[str, Any] = dict(zip(self.fields, others, strict=True))
        result: Tensor = self.network(PointBatch(xyz - corner, offsets, **fields))
        return result


def _normalized(xyz: Tensor, steps: Sequence[Normalize]) -> Tensor:
    """Clouds ``(B, N, 3)`` after steps that :mod:`pc3d.data` applies to one cloud at a time."""
    for step in steps:
        xyz = step.centered(xyz)
        if step.scale:
            radius = xyz.norm(dim=2).amax(1)[:, None, None]
            xyz = xyz / torch.where(radius > 0, radius, 1.0)
    return xyz
