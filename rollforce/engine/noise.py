"""Noise as a pure function of (seed, latent, draw): nothing to save, nothing that length, batch or order can change."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Noise by stream index and draw: whatever is called as `noise(index, draw)` and returns float32 [B, C, H, W]."""

    def __call__(self, index: int, draw: int) -> Tensor: ...


@dataclass(frozen=True)
class Noise:
    """Gaussian noise for a batch of streams, one of `seeds` each, of latents of `shape` (C, H, W).

    It is drawn on the CPU in float32, the same for every device.
    """

    seeds: tuple[int, ...]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, seeds: int | Sequence[int], shape: tuple[int, int, int]) -> Noise:
        """Return the noise of one seed or several, for latents of shape (C, H, W)."""
        return cls((seeds,) if isinstance(seeds, int) else tuple(seeds), shape)

    def __call__(self, index: int, draw: int) -> Tensor:
        """Return the noise of latent `index` at its `draw`-th noising (0 is the pure noise at entry): float32 [B, C, H,
        W]."""
        return torch.stack([self._draw(seed, index, draw) for seed in self.seeds])

    def _draw(self, seed: int, index: int, draw: int) -> Tensor:
        # Two CRCs give the generator 64 well-mixed bits; neighbouring seeds, latents and draws are unrelated.
        key = f"{seed}/{index}/{draw}".encode()
        word = zlib.crc32(key) << 32 | zlib.crc32(key[::-1], 0x9E3779B9)
        generator = torch.Generator().manual_seed(word - (1 << 63))
        return torch.randn(self.shape, generator=generator)


@dataclass(frozen=True)
class Branched(Noise):
    """Noise of one stream whose seed changes at some latents: (stream index from which on, seed), rising.

    With `lean` the noise with which a latent enters leans on that of the latent one `chunk` before, with which it has
    this correlation; its variance stays 1. It is a sum of seeded draws, as far back as float32 can tell, and so a pure
    function as any noise here (the release carries the last chunk's noise along; differs by less than 1e-7).
    """

    branches: tuple[tuple[int, int], ...] = ()
    lean: float = 0.0
    chunk: int = 1

    def branch(self, index: int, seed: int) -> Branched:
        """Return the same noise up to a stream index, and from there on that of another seed."""
        return replace(self, branches=(*(each for each in self.branches if each[0] < index), (index, seed)))

    def __call__(self, index: int, draw: int) -> Tensor:
        """Return the noise of latent `index` at its `draw`-th noising, as Noise does."""
        if draw or not self.lean:
            return self._draw_branch(index, draw)
        back = min(max(0, index) // self.chunk, math.ceil(math.log(1e-8) / math.log(abs(self.lean))))
        x = self._draw_branch(index - back * self.chunk, 0)
        for n in reversed(range(back)):
            x = self.lean * x + math.sqrt(1 - self.lean**2) * self._draw_branch(index - n * self.chunk, 0)
        return x

    def _draw_branch(self, index: int, draw: int) -> Tensor:
        seed = next((seed for start, seed in reversed(self.branches) if start <= index), None)
        seeds = self.seeds if seed is None else (seed,)
        return torch.stack([self._draw(seed, index, draw) for seed in seeds])
