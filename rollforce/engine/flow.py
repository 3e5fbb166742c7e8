"""Flow matching on a straight line from data to noise: its algebra, the noise, and the ladder of levels.

    x_sigma = (1 - sigma) x_0 + sigma eps        velocity = eps - x_0

sigma lies in [0, 1] and is broadcast over [B, T, C, H, W]. float32 inside, the dtype of `x` outside. Rectified flow
(Liu et al. 2022), as Wan and every student of Self Forcing use it; sigma is used as it is, not looked up in a table
of 1,000 entries (the reference does that and so never reaches 0 exactly).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rollforce.errors import ConfigError


def _wide(sigma_BT: Tensor) -> Tensor:
    return sigma_BT[..., None, None, None].float()


def noised(clean_BTCHW: Tensor, noise_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
    """Bring clean latents to noise level sigma."""
    sigma = _wide(sigma_BT)
    return ((1 - sigma) * clean_BTCHW.float() + sigma * noise_BTCHW.float()).to(clean_BTCHW.dtype)


def clean_of(x_BTCHW: Tensor, velocity_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
    """Return the clean latents that a velocity at x points away from."""
    return (x_BTCHW.float() - _wide(sigma_BT) * velocity_BTCHW.float()).to(x_BTCHW.dtype)


def velocity_of(x_BTCHW: Tensor, clean_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
    """Return the velocity that leads from `clean` to `x`; sigma must be positive."""
    return ((x_BTCHW.float() - clean_BTCHW.float()) / _wide(sigma_BT)).to(x_BTCHW.dtype)


def euler(x_BTCHW: Tensor, velocity_BTCHW: Tensor, sigma_BT: Tensor, next_sigma_BT: Tensor) -> Tensor:
    """Take one deterministic step of the probability-flow ODE from sigma to next_sigma."""
    step = _wide(next_sigma_BT) - _wide(sigma_BT)
    return (x_BTCHW.float() + step * velocity_BTCHW.float()).to(x_BTCHW.dtype)


def renoise(clean_BTCHW: Tensor, noise_BTCHW: Tensor, next_sigma_BT: Tensor) -> Tensor:
    """Take one step of the few-step consistency sampler: forget the old noise, draw the next level afresh."""
    return noised(clean_BTCHW, noise_BTCHW, next_sigma_BT)


# -- noise: a pure function of (seed, latent, draw), which neither length nor batch nor order can change ---------------

class NoiseSource(Protocol):
    """Noise by stream index and draw: whatever is called as `noise(index, draw)` and returns float32 [B, C, H, W]."""

    def __call__(self, index: int, draw: int) -> Tensor: ...


@dataclass(frozen=True)
class Noise:
    """Gaussian noise for a batch of streams, one of `seeds` each, of latents of `shape` (C, H, W). It is drawn on the
    CPU in float32, the same for every device."""

    seeds: tuple[int, ...]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, seeds: int | Sequence[int], shape: tuple[int, int, int]) -> Noise:
        """Return the noise of one seed or several, for latents of shape (C, H, W)."""
        return cls((seeds,) if isinstance(seeds, int) else tuple(seeds), shape)

    def __call__(self, index: int, draw: int) -> Tensor:
        """Return the noise of latent `index` at its `draw`-th noising (0: that at entry), float32 [B, C, H, W]."""
        return torch.stack([self._draw(seed, index, draw) for seed in self.seeds])

    def _draw(self, seed: int, index: int, draw: int) -> Tensor:
        # Two CRCs give the generator 64 well-mixed bits; neighbouring seeds, latents and draws are unrelated.
        key = f"{seed}/{index}/{draw}".encode()
        word = zlib.crc32(key) << 32 | zlib.crc32(key[::-1], 0x9E3779B9)
        generator = torch.Generator().manual_seed(word - (1 << 63))
        return torch.randn(self.shape, generator=generator)


@dataclass(frozen=True)
class Branched(Noise):
    """Noise of one stream whose seed changes at some latents: (stream index from which on, seed), rising. With `lean`
    the noise with which a latent enters leans on that of the latent one `chunk` before, with which it has this
    correlation; its variance stays 1. It is a sum of seeded draws, as far back as float32 can tell, and so a pure
    function as any noise here (the release carries the last chunk's noise along; differs by less than 1e-7)."""

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
        seeds = next(((seed,) for start, seed in reversed(self.branches) if start <= index), self.seeds)
        return torch.stack([self._draw(seed, index, draw) for seed in seeds])


# -- ladders: the noise levels that a latent steps down, highest first; the last step to 0 is implied ------------------

Ladder = tuple[float, ...]
Level = TypeVar("Level", float, Tensor)


def shift_level(sigma: Level, shift: float) -> Level:
    """Move a noise level towards noise, for shift > 1 (SD3, Esser et al. 2024, eq. 23). 0 and 1 stay."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def linear(steps: int) -> Ladder:
    """Return a ladder of `steps` equal steps from 1 down to 0. ConfigError for fewer than one."""
    if steps < 1:
        raise ConfigError(f"steps {steps}: a ladder needs at least 1 step.")
    return tuple(1 - i / steps for i in range(steps))


def warped(levels: Sequence[float], shift: float) -> Ladder:
    """Return explicit levels, each shifted: [1, .75, .5, .25] at shift 5 is Self Forcing's 1, .9375, .8333, .625."""
    if shift <= 0:
        raise ConfigError(f"shift {shift} must be positive (1 leaves the levels as they are).")
    return explicit([shift_level(level, shift) for level in levels])


def explicit(levels: Sequence[float]) -> Ladder:
    """Return the levels as given. ConfigError unless they fall and lie in (0, 1]."""
    ladder = tuple(float(level) for level in levels)
    if not ladder:
        raise ConfigError("a ladder needs at least one level, e.g. [1, 0.75, 0.5, 0.25].")
    if not all(0 < level <= 1 for level in ladder):
        raise ConfigError(f"ladder {list(ladder)}: every level must lie in (0, 1]; the step to 0 is implied.")
    if any(low >= high for high, low in pairwise(ladder)):
        raise ConfigError(f"ladder {list(ladder)}: levels must fall from noise to clean.")
    return ladder


def training_weight(sigma: Tensor, shift: float, table: int = 1000) -> Tensor:
    """Return the loss weight of Wan's flow-matching scheduler: a Gaussian bump around sigma .5, from 0, of mean 1. The
    table of `table` shifted levels only sets the normalisation (`bsmntw` weighting)."""
    levels = shift_level(1 - torch.arange(table, dtype=torch.float64) / table, shift)

    def bump(level: Tensor) -> Tensor:
        return torch.exp(-2 * (level - 0.5) ** 2)

    floor = bump(levels).min()
    return ((bump(sigma.double()) - floor) / (bump(levels) - floor).mean()).to(sigma.dtype)
