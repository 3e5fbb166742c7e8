"""Networks on their devices: made ready for a run, sharded by FSDP2 where it says so, saved and loaded as one whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.training.network import Network
from rollforce.training.optim import is_sharded
from rollforce.training.recipes import Run


def prepare(network: Network, run: Run, device: torch.device, learns: bool, text_learns: bool = False) -> None:
    """Bring a network to its device as a run wants it; freeze what does not learn."""
    network.to(device).transformer.set_attention(run.attention)
    if run.shard:
        shard(network.transformer, run.precision)
    network.transformer.requires_grad_(learns)
    if network.text is not None:
        network.text.requires_grad_(text_learns)
    if run.recompute and learns:
        network.transformer.checkpoint_blocks()


def states(networks: Mapping[str, nn.Module], optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """The whole states of networks and optimisers, for a checkpoint. All processes must call it."""
    return {name: whole_state(net) for name, net in networks.items()} | {
        "optimisers": [whole_optimiser(optimiser) for optimiser in optimisers]
    }


def restore(
    state: Mapping[str, Any], networks: Mapping[str, nn.Module], optimisers: Sequence[torch.optim.Optimizer]
) -> None:
    """Load what `states` returned."""
    for name, network in networks.items():
        load_whole(network, state[name])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        load_optimiser(optimiser, saved)


def shard(transformer: VideoTransformer, precision: str = "no") -> None:
    """Shard a transformer in place over all processes: every block by itself, and the rest.

    A block is entered by three doors (text, before, after), because attention between them belongs to memory; each is
    made a forward method in the eyes of FSDP2. It averages gradients; `loop.share_gradients` makes sums of them."""
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
    """The state dict of a network, sharded or not: plain tensors, on the CPU if sharded. All processes must call it."""
    state = network.state_dict()
    if not is_sharded(list(network.parameters())):
        return state
    return {name: v.full_tensor().cpu() if hasattr(v, "full_tensor") else v for name, v in state.items()}


def load_whole(network: nn.Module, state: dict[str, Any]) -> None:
    """Load what `whole_state` returned into a network, sharded or not."""
    if not is_sharded(list(network.parameters())):
        network.load_state_dict(state)
        return
    own = network.state_dict()
    network.load_state_dict({name: _spread(value, own[name]) for name, value in state.items()})


def whole_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser with whole tensors; see `whole_state`."""
    return _mapped(optimiser.state_dict(), lambda v: v.full_tensor().cpu() if hasattr(v, "full_tensor") else v)


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `whole_optimiser` returned; numbers are spread like the parameters they belong to."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    spread = dict(state)
    spread["state"] = {
        i: {k: _spread(v, parameters[i]) if torch.is_tensor(v) and v.shape == parameters[i].shape else v
            for k, v in entry.items()}
        for i, entry in state["state"].items()
    }
    optimiser.load_state_dict(spread)


def _spread(value: Any, like: Any) -> Any:
    """`value` as a tensor spread like the DTensor `like`; as it is where `like` is none."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _mapped(tree: Any, change: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, change) for value in tree]
    return change(tree)
