"""What ``pc3d report`` makes of the frozen features of a run: a map with pictures, and probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pc3d.cli import _output
from pc3d.cli._alignment import as_wanted
from pc3d.cli._inputs import NUM_POINTS, LeftOut, Source, extract, open_encoder, pooling_of
from pc3d.cli._report_pictures import Objects
from pc3d.cli._report_run import NotApplicableError, Run

if TYPE_CHECKING:
    from pc3d.data import PointCloud
    from pc3d.evaluation import Kept, ProbeResult, Row
    from pc3d.viz.report import Section
    from pc3d.viz.thumbnails import Picture

Method = Literal["tsne", "pca", "none"]
_MOST_ITEMS = 1000
_NEIGHBOURS = 5


def embedding_map(run: Run, objects: Objects, how: Method, seed: int, kept: Kept, device: str) -> Section:
    """Features of the objects of a split, in a plane.

    Raises:
        NotApplicableError: not asked for, or too few objects.
    """
    import numpy as np

    from pc3d.data import Selection
    from pc3d.models import is_aligned
    from pc3d.viz.report import EmbeddingMap, Section

    if how == "none":
        raise NotApplicableError("not asked for (--map none)")
    dataset = objects.source.dataset
    if len(dataset) < 3:
        raise NotApplicableError(f"the {objects.in_words} has {len(dataset)} objects: too few for a map")
    chosen = np.arange(len(dataset))
    if len(dataset) > _MOST_ITEMS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(dataset), _MOST_ITEMS, replace=False))
    source = Source(Selection(dataset, chosen.tolist()), objects.source.sampling, objects.source.normalize)
    folder = run.need_encoder()
    num_points = encoder_points(folder)
    model, name = open_encoder(
        str(folder), untrained=False, seed=seed, data=objects.data, num_points=num_points, device=device
    )
    if is_aligned(model):
        source = as_wanted(source, None)
    pooling = pooling_of(model, None)
    left_out = LeftOut(objects.data, source.dataset, objects.on_error)
    options: dict[str, Any] = {"batch_size": 32, "pooling": pooling, "num_points": num_points, "kept": kept}
    features = extract(model, name, source, objects.data, objects.split, leave_out=left_out, **options)
    objects.leave_out(left_out.files)
    share = f"all {len(chosen):,}" if len(chosen) == len(dataset) else f"{len(chosen):,} drawn of {len(dataset):,}"
    unusable = f", without {len(left_out.rows):,} that cannot be used" if left_out.rows else ""
    chosen = np.delete(chosen, sorted(left_out.rows))
    if len(chosen) < 3:
        raise NotApplicableError(f"of the {objects.in_words}, {len(chosen)} objects can be used: too few for a map")
    xy, words = _in_plane(features.values, how, seed)
    caption = f"{words} of the frozen features ({features.values.shape[1]} dimensions, pooling {pooling}) of "
    caption += f"{share} objects{unusable}: {objects.in_words}, {features.num_points:,} points each."
    pictures, source_of_pictures = _pictures(objects, chosen.tolist())
    titles = [cloud_title(dataset.load(int(index)), int(index)) for index in chosen]
    caption += f" Colours are classes. Pictures: {source_of_pictures}."
    shown = EmbeddingMap(xy, features.labels, dataset.classes, titles, pictures, caption)
    return Section("Map of the embeddings", [shown])


def encoder_points(folder: Path) -> int:
    """How many points the encoder of a run is meant for; 1,024 where it does not say."""
    config = json.loads((folder / "encoder" / "config.json").read_text(encoding="utf-8"))
    arguments = config.get("arguments", {})
    inner = arguments.get("encoder", {}).get("arguments", {})  # of an encoder around another
    return int(arguments.get("num_points", inner.get("num_points", NUM_POINTS)))


def _in_plane(values: Any, how: Method, seed: int) -> tuple[Any, str]:
    from pc3d._extras import require

    purpose = "the map of embeddings"
    if how == "pca":
        pca = require("sklearn.decomposition", extra="train", purpose=purpose).PCA(2, random_state=seed)
        xy = pca.fit_transform(values)
        return xy, f"Principal components ({100 * pca.explained_variance_ratio_.sum():.0f} % of the variance)"
    perplexity = min(30.0, (len(values) - 1) / 3)
    manifold = require("sklearn.manifold", extra="train", purpose=purpose)
    tsne = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    _output.say(f"t-SNE of the features of {len(values):,} objects (--map pca is faster)")
    # Distances in the plane mean little beyond who is near whom.
    return tsne.fit_transform(values), f"t-SNE (perplexity {perplexity:.0f}, seed {seed})"


def _pictures(objects: Objects, chosen: list[int]) -> tuple[list[Picture], str]:
    """Preview pictures where the set has them, drawn clouds elsewhere."""
    from pc3d._progress import track
    from pc3d.data import MissingDataError, ObjectSet
    from pc3d.viz.thumbnails import thumbnail

    dataset = objects.source.dataset
    if isinstance(dataset, ObjectSet):
        try:
            with_pictures = ObjectSet(dataset.root, objects.split, num_points=None, pictures=True)
            images = [with_pictures.load(index).image for index in chosen]
            return [image.numpy() for image in images if image is not None], "previews of the models"
        except MissingDataError:
            pass  # the pictures of a set are optional
    drawn = []
    for index in track(chosen, "draw", "objects"):
        cloud = dataset.load(index)
        drawn.append(thumbnail(cloud.xyz.numpy(), None if cloud.rgb is None else cloud.rgb.numpy()))
    return drawn, "drawn from the points"


def cloud_title(cloud: PointCloud, index: int) -> str:
    """What an object is called."""
    return str(cloud.text or cloud.meta.get("id") or cloud.meta.get("path") or f"object {index}")


def probes(run: Run, objects: Objects, seed: int, kept: Kept, device: str) -> tuple[list[Row], ProbeResult]:
    """Linear SVM and nearest neighbours on frozen features of the trained and of the untrained encoder.

    Returns:
        All as rows, and in full that of the linear SVM of the trained one.
    """
    from pc3d.cli._judging import features_of
    from pc3d.evaluation import knn_probe, linear_svm

    folder = str(run.need_encoder())
    rows, of_svm = [], []
    for untrained in (False, True):
        frozen = features_of(
            folder,
            objects.data,
            objects.variant,
            encoder_points(Path(folder)),
            None,
            32,
            untrained=untrained,
            seed=seed,
            kept=kept,
            device=device,
            on_error=objects.on_error,
        )
        objects.leave_out(frozen.left_out)
        name = "the encoder, untrained" if untrained else "the encoder of this run"
        of_svm.append(linear_svm(frozen.train, frozen.test, protocol="tuned", seed=seed, progress=True))
        rows.append(of_svm[-1].to_row(name))
        rows.append(knn_probe(frozen.train, frozen.test, k=_NEIGHBOURS, seed=seed).to_row(name))
    return rows, of_svm[0]
