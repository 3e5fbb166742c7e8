"""What training scripts share: the moving average of weights, resumable state, a log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, keep: float, step: int) -> None:
    """Exponential moving average of the parameters; early steps follow faster, so that the start is forgotten."""
    keep = min(keep, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(dict(state), part)
    os.replace(part, path)


def load_state(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote: tensors and plain values only."""
    return torch.load(path, map_location=device, weights_only=True)


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one line to a .jsonl log."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up gradients over all processes, in one message; parameters without a gradient count as zero."""
    parameters = list(parameters)
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = grad.view_as(p)
