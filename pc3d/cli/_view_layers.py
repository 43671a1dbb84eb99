"""How ``pc3d view`` colours clouds: what they hold, what an encoder says of them, what a run makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli import _view_runs
from pc3d.cli._view_inputs import Shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pc3d.viz import Layer, View, ViewCloud
    from pc3d.viz.view import Ask

# Features of that many points are computed and kept; a view of more is thinned before.
MOST_POINTS = 500_000
_MOST_OBJECTS = 1 << 16
_DISTINCT = ("features", "similarity", "text", "attention", "prediction", "error", "mask")
_WHY = {
    "rgb": "nothing here has colours",
    "normal": "nothing here has normals",
    "label": "nothing here has labels of points",
    "instance": "nothing here has numbers of objects",
    "features": "features need --encoder",
    "similarity": "similarity to a point needs --encoder and --point ROW",
    "text": "similarity to a text needs --encoder, one aligned with texts, and --text",
    "attention": "attention needs --encoder, a PointViT with class token or a ViT3D",
    "prediction": "predictions need a run folder of pc3d segment, parts or classify train",
    "error": "errors need a run folder of pc3d segment, parts or classify train, and labels of the same classes",
    "mask": "masks need a run folder of a masked autoencoder, such as Point-MAE, or of MaskedScene",
}
MODES = ("height", *_WHY)
"""What ``--mode`` may say; every cloud has a height."""


@dataclass
class Request:
    """What to compute beyond what the clouds hold.

    Attributes:
        encoder: see :func:`pc3d.cli._inputs.read_encoder`; None for none.
        text: typed texts.
        text_tower: for them; the encoder's own when None.
        attention: heads; None for all.
        point: row, or cloud and row, of the point that others are compared with.
        device: where to compute.
        seed: of masks and draws.
        notes: what the user should know; filled.
        ask: answers texts that are typed later; filled where the encoder understands texts.
    """

    encoder: str | None = None
    text: Sequence[str] = ()
    text_tower: str | None = None
    attention: Sequence[int] | None = ()
    point: Sequence[int] | None = None
    device: str = "cpu"
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    ask: Ask | None = None


def build(shown: Sequence[Shown], run: Path | None, request: Request, azimuth: float) -> View:
    """The view of some clouds.

    Args:
        shown: the clouds.
        run: a run folder to apply to them.
        request: what to compute.
        azimuth: of the camera that they are arranged for.
    """
    from pc3d.viz import View, arrange

    method = _view_runs.masked_method(run) if run is not None and _view_runs.reconstructs(run) else None
    if method is not None or request.encoder is not None:
        shown = [_thinned(one, request) for one in shown]
    if method is not None:
        clouds, columns = _reconstructed(method, shown, request), 3
    else:
        clouds = [_plain(one) for one in shown]
        clouds = _with_heights(clouds, shown[0].unit)
        columns = len(clouds) if len(clouds) <= 4 else 3
    if run is not None and _view_runs.kind_of(run) in ("segment", "parts", "classify"):
        clouds = _predicted(clouds, shown, run, request)
    view = View(clouds if len(clouds) == 1 else arrange(clouds, columns, azimuth=azimuth))
    if request.encoder is not None:
        from pc3d.cli._view_features import add_features

        # Of a masked autoencoder's three clouds the first is the input.
        view = add_features(view, shown, 3 if method is not None else 1, request)
    return view


def choose_modes(view: View, mode: Sequence[str] | None) -> tuple[str, ...]:
    """The modes asked for; when None the plain colours and all that was computed.

    Raises:
        ValueError: one that there is not; the message says what it needs and which there are.
    """
    if mode is None:
        own = tuple(name for name in view.modes if name.partition(" ")[0].rstrip(":") in _DISTINCT)
        plain = [name for name in ("label",) if name in view.modes and "error" in own]
        if "mask" in own:  # of scenes colours are predicted, of objects none
            return (*(name for name in ("rgb",) if name in view.modes), *own)
        return (view.modes[0], *plain, *own)
    chosen: list[str] = []
    for word in mode:
        # "attention" and "text" stand for all of their kind.
        found = [name for name in view.modes if name == word or name.partition(" ")[0].rstrip(":") == word]
        if not found:
            why = _WHY.get(word.partition(" ")[0].rstrip(":"), "there is no such mode")
            raise ValueError(f"mode: {word!r}: {why}; the modes here are {', '.join(view.modes)}")
        chosen += found
    return tuple(dict.fromkeys(chosen))


def default_encoder(request: Request, run: Path | None, mode: Sequence[str] | None) -> str | None:
    """The encoder that was named, or that of the run, where something is to be seen of it.

    Raises:
        ValueError: something was asked of an encoder, and there is none.
    """
    asked = {
        "text": bool(request.text),
        "attention": request.attention is None or bool(request.attention),
        "point": request.point is not None,
    }
    modes = {"features", "similarity", "text", "attention"} & {word.partition(" ")[0] for word in mode or ()}
    if request.encoder is not None:
        return request.encoder
    if run is None:
        for option, given in asked.items():
            if given:
                raise ValueError(f"{option}: is a question to an encoder: name one with --encoder")
        return None
    # Where there is nothing else of the run to be seen.
    only = _view_runs.kind_of(run) in ("pretrain", "classify") and not _view_runs.reconstructs(run)
    return str(run) if only or any(asked.values()) or modes else None


def missing_modes(view: View) -> list[str]:
    """The modes that cannot be seen here."""
    there = {name.partition(" ")[0].rstrip(":") for name in view.modes}
    return [name for name in _WHY if name not in there]


def _plain(one: Shown) -> ViewCloud:
    """A cloud with the layers that its own fields give, colours first."""
    from pc3d.viz import ViewCloud, class_layer, normal_layer, rgb_layer
    from pc3d.viz.view import layers_by_name

    cloud = one.cloud
    layers = [
        None if cloud.rgb is None else rgb_layer(cloud.rgb.numpy()),
        None if cloud.normal is None else normal_layer(cloud.normal.numpy()),
        None if cloud.segment is None else class_layer("label", cloud.segment.numpy(), one.classes),
        None if cloud.instance is None else class_layer("instance", *_objects(cloud.instance)),
    ]
    return ViewCloud(one.name, cloud.xyz.float().numpy(), layers_by_name(layers))


def _objects(instance: Tensor) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers and names of the objects of a scene, which come with numbers alone.

    Large ones, into which some sets pack the class, are counted from 0 instead; the names tell them.
    """
    import numpy as np

    number = instance.numpy().astype(np.int64)
    if number.max(initial=0) < _MOST_OBJECTS:
        return number, tuple(f"object {k}" for k in range(int(number.max(initial=-1)) + 1))
    found, place = np.unique(np.maximum(number, -1), return_inverse=True)
    none = int((found < 0).sum())
    return place - none, tuple(f"object {k}" for k in found[none:].tolist())


