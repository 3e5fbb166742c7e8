"""Memory: one model call's window on a KVCache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rollforce.attention import Kernel
from rollforce.cache.plan import Plan
from rollforce.cache.region import Asking, Committing
from rollforce.types import KVBlock

if TYPE_CHECKING:
    from rollforce.cache.cache import Group, KVCache, View


class Memory:
    """One model call's window on a KVCache. A call is one or two groups of latents, in order: [committing | denoising].

    In each layer the committing group attends and is written first, so the denoising group already sees it: the clean
    pass of one chunk and the next tick are one call, with the numbers of two.
    """

    def __init__(self, cache: KVCache, groups: Sequence[Group]) -> None:
        self.cache, self.groups = cache, tuple(groups)
        self._before = cache.contents
        self._views: list[View] = []
        self._plans: list[Plan] = []
        self._notes: dict[str, object] = {}
        for group in self.groups:
            self._views.append(cache.view(group))
            self._plans.append(cache.plan(group.start, group.latents) if group.commit else Plan(cache.contents))
            cache.adopt(self._plans[-1].after)
        cache.adopt(self._before)

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Attention output of all groups, [B, N, L, K]."""
        tokens, at, outputs = self.cache.shape.tokens, 0, []
        self.cache.adopt(self._before)
        for group, view, plan in zip(self.groups, self._views, self._plans, strict=True):
            stop = at + group.latents
            asking, mine = query[:, :, at * tokens : stop * tokens], own.latents(at, stop, tokens)
            seen = self.cache.read(layer, view, mine)
            asked = Asking(layer, group.start, asking, self.cache.learned)
            kernel = group.sight.kernel(attend, self.cache.shape, asked)
            output, added = kernel(asking, seen.key, seen.value, seen.bias), self.cache.added(asked)
            outputs.append(output if added is None else output + added.to(output))
            if group.commit:
                self.cache.write(Committing(layer, group.start, mine, asking, self._notes), plan)
                self.cache.adopt(plan.after)
            at = stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def across(self, attend: Kernel) -> Kernel:
        """The kernel for cross-attention of this call: queries of all groups, each as its sight says."""
        shape = self.cache.shape
        if all(group.sight.text is None for group in self.groups):
            return attend

        def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            parts = query.split([group.latents * shape.tokens for group in self.groups], dim=2)
            kernels = [group.sight.text_kernel(attend, shape) for group in self.groups]
            return torch.cat([kernel(part, key, value, mask) for kernel, part in zip(kernels, parts, strict=True)], 2)

        return grouped
