"""What the verbs that compare shapes with texts and pictures have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pc3d.cli._inputs import Source, Variant, open_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from pc3d.data import PointCloud, PointDataset
    from pc3d.image import ImageTower, TextTower
    from pc3d.models import AlignedShapeEncoder

UpAxis = Literal["y", "z"]
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_Y_UP = (".glb",)


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

    found = load_text_tower(_named(tower or aligned.text_space, "text_tower", "offline:minilm"))
    _check_width("text_tower", found.name, found.width, aligned.text_dim)
    return found


def open_image_tower(aligned: AlignedShapeEncoder, tower: str | None) -> ImageTower:
    """The image tower of an encoder, or the one that is named."""
    from pc3d.image import load_image_tower

    found = load_image_tower(_named(tower or aligned.image_space, "image_tower", "offline:efficientnet-lite0"))
    _check_width("image_tower", found.name, found.width, aligned.image_dim)
    return found


def _named(name: str, option: str, example: str) -> str:
    if not name:
        raise ValueError(
            f"{option}: the encoder does not say what it was aligned with; if it was with such a tower at all, name "
            f"it, as in --{option} {example}"
        )
    return name


def _check_width(option: str, name: str, width: int | None, wanted: int) -> None:
    if width != wanted:
        raise ValueError(f"{option}: {name} has features of width {width}, the encoder was aligned with {wanted}")


def templates_of(name: str) -> tuple[str, ...]:
    """Prompt templates: ``"ulip"``, ``"photo"``, ``"none"``, or a file with one of them per line, with ``{}``."""
    from pc3d.image import PHOTO, ULIP_TEMPLATES

    known: dict[str, tuple[str, ...]] = {"ulip": ULIP_TEMPLATES, "photo": PHOTO, "none": ("{}",)}
    if name in known:
        return known[name]
    if not Path(name).is_file():
        raise ValueError(f"templates: {name!r} is none of {', '.join(known)}, and no file")
    return tuple(line for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip())


def read_classes(classes: str) -> dict[str, list[str]]:
    """Class names and what stands for each: comma-separated names, or a file with a class per line.

    A line is a name, or a name, a tab and a prompt; several lines with one name give it several prompts.
    """
    path = Path(classes)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else classes.split(",")
    found: dict[str, list[str]] = {}
    for line in lines:
        name, tab, prompt = line.partition("\t")
        if name.strip():
            found.setdefault(name.strip(), []).append(prompt.strip() if tab else name.strip())
    if not found:
        raise ValueError(f"classes: {classes!r} names no class: give names with commas, or a file with one per line")
    return found


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


def shapes(data: str, split: str, num_points: int | None, variant: Variant | None, up: UpAxis | None) -> Source:
    """Shapes as aligned encoders want them: at random points, centred at their mean, z up.

    Args:
        data: see :func:`pc3d.cli._inputs.open_inputs`.
        split: of a data set.
        num_points: points per shape, at most; None for all.
        variant: of a data set.
        up: the axis that points up; None for y in GLB files and z in all others.
    """
    from pc3d.data import AlignedShards

    if (Path(data) / f"{split}-index.npz").is_file():
        source = Source(AlignedShards(data, split), "random", "centroid")
    else:
        source = open_inputs(data, split, None, variant)
    return replace(source, dataset=_upright(source.dataset, up), sampling="random", normalize="centroid")


def names_of(dataset: PointDataset) -> list[str]:
    """What tells the shapes of a set from :func:`shapes` apart: paths of files, or ids."""
    paths = getattr(dataset, "paths", None)
    return [str(path) for path in paths or ()] or [str(dataset.load(row).meta["id"]) for row in range(len(dataset))]


def _upright(dataset: PointDataset, up: UpAxis | None) -> PointDataset:
    import torch

    from pc3d.data import PointDataset, TurnUp

    class Upright(PointDataset):
        def __init__(self) -> None:
            self.classes, self.labels, self.groups = dataset.classes, dataset.labels, dataset.groups
            self.paths = getattr(dataset, "paths", None)

        def load(self, index: int) -> PointCloud:
            cloud = dataset.load(index)
            path = str(cloud.meta.get("path", ""))
            cloud = cloud.replace(meta={"id": path or str(index), **cloud.meta})
            turned = up == "y" or (up is None and path.lower().endswith(_Y_UP))
            return TurnUp("y", "z")(cloud, torch.Generator()) if turned else cloud

    return Upright()


def read_picture(path: str) -> Any:
    """A picture as a uint8 array."""
    import numpy as np

    from pc3d._extras import require

    image = require("PIL.Image", extra="image", purpose="pictures").open(path)
    return np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"))
