"""The reference's gradient path through memory, for comparison.

Self Forcing and Rolling Forcing train with a cache that is written in place, under gradient, and overwritten with the
clean keys and values under `no_grad`. Autograd does not see the second write, so the loss of a later chunk flows back
through the values of the clean pass into the noisy pass of an earlier one (measured in research: a gradient half as
large as the chunk's own). The papers describe a detached context, which is what KVCache does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rollforce.cache.kv_cache import CacheView, KVCache
from rollforce.cache.region import BiasedKV
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock


class ReferenceGradientCache(KVCache):
    """A KVCache whose past has the values of the clean pass and the gradient of the last noisy pass over it.

    `chunk`: of each call with gradient, the first so many latents leave their path behind, as the reference's cache
    holds one block per window. For rollouts that begin at 0 and let nothing fall."""

    def __init__(self, *args: Any, chunk: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.chunk = chunk
        self.paths: dict[tuple[int, int], KVBlock] = {}  # (layer, stream index) -> noisy keys and values, with graph

    def read(self, layer: int, view: CacheView, own: KVBlock) -> BiasedKV:
        """Return the keys and values that a call sees, in calls with gradient with the path of the noisy passes."""
        seen = super().read(layer, view, own)
        if not torch.is_grad_enabled():
            return seen
        moves, tokens, keys, values = dict(view.moves), self.shape.tokens, [], []
        nothing = torch.zeros_like(own.key[:, :, :tokens])
        for region, index in view.latents:
            path = self.paths.get((layer, index))
            keys.append(_only_path(rope.turn(path.key, moves[region])) if path else nothing)
            values.append(_only_path(path.value) if path else nothing)
        for i in range(self.chunk):
            self.paths[layer, view.start + i] = own.latents(i, i + 1, tokens)
        if not keys:
            return seen
        none = torch.zeros_like(own.key)
        return BiasedKV(seen.key + torch.cat([*keys, none], 2), seen.value + torch.cat([*values, none], 2))


def _only_path(x: Tensor) -> Tensor:
    """Zero, with the gradient of x."""
    return x - x.detach()
