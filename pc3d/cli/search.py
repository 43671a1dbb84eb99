"""``pc3d search``: shapes of an index by text, picture or shape."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli import _alignment, _output
from pc3d.cli._alignment import UpAxis
from pc3d.cli._parser import run_verb

if TYPE_CHECKING:
    from pc3d.models import AlignedShapeEncoder


def search(
    query: list[str],
    index: str,
    encoder: str | None = None,
    top: int = 10,
    text_tower: str | None = None,
    image_tower: str | None = None,
    templates: str = "none",
    up: UpAxis | None = None,
    exact: bool = False,
) -> None:
    """Find the shapes of an index that are nearest to a text, a picture or a shape; of several queries, near to each.

    Args:
        query: A text ("a wooden rocking chair"), a picture (PNG, JPEG, WEBP, BMP) or a shape (any file of points or a
            mesh); given before all options, it needs no --query. Of several, the shapes found are near to all: the
            smallest of the cosines counts.
        index: Folder that pc3d index build made.
        encoder: Encoder, where it has moved since the index was built; its weights must be the same.
        top: How many shapes.
        text_tower: Text tower, if the encoder does not name its own, such as 'offline:minilm'.
        image_tower: Image tower, likewise, such as 'offline:efficientnet-lite0'.
        templates: What texts are put into: 'none', 'photo', 'ulip' (64), or a file with one per line.
        up: Axis that points up in files of shapes; by default y in GLB files, else z.
        exact: Compare with every shape instead of following the graph of neighbours.
    """
    import dataclasses

    import numpy as np

    from pc3d.evaluation import ShapeIndex
    from pc3d.evaluation.shape_index import weights_digest

    stored = ShapeIndex(index)
    name = encoder or str(stored.made_by.get("encoder"))
    aligned = _alignment.open_aligned(name)
    if weights_digest(aligned) != stored.made_by.get("digest"):
        raise ValueError(
            f"encoder: {name} has other weights than the one that {index} was built with: use that one, or build anew"
        )
    towers = {"text_tower": text_tower, "image_tower": image_tower, "templates": templates, "up": up}
    points = stored.made_by.get("num_points")
    vectors = np.stack([_vector(one, aligned, name, points, towers) for one in query])
    scale = aligned.joint_scale if all(_kind(one) != "shape" for one in query) else 1.0
    hits = stored.search(vectors, top, scale=scale, exact=exact)
    lines = []
    for hit in hits:
        told = [str(value) for value in hit.record.values() if str(value) != hit.id]
        lines.append(f"{hit.score:.3f}  {hit.id}" + (f"  ({', '.join(told)})" if told else ""))
    _output.result([dataclasses.asdict(hit) for hit in hits], "\n".join(lines))


def _kind(query: str) -> str:
    path = Path(query)
    if not path.is_file():
        if path.suffix and " " not in query and (path.suffix.lower() in _alignment.PICTURES or path.parent.name):
            raise FileNotFoundError(f"query: there is no file {query}; a text reads like 'a wooden rocking chair'")
        return "text"
    return "picture" if path.suffix.lower() in _alignment.PICTURES else "shape"


def _vector(
    query: str, aligned: AlignedShapeEncoder, name: str, num_points: int | None, options: dict[str, Any]
) -> Any:
    """The joint vector of a query."""
    import torch

    from pc3d.cli._inputs import extract

    kind = _kind(query)
    with torch.no_grad():
        if kind == "text":
            tower = _alignment.open_text_tower(aligned, options["text_tower"])
            features = _alignment.class_vectors(tower, [[query]], _alignment.templates_of(options["templates"]))
            return aligned.joint_text(features)[0].numpy()
        if kind == "picture":
            images = _alignment.open_image_tower(aligned, options["image_tower"])
            return aligned.joint_image(images.encode([_alignment.read_picture(query)]))[0].numpy()
    source = _alignment.shapes(query, "test", num_points, None, options["up"])
    found = extract(aligned.view("joint"), name, source, query, "", batch_size=1, pooling="none", num_points=num_points)
    return found.values[0]


def main(argv: Sequence[str]) -> int | None:
    """Run the verb; the words before the first option are queries."""
    queries = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    rest = list(argv[len(queries) :])
    return run_verb("search", search, ["--query", *queries, *rest] if queries else rest)
