"""Optimisers, their rates, the moving average, and gradients: shared out, clipped, checked."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rollforce.errors import ConfigError, TrainingError
from rollforce.training.checkpoint import latest
from rollforce.training.recipes import Optimiser, RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


def open_accelerator(run: RunSettings, cpu: bool = False) -> Accelerator:
    """Return the accelerator of a run: its device, processes (`accelerate launch` or `torchrun`) and autocast.

    ConfigError if the parts of a step's batch cannot be shared out evenly among the processes."""
    from accelerate import Accelerator

    cpu = cpu or not torch.cuda.is_available()  # said outright, or accelerate starts no processes on a CPU
    accelerator = Accelerator(mixed_precision=run.precision, cpu=cpu)
    processes = accelerator.num_processes
    if run.parts % processes:
        raise ConfigError(f"run.parts {run.parts} must be a multiple of the number of processes, {processes}.")
    return accelerator


def build_optimisers(network: nn.Module, settings: Optimiser,
                     matrices: Sequence[nn.Parameter] | None = None) -> list[torch.optim.Optimizer]:  # fmt: skip
    """Return the optimisers of a network, each with its full rate under "initial". `matrices`: for Muon, if chosen;
    None: those inside a transformer's blocks. ConfigError for Muon on sharded matrices."""
    if matrices is None:
        matrices = [p for n, p in network.named_parameters() if p.ndim == 2 and "blocks." in n and "norm" not in n]
    matrices = [] if settings.kind == "adamw" else matrices
    chosen = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, settings.lr, settings.betas,
                                                           weight_decay=settings.weight_decay)]  # fmt: skip
    if matrices and is_sharded(matrices):
        raise ConfigError("Muon takes whole matrices, and run.shard=true cuts them: set optimiser.kind=adamw "
                          "(student.kind and critic.kind in train/distill.py), or run.shard=false.")  # fmt: skip
    if matrices:
        made.append(Muon(list(matrices), settings.lr_matrices))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["initial"] = group["lr"]
    return made


def set_rate(made: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set the learning rates to `factor` of the full ones."""
    for optimiser in made:
        for group in optimiser.param_groups:
            group["lr"] = group["initial"] * factor


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, keep: float, step: int) -> None:
    """Move the exponential moving average `average` towards `model`: faster at early steps; before 0 it is the model.

    Not diffusers' EMAModel: it keeps a list of tensors, and what is validated and exported here is a network."""
    keep = min(keep, (1 + step) / (10 + step)) if step >= 0 else 0.0
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


@torch.no_grad()
def share_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up gradients over all processes, in one message; parameters without a gradient count as zero.

    Those of sharded parameters are together already, but averaged (FSDP2 cannot add with every backend)."""
    parameters = [p for p in parameters if p.requires_grad]
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    if is_sharded(parameters):
        for grad in grads:
            if hasattr(grad, "full_tensor"):
                grad.mul_(dist.get_world_size())
            else:
                dist.all_reduce(grad)
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = grad.view_as(p)


def is_sharded(parameters: Sequence[Tensor]) -> bool:
    """Whether these are the parameters of a network that FSDP2 has sharded."""
    return any(hasattr(p, "full_tensor") for p in parameters)


def share_and_clip(network: nn.Module, clip: float) -> float:
    """Share out the gradients of a network and clip them to the norm `clip`, sharded and whole ones together (which
    torch's `clip_grad_norm_` refuses); return their norm before clipping."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    share_gradients(parameters)
    sharded = [p for p in parameters if hasattr(p, "full_tensor")]
    groups = [group for group in (sharded, [p for p in parameters if not hasattr(p, "full_tensor")]) if group]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups]
    whole = torch.stack([n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]).norm()
    for group in groups:
        torch.nn.utils.clip_grads_with_norm_(group, clip, whole)
    return float(whole)


def check_finite(value: float, what: str, step: int, out: Path) -> None:
    """Stop before a number that is not finite reaches the weights; the last checkpoint stays."""
    if math.isfinite(value):
        return
    last = latest(out)
    kept = f"The last good checkpoint is {last}" if last else "No checkpoint was written yet"
    raise TrainingError(f"step {step}: {what} is {value}. {kept}; nothing was overwritten.\nWhat helps: a lower "
                        "learning rate or a longer warm-up; run.precision=no; a smaller clip. If it comes back at the "
                        "same step with all of these, look at that step's data.")  # fmt: skip


# -- Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before they are applied --------------------


def orthogonal(x_NRC: Tensor, rounds: int = 4) -> Tensor:
    """Return matrices [N, R, C], R <= C, with all singular values brought near 1 by Newton-Schulz iterations."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x_NRC / (x_NRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(-1, -2)
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon for matrices and convolution kernels (a row per output); embeddings, norms, biases want another.

    All processes must hold equal gradients."""

    def __init__(self, matrices: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, rounds: int = 4) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "rounds": rounds})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    rows, columns = matrix.flatten(1).shape
                    by_shape[min(rows, columns), max(rows, columns)].append(matrix)
            for matrices in by_shape.values():
                self._step(matrices, group["lr"], group["momentum"], group["rounds"])

    def _step(self, matrices: list[Tensor], lr: float, momentum: float, rounds: int) -> None:
        wanted = []
        for matrix in matrices:
            assert matrix.grad is not None
            if "momentum" not in (state := self.state[matrix]):
                state["momentum"] = torch.zeros_like(matrix)
            mean = state["momentum"].lerp_(matrix.grad, 1 - momentum)
            update = torch.lerp(matrix.grad, mean, momentum).flatten(1)
            wanted.append(update.T if update.shape[0] > update.shape[1] else update)
        for matrix, update in zip(matrices, orthogonal_together(torch.stack(wanted), rounds), strict=True):
            rows, columns = matrix.flatten(1).shape
            gain = max(1.0, rows / columns) ** 0.5
            matrix.add_((update.T if rows > columns else update).reshape(matrix.shape), alpha=-lr * gain)


def orthogonal_together(x_NRC: Tensor, rounds: int) -> Tensor:
    """Return what `orthogonal` returns, with the matrices shared out among the processes of the group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return orthogonal(x_NRC, rounds)
    rank, processes = dist.get_rank(), dist.get_world_size()
    result = torch.zeros_like(x_NRC)
    mine = slice(len(x_NRC) * rank // processes, len(x_NRC) * (rank + 1) // processes)
    result[mine] = orthogonal(x_NRC[mine], rounds)
    dist.all_reduce(result)
    return result
