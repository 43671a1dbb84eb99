"""Initial weights of the masked point models (Point-MAE's released code)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def init_token(token: Tensor) -> Tensor:
    """Fill with a normal of standard deviation 0.02 truncated at ±2 (an absolute bound, so hardly a truncation)."""
    return nn.init.trunc_normal_(token, std=0.02)


@torch.no_grad()
def init_encoder_weights(module: nn.Module) -> None:
    """Linear weights as :func:`init_token`, biases 0, LayerNorm and BatchNorm at 1 and 0; for ``Module.apply``.

    BatchNorm forgets its running statistics too.
    """
    if isinstance(module, nn.Linear):
        init_token(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm | nn.modules.batchnorm._BatchNorm):
        module.reset_parameters()


@torch.no_grad()
def init_decoder_weights(module: nn.Module) -> None:
    """Linear weights Xavier uniform, biases 0, LayerNorm at 1 and 0; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
