"""The part segmentation model of the Point-MAE family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.models.local_features import (
    TokenEncoder,
    describes_places,
    local_dim,
    local_features,
    three_layers,
    vector_only,
)
from pc3d.models.object_encoder import ObjectEncoder
from pc3d.nn import GlobalBatchNorm
from pc3d.ops import interpolate

_HEAD, _CATEGORY = (1024, 512, 256), 64


class PointPartSegmenter(nn.Module):
    """Per-point part log-probabilities from three depths of the encoder (Point-MAE, part segmentation).

    The outputs of three blocks, each through the encoder's final norm, give features at the patch centres. They are
    interpolated to every point from its three nearest centres, weighted by inverse squared distance. The head also
    reads their maximum and mean over the cloud, and an embedding of the cloud's category.

    With a :class:`ViT3D`, the tokens of the groups are read, and its class token takes part in the attention. The paper
    of DCGLR evaluates part segmentation but does not describe the head: this one is our choice. The same holds for
    encoders without tokens, where the features of the points that they saw are read (:class:`ObjectEncoder`).

    Args:
        encoder: a :class:`PointViT` without class token, published with 128 groups on 2048 points; a :class:`ViT3D`, a
            :class:`PointNet` or a :class:`DGCNN`; or an encoder of your own with ``local_features``.
        num_parts: parts over all categories.
        num_categories: object categories.
        layers: which three blocks of an encoder with tokens, counted from 0; by default at a third, two thirds and all
            of the depth (3, 7, 11 of 12).
        head_dims: hidden widths of the layers that run for every point: the two of the propagation and the two of the
            head; by default 4C, 1,024, 512 and 256, as published. They cost more than a small encoder.

    Raises:
        TypeError: an encoder without features of points within a cloud.
        ValueError: an encoder with class tokens, layers that it does not have, or not four positive widths.
    """

    def __init__(
        self,
        encoder: ObjectEncoder,
        num_parts: int = 50,
        num_categories: int = 16,
        layers: tuple[int, int, int] | None = None,
        head_dims: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        reads_rgb = getattr(encoder, "reads_rgb", False)
        if reads_rgb or not describes_places(encoder):
            raise TypeError(
                "PointPartSegmenter takes a PointViT, ViT3D, PointNet, DGCNN, or an ObjectEncoder of your own with "
                f"local_features(xyz) and local_dim; got {type(encoder).__name__}"
                + (", which reads colours: of objects there are only coordinates here" if reads_rgb else "")
            )
        if encoder.config.get("num_cls_tokens"):
            raise ValueError(
                f"PointPartSegmenter needs an encoder with num_cls_tokens=0, got {encoder.config['num_cls_tokens']}"
            )
        if layers is not None and not isinstance(encoder, TokenEncoder):
            raise ValueError(f"layers: a {type(encoder).__name__} has no blocks to choose from, leave it out")
        self.layers = three_layers(encoder, layers) if isinstance(encoder, TokenEncoder) else None
        self.num_categories = num_categories
        self.encoder = encoder
        for module in vector_only(encoder, self.layers):  # several processes would wait for its gradients for ever
            module.requires_grad_(False)
        width = local_dim(encoder)
        self.category = nn.Sequential(
            nn.Linear(num_categories, _CATEGORY, bias=False), GlobalBatchNorm(_CATEGORY), nn.LeakyReLU(0.2)
        )
        self.head_dims = tuple(head_dims or (4 * encoder.embed_dim, *_HEAD))
        if len(self.head_dims) != 4 or min(self.head_dims) < 1:
            raise ValueError(f"head_dims must be four positive widths, got {self.head_dims}")
        hidden, propagated, first, second = self.head_dims
        self.propagation = nn.Sequential(
            nn.Linear(3 + width, hidden),
            GlobalBatchNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, propagated),
            GlobalBatchNorm(propagated),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Sequential(
            nn.Linear(propagated + 2 * width + _CATEGORY, first),
            GlobalBatchNorm(first),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(first, second),
            GlobalBatchNorm(second),
            nn.ReLU(inplace=True),
            nn.Linear(second, num_parts),
        )

    def forward(self, xyz: Tensor, category: Tensor) -> Tensor:
        """Segment clouds whose category is known.

        Args:
            xyz: ``(B, N, 3)``.
            category: ``(B,)`` int64, 0 to ``num_categories - 1``.

        Returns:
            ``(B, N, num_parts)`` log-probabilities over all parts of all categories, float32 or wider, also under
            autocast.

        Raises:
            ValueError: ``category`` has another shape.
        """
        if category.shape != xyz.shape[:1]:
            raise ValueError(f"category must have shape ({len(xyz)},), got {tuple(category.shape)}")
        batch, num_points, _ = xyz.shape
        offsets = torch.arange(batch + 1, device=xyz.device) * num_points
        scores = self.segment(xyz, category, xyz.flatten(0, 1), offsets)
        return scores.view(batch, num_points, scores.shape[1])

    def segment(self, xyz: Tensor, category: Tensor, query: Tensor, query_offsets: Tensor) -> Tensor:
        """As :meth:`forward`, but segments any number of query points of each cloud.

        Args:
            xyz: ``(B, N, 3)``, what the encoder sees.
            category: ``(B,)`` int64.
            query: ``(M, 3)`` points of all clouds.
            query_offsets: ``(B + 1,)`` int64: those of cloud b are rows ``query_offsets[b]:query_offsets[b + 1]``.

        Returns:
            ``(M, num_parts)`` log-probabilities, float32 or wider.
        """
        at_centers, centers = local_features(self.encoder, xyz, layers=self.layers)
        batch, groups, _ = centers.shape
        per_point = interpolate(
            at_centers.flatten(0, 1),
            centers.flatten(0, 1),
            query,
            k=3,
            eps=1e-8,
            offsets=torch.arange(batch + 1, device=xyz.device) * groups,
            query_offsets=query_offsets,
        )
        propagated = self.propagation(torch.cat([query.to(per_point.dtype), per_point], dim=-1))
        one_hot = F.one_hot(category, self.num_categories).to(at_centers.dtype)
        whole = torch.cat([at_centers.amax(1), at_centers.mean(1), self.category(one_hot)], dim=1)
        cloud = torch.repeat_interleave(query_offsets.diff(), output_size=query.shape[0])
        # [W_p | W_w] (point ; whole) = W_p point + W_w whole: the second term is the same for all points of a cloud.
        joint, width = self.head[0], propagated.shape[1]
        assert isinstance(joint, nn.Linear)
        of_point = F.linear(propagated, joint.weight[:, :width])
        of_cloud = F.linear(whole, joint.weight[:, width:], joint.bias)
        scores = self.head[1:](of_point + of_cloud[cloud])
        # On a CPU, autocast leaves them in bfloat16, which rounds the gradients of sure points to 0.
        return F.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
