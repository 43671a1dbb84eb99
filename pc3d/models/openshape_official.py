"""Official OpenShape checkpoints as aligned encoders: with the towers that they belong to and their logit scale."""

from __future__ import annotations

import math
import os
from typing import Any

from pc3d.data.aligned_files import RELEASED_TOWER
from pc3d.models.aligned import AlignedShapeEncoder
from pc3d.models.openshape_checkpoints import OpenShapeReport, load_official_openshape

RELEASED_TOWERS = {
    1280: RELEASED_TOWER,
    768: "open_clip:ViT-L-14/openai",
    512: "open_clip:ViT-B-32/openai",
}
"""The pair of towers of each released model, by the width of its embeddings. The paper states the first; of the models
for generation the inference library says ViT-L/14 and ViT-B/32 of CLIP, which is taken for OpenAI's weights."""


def load_aligned_openshape(
    path: str | os.PathLike[str], *, tower: str | None = None, **arguments: Any
) -> tuple[AlignedShapeEncoder, OpenShapeReport]:
    """Load an official checkpoint for zero-shot, search and ``start_from``, in evaluation mode, on the CPU.

    Args:
        path: the file.
        tower: name of the pair of towers that the checkpoint was aligned with. By default, that of the released model
            with embeddings of its width (:data:`RELEASED_TOWERS`); empty if not known.
        **arguments: see :func:`load_official_openshape`.

    Returns:
        The encoder, with the file's logit scale (the published initial one where the file has none), and what was done
        with the file's tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no OpenShape checkpoint, or its width determines no tower.
    """
    encoder, report = load_official_openshape(path, **arguments)
    if tower is None and encoder.embed_dim not in RELEASED_TOWERS:
        raise ValueError(
            f"{path}: tower must be given, no released model has embeddings of width {encoder.embed_dim}: name the "
            "pair that it was aligned with, or an empty name if it is not known"
        )
    name = RELEASED_TOWERS[encoder.embed_dim] if tower is None else tower
    aligned = AlignedShapeEncoder(encoder, text_space=name, image_space=name)
    if report.logit_scale is not None:
        aligned.log_scale.data.fill_(math.log(report.logit_scale))
    return aligned.eval(), report
