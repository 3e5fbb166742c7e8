"""The nouns that travel through the engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rollforce.video.size import check_size


@dataclass(frozen=True)
class KVShape:
    """Sizes of a memory: one slot is one latent of `tokens` keys for `heads` heads of `width` channels.

    `heads`: of every layer, or of each (head groups differ between layers). `columns`: tokens of a row of the picture;
    0 where nobody asks."""

    layers: int
    batch: int
    heads: int | tuple[int, ...]
    tokens: int
    width: int
    columns: int = 0

    def of(self, layer: int, tokens: int) -> tuple[int, int, int, int]:
        """Return the shape of `tokens` keys of a layer: [B, N, L, K]."""
        return self.batch, self.heads if isinstance(self.heads, int) else self.heads[layer], tokens, self.width


@dataclass(frozen=True)
class Grid:
    """Latent geometry: one latent is `channels` x `height` x `width`, cut into square patches of `patch`."""

    channels: int
    height: int
    width: int
    patch: int = 2

    def __post_init__(self) -> None:
        check_size((self.height, self.width), self.patch, ", the patch", "latent ")

    @property
    def rows(self) -> int:
        return self.height // self.patch

    @property
    def columns(self) -> int:
        return self.width // self.patch

    @property
    def tokens_per_latent(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class KVBlock:
    """Keys (rotated at their own index) and values of consecutive latents: each [B, N, L, K], L = latents x tokens."""

    key: Tensor
    value: Tensor

    def latents(self, start: int, stop: int, tokens: int) -> KVBlock:
        part = slice(start * tokens, stop * tokens)
        return KVBlock(self.key[:, :, part], self.value[:, :, part])


def index_range(start: int, count: int) -> Tensor:
    """Return stream indices of `count` latents from `start`, int64 [T]."""
    return torch.arange(start, start + count, dtype=torch.int64)
