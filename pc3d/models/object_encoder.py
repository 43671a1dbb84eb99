"""The interface of all encoders of objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pc3d.nn._checks import check_dense, check_enough_points


class ObjectEncoder(nn.Module, ABC):
    """Base class of networks that encode a cloud as one vector, for probes and methods of whole clouds.

    A subclass defines :meth:`encode` and :meth:`reset_parameters`, and its constructor sets the attributes. A subclass
    that also describes points within a cloud has ``local_features(xyz)``, from ``(B, N, 3)`` to ``(B, N, local_dim)``,
    and the attribute ``local_dim``; :class:`BlockFeatures`, :class:`PointPartSegmenter` and :func:`object_features`
    read them. Modules that ``local_features`` does not use are named in the tuple ``vector_only``, so that they are not
    trained for it.

    Attributes:
        config: all arguments of the constructor as plain data, from which the network can be rebuilt. If ``num_points``
            is among them, it is the number of points of a cloud that the encoder is meant for.
        embed_dim: C, the width of :meth:`encode` by its default pooling.
    """

    config: dict[str, Any]
    embed_dim: int

    @abstractmethod
    def encode(self, xyz: Tensor, pooling: Any = ...) -> Tensor:
        """One feature vector per cloud.

        Call ``eval()`` first: batch statistics and drop path of training mode make features depend on the batch.

        Args:
            xyz: ``(B, N, 3)``.
            pooling: how an encoder with tokens combines them into one vector; each has a default of width C. An encoder
                without tokens accepts any of these names and ignores it.

        Returns:
            ``(B, C)``, or a multiple of C if a pooling concatenates several vectors.
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Fresh weights from PyTorch's default generator."""

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters of more than one dimension that weight decay leaves alone."""
        return []


def check_clouds(xyz: Tensor, at_least: int, reason: str) -> None:
    """Refuse what is not a batch of clouds of so many points.

    Args:
        xyz: to be ``(B, N, 3)``.
        at_least: the fewest points that the encoder can work with.
        reason: the argument that asks for them, for the message.

    Raises:
        ValueError: another shape, or fewer points.
    """
    check_dense(xyz)
    check_enough_points(xyz, at_least, reason)


@torch.no_grad()
def reset_layers(module: nn.Module) -> None:
    """Linear layers and norms as PyTorch initialises them; for ``Module.apply``."""
    if isinstance(module, nn.Linear | nn.LayerNorm | nn.modules.batchnorm._BatchNorm):
        module.reset_parameters()
