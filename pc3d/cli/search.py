"""``pc3d search``: find shapes of an index by text, picture or shape."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli import _alignment, _output, _search_picture
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import UpAxis, check_picture
from pc3d.cli._parser import run_verb

if TYPE_CHECKING:
    from pc3d.evaluation import Hit, ShapeIndex
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
    each: bool = False,
    picture: str | None = None,
    device: str = "cpu",
    drop_invalid: bool = False,
    overwrite: bool = False,
) -> None:
    """Find the shapes of an index that are nearest to a text, a picture or a shape, or near to all of several queries.

    Args:
        query: A text ("a wooden rocking chair"), a picture (PNG, JPEG, WEBP, BMP) or a shape (any file of points or a
            mesh); --query itself may be left out. With several, the shapes found are near to all: the smallest of the
            cosines counts.
        index: Folder that pc3d index build made.
        encoder: Encoder, if it has moved since the index was built; its weights must be the same.
        top: How many shapes to return.
        text_tower: Text tower, if the encoder does not name its own, such as 'offline:minilm'.
        image_tower: Image tower, likewise, such as 'offline:efficientnet-lite0'.
        templates: Prompt templates for the texts: 'none', 'photo', 'ulip' (64), or a file with one per line.
        up: Axis that points up in files of shapes; by default y in GLB files, else z.
        exact: Compare with every shape instead of following the graph of neighbours.
        each: Search for every query on its own.
        picture: File (PNG, JPEG, PDF, SVG) for a picture of the queries and the shapes found.
        device: Where the encoder computes, such as cpu or cuda.
        drop_invalid: Leave out points of files of shapes that are not finite numbers.
        overwrite: Replace an existing picture.
    """
    import dataclasses

    import numpy as np

    from pc3d.evaluation import ShapeIndex
    from pc3d.evaluation.shape_index import weights_digest

    place = open_device(device)
    if picture is not None:
        check_picture("picture", picture, overwrite)
    kinds = [_kind(one) for one in query]
    given = {"text_tower": text_tower, "image_tower": image_tower, "templates": templates, "up": up}
    _check_used(kinds, {**given, "drop_invalid": drop_invalid})
    if top < 1:
        raise ValueError(f"top: must be at least 1, got {top}")
    patterns = _alignment.templates_of(templates)
    stored = ShapeIndex(index)
    name, aligned = _encoder_of(stored, encoder)
    if weights_digest(aligned) != stored.made_by.get("digest"):
        raise ValueError(
            f"encoder: {name} has other weights than the one that {index} was built with: use that one, or build anew"
        )
    aligned = aligned.to(place)
    towers = {
        # Opened once, and only if a query needs them.
        "text_tower": functools.cache(lambda: _alignment.open_text_tower(aligned, text_tower)),
        "image_tower": functools.cache(lambda: _alignment.open_image_tower(aligned, image_tower)),
        "templates": patterns,
        "up": up,
        "drop_invalid": drop_invalid,
    }
    points = stored.made_by.get("num_points")
    vectors = np.stack([_vector(one, aligned, name, points, towers) for one in query])
    # What is near to a shape is so in both spaces; a text or a picture lies in one of them.
    scales = [1.0 if kind == "shape" else aligned.joint_scale for kind in kinds]
    groups = [[row] for row in range(len(query))] if each else [list(range(len(query)))]
    found = []
    for rows in groups:
        found.append(stored.search(vectors[rows], top, scale=[scales[row] for row in rows], exact=exact))
    if picture is not None:
        asked = [[(kinds[row], query[row]) for row in rows] for rows in groups]
        _search_picture.write(picture, stored, list(zip(asked, found, strict=True)), up, drop_invalid)
    told = [[dataclasses.asdict(hit) for hit in hits] for hits in found]
    if not each:
        _output.result(told[0], _lines(found[0]))
        return
    pairs = list(zip(query, found, strict=True))
    _output.result(
        [{"query": one, "hits": hits} for one, hits in zip(query, told, strict=True)],
        "\n".join(f"{one}:\n{_lines(hits)}" for one, hits in pairs),
    )


def _encoder_of(stored: ShapeIndex, encoder: str | None) -> tuple[str, AlignedShapeEncoder]:
    """The encoder that was asked for, or that an index was built with, and its name."""
    if encoder is not None:
        return encoder, _alignment.open_aligned(encoder)
    name = str(stored.made_by.get("encoder"))
    try:
        return name, _alignment.open_aligned(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"encoder: {stored.folder} was built with {name}, which cannot be opened any more ({error}); where it has "
            "moved, say so with --encoder FOLDER"
        ) from error


def _lines(hits: Sequence[Hit]) -> str:
    lines = []
    for hit in hits:
        told = [str(hit.record[name]) for name in ("text", "class") if name in hit.record]
        lines.append(f"{hit.score:.3f}  {hit.id}" + (f"  ({', '.join(told)})" if told else ""))
    return "\n".join(lines)


def _kind(query: str) -> str:
    if not query.strip():
        raise ValueError("query: an empty text finds nothing; a text reads like 'a wooden rocking chair'")
    from pc3d.data.points import POINT_SUFFIXES

    path = Path(query)
    if not _alignment.is_file(query):
        of_file = path.suffix.lower() in (*_alignment.PICTURES, *POINT_SUFFIXES)
        if of_file or (path.suffix and path.parent.name and " " not in query):
            raise FileNotFoundError(f"query: there is no file {query}; a text reads like 'a wooden rocking chair'")
        return "text"
    return "picture" if path.suffix.lower() in _alignment.PICTURES else "shape"


def _check_used(kinds: Sequence[str], options: dict[str, str | bool | None]) -> None:
    """Refuse an option that none of the queries makes use of.

    Raises:
        ValueError: there is one.
    """
    of_kind = {"text_tower": "text", "templates": "text", "image_tower": "picture", "up": "shape"}
    of_kind |= {"drop_invalid": "shape"}
    for option, value in options.items():
        if value not in (None, False, "none") and of_kind[option] not in kinds:
            raise ValueError(
                f"{option}: {value!r} is for a {of_kind[option]}, and no query is one: leave the option out"
            )


def _vector(
    query: str, aligned: AlignedShapeEncoder, name: str, num_points: int | None, options: dict[str, Any]
) -> Any:
    """The joint vector of a query."""
    import torch

    from pc3d.cli._inputs import extract
    from pc3d.image import read_picture

    kind, place = _kind(query), aligned.log_scale.device
    with torch.no_grad():
        if kind == "text":
            features = _alignment.class_vectors(options["text_tower"](), [[query]], options["templates"])
            return aligned.joint_text(features.to(place))[0].cpu().numpy()
        if kind == "picture":
            features = options["image_tower"]().encode([read_picture(query)])
            return aligned.joint_image(features.to(place))[0].cpu().numpy()
    source = _alignment.shapes(query, "test", None, options["up"], drop_invalid=options["drop_invalid"])
    found = extract(aligned.view("joint"), name, source, query, "", batch_size=1, pooling="none", num_points=num_points)
    return found.values[0]


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("search", search, argv, words=["query"])
