"""Spaced: one latent in so many, further back than a window reaches (uniform sampling, Context Forcing's ablation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rollforce.cache.plan import Held


@dataclass(frozen=True)
class Spaced:
    """Of what falls to it, keeps the newest `latents` whose index is a multiple of `every`."""

    latents: int
    every: int = 6
    kind: Literal["spaced"] = "spaced"

    def keep(self, held: Held) -> tuple[int, ...]:
        """Which latents stay."""
        spaced = [index for index in held.indices if index % self.every == 0]
        return tuple(spaced[max(0, len(spaced) - self.latents) :])
