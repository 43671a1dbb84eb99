"""What a viewer shows: clouds next to each other, each with several colourings.

The picture without a display, the window, the page and the server all draw a :class:`View`; none of them computes one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.colors import scalar_colors
from pc3d.viz.features import similarity_to

FloatArray = NDArray[np.floating]
Colors = NDArray[np.uint8]
Color = tuple[int, int, int]
_MEASURED = 200_000
WITHOUT: Color = (190, 190, 190)
"""The colour of a cloud in a mode that it does not have."""


class Scale(NamedTuple):
    """The colour bar of a scalar.

    Attributes:
        minimum: value of the first colour.
        maximum: value of the last colour.
        unit: such as ``"m"``; empty for a plain number.
        colormap: name of the colour map (:func:`pc3d.viz.gradient`).
    """

    minimum: float
    maximum: float
    unit: str = ""
    colormap: str = "viridis"


@dataclass(frozen=True)
class Layer:
    """One way to colour a cloud.

    Attributes:
        name: of the mode, such as ``"height"`` or ``"attention 0"``.
        colors: ``(N, 3)`` uint8.
        legend: what single colours mean, for classes.
        scale: what the colours of a scalar mean.
        values: ``(N,)`` finite number or class of each point, shown for a selected point; None where there is none.
        names: of the classes in ``values``.

    Raises:
        ValueError: arrays of another shape or kind.
    """

    name: str
    colors: Colors
    legend: tuple[tuple[str, Color], ...] = ()
    scale: Scale | None = None
    values: NDArray[Any] | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.colors.ndim != 2 or self.colors.shape[1] != 3 or self.colors.dtype != np.uint8:
            raise ValueError(f"colors must be (N, 3) uint8, got {self.colors.shape} {self.colors.dtype}")
        if self.values is not None and self.values.shape != self.colors.shape[:1]:
            raise ValueError(f"values must be ({len(self.colors)},), one for each colour, got {self.values.shape}")
        if self.values is not None and not np.isfinite(self.values).all():
            raise ValueError(f"values of layer {self.name!r} are not all finite numbers: leave such points out")

    def text(self, row: int) -> str:
        """What the layer says of a point: the name of its class, its number with the unit, or its colour."""
        if self.values is None:
            return f"{self.name}: " + ", ".join(str(part) for part in self.colors[row].tolist())
        value = self.values[row]
        if np.issubdtype(self.values.dtype, np.integer):
            return f"{self.name}: {class_name(int(value), self.names)}"
        unit = f" {self.scale.unit}" if self.scale is not None and self.scale.unit else ""
        return f"{self.name}: {float(value):.3g}{unit}"

    def select(self, rows: NDArray[np.integer]) -> Layer:
        """The layer of some of the points."""
        values = None if self.values is None else self.values[rows]
        return dataclasses.replace(self, colors=self.colors[rows], values=values)


def class_name(number: int, names: Sequence[str]) -> str:
    """The name of a class; its number where it has none, ``"unlabelled"`` below 0."""
    if number < 0:
        return "unlabelled"
    return names[number] if number < len(names) else f"class {number}"


@dataclass
class ViewCloud:
    """One cloud of a view.

    Attributes:
        name: what it is.
        xyz: ``(N, 3)`` float32, z up.
        layers: by their names, the first is shown first.
        embedding: ``(N, C)`` float16 or float32 features of the points, for the similarity to a chosen one; or None.
        offset: ``(3,)`` where the cloud stands: its points are drawn at ``xyz + offset``.
        rows: ``(N,)`` which points these are of the cloud that they were selected from; None for all of it.

    Raises:
        ValueError: arrays that do not go with ``xyz``, or a layer under another name than its own.
    """

    name: str
    xyz: NDArray[np.float32]
    layers: dict[str, Layer]
    embedding: FloatArray | None = None
    offset: NDArray[np.float32] = field(default_factory=lambda: np.zeros(3, np.float32))
    rows: NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3 or self.xyz.dtype != np.float32:
            raise ValueError(f"xyz must be (N, 3) float32, got {self.xyz.shape} {self.xyz.dtype}")
        self.offset = np.asarray(self.offset, dtype=np.float32)
        if self.offset.shape != (3,):
            raise ValueError(f"offset must be (3,), got {self.offset.shape}")
        for key, layer in self.layers.items():
            if key != layer.name:
                raise ValueError(f"layers[{key!r}] is called {layer.name!r}: the two must be the same")
            if len(layer.colors) != len(self):
                raise ValueError(f"layer {key!r} has {len(layer.colors)} points, {self.name} has {len(self)}")
        if self.embedding is not None and (self.embedding.ndim != 2 or len(self.embedding) != len(self)):
            raise ValueError(f"embedding must be ({len(self)}, C), got {self.embedding.shape}")

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def placed(self) -> NDArray[np.float32]:
        """``(N, 3)`` where the points are drawn."""
        return self.xyz + self.offset

    @property
    def box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the points are drawn, one or more, but for strays: see :func:`box_of`."""
        return box_of(self.placed)

    def colors(self, mode: str) -> Colors:
        """``(N, 3)`` uint8 in a mode; grey where the cloud does not have it."""
        layer = self.layers.get(mode)
        return np.tile(np.array(WITHOUT, np.uint8), (len(self), 1)) if layer is None else layer.colors

    def select(self, rows: NDArray[np.integer]) -> ViewCloud:
        """Some of the points, with all that belongs to them."""
        layers = {name: layer.select(rows) for name, layer in self.layers.items()}
        embedding = None if self.embedding is None else self.embedding[rows]
        origin = rows if self.rows is None else self.rows[rows]
        return dataclasses.replace(self, xyz=self.xyz[rows], layers=layers, embedding=embedding, rows=origin)


