"""Together: the calls of several streams as one.

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
from rollforce.models.geometry import KVBlock
from rollforce.models.transformer.attention import Kernel
from rollforce.models.transformer.transformer import HALVES, Condition, Memory, VideoTransformer


def group_key(call: ModelCall) -> Hashable:
    """Asks of one kind can be one call: as many streams, latents of one size, prompts of one length."""
    x, given = call.x_BTCHW, call.condition.layers[0]
    return (x.shape[0], x.shape[2:], x.dtype, x.device, tuple(block.key.shape for block in given))


def run_together(calls: Sequence[ModelCall], model: VideoTransformer) -> list[Tensor]:
    """Velocity [B, T, C, H, W] of each of these calls of one kind. Their pasts are written, once.

    One call; but one for each where blocks are compiled, which would be done anew for every company of streams."""
    if len(calls) == 1 or model.halves is not HALVES:
        return [call.run(model) for call in calls]
    latents = [call.x_BTCHW.shape[1] for call in calls]
    x = torch.cat([call.x_BTCHW for call in calls], dim=1)
    sigma = torch.cat([call.sigma_BT for call in calls], dim=1)
    index, phase = torch.cat([call.index_T for call in calls]), _phase(calls)
    memory = ConcatenatedMemory([call.cache.memory(call.groups, model.policy) for call in calls], latents)
    velocity = model(x, sigma, index, _prompts(calls), memory, phase_T=phase, streams=latents)
    return list(velocity.split(latents, dim=1))


class ConcatenatedMemory:
    """One call's window on the memories of several streams whose latents stand one after the other."""

    def __init__(self, parts: Sequence[Memory], latents: Sequence[int]) -> None:
        self._parts, self._latents = parts, latents

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Attention output of all streams, [B, N, L, K]."""
        keys, values = self._each(own.key), self._each(own.value)
        outputs = [
            part.attend(layer, asking, KVBlock(key, value), attend)
            for part, asking, key, value in zip(self._parts, self._each(query), keys, values, strict=True)
        ]
        return torch.cat(outputs, dim=2)

    def across(self, attend: Kernel) -> Kernel:
        """The kernel for cross-attention: the prompts stand one after the other in the batch."""
        kernels, streams = [part.across(attend) for part in self._parts], len(self._parts)

        def each(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            prompts = zip(kernels, self._each(query), key.chunk(streams), value.chunk(streams), strict=True)
            return torch.cat([kernel(asking, k, v, mask) for kernel, asking, k, v in prompts], dim=2)

        return each

    def _each(self, x_BNLK: Tensor) -> tuple[Tensor, ...]:
        tokens = x_BNLK.shape[2] // sum(self._latents)
        return x_BNLK.split([count * tokens for count in self._latents], dim=2)


def _prompts(calls: Sequence[ModelCall]) -> Condition:
    """One after the other in the batch, of every layer: [streams x B, N, L, K]."""
    layers = zip(*(call.condition.layers for call in calls), strict=True)
    return Condition(tuple(tuple(_stacked(blocks) for blocks in zip(*given, strict=True)) for given in layers))


def _stacked(blocks: Sequence[KVBlock]) -> KVBlock:
    return KVBlock(torch.cat([block.key for block in blocks]), torch.cat([block.value for block in blocks]))


def _phase(calls: Sequence[ModelCall]) -> Tensor | None:
    if all(call.phase_T is None for call in calls):
        return None
    return torch.cat([torch.zeros(call.index_T.shape) if call.phase_T is None else call.phase_T for call in calls])
