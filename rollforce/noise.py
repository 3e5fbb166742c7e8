"""Noise as a pure function of (seed, latent, draw): nothing to save, nothing that length, batch or order can change."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Anything that answers which noise latent `index` gets at its `draw`-th noising: float32 [B, C, H, W]."""

    def __call__(self, index: int, draw: int) -> Tensor: ...


@dataclass(frozen=True)
class Noise:
    """Gaussian noise for a batch of streams, one seed each. Drawn on the CPU in float32: the same on every device."""

    seeds: tuple[int, ...]
    shape: tuple[int, int, int]  # C, H, W of one latent

    @classmethod
    def of(cls, seeds: int | Sequence[int], shape: tuple[int, int, int]) -> Noise:
        return cls((seeds,) if isinstance(seeds, int) else tuple(seeds), shape)

    def __call__(self, index: int, draw: int) -> Tensor:
        """Noise of latent `index` at its `draw`-th noising (0 = pure noise at entry): float32 [B, C, H, W]."""
        return torch.stack([self._one(seed, index, draw) for seed in self.seeds])

    def _one(self, seed: int, index: int, draw: int) -> Tensor:
        # Two CRCs give the generator 64 well-mixed bits; neighbouring seeds, latents and draws are unrelated.
        key = f"{seed}/{index}/{draw}".encode()
        word = zlib.crc32(key) << 32 | zlib.crc32(key[::-1], 0x9E3779B9)
        generator = torch.Generator().manual_seed(word - (1 << 63))
        return torch.randn(self.shape, generator=generator)
