"""What an encoder says of the points that ``pc3d view`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pc3d.cli._inputs import NUM_POINTS, read_encoder
from pc3d.cli._view_inputs import Shown
from pc3d.cli._view_runs import seen_points, seen_scene

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pc3d.cli._view_layers import Request
    from pc3d.viz import Layer, View


def add_features(view: View, shown: Sequence[Shown], stride: int, request: Request) -> View:
    """The view with all that was asked of its encoder.

    Args:
        view: of the clouds ``shown``, each perhaps followed by others that were made of it.
        shown: what the encoder reads.
        stride: clouds of the view for each one shown.
        request: what was asked for.
    """
    from pc3d.viz import feature_layers

    assert request.encoder is not None
    encoder: Any = read_encoder(request.encoder).to(request.device)
    speaker = _Speaker(encoder, request)
    where = [number * stride for number in range(len(shown))]
    wanted = [view.clouds[number].xyz for number in where]
    embeddings = [speaker.features(one, xyz) for one, xyz in zip(shown, wanted, strict=True)]
    clouds = list(view.clouds)
    for number, embedding in zip(where, embeddings, strict=True):
        clouds[number] = replace(clouds[number], embedding=embedding)
    view = replace(view, clouds=clouds)
    view = view.with_layers(_spread(feature_layers(embeddings), where, len(clouds)))

    def ask(text: str) -> list[Layer | None]:
        return _spread(speaker.text_layers(text, shown, wanted), where, len(view.clouds))

    for text in request.text:
        view = view.with_layers(ask(text))
    request.ask = ask if speaker.understands_texts else None
    if request.attention is None or request.attention:
        view = _with_attention(view, speaker, shown, wanted, where)
    return _compared(view, request.point) if request.point is not None else view


def _spread(layers: Sequence[Layer | None], where: Sequence[int], count: int) -> list[Layer | None]:
    """Layers at the places of their clouds, None elsewhere."""
    by_place = dict(zip(where, layers, strict=True))
    return [by_place.get(number) for number in range(count)]


def _compared(view: View, point: Sequence[int]) -> View:
    """With the similarity to a point: a row of the first cloud, or the number of a cloud and a row of it."""
    cloud, row = (0, point[0]) if len(point) == 1 else (point[0], point[-1])
    if len(point) > 2 or not 0 <= cloud < len(view.clouds):
        raise ValueError(f"point: must be ROW, or CLOUD ROW with a cloud of 0..{len(view.clouds) - 1}; got {point}")
    if not 0 <= row < len(view.clouds[cloud]):
        raise ValueError(f"point: {view.clouds[cloud].name} has rows 0..{len(view.clouds[cloud]) - 1}, got {row}")
    return view.similar_to(cloud, row)


def _with_attention(
    view: View, speaker: _Speaker, shown: Sequence[Shown], wanted: Sequence[Any], where: Sequence[int]
) -> View:
    import numpy as np

    from pc3d.viz import scalar_layers

    maps = [speaker.attention(one, xyz) for one, xyz in zip(shown, wanted, strict=True)]
    heads = len(maps[0])
    for head in range(heads) if speaker.request.attention is None else speaker.request.attention:
        if not 0 <= head < heads:
            raise ValueError(f"attention: the encoder has heads 0..{heads - 1}, got {head}")
        values = [found[head] for found in maps]
        # One token often has many times the attention of all others, which the scale shall not hide.
        high = float(np.percentile(np.concatenate(values), 98))
        layers = scalar_layers(f"attention {head}", values, unit="x even", low=0.0, high=high)
        view = view.with_layers(_spread(layers, where, len(view.clouds)))
    return view


class _Speaker:
    """An encoder that is asked about points.

    Args:
        encoder: of objects or of scenes.
        request: what was asked for.
    """

    def __init__(self, encoder: Any, request: Request) -> None:
        from pc3d.models import AlignedShapeEncoder, DistilledEncoder, points_meant_for, reads_scenes

        self.encoder, self.request = encoder, request
        self.scenes = reads_scenes(encoder)
        self.aligned = isinstance(encoder, AlignedShapeEncoder)
        self.understands_texts = self.aligned or isinstance(encoder, DistilledEncoder)
        self.num_points = points_meant_for(encoder) or NUM_POINTS

    def features(self, one: Shown, xyz: NDArray[np.float32]) -> NDArray[np.float16]:
        """``(N, C)`` float16."""
        from pc3d.models import object_features, scene_features

        if self.scenes:
            return _halved(scene_features(self.encoder, seen_scene(self.encoder, one, self.request.notes)))
        seen, query, rgb = self._object(one, len(xyz))
        return _halved(object_features(self.encoder, seen, query, rgb))

    def attention(self, one: Shown, xyz: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(heads, N)`` in units of even attention."""
        from pc3d.models import point_attention

        seen, query, _ = self._object(one, len(xyz))
        found: NDArray[np.float32] = point_attention(self.encoder, seen, query).float().cpu().numpy()
        return found

    def text_layers(self, text: str, shown: Sequence[Shown], wanted: Sequence[Any]) -> list[Layer | None]:
        """How near the features of points are to a text, or how much the points have to do with it.

        An encoder distilled from a tower that is joint with texts gives a feature in their space for every point; one
        aligned with texts a single vector for the shape, of which :func:`pc3d.models.text_relevance` asks the parts.
        """
        from pc3d.models import DistilledEncoder

        if isinstance(self.encoder, DistilledEncoder):
            return self._cosines(text, shown)
        return self._relevances(text, shown, wanted)

    def _cosines(self, text: str, shown: Sequence[Shown]) -> list[Layer | None]:
        from pc3d.cli._alignment import class_vectors, templates_of, warn_of_other_tower
        from pc3d.models import scene_features
        from pc3d.tasks import joint_teacher
        from pc3d.viz import similarity_layers

        pair = joint_teacher(self.encoder, self.request.text_tower)
        warn_of_other_tower("text_tower", self.request.text_tower or self.encoder.space, self.encoder.space)
        vector = class_vectors(pair.text, [[text]], templates_of("none"))[0].cpu().numpy()
        features = [scene_features(self.encoder, seen_scene(self.encoder, one, self.request.notes)) for one in shown]
        in_space = [self.encoder.in_space(found).detach().float().cpu().numpy() for found in features]
        return similarity_layers(in_space, vector, f"text: {text}")

    def _relevances(self, text: str, shown: Sequence[Shown], wanted: Sequence[Any]) -> list[Layer | None]:
        from pc3d.cli import _alignment
        from pc3d.models import as_aligned, text_relevance
        from pc3d.viz import scalar_layers

        aligned = as_aligned(self.encoder)
        tower = _alignment.open_text_tower(aligned, self.request.text_tower)
        vector = _alignment.class_vectors(tower, [[text]], _alignment.templates_of("none"))[0].to(self.request.device)
        values = []
        for one, xyz in zip(shown, wanted, strict=True):
            seen, query, rgb = self._object(one, len(xyz))
            values.append(text_relevance(aligned, seen, vector, query, rgb).cpu().numpy())
        most = max(float(abs(value).max()) for value in values)
        scale: dict[str, Any] = {"unit": "cosine lost without", "colormap": "coolwarm", "low": -most, "high": most}
        return list(scalar_layers(f"text: {text}", values, **scale))

    def _object(self, one: Shown, expected: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the encoder sees, the points to describe in the same frame, and colours of what it sees."""
        if self.aligned:
            # As pc3d zeroshot and search have it: random points, centred at their mean.
            one = replace(one, sampling="random", normalize="centroid")
        seen, query, rgb = seen_points(one, self.num_points)
        if len(query) != expected:  # a masked autoencoder's input: what the encoder sees is what is shown
            query = seen
        device = self.request.device
        return seen.to(device), query.to(device), None if rgb is None else rgb.to(device)


def _halved(features: Tensor) -> NDArray[np.float16]:
    found: NDArray[np.float16] = features.half().cpu().numpy()
    return found
