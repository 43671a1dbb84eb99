"""``pc3d robustness``: score a classifier on corrupted clouds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli._inputs import OnError, Points, UpAxis, Variant, check_picture
from pc3d.cli._judging import Frozen, judge_frozen
from pc3d.cli._parser import run_verb

if TYPE_CHECKING:
    from pc3d.data import PointDataset
    from pc3d.evaluation import Features, RobustnessResult


def robustness(
    encoder: str,
    data: str = "household",
    variant: Variant | None = None,
    corruptions: list[str] | None = None,
    severities: list[int] | None = None,
    files: str | None = None,
    C: float | None = None,
    baseline: str | None = None,
    figure: str | None = None,
    pooling: str | None = None,
    num_points: Points = "default",
    up: UpAxis | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
    untrained: bool = False,
    seed: int = 0,
    seeds: list[int] | None = None,
    results: str | None = None,
    method: str | None = None,
    overwrite: bool = False,
) -> None:
    """Train a linear SVM on clean frozen features and score it on corrupted test clouds, as ModelNet-C does.

    Corruptions: scale, jitter, rotate, drop_global, drop_local, add_global, add_local at the published levels 1 to 5,
    density, which keeps 1/2 to 1/16 of the points (farthest points), and occlusion, which removes the 10 to 50 % that
    lie deepest behind what is seen from one side. For the same seed, every encoder sees the same clouds, including
    colours if it reads them. For these encoders there is also drop_color, reported separately: 20 to 100 % of the
    points turn grey.

    Args:
        encoder: Folder or Hub id of an exported encoder, or an official .pth file of Point-MAE's family or POS-BERT; or
            'descriptor' or 'pca', the handcrafted baselines.
        data: 'household' (embedded), or a folder: pc3d's shards, a published data set, or files in class sub-folders.
        variant: Variant of ScanObjectNN (obj_bg, the default, obj_only, pb_t50_rs, ...) or of ModelNet's text files
            (modelnet40, the default, or modelnet10).
        corruptions: Which corruptions; by default all that change what the encoder reads.
        severities: Which levels; by default 1 to 5.
        files: Folder of ModelNet-C (clean.h5, scale_0.h5, ...): the test clouds are read from its files, clean and
            corrupted, and the classifier is trained on the training split of --data, ModelNet40.
        C: Inverse regularisation of the SVM; chosen by cross-validation on the clean training features by default.
        baseline: File of a row that --results wrote for another encoder: mCE and RmCE are relative to it. With --files
            also 'dgcnn', the published accuracies of DGCNN.
        figure: Picture to write, accuracy against severity: a .png, .svg or .pdf file; of the first seed.
        pooling: Name of the encoder's pooling; by default the encoder's own. For PointViT: max, mean, max+mean (its
            default), concat(max,mean), concat(cls,max,mean), cls.
        num_points: Points per cloud before the corruption: the first 1024 by default. For an encoder aligned with texts
            and pictures, by default a random subset of at most as many as it was made for. null takes all.
        up: For an encoder aligned with texts and pictures, the axis that points up in the data; by default that of the
            data set, y in GLB files, else z.
        batch_size: Clouds per forward pass.
        device: Where the encoder computes, such as cpu or cuda.
        on_error: What to do with a file that cannot be used: 'refuse' stops; 'report' leaves the file out and lists it
            with the reason (with --json, as left_out).
        drop_invalid: Leave out points of files that are not finite numbers.
        untrained: Keep the architecture, but draw fresh weights from the seed.
        seed: Seed of the corruptions, the folds and of untrained weights.
        seeds: Several seeds: one result for each, and their mean, standard deviation and 95 % interval.
        results: Folder for rows of pc3d results, one for each seed.
        method: Name in the table of results; the encoder's by default.
        overwrite: Replace an existing figure.
    """
    from pc3d import evaluation
    from pc3d.data import SEVERITIES
    from pc3d.evaluation.robustness import check_corruptions

    if figure is not None:
        check_picture("figure", figure, overwrite)
    check_corruptions(corruptions or (), severities or ())  # before any work
    row = None if baseline in (None, "dgcnn") else evaluation.read_row(baseline)
    if files is None and baseline == "dgcnn":
        raise ValueError("baseline: the published accuracies of DGCNN are those on ModelNet-C's files: add --files")

    def judge(frozen: Frozen, seed: int) -> RobustnessResult:
        test, test_set = (frozen.test, frozen.test_set) if files is None else _clean(frozen, files, batch_size)
        result = evaluation.robustness(
            frozen.encoder,
            frozen.train,
            test,
            test_set,
            corruptions=corruptions,
            severities=severities or SEVERITIES,
            files=files,
            C=C,
            batch_size=batch_size,
            seed=seed,
            progress=True,
            kept=frozen.kept,
        )
        if baseline == "dgcnn":
            return result.relative_to_dgcnn()
        return result if row is None else result.relative_to(row)

    def draw(found: list[RobustnessResult]) -> None:
        if figure is not None:
            _draw(found[0], row, Path(figure))

    judge_frozen(
        judge,
        encoder,
        data,
        variant=variant,
        pooling=pooling,
        num_points=num_points,
        up=up,
        batch_size=batch_size,
        device=device,
        on_error=on_error,
        drop_invalid=drop_invalid,
        untrained=untrained,
        seed=seed,
        seeds=seeds,
        results=results,
        method=method,
        options=(corruptions, severities, files, C),
        draw=draw,
    )


def _clean(frozen: Frozen, files: str, batch_size: int) -> tuple[Features, PointDataset]:
    """The clean file of ModelNet-C and its features, made as those of the training split."""
    from pc3d.data import ModelNetC
    from pc3d.evaluation import extract_features
    from pc3d.models import is_aligned

    if is_aligned(frozen.encoder):
        raise ValueError(
            "files: the clouds of ModelNet-C have y up and are taken as stored, but an encoder aligned with texts and "
            "pictures wants z up: leave the option out"
        )
    train, clouds = frozen.train, ModelNetC(files, classes=frozen.train.classes)
    features = extract_features(
        frozen.encoder,
        clouds,
        batch_size=batch_size,
        pooling=train.pooling,
        num_points=train.num_points,
        sampling=train.sampling,
        normalize=train.normalize,
        data=train.data,
        split="test",
        name=train.encoder,
        kept=frozen.kept,
    )
    return features, clouds


def _draw(result: RobustnessResult, baseline: Any, path: Path) -> None:
    from pc3d.viz.results import severity_figure

    if baseline is None:
        curves = {Path(result.encoder).name: (result.clean, result.curves)}
    else:  # what both were judged under, whichever of them reads colours
        curves = {
            Path(result.encoder).name: (result.clean, result.accuracies),
            baseline.method: (baseline.metrics["clean_accuracy"], baseline.details["accuracies"]),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    severity_figure(curves, result.severities, title=f"{result.data}: accuracy under corruption").savefig(path)


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("robustness", robustness, argv)
