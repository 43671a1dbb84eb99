"""Inference on whole scenes, block by block: fragments, and voting over views."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pc3d._progress import progress_bar, track
from pc3d.data.dataset import PointDataset
from pc3d.data.normals import NORMAL_NEIGHBORS, estimate_normals
from pc3d.data.scene_transforms import CenterShift
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud, collate
from pc3d.data.voting import AugmentationSet, fragments, voting_views
from pc3d.evaluation import ConfusionMatrix, Kept
from pc3d.evaluation.kept import identity_of
from pc3d.ops import voxelize
from pc3d.tasks.blocks import scene_blocks
from pc3d.tasks.segmenter import SceneSegmenter

_GREY = 0.5


class SceneLabels(NamedTuple):
    """The predictions of a model for a scene.

    Attributes:
        label: ``(N,)`` int64, the class of each point.
        confidence: ``(N,)`` float32, the mean probability of that class over all votes on the point.
        notes: remarks for users of the labels, such as blocks with less context than requested.
    """

    label: Tensor
    confidence: Tensor
    notes: tuple[str, ...] = ()


@torch.no_grad()
def segment_scene(
    segmenter: SceneSegmenter,
    cloud: PointCloud,
    *,
    voting: AugmentationSet = "none",
    use_fragments: bool = True,
    max_points: int = 400_000,
    context: float = 2.0,
    device: torch.device | str = "cpu",
    probabilities: Tensor | None = None,
    progress: bool = False,
) -> SceneLabels:
    """Label every point of a scene of any size.

    The published protocol (Pointcept): for every view of the set, fragments of one point per voxel, one forward pass
    each; probabilities are summed per point, and the largest sum decides. The scene is centred once, not each fragment,
    so that its voxels are the same in all blocks.

    With ``voting="swin3d"``, logits are summed instead of probabilities, each vote divided by its L1 norm, and voxels
    are counted from the lowest corner of the turned scene in each view, as in the released code of Swin3D. That code
    has one pass per view, which is ``use_fragments=False`` here. Confidences and
    ``probabilities`` are still mean probabilities, and the predicted class need not be the most probable one.

    Memory: the network gets one point of each voxel, and at most ``max_points`` of them in a forward pass (views rotate
    and scale the grid, which may add a few). Class sums exist for the points that one block predicts: at most ``16
    max_points * K`` floats, twice as many with ``voting="swin3d"``. Besides the scene itself, the peak memory grows by
    about 100 bytes per point without voxels, and by 60 (ten points per voxel) to 130 (one point per voxel) with voxels.

    Blocks: each point is predicted in one block, with at least ``context`` metres around it, unless more than
    ``max_points / 2`` voxels lie there; then a note states the actual distance. If the network looks no farther than
    that, the labels are those of the scene as a whole. If it does (the deepest windows of Swin3D span 3.4 m), points
    near the borders of blocks may differ. The number of fragments of a block is the number of points in its own fullest
    voxel, not in that of the scene.

    Args:
        segmenter: the model; moved to ``device`` and used in evaluation mode; its mode is restored.
        cloud: the scene, in metres, with the fields that the model reads (:func:`with_fields`).
        voting: the views, see :func:`pc3d.data.voting_views`: ``"none"``, ``"scannet"``, ``"s3dis"``,
            ``"structured3d"`` or ``"swin3d"``.
        use_fragments: predict each point separately. False runs one pass in which the points of a voxel share a
            prediction, many times faster on dense scans.
        max_points: see above; points, not voxels, for a network without voxels.
        context: see above.
        device: where to compute.
        probabilities: ``(N, K)`` float tensor, on the CPU and perhaps memory-mapped, to be filled with mean
            probabilities.
        progress: show a bar where there is a terminal.

    Raises:
        ValueError: the scene lacks a field or has one that is not finite, ``probabilities`` has another shape, or a
            bound is out of range.
    """
    _check_fields(segmenter, cloud)
    shape = (len(cloud), len(segmenter.classes))
    if probabilities is not None and tuple(probabilities.shape) != shape:
        raise ValueError(f"probabilities must have shape {shape}, got {tuple(probabilities.shape)}")
    views, size = voting_views(voting), segmenter.voxel_size
    finest = None if size is None else size / max(map(_scale_of, views))
    label = torch.full((len(cloud),), -1)
    confidence = torch.zeros(len(cloud))
    kept = {name: getattr(cloud, name) for name in segmenter.fields}
    centred = PointCloud(cloud.xyz, **kept)
    if len(cloud):
        centred = CenterShift()(centred, torch.Generator())
    if voting == "swin3d" and len(cloud):
        views = [_Cornered(view, centred) for view in views]
    blocks = scene_blocks(centred.xyz, max_points, context, voxel_size=finest)
    contexts = []
    segmenter.to(device)
    with progress_bar(len(cloud), "segment", "points", visible=progress) as advance, _evaluating(segmenter):
        for block in blocks:
            part, by_logits = centred.select(block.rows), voting == "swin3d"
            total = _votes(segmenter, part, block.is_core, views, use_fragments, by_logits, device)
            sums, deciding = total[:, : shape[1]], total[:, -shape[1] :]  # the same but for by_logits
            mean = sums / sums.sum(1, keepdim=True)
            rows, named = block.rows[block.is_core], deciding.argmax(1)
            label[rows], confidence[rows] = named, mean.gather(1, named[:, None]).squeeze(1)
            if probabilities is not None:
                probabilities[rows] = mean.to(probabilities.dtype)
            contexts.append(block.context)
            advance(len(rows))
    return SceneLabels(label, confidence, _notes(contexts, context, max_points))


def _check_fields(segmenter: SceneSegmenter, cloud: PointCloud) -> None:
    """Refuse a scene that lacks what the model reads, or has something else there than numbers."""
    missing = [name for name in segmenter.fields if getattr(cloud, name) is None]
    if missing:
        raise ValueError(
            f"the model reads {' and '.join(missing)}, which the scene does not have: store them with it, as "
            "data_tools/prepare_scenes.py does, or add some with pc3d.tasks.with_fields, as pc3d segment predict does"
        )
    for name in ("xyz", *segmenter.fields):
        wrong = ~getattr(cloud, name).isfinite().all(dim=1)
        if wrong.any():
            raise ValueError(
                f"{name} is not finite at {int(wrong.sum()):,} of {len(cloud):,} points, first in row "
                f"{int(wrong.nonzero()[0])}, and would spoil all points that the model sees with them: leave them out "
                f"with cloud.select(cloud.{name}.isfinite().all(1))"
            )


class _Cornered(Transform):
    """A view of the blocks of a scene in which the lowest corner of the scene, seen so, lies at the origin."""

    def __init__(self, view: Transform, scene: PointCloud) -> None:
        self.view = view
        self.corner = view(PointCloud(scene.xyz), torch.Generator()).xyz.amin(dim=0)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        seen = self.view(cloud, generator)
        return seen.replace(xyz=seen.xyz - self.corner)


@contextmanager
def _evaluating(segmenter: SceneSegmenter) -> Iterator[None]:
    was_training = segmenter.training
    segmenter.eval()
    try:
        yield
    finally:
        segmenter.train(was_training)


def _scale_of(view: Transform) -> float:
    """How many times larger a view is than the scene."""
    return float(view(PointCloud(torch.eye(3)[:1]), torch.Generator()).xyz.norm())


def _notes(contexts: list[float], asked: float, max_points: int) -> tuple[str, ...]:
    cut = [reached for reached in contexts if reached < asked - 1e-6]
    if not cut:
        return ()
    return (
        f"{len(cut)} of {len(contexts)} blocks see less than {asked:g} m around them, the narrowest {min(cut):.2f} m: "
        f"more does not fit into max_points {max_points:,}; raise it as far as memory allows, or lower context",
    )


def _votes(
    segmenter: SceneSegmenter,
    cloud: PointCloud,
    is_core: Tensor,
    views: list[Transform],
    use_fragments: bool,
    by_logits: bool,
    device: torch.device | str,
) -> Tensor:
    """Sums of probabilities ``(M, K)`` of the core points of a block, over views and fragments.

    With ``by_logits``, those of logits of unit L1 norm are ``K`` columns more.
    """
    total = torch.zeros(int(is_core.sum()), len(segmenter.classes) * (2 if by_logits else 1))
    place = is_core.cumsum(0) - 1
    size = segmenter.voxel_size

    def votes(seen: PointCloud) -> Tensor:
        logits: Tensor = segmenter(collate([seen]).to(device)).float()
        found = logits.softmax(1)
        return (torch.cat([found, normalize(logits, p=1.0, dim=1)], dim=1) if by_logits else found).cpu()

    for view in views:
        seen = view(cloud, torch.Generator())
        if size is None:
            total += votes(seen)[is_core]
        elif not use_fragments:
            # The first point of a voxel is the one that the network would take by itself, in evaluation mode.
            voxels = voxelize(seen.xyz, size)
            total += votes(seen.select(voxels.first))[voxels.inverse[is_core]]
        else:
            for piece in fragments(seen, size):
                core = is_core[piece]
                if core.any():
                    total[place[piece[core]]] += votes(seen.select(piece))[core]
    return total


def evaluate_scenes(
    segmenter: SceneSegmenter,
    dataset: PointDataset,
    *,
    progress: bool = False,
    kept: Kept | None = None,
    **options: Any,
) -> ConfusionMatrix:
    """Compute the confusion matrix of a model over all labelled points of a data set.

    Args:
        segmenter: the model.
        dataset: scenes with ``segment``, whose classes are the model's.
        progress: show a bar where there is a terminal.
        kept: returns the labels, and notes, of scenes that were labelled before an interruption.
        **options: of :func:`segment_scene`.

    Raises:
        ValueError: the classes differ, or a scene has no labels.
    """
    if tuple(dataset.classes) != segmenter.classes:
        raise ValueError(
            f"the model knows the classes {', '.join(segmenter.classes)}, the data set has "
            f"{', '.join(dataset.classes) or 'none'}: judge it on a data set with the classes it was trained on"
        )
    matrix = ConfusionMatrix(len(segmenter.classes))
    made_by = [] if kept is None else [identity_of(segmenter), repr(sorted(options.items()))]
    for index in track(range(len(dataset)), "judge", "scenes", visible=progress):
        cloud = dataset[index]
        if cloud.segment is None:
            raise ValueError(f"scene {cloud.meta.get('id', index)} has no labels to judge by: take another split")
        # Once a scene, whether one of its two arrays is asked for or both.
        name = cache(partial(segment_scene, segmenter, cloud, **options))
        seen = seen_by(segmenter, cloud)
        label, notes = (
            array() if kept is None else kept.of([*made_by, kind, *seen], array)
            for kind, array in (("label", partial(_label, name)), ("notes", partial(_noted, name)))
        )
        for note in notes:
            warnings.warn(f"scene {cloud.meta.get('id', index)}: {note}", stacklevel=2)
        matrix.update(torch.from_numpy(label), cloud.segment, scene=cloud.meta.get("id"))
    return matrix


def seen_by(segmenter: SceneSegmenter, cloud: PointCloud) -> list[Tensor]:
    """What a model reads of a scene. Without one of these fields there is nothing to name."""
    return [value for field in ("xyz", *segmenter.fields) if (value := getattr(cloud, field)) is not None]


def _label(name: Callable[[], SceneLabels]) -> NDArray[Any]:
    label: NDArray[np.int64] = name().label.cpu().numpy()
    return label


def _noted(name: Callable[[], SceneLabels]) -> NDArray[Any]:
    return np.array(name().notes, dtype=np.str_)


def with_fields(cloud: PointCloud, fields: tuple[str, ...]) -> tuple[PointCloud, list[str]]:
    """Add the missing fields that a model reads to a scene; returns it with a note for each field added.

    Missing colours become mid-grey. Missing normals are those of the plane through the 16 nearest points, oriented
    towards the middle of the scene, from where most surfaces of a room are seen.

    Args:
        cloud: the scene.
        fields: what the model reads, :attr:`SceneSegmenter.fields`.
    """
    notes = []
    if "rgb" in fields and cloud.rgb is None:
        cloud = cloud.replace(rgb=torch.full_like(cloud.xyz, _GREY))
        notes.append("no colours: the model was trained with them and sees mid-grey")
    if "normal" in fields and cloud.normal is None:
        cloud = cloud.replace(normal=estimate_normals(cloud.xyz))
        notes.append(f"no normals: estimated from the {NORMAL_NEIGHBORS} nearest points of each")
    return cloud, notes