def _with_heights(clouds: Sequence[ViewCloud], unit: str) -> list[ViewCloud]:
    """With the height as a layer: the second where there are colours, else the first."""
    from pc3d.viz import height_layers

    found = []
    for cloud, height in zip(clouds, height_layers([cloud.xyz for cloud in clouds], unit), strict=True):
        first = {name: cloud.layers[name] for name in ("rgb",) if name in cloud.layers}
        found.append(replace(cloud, layers={**first, "height": height, **cloud.layers}))
    return found


def _predicted(clouds: list[ViewCloud], shown: Sequence[Shown], run: Path, request: Request) -> list[ViewCloud]:
    from pc3d.viz import class_layer, error_layer
    from pc3d.viz.view import layers_by_name

    found, names = _view_runs.predictions(run, shown, request.device)
    changed = []
    for cloud, one, prediction in zip(clouds, shown, found, strict=True):
        layers = [class_layer("prediction", prediction, names)]
        label = _view_runs.truth(run, one, tuple(names))
        if label is not None:
            layers.append(error_layer(prediction, label))
        elif one.cloud.segment is not None or one.cloud.label is not None:
            request.notes.append(f"{one.name}: labelled with other classes than the run's, so no errors are shown")
        changed.append(replace(cloud, layers={**cloud.layers, **layers_by_name(layers)}))
    return changed


def _reconstructed(method: Any, shown: Sequence[Shown], request: Request) -> list[ViewCloud]:
    """Three clouds for each object or scene: the input, what the encoder sees, the reconstruction."""
    from pc3d.cli._view_scene_masks import scene_reconstructions
    from pc3d.methods import MaskedScene
    from pc3d.viz import ViewCloud, class_layer

    if isinstance(method, MaskedScene):
        return _with_heights(scene_reconstructions(method, shown, request.seed, request.notes), "m")
    clouds = [
        ViewCloud(name, xyz, {"mask": class_layer("mask", kind, _view_runs.MASK_NAMES)})
        for three in _view_runs.reconstructions(method, shown, request.seed)
        for name, xyz, kind in three
    ]
    return _with_heights(clouds, "")


def _thinned(one: Shown, request: Request) -> Shown:
    import torch

    if len(one.cloud) <= MOST_POINTS:
        return one
    request.notes.append(f"{one.name}: {MOST_POINTS:,} of {len(one.cloud):,} points, since features are computed")
    rows = torch.randperm(len(one.cloud), generator=torch.Generator().manual_seed(request.seed))[:MOST_POINTS]
    return replace(one, cloud=one.cloud.select(rows.sort().values))


def ask_of(view: View, request: Request) -> Ask | None:
    """What answers typed texts for a view of which some points may have been left out; None for nothing."""
    ask = request.ask
    if ask is None:
        return None

    def answer(text: str) -> list[Layer | None]:
        return [
            layer if layer is None or cloud.rows is None else layer.select(cloud.rows)
            for layer, cloud in zip(ask(text), view.clouds, strict=True)
        ]

    return answer


def cut_top(view: View, share: float) -> View:
    """Without the points in the uppermost share of the height of each cloud, so that one sees into a room.

    Raises:
        ValueError: a share that is not in [0, 1).
    """
    import numpy as np

    if not 0 <= share < 1:
        raise ValueError(f"top: must be a share of the height in [0, 1), got {share}")
    if share == 0:
        return view

    def rows(z: NDArray[np.float32]) -> NDArray[np.intp]:
        low, high = np.percentile(z, [0.1, 99.9]) if len(z) else (0.0, 0.0)
        return np.flatnonzero(z <= high - share * (high - low))

    return replace(view, clouds=[cloud.select(rows(cloud.xyz[:, 2])) for cloud in view.clouds])
