"""OpenShape's encoders written out in float64 from their description, over tensors with the official names."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def batch_norm(state: State, prefix: str, rows: Tensor) -> Tensor:
    mean, var = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
    return (rows - mean) / (var + 1e-5).sqrt() * state[f"{prefix}.weight"] + state[f"{prefix}.bias"]


def layer_norm(state: State, prefix: str, rows: Tensor) -> Tensor:
    return F.layer_norm(rows, rows.shape[-1:], state[f"{prefix}.weight"], state[f"{prefix}.bias"])


def farthest(xyz: Tensor, count: int, start: int = 0) -> list[int]:
    chosen, distance = [start], ((xyz - xyz[start]) ** 2).sum(1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, ((xyz - xyz[chosen[-1]]) ** 2).sum(1))
    return chosen


def ball(xyz: Tensor, center: Tensor, radius: float, size: int) -> list[int]:
    inside = [j for j, point in enumerate(xyz) if float(((point - center) ** 2).sum()) <= radius**2][:size]
    return inside + inside[:1] * (size - len(inside))


def point_bert(state: State, xyz: Tensor, rgb: Tensor, groups: int, radius: float, size: int, heads: int) -> Tensor:
    """One cloud ``(N, 3)`` in the network's own frame to its embedding."""
    state = {name: value.double() for name, value in state.items()}
    xyz, rgb = xyz.double(), rgb.double()
    lifted = []
    for c in farthest(xyz, groups):
        members = ball(xyz, xyz[c], radius, size)
        rows = torch.stack([torch.cat([xyz[j] - xyz[c], xyz[j], rgb[j]]) for j in members])
        for i in range(3):
            weight = state[f"ppat.sa.mlp_convs.{i}.weight"][:, :, 0, 0]
            rows = rows @ weight.T + state[f"ppat.sa.mlp_convs.{i}.bias"]
            rows = batch_norm(state, f"ppat.sa.mlp_bns.{i}", rows).clamp(min=0)
        joined = torch.cat([xyz[c], rows.max(0).values])
        lifted.append(state["ppat.lift.0.weight"][:, :, 0] @ joined + state["ppat.lift.0.bias"])
    tokens = torch.cat([state["ppat.cls_token"][None], layer_norm(state, "ppat.lift.2", torch.stack(lifted))])
    depth = 0
    while f"ppat.transformer.layers.{depth}.0.norm.weight" in state:
        first, second = (f"ppat.transformer.layers.{depth}.{k}" for k in (0, 1))
        normed = layer_norm(state, f"{first}.norm", tokens)
        query, key, value = (normed @ state[f"{first}.fn.to_qkv.weight"].T).chunk(3, dim=1)
        mixed = []
        for h in range(heads):
            part = slice(64 * h, 64 * (h + 1))
            mixed.append((query[:, part] @ key[:, part].T / 8).softmax(1) @ value[:, part])
        to_out = f"{first}.fn.to_out.0"
        tokens = torch.cat(mixed, 1) @ state[f"{to_out}.weight"].T + state[f"{to_out}.bias"] + tokens
        hidden = layer_norm(state, f"{second}.norm", tokens) @ state[f"{second}.fn.net.0.weight"].T
        hidden = F.gelu(hidden + state[f"{second}.fn.net.0.bias"])
        tokens = hidden @ state[f"{second}.fn.net.3.weight"].T + state[f"{second}.fn.net.3.bias"] + tokens
        depth += 1
    return state["proj.weight"] @ tokens[0] + state["proj.bias"]


Voxels = dict[tuple[int, int, int], Tensor]


