"""Where a training step of the full Swin3D-S spends its time, on three rooms at a time.

python benchmarks/scene_step.py [--rooms FOLDER] [--device cuda] [--steps 5]

The network, its transforms and its precision are those of ``pc3d segment train --config rooms_swin3d``. Prints the time
of the whole step and of the forward pass, and then PyTorch's profile, on a GPU by time there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

import torch
import yaml
from torch.profiler import ProfilerActivity, profile

import pc3d.data
from pc3d.data import Compose, PointBatch, Rooms, collate
from pc3d.models import Swin3D


def configured() -> tuple[dict[str, Any], Compose]:
    """Arguments of the network, and the transforms of training."""
    text = resources.files("pc3d").joinpath("configs/segment/rooms_swin3d.yaml").read_text()
    config = yaml.safe_load(text)
    transforms = [
        getattr(pc3d.data, entry["class_path"].rpartition(".")[2])(**entry.get("init_args", {}))
        for entry in config["data"]["train_transforms"]
    ]
    return config["model"]["backbone"]["init_args"], Compose(transforms)


def rooms_of_a_step(transform: Compose, folder: str | None) -> PointBatch:
    rooms, generator = Rooms("train", folder), torch.Generator().manual_seed(0)
    return collate([transform(rooms[index], generator) for index in range(3)])


def seconds(call: Callable[[], object], steps: int, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()  # what came before is not counted
    begin = time.perf_counter()
    for _ in range(steps):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", help="folder with the large set of rooms (default: the embedded set)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    sizes, transform = configured()
    batch = rooms_of_a_step(transform, arguments.rooms).to(arguments.device)
    torch.manual_seed(0)
    model = Swin3D(**sizes).to(arguments.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def forward() -> torch.Tensor:
        with torch.autocast(arguments.device, torch.bfloat16):
            return model.point_features(batch)

    def step() -> None:
        optimizer.zero_grad()
        forward().float().square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step()
    print(f"{len(batch.xyz):,} points", flush=True)
    for name, call in (("step", step), ("forward", forward)):
        print(f"{name}: {seconds(call, arguments.steps, arguments.device):.3f} s", flush=True)
    on_gpu = arguments.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    order = "cuda_time_total" if on_gpu else "cpu_time_total"
    print(profiled.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))


if __name__ == "__main__":
    main()
