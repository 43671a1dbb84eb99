"""OpenShape's transformer: patches of coloured points as tokens, one vector per shape in the space of a 2D model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pc3d.nn._checks import as_read_by, check_dense, check_enough_points
from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.tokenizer import LinearBeforeNorm
from pc3d.nn.transformer import TransformerBlock
from pc3d.ops import ball_query, farthest_point_sample, gather

Axes = Literal["z_up", "mirrored", "y_up"]
"""The frame that a network was trained in, see :func:`to_frame`."""
BallOrder = Literal["first", "nearest"]
Start = Literal["first", "random"]
GREY = 0.4
"""What stands for a missing colour (the released code; 100 of 255 in its ModelNet40 files)."""

_COLUMNS = ("width", "depth", "num_heads", "mlp_dim", "patch_dim", "num_groups", "radius", "group_size")
SIZES: dict[str, dict[str, Any]] = {
    name: dict(zip(_COLUMNS, values, strict=True))
    for name, values in {
        "5m": (256, 6, 4, 1024, 96, 64, 0.4, 256),
        "13m": (512, 6, 8, 1024, 128, 64, 0.4, 256),
        "26m": (512, 12, 8, 1024, 128, 128, 0.35, 128),
        "32m": (512, 12, 8, 1536, 256, 384, 0.2, 64),
        "72m": (768, 12, 12, 2304, 256, 512, 0.2, 64),
        "171m": (768, 24, 12, 3072, 256, 512, 0.2, 64),
    }.items()
}


def check_choice(name: str, value: object, known: Any) -> None:
    """Refuse a value that is none of a ``Literal``'s."""
    if value not in get_args(known):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(known)))}, got {value!r}")


def check_cloud(xyz: Tensor, rgb: Tensor | None) -> None:
    """Refuse anything but clouds ``(B, N, 3)`` and colours of their shape."""
    check_dense(xyz)
    if rgb is not None and rgb.shape != xyz.shape:
        raise ValueError(f"rgb must have the shape of xyz, {tuple(xyz.shape)}, got {tuple(rgb.shape)}")


def check_pooling(pooling: object) -> None:
    """Refuse colours where a pooling is expected: it is ignored, and so would they be."""
    if isinstance(pooling, Tensor):
        raise TypeError(
            f"pooling must be a name, got a tensor of shape {tuple(pooling.shape)}; pass colours as rgb=..."
        )


def to_frame(xyz: Tensor, axes: Axes) -> Tensor:
    """Points ``(..., 3)``, right-handed and z up, in the frame that a network was trained in.

    * ``"z_up"``: as they are;
    * ``"mirrored"``: ``(x, -y, z)``. The released code makes y-up shapes z-up by exchanging the two columns, which is a
      mirror and not a turn (determinant -1), and its ViT-bigG weights were trained on that;
    * ``"y_up"``: ``(x, z, -y)``, for the released weights of ViT-L/14 and ViT-B/32.
    """
    x, y, z = xyz.unbind(-1)
    if axes == "mirrored":
        return torch.stack([x, -y, z], dim=-1)
    return torch.stack([x, z, -y], dim=-1) if axes == "y_up" else xyz


def from_frame(xyz: Tensor, axes: Axes) -> Tensor:
    """Points ``(..., 3)`` back from :func:`to_frame`."""
    # Three quarter turns more undo one; the mirror and the frame that is no other are their own inverse.
    return to_frame(to_frame(to_frame(xyz, axes), axes), axes) if axes == "y_up" else to_frame(xyz, axes)


def with_colors(xyz: Tensor, rgb: Tensor | None) -> Tensor:
    """``(B, N, 6)``: coordinates and colours, :data:`GREY` where there are none."""
    return torch.cat([xyz, torch.full_like(xyz, GREY) if rgb is None else rgb.to(xyz.dtype)], dim=-1)


