"""Batch normalisation over all points of the global batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pc3d.nn.distributed import all_reduce_sum, world_size


class GlobalBatchNorm(nn.BatchNorm1d):
    """``BatchNorm1d`` for rows ``(R, C)``, with training statistics over all processes.

    ``torch.nn.SyncBatchNorm`` runs on GPUs only; this class also runs on CPUs with gloo. With one process, and always
    in evaluation mode, it computes exactly what ``BatchNorm1d`` does.

    With n rows ``x_i`` on W processes together: ``m = (1/n) sum_i x_i``, ``v = (1/n) sum_i (x_i - m)^2``,
    ``y_i = weight (x_i - m) / sqrt(v + eps) + bias``. A differentiable
    all-reduce computes both sums over the rows of all processes. Its backward pass sums the gradients with respect to m
    and v over the processes, so the gradient of a row includes its effect on the losses of the other processes. The
    variance is computed in a second pass, around the mean, because ``E[x^2] - E[x]^2`` cancels in float32. Running
    statistics are updated as in PyTorch, with the unbiased variance ``v n / (n - 1)``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise rows.

        Args:
            input: ``(R, C)``; R may differ between processes.

        Returns:
            ``(R, C)``.

        Raises:
            ValueError: in training mode, there are fewer than two rows over all processes.
        """
        if not self.training or world_size() == 1:
            if self.training and input.shape[0] < 2:
                raise _too_few(input.shape[0], "")
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._normalise_globally(input.float() if input.dtype in (torch.float16, torch.bfloat16) else input)

    def _normalise_globally(self, rows: Tensor) -> Tensor:
        local_count = rows.new_tensor([float(rows.shape[0])])
        sums = all_reduce_sum(torch.cat([rows.sum(0), local_count]))
        count = sums[-1].detach()
        if count < 2:
            raise _too_few(int(count), " over all processes")
        mean = sums[:-1] / count
        centred = rows - mean
        variance = all_reduce_sum(centred.square().sum(0)) / count
        self._update_running(mean.detach(), variance.detach() * (count / (count - 1)))
        scaled = centred * torch.rsqrt(variance + self.eps)
        return scaled * self.weight + self.bias if self.affine else scaled

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), weight)


def _too_few(count: int, where: str) -> ValueError:
    return ValueError(
        f"batch normalisation in training needs at least 2 rows{where}, got {count}: take larger batches or clouds "
        "(a scene needs two voxels on its coarsest level: a smaller voxel_size, or fewer levels)"
    )
