"""Gates that learn which heads need the whole memory (DuoAttention, Xiao et al. 2024, 2410.10819, section 2.2).

Each head gets a gate. While it is learnt, attention runs with both memories, and only the gates change:

    out = gate * full + (1 - gate) * streaming,      loss = distance to the full model's output + weight * mean gate

Afterwards heads with large gates keep the full memory, the others the streaming one: two groups (cache/head_groups.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from rollforce.cache.head_groups import Labels
from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.region import Weights
from rollforce.engine.rollout import Rollout
from rollforce.models.transformer.attention import Kernel, KVBlock
from rollforce.models.transformer.transformer import Condition, VideoTransformer


class DualCache(KVCache):
    """Two memories of one stream, both written by the full model's clean passes. Calls get what the full one says, or
    where there are gates, [layers, heads], a mix."""

    def __init__(self, full: Sequence[Any], streaming: KVCache, *args: Any) -> None:
        super().__init__(full, *args)
        self.streaming, self.gates = streaming, cast(Tensor | None, None)

    def memory(self, groups: Sequence[LatentGroup], weights: Weights | None = None) -> CallMemory:
        """Return what a call sees of both memories."""
        return _Both(self, groups, weights)


class _Both(CallMemory):
    cache: DualCache

    def __init__(self, cache: DualCache, groups: Sequence[LatentGroup], weights: Weights | None) -> None:
        super().__init__(cache, groups, weights)
        self.streaming = cache.streaming.memory(groups, weights)

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Return what a layer's heads see: of the full memory, or a mix where gates are set."""
        full = super().attend(layer, query, own, attend)
        short = self.streaming.attend(layer, query, own, attend)
        if self.cache.gates is None:
            return full
        gate = self.cache.gates[layer].to(full)[:, None, None]
        return gate * full + (1 - gate) * short


class Gating:
    """Stands in the transformer's place in a Rollout: walks the stream of the full model, and compares every denoising
    call with the same call under gates. `losses`: of those calls, relative squared distances, with gradient to gates.

    Deviation: the paper compares hidden states at the places of a needle; here it is the velocity of all latents."""

    def __init__(self, transformer: VideoTransformer, cache: DualCache, gates: Tensor) -> None:
        self.transformer, self.cache, self.gates = transformer, cache, gates
        self.losses: list[Tensor] = []

    @property
    def policy(self) -> Mapping[str, Tensor]:
        """The weights of tiers, which a call of the model hands to memory."""
        return cast(Mapping[str, Tensor], self.transformer.policy)

    def __call__(self, x: Tensor, sigma: Tensor, index: Tensor, condition: Condition, memory: CallMemory,
                 phase_T: Tensor | None) -> Tensor:  # fmt: skip
        full = self.transformer(x, sigma, index, condition, memory, phase_T=phase_T)
        if not any(group.commit for group in memory.groups):
            with torch.enable_grad():
                self.cache.gates = self.gates.clamp(0, 1)
                mixed = self.transformer(x, sigma, index, condition, memory, phase_T=phase_T)
                self.cache.gates = None
                self.losses.append((mixed - full).square().mean() / full.square().mean())
        return full

    def tick(self, rollout: Rollout) -> Tensor:
        """Make one tick of a rollout of this model, commits included; return the distance, with gradient."""
        self.losses.clear()
        rollout.tick()
        rollout.commit()
        return torch.stack(self.losses).mean()


def label_heads(gates: Tensor, share: float) -> Labels:
    """Return `retrieval` for the `share` of heads with the largest gates (ties: first layers), else `streaming`."""
    flat = gates.flatten()
    chosen = flat.argsort(descending=True, stable=True)[: round(share * len(flat))]
    mask = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, chosen, True).view_as(gates)
    return tuple(tuple("retrieval" if full else "streaming" for full in row) for row in mask.tolist())
