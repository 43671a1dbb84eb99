"""Lift image features from pixels onto the points that they show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from pc3d import ops
from pc3d.image.cameras import Camera


def sample_map(features: Tensor, uv: Tensor, width: int, height: int) -> Tensor:
    """Sample features at positions of a picture: bilinear between cell centres, constant beyond the outermost.

    Args:
        features: ``(C, h, w)``, a grid of any size over the whole picture.
        uv: ``(N, 2)`` column and row in pixels, pixel centres at half-integers.
        width, height: of the picture that ``uv`` counts in.

    Returns:
        ``(N, C)`` of the type of ``features``.

    Raises:
        ValueError: wrong shapes.
    """
    if features.ndim != 3 or uv.ndim != 2 or uv.shape[1] != 2:
        raise ValueError(
            f"features must have shape (C, h, w) and uv (N, 2), got {tuple(features.shape)} and {tuple(uv.shape)}"
        )
    size = torch.tensor([width, height], dtype=torch.float64)
    place = (2 * uv.to("cpu", torch.float64) / size - 1).to(features)
    sampled = grid_sample(
        features[None], place[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0, :, 0].T


@dataclass(frozen=True)
class View:
    """The features of a picture, and the points that it sees.

    Attributes:
        camera: of the picture; ``uv`` counts in its pixels.
        features: ``(C, h, w)`` over the whole picture.
        visible: ``(N,)`` bool, which points it sees; points outside the picture never count.
        weight: ``(N,)`` weight of each of them, or None for equal weights; for example the cosine to the normal
            (:func:`pc3d.image.cosine_to_camera`). Negative values count as 0.
    """

    camera: Camera
    features: Tensor
    visible: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class LiftedFeatures:
    """Image features of points.

    Attributes:
        features: ``(N, C)`` float32; 0 if no picture sees the point.
        mask: ``(N,)`` bool, seen at all.
        num_views: ``(N,)`` int64, how many pictures see it.
    """

    features: Tensor
    mask: Tensor
    num_views: Tensor


def lift(xyz: Tensor, views: Iterable[View], *, unit: bool = False) -> LiftedFeatures:
    """Average the features of all pictures that see a point (OpenScene, Peng et al. 2023, section 3.1).

    ``f_p = sum_k w_pk F_k(u_pk) / sum_k w_pk`` over the views k that see p. Views are taken one at a time, so they may
    come from a generator.

    Args:
        xyz: ``(N, 3)``.
        views: pictures.
        unit: normalise each picture's feature before averaging, for towers whose features are compared by cosine
            (CLIP).

    Raises:
        ValueError: there is no view, or one whose fields do not fit the points or each other.
    """
    total: Tensor | None = None
    weights, counts = torch.zeros(len(xyz), dtype=torch.float64), torch.zeros(len(xyz), dtype=torch.int64)
    for view in views:
        if tuple(view.visible.shape) != (len(xyz),) or view.visible.dtype != torch.bool:
            raise ValueError(
                f"visible must be bool of shape ({len(xyz)},), got {view.visible.dtype} {tuple(view.visible.shape)}"
            )
        if total is None:
            total = torch.zeros(len(xyz), len(view.features))
        if len(view.features) != total.shape[1]:
            raise ValueError(f"views differ in their width: {total.shape[1]} and {len(view.features)}")
        uv, depth = view.camera.project(xyz)
        seen = view.visible.cpu() & view.camera.inside(uv, depth)
        weight = torch.ones(len(xyz), dtype=torch.float64) if view.weight is None else view.weight.cpu().double()
        if weight.shape != weights.shape:
            raise ValueError(f"weight must have shape ({len(xyz)},), got {tuple(weight.shape)}")
        rows = torch.nonzero(seen & (weight > 0)).flatten()
        values = sample_map(view.features.float().cpu(), uv[rows], view.camera.width, view.camera.height)
        values = normalize(values, dim=1) if unit else values
        total.index_add_(0, rows, values * weight[rows, None].float())
        weights.index_add_(0, rows, weight[rows])
        counts[rows] += 1
    if total is None:
        raise ValueError("views is empty: there is no picture to lift from")
    mask = counts > 0
    return LiftedFeatures(total / torch.where(mask, weights, 1.0)[:, None].float(), mask, counts)


def fill_unseen(xyz: Tensor, lifted: LiftedFeatures, k: int = 3) -> Tensor:
    """Fill the features ``(N, C)`` of unseen points from the k nearest seen ones, weighted by inverse distance.

    ``lifted.mask`` still marks the seen points.

    Raises:
        ValueError: fewer than k points are seen.
    """
    known, unknown = torch.nonzero(lifted.mask).flatten(), torch.nonzero(~lifted.mask).flatten()
    if len(known) < k:
        raise ValueError(f"k={k} seen points are needed to fill in from, there are {len(known)}")
    features = lifted.features.clone()
    if len(unknown):
        near = ops.knn(xyz[known].float(), k, query=xyz[unknown].float())
        # The distance is kept from 0 where an unseen point coincides with a seen one.
        weight = 1 / near.squared_distance.sqrt().clamp(min=1e-8)
        weight = weight / weight.sum(dim=1, keepdim=True)
        features[unknown] = (features[known][near.index] * weight[:, :, None]).sum(dim=1)
    return features


@dataclass(frozen=True)
class PixelPoints:
    """Pixels and the points that they show.

    Attributes:
        pixel: ``(M, 2)`` int64 column and row.
        point: ``(M,)`` int64 rows of the cloud; several pixels may show one point.
    """

    pixel: Tensor
    point: Tensor

    def cells(self, stride: int) -> PixelPoints:
        """The same on a coarser grid of ``stride`` pixels, such as a tower's, each pair once."""
        pairs = torch.cat([self.pixel // stride, self.point[:, None]], dim=1).unique(dim=0)
        return PixelPoints(pairs[:, :2], pairs[:, 2])


def pixels_to_points(camera: Camera, depth: Tensor, xyz: Tensor, max_distance: float = 0.01) -> PixelPoints:
    """Assign every pixel with depth to the nearest point of the cloud (Concerto, Zhang et al. 2025).

    Args:
        camera: of the depth picture.
        depth: ``(H, W)`` along the viewing axis, 0 where nothing was seen.
        xyz: ``(N, 3)``.
        max_distance: pixels farther than this from every point are left out; 0.01 metres indoors in the paper's code.

    Raises:
        ValueError: the depth picture is not of the camera's size.
    """
    if tuple(depth.shape) != (camera.height, camera.width):
        raise ValueError(f"depth has the shape {tuple(depth.shape)}, the camera {(camera.height, camera.width)}")
    row, column = torch.nonzero(depth > 0, as_tuple=True)
    pixel = torch.stack([column, row], dim=1)
    if len(pixel) == 0 or len(xyz) == 0:
        return PixelPoints(pixel[:0], pixel[:0, 0])
    hit = camera.back_project(pixel + 0.5, depth[row, column])
    # Far from the origin float32 would round coordinates by more than the distance asked for.
    near = ops.knn(xyz.to("cpu", torch.float64), 1, query=hit)
    close = near.squared_distance[:, 0] <= max_distance**2
    return PixelPoints(pixel[close], near.index[close, 0])
