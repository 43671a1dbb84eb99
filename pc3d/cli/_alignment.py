"""What the verbs that compare shapes with texts and pictures have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli import _output
from pc3d.cli._inputs import NUM_POINTS, OnError, Points, Source, UpAxis, Variant, open_inputs, turned_up

if TYPE_CHECKING:
    from torch import Tensor

    from pc3d.data import PointCloud, PointDataset
    from pc3d.image import ImageTower, TextTower
    from pc3d.models import AlignedShapeEncoder

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_PUBLISHED_POINTS = 10_000


def open_aligned(encoder: str) -> AlignedShapeEncoder:
    """An encoder that was aligned with texts and pictures.

    Raises:
        TypeError: it was not.
    """
    from pc3d.models import as_aligned, load_encoder

    return as_aligned(load_encoder(encoder))


def open_text_tower(aligned: AlignedShapeEncoder, tower: str | None) -> TextTower:
    """The text tower of an encoder, or the one that is named."""
    from pc3d.image import load_text_tower

    aligned.check_side("text")
    name = _named(tower or aligned.text_space, "text_tower", "offline:minilm")
    _check_known_width("text_tower", name, aligned.text_dim)
    found = load_text_tower(name)
    _check_width("text_tower", found.name, found.width, aligned.text_dim)
    warn_of_other_tower("text_tower", name, aligned.text_space)
    return found


def open_image_tower(aligned: AlignedShapeEncoder, tower: str | None) -> ImageTower:
    """The image tower of an encoder, or the one that is named."""
    from pc3d.image import load_image_tower

    aligned.check_side("image")
    name = _named(tower or aligned.image_space, "image_tower", "offline:efficientnet-lite0")
    _check_known_width("image_tower", name, aligned.image_dim)
    found = load_image_tower(name)
    _check_width("image_tower", found.name, found.width, aligned.image_dim)
    warn_of_other_tower("image_tower", name, aligned.image_space)
    return found


def _named(name: str, option: str, example: str) -> str:
    if not name:
        raise ValueError(
            f"{option}: the encoder does not say what it was aligned with; if it was with such a tower at all, name "
            f"it, as in --{option} {example}"
        )
    return name


def warn_of_other_tower(option: str, name: str, own: str) -> None:
    """Say so where another tower is named than an encoder's own: the same one from a file perhaps, or a mistake.

    Args:
        option: that names it.
        name: of the tower.
        own: that of the encoder; empty where it does not say.
    """
    from pc3d.image import tower_name

    if own and tower_name(name) != tower_name(own):
        _output.warn_once(
            f"{option}: the encoder was trained with {own}, and {name} is not that by its name: unless its weights are "
            "the same, cosines with its features mean nothing, whatever their width; leave the option out"
        )


def _check_known_width(option: str, name: str, wanted: int) -> None:
    """Before gigabytes are fetched for nothing."""
    from pc3d.image.loading import known_width

    width = known_width(name)
    if width is not None:
        _check_width(option, name, width, wanted)


def _check_width(option: str, name: str, width: int | None, wanted: int) -> None:
    if width != wanted:
        raise ValueError(f"{option}: {name} has features of width {width}, the encoder was aligned with {wanted}")


def templates_of(name: str) -> tuple[str, ...]:
    """Prompt templates: ``"ulip"``, ``"photo"``, ``"none"``, or a file with one of them per line, with ``{}``.

    Raises:
        ValueError: neither a name nor a file, or a file of anything but templates.
    """
    from pc3d.image import PHOTO, ULIP_TEMPLATES, fill

    known: dict[str, tuple[str, ...]] = {"ulip": ULIP_TEMPLATES, "photo": PHOTO, "none": ("{}",)}
    if name in known:
        return known[name]
    if not is_file(name):
        raise ValueError(f"templates: {name!r} is none of {', '.join(known)}, and no file")
    lines = tuple(line for line in _lines_of("templates", name) if line.strip())
    try:
        fill(lines, "")
    except ValueError as error:
        raise ValueError(f"templates: {name}: {error}") from error
    return lines


def read_classes(classes: str) -> dict[str, list[str]]:
    """Class names and what stands for each: comma-separated names, or a file with a class per line.

    A line is a name, or a name, a tab and a prompt; several lines with one name give it several prompts.
    """
    lines = _lines_of("classes", classes) if is_file(classes) else classes.split(",")
    found: dict[str, list[str]] = {}
    for line in lines:
        name, tab, prompt = line.partition("\t")
        if name.strip():
            found.setdefault(name.strip(), []).append(prompt.strip() if tab else name.strip())
    if not found:
        raise ValueError(f"classes: {classes!r} names no class: give names with commas, or a file with one per line")
    return found


def is_file(text: str) -> bool:
    """Whether a text is the path of a file; names of forty classes are longer than any."""
    try:
        return Path(text).is_file()
    except OSError:  # too long for a path
        return False


def _lines_of(option: str, file: str) -> list[str]:
    try:
        # Some editors begin a file with a byte order mark, which is no part of the first name.
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}: {file} is no text in UTF-8 ({error}): save it as such") from error


def spoken(name: str) -> str:
    """A class name as it is said: files write ``night_stand``, the published prompts "night stand"."""
    return name.replace("_", " ")


def class_vectors(tower: TextTower, prompts: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
    """One unit vector per class ``(C, D)``: the mean over its prompts of their unit vectors over the templates."""
    import torch
    from torch.nn.functional import normalize

    from pc3d.image import prompt_ensemble

    flat = [prompt for of_class in prompts for prompt in of_class]
    rows = prompt_ensemble(tower, flat, templates)
    owner = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor([len(of_class) for of_class in prompts]))
    return normalize(torch.zeros(len(prompts), rows.shape[1]).index_add(0, owner, rows), dim=1)


def stored_class_vectors(aligned: AlignedShapeEncoder, file: str, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Names of classes and their features ``(C, D)`` from a file of OpenShape's release.

    Args:
        aligned: the encoder that is compared with them.
        file: see :func:`pc3d.data.openshape_tests.read_class_features`.
        classes: those of the data; the names are spelled as here, where they only differ in underscores.

    Raises:
        ValueError: features of another width, or a class of the data has none.
    """
    import numpy as np
    import torch

    from pc3d.data.openshape_tests import read_class_features

    aligned.check_side("text")
    features = read_class_features(file, classes)
    spelled = {spoken(name): name for name in classes}
    names = [spelled.get(spoken(name), name) for name in features]
    missing = [name for name in classes if name not in names]
    if missing:
        raise ValueError(
            f"class_features: {file} has no features of {len(missing)} of the data's classes ({', '.join(missing[:5])})"
        )
    rows = torch.from_numpy(np.stack(list(features.values())))
    _check_width("class_features", file, rows.shape[1], aligned.text_dim)
    return names, rows


