"""Ladders: the noise levels a latent steps down, highest first. The last step to 0 is implied."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from rollforce.errors import ConfigError

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
    """Return the loss weight of Wan's flow-matching scheduler: a Gaussian bump around sigma .5, from 0, of mean 1.

    The table of `table` shifted levels only sets the normalisation (`bsmntw` weighting).
    """
    grid = torch.arange(table, dtype=torch.float64)
    levels = shift_level(1 - grid / table, shift)

    def bump(level: Tensor) -> Tensor:
        return torch.exp(-2 * (level - 0.5) ** 2)

    floor = bump(levels).min()
    return ((bump(sigma.double()) - floor) / (bump(levels) - floor).mean()).to(sigma.dtype)