@dataclass
class View:
    """Clouds to look at, together.

    Attributes:
        clouds: at least one.
        title: of the picture, the window or the page.
    """

    clouds: list[ViewCloud]
    title: str = ""

    def __post_init__(self) -> None:
        if not self.clouds:
            raise ValueError("clouds is empty: nothing to see")

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the layers that some cloud has, in the order in which they first occur."""
        return tuple(dict.fromkeys(name for cloud in self.clouds for name in cloud.layers))

    @property
    def num_points(self) -> int:
        """Points of all clouds."""
        return sum(map(len, self.clouds))

    def legend(self, mode: str) -> tuple[tuple[str, Color], ...]:
        """What colours mean in a mode, over all clouds, in the order of the classes; empty where nothing is named."""
        layers = [cloud.layers[mode] for cloud in self.clouds if mode in cloud.layers]
        found = dict(entry for layer in layers for entry in layer.legend)
        order = {name: rank for layer in layers for rank, name in enumerate(layer.names)}
        return tuple(sorted(found.items(), key=lambda entry: order.get(entry[0], len(order))))

    def scale(self, mode: str) -> Scale | None:
        """The colour bar of a mode; clouds of one view share it."""
        scales = (cloud.layers[mode].scale for cloud in self.clouds if mode in cloud.layers)
        return next((scale for scale in scales if scale is not None), None)

    def thin(self, max_points: int, seed: int = 0) -> View:
        """Level of detail: a view of at most so many points, drawn at random, each cloud in proportion to its size.

        A random draw keeps the density as it is; a smaller draw with the same seed is a part of a larger one, so that
        detail is added, not exchanged.

        Args:
            max_points: of all clouds together; a cloud keeps at least one point.
            seed: of the draw.

        Raises:
            ValueError: fewer points than clouds.
        """
        if max_points < len(self.clouds):
            raise ValueError(f"max_points must be at least {len(self.clouds)}, one for each cloud, got {max_points}")
        if self.num_points <= max_points:
            return self
        share = max_points / self.num_points
        clouds = []
        for number, cloud in enumerate(self.clouds):
            kept = max(1, int(share * len(cloud)))
            order = np.random.default_rng([seed, number]).permutation(len(cloud))
            clouds.append(cloud.select(np.sort(order[:kept])))
        return dataclasses.replace(self, clouds=clouds)

    def similar_to(self, cloud: int, row: int) -> View:
        """The view with a layer ``"similarity"``: how near the feature of every point is to that of a chosen one.

        Args:
            cloud: number of the cloud.
            row: of the chosen point in it.

        Raises:
            ValueError: the chosen cloud has no features of points.
        """
        embedding = self.clouds[cloud].embedding
        if embedding is None:
            raise ValueError(f"{self.clouds[cloud].name} has no features of points: give an encoder to have some")
        return self.with_layers(similarity_layers([other.embedding for other in self.clouds], embedding[row]))

    def with_layers(self, layers: Sequence[Layer | None]) -> View:
        """The view with one more layer for each cloud, or one in place of that of the same name; None for no change."""
        clouds = [
            cloud if layer is None else dataclasses.replace(cloud, layers={**cloud.layers, layer.name: layer})
            for cloud, layer in zip(self.clouds, layers, strict=True)
        ]
        return dataclasses.replace(self, clouds=clouds)

    def answering(self, ask: Ask, text: str) -> tuple[View, str]:
        """The view with the layers of a typed text, and the mode that they are.

        Raises:
            ValueError: no cloud has an answer.
        """
        layers = ask(text.strip())
        name = next((layer.name for layer in layers if layer is not None), None)
        if name is None:
            raise ValueError(f"text: nothing here can be compared with {text.strip()!r}")
        return self.with_layers(layers), name


Ask = Callable[[str], Sequence[Layer | None]]
"""Answers a typed text with a layer for each cloud, None where it has none."""


def similarity_layers(
    embeddings: Sequence[FloatArray | None], vector: FloatArray, name: str = "similarity"
) -> list[Layer | None]:
    """Cosine of the features of points with a vector, coloured on one scale over all clouds.

    Args:
        embeddings: ``(N, C)`` for each cloud, None where it has none.
        vector: ``(C,)``.
        name: of the layers.

    Returns:
        A layer for each cloud, None where it has no features.
    """
    values = [None if embedding is None else similarity_to(embedding, vector) for embedding in embeddings]
    found = [value for value in values if value is not None]
    # Cosines of one encoder often lie in a narrow band: the bar spans what is there.
    low = min((float(value.min()) for value in found if value.size), default=0.0)
    high = max((float(value.max()) for value in found if value.size), default=1.0)
    scale = Scale(low, high, "cosine", "turbo")
    return [
        None if value is None else Layer(name, scalar_colors(value, low, high, "turbo"), scale=scale, values=value)
        for value in values
    ]


def box_of(xyz: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and the highest coordinates of points, but for strays far away, as in scans through windows.

    The lowest and the highest thousandth count as no farther from the rest than a quarter of its extent.

    Args:
        xyz: ``(N, 3)``, or ``(N, 2)`` of a picture, one point or more.
    """
    low, high = np.percentile(xyz[:: -(-len(xyz) // _MEASURED)], [0.1, 99.9], axis=0)
    reach = (high - low).max() / 4
    return np.maximum(xyz.min(0), low - reach), np.minimum(xyz.max(0), high + reach)


def arrange(
    clouds: Sequence[ViewCloud], columns: int | None = None, *, azimuth: float = -90.0, gap: float = 0.15
) -> list[ViewCloud]:
    """Stand clouds beside each other as on shelves, each in the middle of its place, those of a shelf on one level.

    Strays far away (:func:`box_of`) may reach into other places: they do not move the clouds apart.

    Args:
        clouds: read as lines of text are, the first shelf being the highest, by a camera that looks from ``azimuth``.
        columns: clouds on a shelf; all of them when None.
        azimuth: degrees, direction of that camera around the z axis, counted from the x axis.
        gap: between places, as a share of the largest extent.

    Returns:
        The same clouds with other offsets.
    """
    clouds = list(clouds)
    columns = columns or max(len(clouds), 1)
    angle = np.deg2rad(azimuth)
    axes = np.array([[-np.sin(angle), np.cos(angle), 0], [np.cos(angle), np.sin(angle), 0], [0, 0, 1]])
    turned = [cloud.xyz @ axes.T if len(cloud) else np.zeros((1, 3)) for cloud in clouds]
    boxes = [box_of(xyz) for xyz in turned]
    # Between shelves there is room for names.
    cell = np.array([1 + gap, 1 + gap, 1.25 + gap]) * np.max([high - low for low, high in boxes], axis=0, initial=0.0)
    placed = []
    for number, (cloud, (low, high)) in enumerate(zip(clouds, boxes, strict=True)):
        middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        place = np.array([number % columns * cell[0], 0.0, -(number // columns) * cell[2]])
        placed.append(dataclasses.replace(cloud, offset=((place - middle) @ axes).astype(np.float32)))
    return placed


def layers_by_name(layers: Sequence[Layer | None]) -> dict[str, Layer]:
    """Layers as :class:`ViewCloud` holds them; None is left out."""
    return {layer.name: layer for layer in layers if layer is not None}