def conv(voxels: Voxels, kernel: Tensor, tensor_stride: int, stride: int) -> Voxels:
    """MinkowskiEngine's convolution: coordinates stay in finest voxels, the first axis of a kernel varies fastest."""
    edge = round(len(kernel) ** (1 / 3))
    low = 0 if edge % 2 == 0 else -(edge // 2)
    step = tensor_stride * stride
    outputs = {(x // step * step, y // step * step, z // step * step) for x, y, z in voxels} if stride > 1 else voxels
    result = {}
    for u in outputs:
        total = torch.zeros(kernel.shape[2], dtype=torch.float64)
        for k in range(edge**3):
            offset = (k % edge + low, k // edge % edge + low, k // edge**2 + low)
            at = tuple(a + tensor_stride * o for a, o in zip(u, offset, strict=True))
            if at in voxels:
                total = total + voxels[at] @ kernel[k]  # type: ignore[index]
        result[u] = total
    return result


def each(voxels: Voxels, function: object) -> Voxels:
    rows = function(torch.stack(list(voxels.values())))  # type: ignore[operator]
    return dict(zip(voxels, rows, strict=True))


def sparse_conv(state: State, xyz: Tensor, rgb: Tensor, voxel_size: float) -> Tensor:
    """One cloud ``(N, 3)`` in the network's own frame to its embedding."""
    state = {name: value.double() for name, value in state.items()}
    members: dict[tuple[int, int, int], list[Tensor]] = {}
    for point, color in zip(xyz.double(), rgb.double(), strict=True):
        cell = tuple(int(v) for v in np.floor(point.numpy() / voxel_size))
        members.setdefault(cell, []).append(torch.cat([point, color]))  # type: ignore[arg-type]
    finest: Voxels = {cell: torch.stack(rows).mean(0) for cell, rows in members.items()}

    def normed(prefix: str, voxels: Voxels, act: str = "relu") -> Voxels:
        functions = {"relu": torch.relu, "leaky": lambda r: F.leaky_relu(r, 0.01), "none": lambda r: r}
        return each(voxels, lambda rows: functions[act](batch_norm(state, prefix, rows)))  # type: ignore[operator]

    current = normed("bn0.bn", conv(finest, state["conv0p1s1.kernel"], 1, 1))
    scales = []
    for level in (1, 2, 3, 4):
        before, stride = 2 ** (level - 1), 2**level
        current = normed(f"bn{level}.bn", conv(current, state[f"conv{level}p{before}s2.kernel"], before, 2))
        block = 0
        while f"block{level}.{block}.conv1.kernel" in state:
            name = f"block{level}.{block}"
            out = normed(f"{name}.norm1.bn", conv(current, state[f"{name}.conv1.kernel"], stride, 1))
            out = normed(f"{name}.norm2.bn", conv(out, state[f"{name}.conv2.kernel"], stride, 1), "none")
            skip = current
            if f"{name}.downsample.0.kernel" in state:
                matrix = state[f"{name}.downsample.0.kernel"]
                skip = normed(f"{name}.downsample.1.bn", each(current, lambda r, m=matrix: r @ m), "none")
            current = {u: torch.relu(out[u] + skip[u]) for u in out}
            block += 1
        scales.append((stride, current))
    merged: Voxels = {}
    for u in finest:
        merged[u] = torch.cat([scale[tuple(a // s * s for a in u)] for s, scale in scales])  # type: ignore[index]
    for i, stride in ((0, 1), (1, 2)):
        merged = normed(f"conv5.{i}.1.bn", conv(merged, state[f"conv5.{i}.0.kernel"], stride, 2), "leaky")
    rows = torch.stack(list(merged.values()))
    vector = torch.cat([rows.max(0).values, rows.mean(0)])
    for layer, norm in (("final.0.0", "final.0.1"), ("final.2.0", "final.2.1")):
        vector = F.leaky_relu(batch_norm(state, f"{norm}.bn", state[f"{layer}.linear.weight"] @ vector), 0.01)
    return state["final.3.linear.weight"] @ vector + state["final.3.linear.bias"]


def largest(voxels: Voxels, tensor_stride: int) -> Voxels:
    """MinkowskiEngine's maximum over 3x3x3 voxels, strided by 2."""
    step, result = 2 * tensor_stride, {}
    for u in {(x // step * step, y // step * step, z // step * step) for x, y, z in voxels}:
        around = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
        places = [tuple(a + tensor_stride * o for a, o in zip(u, offset, strict=True)) for offset in around]
        result[u] = torch.stack([voxels[at] for at in places if at in voxels]).max(0).values  # type: ignore[index]
    return result


def fcnn(state: State, xyz: Tensor, rgb: Tensor, voxel_size: float) -> Tensor:
    """One cloud ``(N, 3)`` to its embedding, over our own names: kernels have x slowest here and are turned."""
    state = {name: value.double() for name, value in state.items()}

    def leaky(name: str, voxels: Voxels, tensor_stride: int, stride: int) -> Voxels:
        kernel = state[f"{name}.conv.weight"]
        turned = kernel.reshape(3, 3, 3, *kernel.shape[1:]).permute(2, 1, 0, 3, 4).reshape(kernel.shape)
        out = conv(voxels, turned, tensor_stride, stride)
        return each(out, lambda rows: F.leaky_relu(batch_norm(state, f"{name}.norm", rows), 0.01))

    rows = torch.cat([xyz, rgb], dim=1).double() @ state["points.0.weight"].T
    rows = F.leaky_relu(batch_norm(state, "points.1", rows), 0.01)
    members: dict[tuple[int, int, int], list[Tensor]] = {}
    for point, row in zip(xyz.double(), rows, strict=True):
        members.setdefault(tuple(int(v) for v in np.floor(point.numpy() / voxel_size)), []).append(row)  # type: ignore[arg-type]
    finest: Voxels = {cell: torch.stack(found).mean(0) for cell, found in members.items()}
    current, stride, scales = finest, 1, []
    for stage in range(4):
        current = leaky(f"stages.{stage}", current, stride, 1 if stage == 0 else 2)
        stride *= 1 if stage == 0 else 2
        current = largest(current, stride)
        stride *= 2
        scales.append((stride, current))
    merged: Voxels = {
        u: torch.cat([scale[tuple(a // s * s for a in u)] for s, scale in scales])  # type: ignore[index]
        for u in finest
    }
    for i in range(3):
        merged = leaky(f"merge.{i}", merged, 2**i, 2)
    stacked = torch.stack(list(merged.values()))
    vector = torch.cat([stacked.max(0).values, stacked.mean(0)])
    for layer, norm in ((0, 1), (4, 5)):
        vector = F.leaky_relu(batch_norm(state, f"head.{norm}", state[f"head.{layer}.weight"] @ vector), 0.01)
    return state["head.7.weight"] @ vector + state["head.7.bias"]
