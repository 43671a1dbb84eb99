"""Batch normalisation and sums in one of two gloo processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pc3d.nn import GlobalBatchNorm, all_reduce_sum, gather_rows, mean_over_processes, take_from_first

ROWS = (7, 12)  # uneven on purpose


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(ROWS), 4, generator=generator, dtype=torch.float64) * 3 + 100  # a large mean: cancellation
    return rows, torch.randn(sum(ROWS), 4, generator=generator, dtype=torch.float64)


def fresh(kind: type[nn.BatchNorm1d]) -> nn.BatchNorm1d:
    norm = kind(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1, 2, -1]))
        norm.bias.copy_(torch.tensor([0.0, 1, 2, 3]))
    return norm


def run(norm: nn.BatchNorm1d, rows: Tensor, weight: Tensor) -> dict[str, Tensor]:
    rows = rows.clone().requires_grad_()
    output = norm(rows)
    (output.sin() * weight).sum().backward()
    assert rows.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    gradients = {"rows": rows.grad, "of_weight": norm.weight.grad, "of_bias": norm.bias.grad}
    return {"output": output.detach(), **gradients, **state}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows, weight = data()
    part = slice(0, ROWS[0]) if rank == 0 else slice(ROWS[0], None)
    result = run(fresh(GlobalBatchNorm), rows[part], weight[part])
    result["plain"] = GlobalBatchNorm(4, affine=False).double()(rows[part])
    shared = rows[part].clone().requires_grad_()
    gathered = gather_rows(shared)
    ((1 + rank) * gathered.sin() * weight).sum().backward()
    assert shared.grad is not None
    result["gathered"], result["of_shared"] = gathered.detach(), shared.grad
    value = torch.tensor([1.0 + rank], requires_grad=True)
    all_reduce_sum(value).square().sum().backward()
    assert value.grad is not None
    result["reduced"], result["mean"] = value.grad, mean_over_processes(torch.tensor(3.0 + rank))
    result["taken"] = torch.tensor([1.0 + rank, 5.0])
    take_from_first([result["taken"]])
    with pytest.raises(ValueError, match="at least 2 rows over all processes, got 1"):
        fresh(GlobalBatchNorm)(rows[: 1 - rank])
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
