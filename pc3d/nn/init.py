"""Initial weights of the masked point models (Point-MAE's released code)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def init_token(token: Tensor) -> Tensor:
    """Draw from a normal distribution with standard deviation 0.02, truncated at ±2 (100 standard deviations)."""
    return nn.init.trunc_normal_(token, std=0.02)


@torch.no_grad()
def init_encoder_weights(module: nn.Module) -> None:
    """Linear weights by :func:`init_token`, LayerNorm and BatchNorm weights 1, all biases 0; for ``Module.apply``.

    It also resets the running statistics of BatchNorm.
    """
    if isinstance(module, nn.Linear):
        init_token(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm | nn.modules.batchnorm._BatchNorm):
        module.reset_parameters()


@torch.no_grad()
def init_decoder_weights(module: nn.Module) -> None:
    """Linear weights Xavier uniform, LayerNorm weights 1, all biases 0; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
