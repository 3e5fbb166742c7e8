"""Sparse attention by hashing: AnnSA and AnnCA (FAST-AR, Samuel et al. 2026, 2602.01801; no code was released).

Random hyperplanes sort queries and keys into buckets by the sides on which they lie (LSH). A query attends to the keys
of its bucket; prompt tokens whose bucket holds no query of a latent are not attended to by that latent.

Queries and keys are centred first, each by their own mean: what all have in common would put them on one side. The
planes come from a seed, so that a stream is the same every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import Kernel
from rollforce.models.transformer.block_sparse import check_shares, checked_bias, padded

NEVER = float("-inf")


@dataclass(frozen=True)
class HashAttention:
    """AnnSA: 2 ** `bits` buckets of keys.

    Deviation: buckets are uneven and differ from query to query, which saves no time in one batched call. So keys are
    sorted by bucket, neighbours in that order differing by one plane, and every `chunk` of queries, sorted likewise,
    attends to the same number of keys: `reach` times what a bucket holds on average, around its middle query's bucket.
    `exact` is the paper's rule, by a mask that saves no time; a query whose bucket is empty then sees all.

    The paper has it on in about 70 % of the layers (which ones it does not say; here the last) and not in the first
    30 % of the steps, which is `below` where all latents of a call are equally noisy. Whether it hashes before or after
    RoPE it does not say; here after, in the time of the call, so that only relative time matters."""

    bits: int = 3
    reach: float = 1.0
    chunk: int = 16
    layers: float = 0.7
    below: float = 1.0
    seed: int = 0
    exact: bool = False
    kind: Literal["buckets"] = "buckets"

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        if self.reach <= 0 or self.chunk < 1:
            raise ConfigError(f"reach {self.reach:g} must be above 0 and chunk {self.chunk} at least 1 query.")
        check_shares(self.layers, self.below)

    @property
    def masked(self) -> bool:
        return self.exact

    def kernel(self, attend: Kernel, tokens: int, start: int = 0) -> Kernel:
        """Return `attend` over the keys, or tokens of the prompt, that its buckets choose."""
        return partial(self._masked if self.exact else self._gathered, attend, start)

    def _masked(self, attend: Kernel, start: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        bias = checked_bias(mask)
        shared = self._queries(q, start)[..., None] == self._keys(k, start, bias)[:, :, None]
        shared = shared | ~shared.any(-1, keepdim=True)
        allowed = torch.where(shared, 0.0, NEVER).to(q.dtype)
        return attend(q, k, v, allowed if bias is None else allowed + bias)

    def _gathered(self, attend: Kernel, start: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        bias, length = checked_bias(mask), k.shape[2]
        width = min(length, -(-int(length * self.reach) // 2**self.bits) or 1)
        if width == length:
            return attend(q, k, v, mask)
        asked, order = self._queries(q, start).sort(dim=-1, stable=True)
        held = self._keys(k, start, bias)
        which = self._around(asked[..., self.chunk // 2 :: self.chunk], held, width, q.shape[2])
        rows = padded(_taken(q, order), -q.shape[2] % self.chunk).unflatten(2, (-1, self.chunk)).flatten(0, 1)
        near, values = (_taken(x, which.flatten(2)).unflatten(2, which.shape[2:]).flatten(0, 1) for x in (k, v))
        if bias is not None:
            bias = bias.expand(*k.shape[:2], -1, -1).transpose(2, 3)
            bias = _taken(bias, which.flatten(2)).view(rows.shape[0], -1, 1, width)
        output = attend(rows, near, values, bias).unflatten(0, q.shape[:2]).flatten(2, 3)[:, :, : q.shape[2]]
        return _taken(output, order.argsort(-1))

    def _queries(self, q: Tensor, start: int) -> Tensor:
        """Buckets of queries [B, N, L]."""
        return numbered(_centred(heights(q, self.bits, self.seed, start)))

    def _keys(self, k: Tensor, start: int, bias: Tensor | None) -> Tensor:
        """Buckets of keys [B, N, L]; those of empty places come after all others."""
        height = heights(k, self.bits, self.seed, start)
        if bias is None:
            return numbered(_centred(height))
        there = (bias > NEVER).transpose(2, 3).expand(*k.shape[:2], -1, 1)
        mean = (height * there).sum(2, keepdim=True) / there.sum(2, keepdim=True).clamp(min=1)
        return numbered(height - mean).masked_fill(~there[..., 0], 2**self.bits)

    def _around(self, asked: Tensor, held: Tensor, width: int, queries: int) -> Tensor:
        """Choose the `width` keys of each chunk of queries, [B, N, chunks, width]."""
        if asked.shape[-1] * self.chunk < queries:  # the last chunk is short of its middle one
            asked = torch.cat([asked, asked.new_full((*asked.shape[:2], 1), 2**self.bits - 1)], dim=-1)
        held, order = held.sort(dim=-1, stable=True)
        low, high = (torch.searchsorted(held, asked.contiguous(), right=right) for right in (False, True))
        last = (held < 2**self.bits).sum(-1, keepdim=True) - width
        start = torch.minimum((low + high - width) // 2, last).clamp(min=0)
        places = start[..., None] + torch.arange(width, device=held.device)
        return order.gather(2, places.flatten(2)).view(places.shape)


@dataclass(frozen=True)
class HashTextAttention:
    """AnnCA: of the prompt, a latent attends to the tokens in whose bucket at least one of its queries lies, per head.

    How many that are is different for each latent and head, so the rule needs a mask and saves no time. `share` keeps a
    fixed part of the tokens instead, those with the most queries in their bucket, and does save some (deviation)."""

    bits: int = 3
    share: float | None = None
    seed: int = 0
    kind: Literal["text_buckets"] = "text_buckets"

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"share {self.share:g} must be above 0 and at most 1, which is the whole prompt.")

    @property
    def masked(self) -> bool:
        return self.share is None

    def kernel(self, attend: Kernel, tokens: int) -> Kernel:
        """Return `attend` over the keys, or tokens of the prompt, that its buckets choose."""
        return partial(self._attended, attend, tokens)

    def _attended(self, attend: Kernel, tokens: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None and q.shape[2] % tokens == 0, "cross-attention is of whole latents and has no mask"
        latents = q.unflatten(2, (-1, tokens))
        near = self.queries_near(latents, k)
        if self.share is None:
            shared = near > 0
            shared = shared | ~shared.any(-1, keepdim=True)
            allowed = torch.where(shared, 0.0, NEVER).to(q.dtype)
            return attend(q, k, v, allowed.repeat_interleave(tokens, 2))
        count = max(1, int(self.share * k.shape[2] + 1e-6))
        if count == k.shape[2]:
            return attend(q, k, v, None)
        which = near.sort(dim=-1, descending=True, stable=True).indices[..., :count]
        key, value = (_taken(x, which.flatten(2)).unflatten(2, which.shape[2:]).flatten(0, 1) for x in (k, v))
        return attend(latents.flatten(0, 1), key, value, None).unflatten(0, q.shape[:2]).flatten(2, 3)

    def queries_near(self, latents: Tensor, key: Tensor) -> Tensor:
        """Count the queries of each latent [B, N, T, l, K] in the bucket of each prompt token: [B, N, T, L]."""
        asked = numbered(_centred(heights(latents, self.bits, self.seed)))
        counts = torch.zeros(*asked.shape[:3], 2**self.bits, dtype=torch.int64, device=key.device)
        counts.scatter_add_(3, asked, torch.ones_like(asked))
        held = numbered(_centred(heights(key, self.bits, self.seed)))
        return counts.gather(3, held[:, :, None].expand(-1, -1, counts.shape[2], -1))


def heights(x: Tensor, bits: int, seed: int, start: int = 0) -> Tensor:
    """Return the signed distance of each vector [..., K] to each plane, [..., bits], in the time that begins at
    `start`: the planes are turned to it, not the vectors."""
    return x.detach().float() @ rope.turn(_planes(x.shape[-1], bits, seed, x.device), start).T


def numbered(height: Tensor) -> Tensor:
    """Return the bucket of each vector, from its `heights` [..., bits]: int64 [...], from 0 to 2 ** bits - 1, so that
    two buckets that follow each other differ by the side of one plane (the sides are read as a Gray code)."""
    bits = height.shape[-1]
    sides = (height > 0).long()
    return ((sides.cumsum(-1) & 1) * (2 ** torch.arange(bits - 1, -1, -1, device=height.device))).sum(-1)


@cache
def _planes(width: int, bits: int, seed: int, device: torch.device) -> Tensor:
    """Normals [bits, K]."""
    return torch.randn(width, bits, generator=torch.Generator().manual_seed(seed)).T.to(device)


def _centred(height: Tensor) -> Tensor:
    """By the mean over tokens, [..., L, bits]: where their mean lies on the other side it moves the plane."""
    return height - height.mean(-2, keepdim=True)


def _taken(x: Tensor, which: Tensor) -> Tensor:
    """Tokens `which` [B, N, M] of [B, N, L, K], each row and head its own: [B, N, M, K]."""
    batch, heads, length, width = x.shape
    rows = torch.arange(batch * heads, device=x.device).view(batch, heads, 1) * length
    return x.flatten(0, 2).index_select(0, (rows + which).flatten()).view(batch, heads, -1, width)


def _check_bits(bits: int) -> None:
    if not 0 <= bits <= 16:
        raise ConfigError(f"bits {bits} must lie in 0 (one bucket: dense) .. 16.")
