"""Head groups: heads of one layer that remember differently (Forcing-KV; DuoAttention, Xiao et al. 2024, 2410.10819).

Some heads look at what is near and need little; others look far back. Each group of heads has a KVCache of its own,
with its own tiers, over as many heads of each layer as carry its label.

DuoAttention permutes the rows of the projections offline, so that each group is a contiguous slice of heads. Here the
weights stay as they are and heads are picked from queries, keys and values by index, or by a slice where they lie side
by side; what comes out is put back. It is the same function: attention treats every head alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollforce.cache.commit_plan import Tier
from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.region import Weights
from rollforce.checkpoints.outputs import write_whole
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import Kernel, KVBlock, KVShape

Pick = slice | Tensor
"""Some heads of a layer."""
Labels = tuple[tuple[str, ...], ...]
"""Of each layer, the group of each head."""
MAKE = "infer/heads.py makes such a file for a model."


class HeadGroups:
    """A memory made of several KVCaches, which is used as one."""

    def __init__(self, groups: Mapping[str, Sequence[Tier]], labels: Labels, shape: KVShape, flight: int,
                 dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:  # fmt: skip
        """`groups`: tiers of each label. A group that no head has is left out. ConfigError if labels do not fit."""
        _check(groups, labels, shape)
        self.shape, self.dtype, self.device = shape, dtype, torch.device(device)
        self.parts: dict[str, KVCache] = {}
        self.heads: dict[str, tuple[tuple[int, ...], ...]] = {}
        for name, tiers in groups.items():
            where = tuple(tuple(n for n, label in enumerate(layer) if label == name) for layer in labels)
            if any(where):
                self.heads[name] = where
                part = replace(shape, heads=tuple(len(heads) for heads in where))
                self.parts[name] = KVCache(tiers, part, flight, dtype, device)
        self.picks = [self._picks(layer) for layer in range(shape.layers)]
        self.orders = [self._order(layer) for layer in range(shape.layers)]

    def _picks(self, layer: int) -> dict[str, Pick]:
        """The heads of each group that has some in a layer."""
        found: dict[str, Pick] = {}
        for name, where in self.heads.items():
            if heads := where[layer]:
                beside = heads == tuple(range(heads[0], heads[-1] + 1))
                found[name] = slice(heads[0], heads[-1] + 1) if beside else torch.tensor(heads, device=self.device)
        return found

    def _order(self, layer: int) -> Tensor | None:
        """How to put heads back that stand group after group; None if they stand right."""
        lined = [head for where in self.heads.values() for head in where[layer]]
        order = sorted(range(len(lined)), key=lined.__getitem__)
        return None if order == list(range(len(order))) else torch.tensor(order, device=self.device)

    # -- as a KVCache -------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Latents that the group with most room holds."""
        return max(part.capacity for part in self.parts.values())

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers of all groups, one group after the other."""
        return tuple(tier for part in self.parts.values() for tier in part.tiers)

    def held(self) -> dict[str, tuple[int, ...]]:
        """Return the stream indices, rising, that any group holds in each kind of region."""
        held: dict[str, set[int]] = {}
        for part in self.parts.values():
            for region, indices in part.held().items():
                held.setdefault(region, set()).update(indices)
        return {region: tuple(sorted(indices)) for region, indices in held.items()}

    def mark(self, name: str, index: int) -> None:
        """Tell all tiers what happens; see `KVCache.mark`."""
        for part in self.parts.values():
            part.mark(name, index)

    def memory(self, groups: Sequence[LatentGroup], weights: Weights | None = None) -> HeadMemory:
        """Open one call's window on this. `weights`: what the model has learned for tiers."""
        return HeadMemory(self, groups, weights)

    def retain(self, stays: Callable[[str, int], bool]) -> None:
        """Let go of latents in all groups; see `KVCache.retain`."""
        for part in self.parts.values():
            part.retain(stays)

    def forget(self) -> None:
        """Empty the regions of all groups; see `KVCache.forget`."""
        for part in self.parts.values():
            part.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return everything a stream needs to go on: tensors and plain numbers."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a memory with the same groups, labels and shape."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


class HeadMemory:
    """One model call's window on HeadGroups: a CallMemory for each group."""

    def __init__(self, cache: HeadGroups, groups: Sequence[LatentGroup], weights: Weights | None = None) -> None:
        self.cache = cache
        self.parts: dict[str, CallMemory] = {name: part.memory(groups, weights) for name, part in cache.parts.items()}

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Return the attention output of all heads and groups of latents, [B, N, L, K]."""
        outputs = []
        for name, pick in self.cache.picks[layer].items():
            block = KVBlock(_pick_heads(own.key, pick), _pick_heads(own.value, pick))
            outputs.append(self.parts[name].attend(layer, _pick_heads(query, pick), block, attend))
        if len(outputs) == 1:
            return outputs[0]
        lined, order = torch.cat(outputs, dim=1), self.cache.orders[layer]
        return lined if order is None else lined.index_select(1, order)

    def across(self, attend: Kernel) -> Kernel:
        """Return the kernel for cross-attention of this call, which knows no groups of heads."""
        return next(iter(self.parts.values())).across(attend)


def _pick_heads(x_BNLK: Tensor, pick: Pick) -> Tensor:
    return x_BNLK[:, pick] if isinstance(pick, slice) else x_BNLK.index_select(1, pick)


def _check(groups: Mapping[str, Sequence[Tier]], labels: Labels, shape: KVShape) -> None:
    if len(labels) != shape.layers:
        raise ConfigError(f"the head groups are of a model with {len(labels)} layers; "
                          f"this one has {shape.layers}. {MAKE}")  # fmt: skip
    for layer, row in enumerate(labels):
        heads = shape.of(layer, 1)[1]
        if len(row) != heads:
            raise ConfigError(f"layer {layer} of the head groups labels {len(row)} heads; "
                              f"the model has {heads}. {MAKE}")  # fmt: skip
        for head, label in enumerate(row):
            if label not in groups:
                raise ConfigError(f"layer {layer}, head {head} is labelled {label!r}, but there are tiers only for "
                                  f"{', '.join(groups) or 'no group'}: add heads.groups.{label}.")  # fmt: skip


AnyCache = KVCache | HeadGroups

# -- which head is of which group ---------------------------------------------------------------------------------


def read_labels(path: Path) -> Labels:
    """Read the labels of a JSON file {"description": ..., "layers": [["static", ...], ...]}. ConfigError if none."""
    try:
        layers = json.loads(path.read_text())["layers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"heads.file {path} cannot be read as head groups ({type(error).__name__}: {error}). {MAKE}"
                          ) from error  # fmt: skip
    right = isinstance(layers, list) and all(isinstance(layer, list) for layer in layers)
    if not right or not all(isinstance(label, str) for layer in layers for label in layer):
        raise ConfigError(f'heads.file {path}: "layers" must be a list of lists of labels. {MAKE}')
    return tuple(tuple(layer) for layer in layers)


def write_labels(path: Path, labels: Labels, description: str, **measured: Sequence[Sequence[float]]) -> Path:
    """Write the file that `read_labels` reads, a line for each layer; `measured`: numbers of each head beside them."""
    tables = {"layers": labels} | {name: [[round(number, 4) for number in row] for row in table]
                                   for name, table in measured.items()}  # fmt: skip
    lines = [f'  "{name}": [\n' + ",\n".join(f"    {json.dumps(row)}" for row in table) + "\n  ]"
             for name, table in tables.items()]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "{\n" + ",\n".join([f'  "description": {json.dumps(description)}', *lines]) + "\n}\n")
    return path
