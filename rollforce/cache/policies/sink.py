"""Sink: the first latents of the stream, never let go (StreamingLLM, Xiao et al. 2023; Rolling Forcing; LongLive)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rollforce.cache.commit_plan import Candidates, Role


@dataclass(frozen=True)
class Sink:
    """Keeps the first `latents` that ever arrive; what comes later falls through."""

    latents: int
    kind: Literal["sink"] = "sink"
    role: ClassVar[Role] = "sink"

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Return the latents that stay."""
        return held.indices[: self.latents]
