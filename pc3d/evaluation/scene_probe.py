"""A linear probe of scenes: a linear classifier on frozen features of points."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pc3d._progress import progress_bar, track
from pc3d.data.dataset import PointDataset, check_same_classes
from pc3d.data.transforms import Transform
from pc3d.data.types import PointBatch, PointCloud, collate
from pc3d.evaluation.segmentation import ConfusionMatrix, SegmentationScores
from pc3d.nn import GlobalBatchNorm

_UNLABELLED = -1


def scene_linear_probe(
    backbone: nn.Module,
    train: PointDataset,
    test: PointDataset,
    *,
    points_per_scene: int = 4000,
    weight_decay: float = 1e-4,
    max_iterations: int = 100,
    settle: bool = True,
    seed: int = 0,
) -> SegmentationScores:
    """Fit a linear classifier to features of some labelled points of each training scene, and score all test points.

    Features are standardised by the mean and variance of the training points. The classifier is fitted by L-BFGS to
    cross-entropy with an L2 penalty, which is convex: there is no learning rate to choose. Scenes are seen whole, in
    evaluation mode, without augmentation.

    Args:
        backbone: has ``point_features(batch)``; for an encoder without decoder
            :class:`pc3d.models.voxel_features.UpcastFeatures`. Scenes go to its device, and the classifier is fitted on
            the CPU. Its weights and its mode are preserved.
        train: labelled scenes.
        test: scenes to evaluate; their classes are those of ``train``.
        points_per_scene: labelled points drawn from each training scene; all if there are fewer.
        weight_decay: factor of half the squared weights.
        max_iterations: of L-BFGS.
        settle: first set the running statistics of batch norms with one pass over the training scenes, see
            :func:`settle_on_scenes`.
        seed: of the points drawn.

    Raises:
        ValueError: no labelled point in the training scenes, or sets of different classes.
    """
    check_same_classes({"train": train.classes, "test": test.classes})
    if settle:
        settle_on_scenes(backbone, train)
    was_training = backbone.training
    backbone.eval()
    try:
        features, label = _some_points(backbone, train, points_per_scene, seed)
        mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
        weight, bias = _fit((features - mean) / scale, label, len(train.classes), weight_decay, max_iterations)
        matrix = ConfusionMatrix(len(test.classes))
        for found, true in _features(backbone, test):
            matrix.update((((found - mean) / scale) @ weight + bias).argmax(1), true)
    finally:
        backbone.train(was_training)
    return matrix.scores(test.classes)


def fit_linear_head(
    backbone: nn.Module,
    scenes: PointDataset,
    *,
    transform: Transform | None = None,
    points_per_scene: int = 4000,
    max_points: int = 1_000_000,
    weight_decay: float = 1e-4,
    max_iterations: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Fit the classifier of :func:`scene_linear_probe`, as weights of a linear layer on unscaled features.

    It serves to start fine-tuning with the head of a linear probe (linear probing, then fine-tuning; Kumar et al., ICLR
    2022, section 3.3). Batch norms are settled first (:func:`settle_on_scenes`).

    Args:
        backbone: as for the probe; its weights and its mode are preserved.
        scenes: labelled ones, all labels or some.
        transform: applied to each scene, which is seen whole.
        points_per_scene: labelled points drawn from each scene.
        max_points: largest number of points in all: with many scenes, fewer points are drawn from each. Features are
            float32 on the CPU and are held twice: a million of 240 channels take 2 GB.
        weight_decay: factor of half the squared weights, those on standardised features.
        max_iterations: of L-BFGS.
        seed: of the points drawn, and of ``transform``.
        progress: show bars on standard error: over the scenes, once for their statistics if there are batch norms and
            once for their features, and over the evaluations of L-BFGS.

    Returns:
        ``(K, C)`` and ``(K,)``, on the CPU.

    Raises:
        ValueError: no labelled point in the scenes, or fewer points in all than scenes.
    """
    if max_points < len(scenes):
        raise ValueError(f"max_points must be at least 1 for each of the {len(scenes)} scenes, got {max_points}")
    number = min(points_per_scene, max_points // max(1, len(scenes)))
    seen = _Seen(scenes, transform, seed)
    settle_on_scenes(backbone, seen, progress=progress)
    was_training = backbone.training
    backbone.eval()
    try:
        features, label = _some_points(backbone, seen, number, seed, progress)
    finally:
        backbone.train(was_training)
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    features.sub_(mean).div_(scale)
    weight, bias = _fit(features, label, len(scenes.classes), weight_decay, max_iterations, progress)
    weight = (weight / scale[:, None]).T
    return weight, bias - weight @ mean


class _Seen(PointDataset):
    """Scenes through a transform, the same in every pass."""

    def __init__(self, scenes: PointDataset, transform: Transform | None, seed: int) -> None:
        self.scenes, self.change, self.seed = scenes, transform, seed
        self.classes, self.labels = scenes.classes, scenes.labels

    def load(self, index: int) -> PointCloud:
        generator = torch.Generator().manual_seed(self.seed + index)
        scene = self.scenes.sample(index, generator)
        return scene if self.change is None else self.change(scene, generator)


@torch.no_grad()
def settle_on_scenes(backbone: nn.Module, scenes: PointDataset, *, progress: bool = False) -> None:
    """Set the running statistics of batch norms to the mean over whole scenes; no weight changes.

    An untrained encoder has statistics that no scene has, and one pre-trained on masked scenes those of masked scenes.

    Args:
        backbone: has ``point_features(batch)``; changed in place; its mode is preserved. Without batch norm, nothing is
            done.
        scenes: their labels are not used.
        progress: show a bar on standard error.
    """
    norms = [module for module in backbone.modules() if isinstance(module, GlobalBatchNorm)]
    if not norms:
        return
    was_training, momenta = backbone.training, [norm.momentum for norm in norms]
    backbone.eval()  # all but the norms, so that nothing is random
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all scenes
    try:
        for index in track(range(len(scenes)), "statistics of batch norms", "scenes", visible=progress):
            _encode(backbone, collate([scenes[index]]))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        backbone.train(was_training)


def _device(backbone: nn.Module) -> torch.device:
    tensors = (*backbone.parameters(), *backbone.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _encode(backbone: nn.Module, batch: PointBatch) -> Tensor:
    """Features on the CPU, where they are kept and judged, of a backbone anywhere."""
    batch = batch.to(_device(backbone))
    features: Tensor = backbone.point_features(batch)  # type: ignore[operator]  # nn.Module's attributes have no types
    return features.float().cpu()


@torch.no_grad()
def _features(backbone: nn.Module, scenes: PointDataset, progress: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    for index in track(range(len(scenes)), "features of points", "scenes", visible=progress):
        batch = collate([scenes[index]])
        if batch.segment is None:
            raise ValueError(f"scene {index} has no segment, the classes of its points: take a data set with labels")
        yield _encode(backbone, batch), batch.segment


def _some_points(
    backbone: nn.Module, scenes: PointDataset, number: int, seed: int, progress: bool = False
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features, labels = [], []
    for found, label in _features(backbone, scenes, progress):
        rows = (label != _UNLABELLED).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)[:number]]
        features.append(found[rows])
        labels.append(label[rows])
    if not sum(len(label) for label in labels):
        raise ValueError("no point of the training scenes has a label")
    return torch.cat(features), torch.cat(labels)


def _fit(
    features: Tensor, label: Tensor, num_classes: int, weight_decay: float, max_iterations: int, progress: bool = False
) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(features.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    most = max_iterations * 5 // 4  # as is PyTorch's default
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, max_eval=most, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(features @ weight + bias, label)
        loss = loss + 0.5 * weight_decay * weight.square().sum()
        loss.backward()
        advance(1)
        return loss

    with progress_bar(most, "fit the head", "evaluations at most", visible=progress) as advance, torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()
