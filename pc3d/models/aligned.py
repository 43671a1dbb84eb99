"""An encoder of shapes that is aligned with text and picture features, for zero-shot classification and search."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.models.described import describe
from pc3d.models.openshape import OpenShapePointBERT, check_choice, check_pooling
from pc3d.models.openshape_fcnn import OpenShapeFCNN
from pc3d.models.openshape_sparse import OpenShapeSparseConv

Space = Literal["text", "image", "joint"]


class AlignedShapeEncoder(nn.Module):
    """An encoder of shapes whose embeddings can be compared with features of texts and of pictures.

    As published (OpenShape), text tower and image tower share one space, the encoder's output lies in it, and there are
    no heads: ``text_dim`` and ``image_dim`` are the encoder's own. If the towers have two spaces or another width, one
    linear head for each maps the embedding into its space (ours).

    For search, every shape has one *joint* vector of unit length: the embedding itself if the space is shared, else the
    outputs of the two heads, each normalised and divided by the square root of 2, concatenated. The joint vector of a
    text is its feature concatenated with zeros, so ``joint(shape) . joint_text(text)`` is the cosine (with two spaces,
    divided by the square root of 2). A head that was not trained is not used (:attr:`sides`).

    Args:
        encoder: anything with ``embed_dim`` and ``encode(xyz)``, and ``encode(xyz, rgb=...)`` if it has ``reads_rgb``.
        text_dim: width of the text features; by default the encoder's.
        image_dim: width of the picture features, likewise.
        project_targets: also learn a linear map of the frozen text features and one of the picture features, g_T and
            g_I of the paper. Off as in the released configuration, whose models are compared with CLIP's own features.
        text_space: name of the text tower, which :func:`pc3d.image.load_text_tower` opens; empty if not known. Of two
            spaces the one without a name counts as not trained, if the other has one.
        image_space: name of the image tower, likewise.
        logit_scale: the initial scale of the cosines, learned as its logarithm, not clamped (published 14.28).

    Raises:
        TypeError: the encoder is none.
        ValueError: a width below 1, or a scale that is not positive.
    """

    def __init__(
        self,
        encoder: nn.Module,
        text_dim: int | None = None,
        image_dim: int | None = None,
        project_targets: bool = False,
        text_space: str = "",
        image_space: str = "",
        logit_scale: float = 14.28,
    ) -> None:
        super().__init__()
        if not hasattr(encoder, "encode") or not hasattr(encoder, "embed_dim"):
            raise TypeError(f"encoder must have encode() and embed_dim, got {type(encoder).__name__}")
        if not logit_scale > 0:
            raise ValueError(f"logit_scale must be positive, got {logit_scale}")
        width = int(cast(Any, encoder).embed_dim)
        self.embed_dim = width
        self.text_dim, self.image_dim = (width if dim is None else dim for dim in (text_dim, image_dim))
        if min(self.text_dim, self.image_dim) < 1:
            raise ValueError(f"text_dim and image_dim must be at least 1, got {self.text_dim} and {self.image_dim}")
        self.shared = self.text_dim == self.image_dim == width
        self.text_space, self.image_space = text_space, image_space
        self.config: dict[str, Any] = {
            "encoder": describe(encoder),
            "text_dim": self.text_dim,
            "image_dim": self.image_dim,
            "project_targets": project_targets,
            "text_space": text_space,
            "image_space": image_space,
        }
        self.encoder = encoder
        self.text_head, self.image_head = (
            nn.Identity() if self.shared else nn.Linear(width, dim) for dim in (self.text_dim, self.image_dim)
        )
        self.text_projection, self.image_projection = (
            nn.Linear(dim, dim) if project_targets else nn.Identity() for dim in (self.text_dim, self.image_dim)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))

    def name_spaces(self, text_space: str, image_space: str) -> None:
        """Name the towers that have no name yet."""
        self.text_space, self.image_space = self.text_space or text_space, self.image_space or image_space
        self.config |= {"text_space": self.text_space, "image_space": self.image_space}

    @property
    def reads_rgb(self) -> bool:
        """Whether the encoder reads colours."""
        return bool(getattr(self.encoder, "reads_rgb", False))

    @property
    def pooling(self) -> str:
        """How features are pooled, for reports."""
        return str(getattr(self.encoder, "pooling", "max+mean"))

    @property
    def logit_scale(self) -> Tensor:
        """The factor by which cosines are multiplied."""
        return self.log_scale.exp()

    def forward(self, xyz: Tensor, rgb: Tensor | None = None) -> Tensor:
        """As :meth:`encode`."""
        colors = {"rgb": rgb} if self.reads_rgb else {}
        embedding: Tensor = cast(Any, self.encoder).encode(xyz, **colors)
        return embedding

    def encode(self, xyz: Tensor, pooling: str = "none", *, rgb: Tensor | None = None) -> Tensor:
        """The encoder's embedding of clouds, before any head.

        Args:
            xyz: ``(B, N, 3)``.
            pooling: ignored; the encoder's default pooling was aligned.
            rgb: ``(B, N, 3)`` in [0, 1]; passed on if the encoder reads colours.

        Returns:
            ``(B, embed_dim)``, not normalised.
        """
        check_pooling(pooling)
        return self.forward(xyz, rgb)

    def in_text_space(self, embedding: Tensor) -> Tensor:
        """Embeddings ``(B, embed_dim)`` as ``(B, text_dim)``, to compare with :meth:`text_targets`."""
        result: Tensor = self.text_head(embedding)
        return result

    def in_image_space(self, embedding: Tensor) -> Tensor:
        """Embeddings ``(B, embed_dim)`` as ``(B, image_dim)``, to compare with :meth:`image_targets`."""
        result: Tensor = self.image_head(embedding)
        return result

    def text_targets(self, features: Tensor) -> Tensor:
        """Text features ``(M, text_dim)`` to compare shapes with: unchanged, or through g_T."""
        result: Tensor = self.text_projection(_of_width(features, self.text_dim, "text", self.text_space))
        return result

    def image_targets(self, features: Tensor) -> Tensor:
        """Picture features ``(M, image_dim)`` to compare shapes with: unchanged, or through g_I."""
        result: Tensor = self.image_projection(_of_width(features, self.image_dim, "image", self.image_space))
        return result

    @property
    def sides(self) -> tuple[Literal["text", "image"], ...]:
        """What shapes can be compared with: both kinds, or the only named one if one of two spaces has a name."""
        named = {"text": self.text_space, "image": self.image_space}
        if self.shared or all(named.values()) or not any(named.values()):
            return ("text", "image")
        return ("text",) if self.text_space else ("image",)

    @property
    def joint_dim(self) -> int:
        """Width of a joint vector."""
        widths = {"text": self.text_dim, "image": self.image_dim}
        return self.embed_dim if self.shared else sum(widths[side] for side in self.sides)

    @property
    def joint_scale(self) -> float:
        """The factor that turns products of the joint vectors of a shape and a text or picture into cosines."""
        return 1.0 if self.shared else math.sqrt(len(self.sides))

    def check_side(self, side: str) -> None:
        """Raise an error if :attr:`sides` lacks ``"text"`` or ``"image"``.

        Raises:
            ValueError: the head of that side was not trained.
        """
        if side not in self.sides:
            raise ValueError(
                f"the encoder was aligned with {self.text_space or self.image_space} alone, its {side} head was not "
                f"trained; if it was, name its tower: name_spaces(...), then save_encoder"
            )

    def view(self, space: Space) -> AlignedView:
        """The encoder as one whose ``encode`` gives vectors of a space."""
        return AlignedView(self, space)

    def joint(self, embedding: Tensor) -> Tensor:
        """Joint vectors ``(B, joint_dim)`` of embeddings of shapes, of unit length."""
        carry = {"text": self.in_text_space, "image": self.in_image_space}
        units = [F.normalize(carry[side](embedding), dim=1) for side in self.sides]
        return units[0] if self.shared else torch.cat(units, dim=1) / math.sqrt(len(units))

    def joint_text(self, features: Tensor) -> Tensor:
        """Joint vectors ``(M, joint_dim)`` of text features, of unit length."""
        self.check_side("text")
        unit = F.normalize(self.text_targets(features), dim=1)
        return F.pad(unit, (0, self.joint_dim - self.text_dim))

    def joint_image(self, features: Tensor) -> Tensor:
        """Joint vectors ``(M, joint_dim)`` of picture features, of unit length."""
        self.check_side("image")
        unit = F.normalize(self.image_targets(features), dim=1)
        return F.pad(unit, (self.joint_dim - self.image_dim, 0))


class AlignedView(nn.Module):
    """An aligned encoder whose ``encode`` returns vectors of one space, for code that takes any encoder.

    Args:
        aligned: the encoder.
        space: ``"text"`` or ``"image"``, to be compared with :meth:`AlignedShapeEncoder.text_targets` or
            ``image_targets``; or ``"joint"``, of unit length.

    Raises:
        ValueError: an unknown space, or one whose head was not trained.
    """

    def __init__(self, aligned: AlignedShapeEncoder, space: Space) -> None:
        super().__init__()
        check_choice("space", space, Space)
        if space != "joint":
            aligned.check_side(space)
        self.aligned, self.space = aligned, space
        self.pooling, self.reads_rgb = f"none (in the {space} space)", aligned.reads_rgb

    def encode(self, xyz: Tensor, pooling: str = "none", *, rgb: Tensor | None = None) -> Tensor:
        """``(B, N, 3)`` clouds to ``(B, D)``; ``pooling`` is ignored."""
        check_pooling(pooling)
        embedding = self.aligned.encode(xyz, rgb=rgb)
        carry = {"text": self.aligned.in_text_space, "image": self.aligned.in_image_space, "joint": self.aligned.joint}
        return carry[self.space](embedding)


def is_aligned(encoder: object) -> bool:
    """Whether an encoder was aligned with texts and pictures, see :func:`as_aligned`."""
    return isinstance(encoder, AlignedShapeEncoder | OpenShapePointBERT | OpenShapeSparseConv | OpenShapeFCNN)


def points_meant_for(encoder: object) -> int | None:
    """Points of a cloud that an encoder of objects, or the one in an aligned one, is meant for; None if not known."""
    inner = encoder.encoder if isinstance(encoder, AlignedShapeEncoder) else encoder
    found = getattr(inner, "config", {}).get("num_points")
    return None if found is None else int(found)


def as_aligned(encoder: nn.Module) -> AlignedShapeEncoder:
    """Return the encoder as an :class:`AlignedShapeEncoder`; one whose output lies in a space is wrapped.

    Raises:
        TypeError: an encoder that was not aligned with anything.
    """
    if isinstance(encoder, AlignedShapeEncoder):
        return encoder
    if not is_aligned(encoder):
        raise TypeError(
            f"a {type(encoder).__name__} was not aligned with texts and pictures: train it with the method OpenShape, "
            "or convert an official checkpoint with data_tools/convert_openshape_checkpoint.py"
        )
    return AlignedShapeEncoder(encoder).eval()


def _of_width(features: Tensor, width: int, kind: str, space: str) -> Tensor:
    if features.ndim != 2 or features.shape[1] != width:
        named = f" of {space}" if space else ""
        raise ValueError(
            f"{kind} features must be (M, {width}), those{named} that the encoder was aligned with; got "
            f"{tuple(features.shape)}"
        )
    return features
