"""Sparse attention by blocks: which keys a call attends to is chosen per block of queries, from their means.

Only the chosen blocks are gathered and given to the attention kernel, so time falls with them. Blocks never cross the
border between two latents: which latents share a block would depend on the order of slots in the ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import Kernel


@dataclass(frozen=True)
class BlockSparse:
    """Each block of queries attends to the `top` share of the blocks of keys (at least one), those whose mean key has
    the largest dot product with the mean query (SLA, Zhang et al. 2025, 2509.24006, as Hybrid Forcing uses it).

    `block`: tokens of a block of keys at most; `queries`: the same for queries (None: as for keys); `layers`: the share
    of the layers in which it is on, the last ones; calls in which a latent is noisier than `below` see everything;
    `masked`: whether the attention kernel must know masks. SLA subtracts the
    mean over all tokens from the keys before, which adds one number per query to all scores and cannot change the
    choice: it is left out. Hybrid Forcing's release subtracts the mean over heads instead, by a mistake of the axis,
    which can: `compat`. Deviations: blocks end with their latent (64 of 1560 tokens become 25 blocks of 63 or less),
    and a bias (tokens that stand for several) does not count in the choice, only in attention."""

    top: float = 0.2
    block: int = 64
    queries: int | None = None
    layers: float = 1.0
    below: float = 1.0
    compat: bool = False
    kind: Literal["block_sparse"] = "block_sparse"
    masked = False  # none where `block` divides the tokens of a latent; else the kernel itself refuses

    def __post_init__(self) -> None:
        if not 0 < self.top <= 1:
            raise ConfigError(f"top {self.top:g} must be above 0 and at most 1, which is all of the past.")
        if self.block < 1 or (self.queries is not None and self.queries < 1):
            raise ConfigError(f"block {self.block} and queries {self.queries} must be at least 1 token.")
        check_shares(self.layers, self.below)

    def kernel(self, attend: Kernel, tokens: int, start: int = 0) -> Kernel:
        """Return `attend` over the chosen blocks."""
        return partial(self._attended, attend, tokens)

    def _attended(self, attend: Kernel, tokens: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        bias = checked_bias(mask)
        keys, values, asking = (cut(x, tokens, size) for x, size in
                                ((k, self.block), (v, self.block), (q, self.queries or self.block)))  # fmt: skip
        count = max(1, int(self.top * keys.shape[2] + 1e-6))
        if count == keys.shape[2]:
            return attend(q, k, v, mask)
        real = cut(_real(k, bias), tokens, self.block)[..., 0]
        chosen = self.chosen(means(asking, cut(_real(q, None), tokens, self.queries or self.block)[..., 0]),
                             means(keys, real), real.any(-1), count)  # fmt: skip
        lost = None
        if bias is not None or real.shape[2] * real.shape[3] != k.shape[2]:
            lost = torch.where(real, 0.0, float("-inf"))
            if bias is not None:
                lost = lost + cut(bias.transpose(2, 3), tokens, self.block)[..., 0]
        output = attend_chosen(attend, asking, keys, values, lost, chosen)
        return joined(output, tokens, q.shape[2])

    def chosen(self, query: Tensor, key: Tensor, there: Tensor, count: int) -> Tensor:
        """Choose the `count` blocks of keys of each block of queries, [B, N, Q, count], from the means of both [B, N,
        _, K]; `there` [B, N, blocks]: whether a block holds anything."""
        if self.compat:
            key = key - key.mean(1, keepdim=True)
        score = query @ key.transpose(-1, -2)
        return score.masked_fill(~there[:, :, None], float("-inf")).topk(count, dim=-1, sorted=False).indices


def check_shares(layers: float, below: float) -> None:
    """Raise ConfigError for shares that are none."""
    if not 0 < layers <= 1 or not 0 < below <= 1:
        raise ConfigError(f"layers {layers:g} and below {below:g} must lie above 0, up to 1.")


def checked_bias(mask: Tensor | None) -> Tensor | None:
    """Return a mask that is the same for all queries, [B, 1 or N, 1, L]. ConfigError for another."""
    if mask is not None and (mask.dim() != 4 or mask.shape[2] != 1):
        raise ConfigError(f"a sparse sight takes a bias per key, not a mask {list(mask.shape)}: leave `sparse` out.")
    return mask


def cut(x: Tensor, tokens: int, block: int) -> Tensor:
    """Cut [B, N, L, K] into blocks that end with their latent: [B, N, blocks, size, K], filled up with zeros."""
    length = x.shape[2]
    parts = -(-tokens // block)
    size = -(-tokens // parts)
    x = padded(x, -length % tokens).unflatten(2, (-1, tokens))
    return padded(x, parts * size - tokens).unflatten(3, (parts, size)).flatten(2, 3)


def joined(x: Tensor, tokens: int, length: int) -> Tensor:
    """Join blocks to [B, N, `length`, K] again: undo `cut`."""
    parts = x.shape[2] // -(-length // tokens)
    x = x.unflatten(2, (-1, parts)).flatten(3, 4)[:, :, :, :tokens]
    return x.flatten(2, 3)[:, :, :length]


def means(blocks: Tensor, real: Tensor) -> Tensor:
    """Return the mean of the tokens of each block that are there, [B, N, blocks, K]."""
    share = real.to(blocks.dtype) / real.sum(-1, keepdim=True).clamp(min=1)
    return (blocks * share[..., None]).sum(3)


def attend_chosen(attend: Kernel, asking: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None,
                  chosen: Tensor) -> Tensor:  # fmt: skip
    """Attend from each block of queries [B, N, Q, q, K] to its own blocks of keys: `chosen` [B, N, Q, count] of [B, N,
    blocks, s, K]; `bias` [B or 1, N or 1, blocks, s]. It is one call of the kernel, with blocks of queries as heads."""
    batch, heads, blocks = keys.shape[:3]
    rows = torch.arange(batch * heads, device=keys.device).view(batch, heads, 1, 1) * blocks
    flat = (rows + chosen).flatten()

    def gathered(x: Tensor) -> Tensor:
        return x.flatten(0, 2).index_select(0, flat).view(batch * heads, chosen.shape[2], -1, x.shape[-1])

    mask = None if bias is None else gathered(bias.expand(batch, heads, -1, -1)[..., None]).transpose(2, 3)
    return attend(asking.flatten(0, 1), gathered(keys), gathered(values), mask).unflatten(0, (batch, heads))


def padded(x: Tensor, count: int) -> Tensor:
    return F.pad(x, (0, 0, 0, count)) if count else x


def _real(x: Tensor, bias: Tensor | None) -> Tensor:
    """Which tokens are there, [1 or B, 1 or N, L, 1]: not the rest of a block nor an empty place of a pool."""
    if bias is None:
        return torch.ones(1, 1, x.shape[2], 1, dtype=torch.bool, device=x.device)
    return bias.transpose(2, 3) > float("-inf")
