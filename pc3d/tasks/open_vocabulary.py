"""Segmentation by texts, without labels: for a distilled encoder whose teacher shares a space with texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pc3d.image import JointPair, MissingWeightsError, load_pair
from pc3d.models import DistilledEncoder
from pc3d.nn import TextHead
from pc3d.tasks.segmenter import SceneSegmenter

_JOINT = (
    "open_clip:ViT-B-16/laion2b_s34b_b88k, or offline:conse (a bridge through the class names of ImageNet, not CLIP)"
)


def joint_teacher(distilled: DistilledEncoder, name: str | None = None, weights: str | None = None) -> JointPair:
    """Load the pair of towers from whose dense features an encoder was distilled.

    Args:
        distilled: the encoder, which names its teacher.
        name: the teacher, ``LIBRARY:MODEL``, if the encoder does not name it or it lies in another place; its weights
            are then not compared with those that the encoder was distilled from.
        weights: of open_clip, a local file.

    Raises:
        ValueError: the encoder lies in no teacher's space, or its teacher is not joint with texts, or has other weights
            here.
        MissingWeightsError: the teacher's weights are not here.
    """
    expected = "" if name else distilled.space_weights
    name = name or distilled.space
    if not name:
        raise ValueError(
            "the encoder lies in no teacher's space: it was distilled by contrast in a space of its own (embed_dim), "
            "or without a teacher's name; distil with objective cosine or embed_dim null, and name the teacher"
        )
    try:
        pair = load_pair(name, weights)
    except MissingWeightsError:
        raise
    except ValueError as error:
        raise ValueError(
            f"the teacher {name} is not joint with texts ({error}): lift and distil the dense features of one that is, "
            f"such as {_JOINT}"
        ) from error
    if not pair.image.dense_text_aligned:
        raise ValueError(
            f"the dense features of {name} are not in the space of its texts: lift and distil those of a tower whose "
            f"are, such as {_JOINT}"
        )
    if pair.image.dense_width != distilled.space_dim:
        raise ValueError(
            f"{name} has features of width {pair.image.dense_width}, the encoder was distilled from features of width "
            f"{distilled.space_dim}: name the tower that made them"
        )
    if expected and expected != pair.image.weights_hash():
        raise ValueError(
            f"{name} has other weights here than those that the encoder was distilled from (SHA-256 {expected[:12]}): "
            "give the file that features were lifted with (weights), or name the teacher if it is one all the same, in "
            "another precision say"
        )
    return pair


@torch.no_grad()
def open_vocabulary_segmenter(
    distilled: DistilledEncoder, classes: Sequence[str], vectors: Tensor, logit_scale: float = 100.0
) -> SceneSegmenter:
    """A segmenter whose classes are texts: scaled cosines of points with them, in the teacher's space (OpenScene, Peng
    et al., 2023, section 3.4).

    Args:
        distilled: the encoder; the segmenter takes it over.
        classes: K names.
        vectors: ``(K, space_dim)``, the features of the teacher's text tower for each
            (:func:`pc3d.image.prompt_ensemble`).
        logit_scale: factor of the cosines; it changes confidences, not labels.

    Raises:
        ValueError: the vectors do not go with the classes or the space.
    """
    if tuple(vectors.shape) != (len(classes), distilled.space_dim):
        raise ValueError(
            f"vectors must be ({len(classes)}, {distilled.space_dim}), one of the teacher's space for each class, got "
            f"{tuple(vectors.shape)}"
        )
    head = TextHead(distilled.feature_dim, len(classes), distilled.space_dim, logit_scale)
    head.projection.load_state_dict(distilled.projection.state_dict())
    head.text.copy_(vectors)
    return SceneSegmenter(distilled, classes, head).eval()
