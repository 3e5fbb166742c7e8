"""Spaced: one latent in so many, further back than a window reaches (uniform sampling, Context Forcing's ablation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rollforce.cache.commit_plan import Candidates, Role


@dataclass(frozen=True)
class Spaced:
    """Keeps, of what falls to it, the newest `latents` that lie at least `every` apart."""

    latents: int
    every: int = 6
    kind: Literal["spaced"] = "spaced"
    role: ClassVar[Role] = "past"

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Return the latents that stay."""
        spaced: list[int] = []
        for index in held.indices:
            if not spaced or index >= spaced[-1] + self.every:
                spaced.append(index)
        return tuple(spaced[max(0, len(spaced) - self.latents) :])