def shapes(
    data: str,
    split: str,
    variant: Variant | None,
    up: UpAxis | None,
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
) -> Source:
    """Shapes as aligned encoders want them: at random points, centred at their mean, z up.

    Args:
        data: see :func:`pc3d.cli._inputs.open_inputs`.
        split: of a data set.
        variant: of a data set.
        up: the axis that points up; None for what the data set says, y in GLB files, and z in all others.
        on_error: see :func:`pc3d.cli._inputs.open_split`.
        drop_invalid: likewise.
    """
    return as_wanted(open_inputs(data, split, None, variant, on_error, drop_invalid), up)


def as_wanted(source: Source, up: UpAxis | None) -> Source:
    """A source whose clouds are whole, prepared as aligned encoders want it, see :func:`shapes`."""
    return replace(source, dataset=_upright(source.dataset, up), sampling="random", normalize="centroid")


def points_for(encoder: Any, num_points: Points) -> int | None:
    """Points per cloud: what was asked for, or by default what an aligned encoder was made for, and 1,024 for others.

    Where an aligned encoder does not say, it is the published 10,000.
    """
    from pc3d.models import is_aligned, points_meant_for

    if num_points != "default":
        return num_points
    if not is_aligned(encoder):
        return NUM_POINTS
    return points_meant_for(encoder) or _PUBLISHED_POINTS


def inputs_for(
    encoder: Any,
    data: str,
    split: str,
    num_points: int | None,
    variant: Variant | None,
    up: UpAxis | None,
    open_source: Callable[[str, str, int | None, Variant | None], Source] = open_inputs,
) -> Source:
    """A split of a data set as an encoder wants it: of an aligned one see :func:`shapes`, of all others the opener.

    Args:
        encoder: the encoder itself.
        data: see ``open_source``.
        split: likewise.
        num_points: likewise.
        variant: likewise.
        up: of an aligned encoder, see :func:`shapes`.
        open_source: :func:`pc3d.cli._inputs.open_inputs` or :func:`pc3d.cli._inputs.open_split`.

    Raises:
        ValueError: ``up`` is given and the encoder is not aligned.
    """
    from pc3d.models import is_aligned

    if is_aligned(encoder):
        return as_wanted(open_source(data, split, None, variant), up)
    if up is not None:
        raise ValueError(
            f"up: {up!r} is for encoders aligned with texts and pictures, which want z up; a {type(encoder).__name__} "
            "takes clouds as they are stored: leave the option out"
        )
    return open_source(data, split, num_points, variant)


def file_of(dataset: PointDataset, row: int) -> Path | None:
    """The file that holds a shape of a set from :func:`shapes` and nothing else; None where a set has no such files."""
    paths = getattr(dataset, "paths", None)
    return Path(paths[row]) if paths else None


def name_of(dataset: PointDataset, row: int, cloud: PointCloud) -> str:
    """What tells a shape of a set from :func:`shapes` apart: the path of its file, or its id."""
    return str(file_of(dataset, row) or cloud.meta["id"])


def _upright(dataset: PointDataset, up: UpAxis | None) -> PointDataset:
    from pc3d.data import PointDataset

    class Upright(PointDataset):
        def __init__(self) -> None:
            self.classes, self.labels, self.groups = dataset.classes, dataset.labels, dataset.groups
            self.skipped, self.paths = dataset.skipped, getattr(dataset, "paths", None)
            self.up = dataset.up  # of the clouds that load() turns

        def load(self, index: int) -> PointCloud:
            cloud = dataset.load(index)
            path = str(cloud.meta.get("path", ""))
            cloud = cloud.replace(meta={"id": path or str(index), **cloud.meta})
            return turned_up(cloud, up, dataset.up)

    return Upright()
