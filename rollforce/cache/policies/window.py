"""Window: the newest latents (Beltagy et al. 2020; Self Forcing's rolling cache)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rollforce.cache.commit_plan import Candidates, Role


@dataclass(frozen=True)
class Window:
    """Keeps the newest `latents`; older ones fall."""

    latents: int
    kind: Literal["window"] = "window"
    role: ClassVar[Role] = "window"

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Return the latents that stay."""
        return held.indices[max(0, len(held.indices) - self.latents) :]
