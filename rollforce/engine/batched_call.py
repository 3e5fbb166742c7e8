"""The model calls of several streams as one.

Latents of all streams stand one after the other in time, B = 1, each with its own noise, stream index and phase; the
memory splits queries, keys and values again, and every stream attends to its own past and its own prompt. So streams
need not agree in layout, row, start, number of latents or memory, and nothing is padded.

Everything else in the network treats tokens alone. Where a matrix product gives the same row whatever rows are beside
it, a stream's bytes are those that it makes alone: so in float32 on one thread of a CPU, from four rows on (the few
rows of the noise levels are embedded stream by stream). Several threads share a product out by its size, and a GPU's
library picks its kernel by it; the last digits follow. Products that were looked at batch streams of one shape only, or
none (systems.md 3.1)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from rollforce.engine.rollout import ModelCall
from rollforce.models.transformer.attention import Kernel, KVBlock
from rollforce.models.transformer.transformer import HALVES, Condition, Memory, VideoTransformer


def group_key(call: ModelCall) -> Hashable:
    """Return a key, the same for calls that can be one: as many streams, latents of a size, prompts of a length."""
    x, given = call.x_BTCHW, call.condition.layers[0]
    return (x.shape[0], x.shape[2:], x.dtype, x.device, tuple(block.key.shape for block in given))


def run_together(calls: Sequence[ModelCall], model: VideoTransformer) -> list[Tensor]:
    """Return the velocity [B, T, C, H, W] of each of these calls of one `group_key`. Their pasts are written, once. It
    is one call; but one for each where blocks are compiled, which would be done anew for every company of streams."""
    if len(calls) == 1 or model.halves is not HALVES:
        return [call.run(model) for call in calls]
    latents = [call.x_BTCHW.shape[1] for call in calls]
    x = torch.cat([call.x_BTCHW for call in calls], dim=1)
    sigma = torch.cat([call.sigma_BT for call in calls], dim=1)
    index, phase = torch.cat([call.index_T for call in calls]), _join_phases(calls)
    memory = ConcatenatedMemory([call.cache.memory(call.groups, model.policy) for call in calls], latents)
    velocity = model(x, sigma, index, _join_prompts(calls), memory, phase_T=phase, streams=latents)
    return list(velocity.split(latents, dim=1))


class ConcatenatedMemory:
    """One call's window on the memories of several streams whose latents stand one after the other."""

    def __init__(self, parts: Sequence[Memory], latents: Sequence[int]) -> None:
        self._parts, self._latents = parts, latents

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Return the attention output of all streams, [B, N, L, K]."""
        keys, values = self._split(own.key), self._split(own.value)
        parts = zip(self._parts, self._split(query), keys, values, strict=True)
        return torch.cat([part.attend(layer, q, KVBlock(k, v), attend) for part, q, k, v in parts], dim=2)

    def across(self, attend: Kernel) -> Kernel:
        """Return the kernel for cross-attention: the prompts stand one after the other in the batch."""
        kernels, streams = [part.across(attend) for part in self._parts], len(self._parts)

        def each(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            prompts = zip(kernels, self._split(query), key.chunk(streams), value.chunk(streams), strict=True)
            return torch.cat([kernel(asking, k, v, mask) for kernel, asking, k, v in prompts], dim=2)

        return each

    def _split(self, x_BNLK: Tensor) -> tuple[Tensor, ...]:
        tokens = x_BNLK.shape[2] // sum(self._latents)
        return x_BNLK.split([count * tokens for count in self._latents], dim=2)


def _join_prompts(calls: Sequence[ModelCall]) -> Condition:
    """Put the prompts of every layer one after the other in the batch: [streams x B, N, L, K]."""
    layers = zip(*(call.condition.layers for call in calls), strict=True)
    return Condition(tuple(tuple(KVBlock(torch.cat([block.key for block in blocks]),
                                         torch.cat([block.value for block in blocks]))
                                 for blocks in zip(*given, strict=True)) for given in layers))  # fmt: skip


def _join_phases(calls: Sequence[ModelCall]) -> Tensor | None:
    if all(call.phase_T is None for call in calls):
        return None
    return torch.cat([torch.zeros(call.index_T.shape) if call.phase_T is None else call.phase_T for call in calls])
