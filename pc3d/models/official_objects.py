"""The encoder of an official checkpoint of object encoders, whichever family it is of."""

from __future__ import annotations

from pathlib import Path

from pc3d.models.point_vit import PointViT
from pc3d.models.posbert import load_posbert_encoder
from pc3d.models.pretrained import LoadReport, load_official_encoder, read_checkpoint
from pc3d.models.vit3d import ViT3D

SUFFIXES = (".pth", ".pt")


def load_official_objects(path: Path) -> tuple[PointViT | ViT3D, LoadReport]:
    """The encoder of a checkpoint of Point-MAE's family or of POS-BERT (its teacher), told apart by what they hold.

    Also what was done with the file's tensors.

    What a file does not tell is as released (:func:`load_official_encoder`, :func:`load_posbert_encoder`). The class
    token of a fine-tuned classifier is kept, because its tokens have learnt beside it. Those of pre-training are left
    out, as fine-tuning does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of neither, or damaged.
    """
    content = read_checkpoint(path)
    if isinstance(content, dict) and isinstance(content.get("teacher"), dict):
        return load_posbert_encoder(path)
    try:
        encoder, report = load_official_encoder(path)
    except ValueError as error:
        raise ValueError(
            f"{error}. Taken as they are: checkpoints of Point-MAE's family and of POS-BERT. Of OpenShape's, "
            "data_tools/convert_openshape_checkpoint.py makes an encoder; others are loaded in Python and kept with "
            "pc3d.save_encoder"
        ) from error
    return load_official_encoder(path, keep_cls_tokens=True) if report.kind == "classification" else (encoder, report)