class OpenShapePointBERT(nn.Module):
    """The transformer of OpenShape (Liu et al., NeurIPS 2023, section 3.3 and appendix), there named PointBERT.

    Farthest point sampling gives the centres of patches. A shared network reads the points of each patch (position
    relative to the centre, absolute position, colour) and takes the maximum. A linear layer combines it with the
    position of the centre. A class token and pre-norm transformer blocks follow, without position embedding and without
    final norm. A linear layer maps the class token into the space of the 2D model. The output is not normalised.

    Shapes are expected in the unit sphere, z up. The points of a patch are the *first* of the ball in the order of the
    cloud. That order must therefore be random (:class:`pc3d.data.RandomSubsample`), so that they are a fair sample of
    the ball, and the first centre is a random point.

    Args:
        embed_dim: D of the output, 1280 for OpenCLIP ViT-bigG-14.
        width: C of a token.
        depth: transformer blocks.
        num_heads: attention heads; 64 channels each in all published sizes.
        mlp_dim: hidden width of the blocks' MLPs.
        patch_dim: width of a pooled patch; the layers before are 64 wide.
        num_groups: G, patches per cloud.
        radius: of a patch. A point at exactly this distance belongs to it, as in the released code.
        group_size: S, points read of a patch; if there are fewer, the first one is repeated.
        project: whether there is a linear layer after the class token; without it ``embed_dim`` must be ``width`` (the
            released ViT-B/32 weights).
        neighbors: which points of a fuller ball are read: the ``"first"`` (published) or the ``"nearest"``.
        start: the first centre: the ``"first"`` point, so that evaluation is deterministic, or a ``"random"`` one from
            PyTorch's default generator, which the released code draws in evaluation too.
        axes: see :func:`to_frame`; published is ``"mirrored"``, the default does not mirror.
        num_points: points per cloud that the encoder is meant for; it changes no computation.

    Raises:
        ValueError: a size that is not positive, or sizes that do not fit each other.
    """

    reads_rgb = True
    pooling = "none (the embedding)"
    vector_only = ("projection",)

    def __init__(
        self,
        embed_dim: int = 1280,
        width: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        mlp_dim: int = 1536,
        patch_dim: int = 256,
        num_groups: int = 384,
        radius: float = 0.2,
        group_size: int = 64,
        project: bool = True,
        neighbors: BallOrder = "first",
        start: Start = "first",
        axes: Axes = "z_up",
        num_points: int = 10_000,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "embed_dim": embed_dim,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "patch_dim": patch_dim,
            "num_groups": num_groups,
            "radius": radius,
            "group_size": group_size,
            "project": project,
            "neighbors": neighbors,
            "start": start,
            "axes": axes,
            "num_points": num_points,
        }
        for name in ("embed_dim", "width", "depth", "num_heads", "mlp_dim", "patch_dim", "num_groups", "group_size"):
            if self.config[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.config[name]}")
        if not radius > 0:
            raise ValueError(f"radius must be positive, got {radius}")
        if not project and embed_dim != width:
            raise ValueError(f"project=False gives embeddings of width={width}, got embed_dim={embed_dim}")
        for name, known in (("neighbors", BallOrder), ("start", Start), ("axes", Axes)):
            check_choice(name, self.config[name], known)
        self.embed_dim = embed_dim
        self.patches = nn.Sequential(
            *(
                layer
                for inputs, outputs in ((9, 64), (64, 64), (64, patch_dim))
                for layer in (LinearBeforeNorm(inputs, outputs), GlobalBatchNorm(outputs), nn.ReLU(inplace=True))
            )
        )
        self.lift = nn.Linear(patch_dim + 3, width)
        self.lift_norm = nn.LayerNorm(width)
        self.cls_token = nn.Parameter(torch.randn(width))
        ratio = (mlp_dim + 0.5) / width  # which the block rounds down
        self.blocks = nn.ModuleList([TransformerBlock(width, num_heads, ratio) for _ in range(depth)])
        self.projection: nn.Module = nn.Linear(width, embed_dim) if project else nn.Identity()

    @classmethod
    def of_size(cls, size: str = "32m", **changes: Any) -> OpenShapePointBERT:
        """One of the published sizes, named by its parameters with an output of 1280 dimensions.

        Args:
            size: ``"5m"``, ``"13m"``, ``"26m"`` (in the code only), ``"32m"`` (the main model), ``"72m"`` or ``"171m"``
                (in the code only).
            **changes: other arguments of the class.

        Raises:
            ValueError: an unknown size.
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        return cls(**{**SIZES[size], **changes})

    def forward(self, xyz: Tensor, rgb: Tensor | None = None) -> Tensor:
        """As :meth:`encode`."""
        tokens = self.tokens(xyz, rgb)
        embedding: Tensor = self.projection(tokens[:, 0])
        return embedding

    def encode(self, xyz: Tensor, pooling: str = "none", *, rgb: Tensor | None = None) -> Tensor:
        """One vector per cloud.

        Args:
            xyz: ``(B, N, 3)``, N at least ``num_groups``.
            pooling: ignored; the embedding comes from the class token.
            rgb: ``(B, N, 3)`` in [0, 1]; grey when left out.

        Returns:
            ``(B, embed_dim)``, not normalised.

        Raises:
            ValueError: wrong shapes, or too few points.
        """
        check_pooling(pooling)
        return self.forward(xyz, rgb)

    def tokens(self, xyz: Tensor, rgb: Tensor | None = None) -> Tensor:
        """``(B, 1 + G, C)``: the class token and the patch tokens after the last block."""
        tokens = self._embed(*self.cut(xyz, rgb))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def group_layers(
        self, xyz: Tensor, layers: Sequence[int], rgb: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The patch tokens after several blocks.

        Args:
            xyz: ``(B, N, 3)``, N at least ``num_groups``.
            layers: ascending numbers of blocks, from 0.
            rgb: ``(B, N, 3)`` in [0, 1]; grey when left out.

        Returns:
            For each block its tokens ``(B, G, C)``, without the class token, and the patches' centres ``(B, G, 3)`` in
            the frame of ``xyz``.
        """
        centers, patches = self.cut(xyz, rgb)
        tokens, kept = self._embed(centers, patches), []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in layers:
                kept.append(tokens[:, 1:])
        return kept, from_frame(centers, self.config["axes"])

    def _embed(self, centers: Tensor, patches: Tensor) -> Tensor:
        """``(B, 1 + G, C)``: the class token and the patches, before the first block."""
        batch, groups, size, channels = patches.shape
        read = self.patches(patches.reshape(-1, channels))
        read = read.view(batch, groups, size, read.shape[-1])
        lifted = self.lift_norm(self.lift(torch.cat([centers.to(read.dtype), read.amax(2)], dim=-1)))
        return torch.cat([self.cls_token.to(lifted.dtype).expand(batch, 1, -1), lifted], dim=1)

    def cut(self, xyz: Tensor, rgb: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Centres ``(B, G, 3)`` and patches ``(B, G, S, 9)``: relative place, place, colour; in the network's frame."""
        check_cloud(xyz, rgb)
        check_enough_points(xyz, self.config["num_groups"], "num_groups")
        with torch.autocast(xyz.device.type, enabled=False):
            xyz = to_frame(as_read_by(self, xyz), self.config["axes"])
            index = farthest_point_sample(xyz, self.config["num_groups"], start=self.config["start"])
            centers = gather(xyz, index)
            order = "index" if self.config["neighbors"] == "first" else "distance"
            found = ball_query(
                xyz, _inclusive(self.config["radius"], xyz.dtype), self.config["group_size"], query=centers, order=order
            )
            points = gather(with_colors(xyz, rgb), found.index)
            return centers, torch.cat([points[..., :3] - centers[:, :, None], points], dim=-1)


def _inclusive(radius: float, dtype: torch.dtype) -> float:
    """The next larger radius: the operator leaves out points at exactly the radius, the released code does not."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    return float(np.nextafter(kind(radius), kind(np.inf)))
