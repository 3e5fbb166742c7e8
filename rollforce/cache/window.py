"""Window: the newest latents (Beltagy et al. 2020; Self Forcing's rolling cache)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Window:
    """Keeps the newest `latents`; older ones fall."""

    latents: int
    kind: Literal["window"] = "window"

    def keep(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """Which of `held` (rising stream indices, the arriving ones among them) stay."""
        return held[max(0, len(held) - self.latents) :]
