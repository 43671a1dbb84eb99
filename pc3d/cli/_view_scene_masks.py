"""What ``pc3d view`` shows of a run of masked scene reconstruction: what was hidden, and what is predicted there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pc3d.cli._view_runs import HIDDEN, MASK_NAMES, PREDICTED, VISIBLE, seen_scene

if TYPE_CHECKING:
    from pc3d.cli._view_inputs import Shown
    from pc3d.methods import MaskedScene
    from pc3d.viz import ViewCloud


def scene_reconstructions(method: MaskedScene, shown: Sequence[Shown], seed: int, notes: list[str]) -> list[ViewCloud]:
    """Of each scene three clouds: the input, what the encoder sees of it, and that with the hidden voxels predicted.

    A hidden voxel is drawn as one point: at the mean place, in the mean colour and with the mean normal that the method
    predicts of its points; what the encoder does not read is not predicted, and is not drawn there.

    Args:
        method: with its head.
        shown: the scenes.
        seed: of the hidden cubes.
        notes: what the user should know; filled.
    """
    import numpy as np
    import torch

    from pc3d.data import collate
    from pc3d.models.voxel_features import as_voxel_encoder

    found = []
    for one in shown:
        cloud = seen_scene(method.encoder, one, notes)
        batch = collate([cloud])
        hidden = method.hide(batch, seed, 0)
        with torch.no_grad(), method.default_draws(seed, 0, batch.xyz.device):
            predicted = method.head(method.features(hidden)[hidden.mask]).float()
        parts = dict(zip(method.weights, predicted.split(3, dim=1), strict=True))
        of_point = hidden.mask[hidden.inverse]
        # A hidden point lies in the middle of its voxel; any of those in a voxel will do.
        middle = torch.zeros(len(hidden.mask), 3).index_copy(0, hidden.inverse, hidden.batch.xyz)[hidden.mask]
        place = middle + (parts["offset"] - 0.5) * as_voxel_encoder(method.encoder).voxel_size
        rgb, grey, normal = cloud.rgb, hidden.batch.rgb, cloud.normal
        signals: dict[str, Any] = {
            "rgb": None if rgb is None or "color" not in parts else _both(rgb, (parts["color"] + 1) / 2, of_point),
            "normal": None if normal is None or "normal" not in parts else _both(normal, parts["normal"], of_point),
        }
        kind = np.where(of_point.numpy(), HIDDEN, VISIBLE)
        rebuilt = np.repeat([VISIBLE, PREDICTED], [int((~of_point).sum()), len(place)])
        found += [
            _cloud(one.name, cloud.xyz, kind, rgb, normal),
            _cloud("what the encoder sees", hidden.batch.xyz, kind, grey, hidden.batch.normal),
            _cloud("reconstruction", _both(cloud.xyz, place, of_point), rebuilt, signals["rgb"], signals["normal"]),
        ]
    return found


def _both(own: Any, predicted: Any, hidden: Any) -> Any:
    """What the points that were not hidden have, then what was predicted."""
    import torch

    return torch.cat([own[~hidden], predicted.to(own.dtype)])


def _cloud(name: str, xyz: Any, kind: Any, rgb: Any, normal: Any) -> ViewCloud:
    from pc3d.viz import ViewCloud, class_layer, normal_layer, rgb_layer
    from pc3d.viz.view import layers_by_name

    layers = [
        None if rgb is None else rgb_layer(rgb.clamp(0, 1).numpy()),
        None if normal is None else normal_layer(normal.numpy()),
        class_layer("mask", kind, MASK_NAMES),
    ]
    return ViewCloud(name, xyz.float().numpy(), layers_by_name(layers))
