"""Networks on their devices: made ready for a run, sharded by FSDP2 where it says so, saved and loaded as one whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rollforce.errors import TrainingError
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.training.network import Network
from rollforce.training.optim import is_sharded
from rollforce.training.recipes import RunSettings


def place(network: Network, run: RunSettings, device: torch.device, learns: bool, text_learns: bool = False) -> None:
    """Bring a network to its device as a run wants it; freeze what does not learn."""
    network.to(device).transformer.set_attention(run.attention)
    if run.shard:
        shard(network.transformer, run.precision)
    network.transformer.requires_grad_(learns)
    if network.text is not None:
        network.text.requires_grad_(text_learns)
    if run.recompute and learns:
        network.transformer.checkpoint_blocks()


def shard(transformer: VideoTransformer, precision: str = "no") -> None:
    """Shard a transformer in place over all processes: every block by itself, and the rest.

    A block is entered by three doors (text, before, after), because attention between them belongs to memory; each is
    made a forward method in the eyes of FSDP2. It averages gradients; `optim.share_gradients` makes sums of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(next(transformer.parameters()).device.type, (dist.get_world_size(),))
    dtype = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        for door in ("text", "before", "after"):
            register_fsdp_forward_method(block, door)
    fully_shard(transformer, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(transformer, "condition")


def whole_state(network: nn.Module) -> dict[str, Any]:
    """Return the state dict of a network, sharded or not, as plain tensors. All processes must call it."""
    return {name: _gather(value) for name, value in network.state_dict().items()}


def load_whole(network: nn.Module, state: Mapping[str, Any], name: str) -> None:
    """Load what `whole_state` returned into a network, sharded or not. TrainingError if it does not fit."""
    own = network.state_dict() if is_sharded(list(network.parameters())) else {}
    try:
        network.load_state_dict({key: _spread(value, own.get(key)) for key, value in state.items()})
    except RuntimeError as error:
        raise TrainingError(f"the checkpoint's {name} does not fit the network that the recipe describes: another "
                            f"folder lies under the same path, or its configuration has changed. {error}") from error


def whole_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimiser with whole tensors; see `whole_state`."""
    state = optimiser.state_dict()
    moments = {i: {k: _gather(v) for k, v in entry.items()} for i, entry in state["state"].items()}
    return {**state, "state": moments}


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what `whole_optimiser` returned; numbers are spread like the parameters they belong to."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments = {i: {k: _spread(v, parameters[i]) if torch.is_tensor(v) and v.shape == parameters[i].shape else v
                   for k, v in entry.items()} for i, entry in state["state"].items()}  # fmt: skip
    optimiser.load_state_dict({**state, "state": moments})


def _gather(value: Any) -> Any:
    """The whole of a DTensor, on the CPU; anything else as it is."""
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def _spread(value: Any, like: Any) -> Any:
    """`value` as a tensor spread like the DTensor `like`; as it is where `like` is none."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
