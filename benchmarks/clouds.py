"""The point clouds that the operators are timed on: the embedded household objects, scenes of them, and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d.data import Household

OBJECT_SPACING = 1.5  # metres between the centres of neighbouring objects of a scene


def objects(num_clouds: int, num_points: int) -> Tensor:
    """(num_clouds, num_points, 3): household objects, in the unit sphere."""
    household = Household(split="train", num_points=num_points)
    return torch.stack([household[i].xyz for i in range(num_clouds)])


def scene(num_points: int, seed: int = 0) -> Tensor:
    """(num_points, 3): household objects on a floor, each turned about the vertical and scaled to 0.2 to 2 metres.

    All points lie on surfaces of real models; the 611 objects hold 1.25 million points.
    """
    random = torch.Generator().manual_seed(seed)
    splits = [Household(split=split) for split in ("train", "test")]
    items = [(split, i) for split in splits for i in range(len(split))]
    order = torch.randperm(len(items), generator=random).tolist()
    per_object = items[0][0][0].xyz.shape[0]
    count = -(-num_points // per_object)
    if count > len(items):
        raise ValueError(f"num_points must be at most {len(items) * per_object}, got {num_points}")
    side = round(count**0.5 + 0.5)
    parts = []
    for k in range(count):
        split, i = items[order[k]]
        angle, size = torch.rand(2, generator=random).mul(torch.tensor([6.2831853, 0.9])).tolist()
        c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
        turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        xyz = (0.1 + size) * split[i].xyz @ turn.T
        xyz[:, 2] -= xyz[:, 2].min()
        parts.append(xyz + OBJECT_SPACING * torch.tensor([float(k % side), float(k // side), 0.0]))
    return torch.cat(parts)[:num_points].contiguous()


def noise(num_points: int, seed: int = 0) -> Tensor:
    """(num_points, 3): uniform in the unit cube. Volumes flatter grids; real clouds are surfaces."""
    return torch.rand(num_points, 3, generator=torch.Generator().manual_seed(seed))


def large(kind: str, num_points: int) -> Tensor:
    """(num_points, 3) of ``"scene"`` or ``"noise"``."""
    return {"scene": scene, "noise": noise}[kind](num_points)
