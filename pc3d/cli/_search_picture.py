"""The picture of a search: queries, and the shapes that were found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli import _alignment

if TYPE_CHECKING:
    from pc3d.data import PointCloud, PointDataset
    from pc3d.evaluation import Hit, ShapeIndex

_SIZE = 200
_VIEW = 3  # of OpenShape's twelve: from the front and the right, 30 degrees above
_RADIUS = 0.46  # of the ball that a shape is scaled into: it and the discs of its points fill that view


def write(
    path: str,
    stored: ShapeIndex,
    searches: Sequence[tuple[Sequence[tuple[str, str]], Sequence[Hit]]],
    up: Any,
    drop_invalid: bool = False,
) -> None:
    """Draw searches.

    Args:
        path: the picture.
        stored: the index.
        searches: of each the kinds and the words of its queries, and what was found.
        up: axis that points up in files of query shapes.
        drop_invalid: leave out points of theirs that are not finite.
    """
    from pc3d.viz.search import SearchRow, search_figure

    @functools.cache
    def opened(number: int) -> PointDataset:
        source = stored.made_by["sources"][number]
        return _alignment.shapes(**source).dataset

    rows = [
        SearchRow(
            [_query(kind, query, up, drop_invalid) for kind, query in queries],
            [(draw(_load(stored, hit, opened)), _caption(hit)) for hit in hits],
        )
        for queries, hits in searches
    ]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    search_figure(rows).savefig(target)


def draw(cloud: PointCloud) -> Any:
    """A picture of a shape on white, ``(H, W, 3)`` uint8."""
    from pc3d.image import fit, render_points, view_set

    center, factor = fit(cloud.xyz, "radius", _RADIUS)
    placed = cloud.replace(xyz=(cloud.xyz - center) * factor)
    return render_points(placed, [view_set("openshape12", _SIZE)[_VIEW]])[0].on()


def _query(kind: str, query: str, up: Any, drop_invalid: bool) -> Any:
    from pc3d.image import read_picture

    if kind == "text":
        return query
    if kind == "picture":
        return read_picture(query)
    return draw(_alignment.shapes(query, "test", None, up, drop_invalid=drop_invalid).dataset.load(0))


def _caption(hit: Hit) -> str:
    name = hit.record.get("text") or (Path(hit.id).stem if _has_file(hit) else hit.id)
    return f"{hit.score:.2f} {name}"


def _has_file(hit: Hit) -> bool:
    """Whether a file holds the shape and nothing else; many a set has one file for all."""
    return hit.record.get("path") == hit.id


def _load(stored: ShapeIndex, hit: Hit, opened: Callable[[int], PointDataset]) -> PointCloud:
    """The shape from where it was when it was added to the index.

    Args:
        stored: the index.
        hit: what was found.
        opened: gives the data set of a source by number.

    Raises:
        ValueError: it is not there any more.
    """
    if "source" not in hit.record:
        raise ValueError(f"picture: {stored.folder} does not say where {hit.id} came from: build the index anew")
    source = stored.made_by["sources"][hit.record["source"]]
    gone = ValueError(f"picture: {hit.id} is not where it was in {source['data']}: build the index anew")
    if _has_file(hit):
        if not Path(hit.id).is_file():
            raise gone
        dataset, row = _alignment.shapes(**{**source, "data": hit.id}).dataset, 0
    else:
        dataset, row = opened(int(hit.record["source"])), int(hit.record["row"])
    cloud = dataset.load(row) if row < len(dataset) else None
    if cloud is None or _alignment.name_of(dataset, row, cloud) != hit.id:
        raise gone
    return cloud
