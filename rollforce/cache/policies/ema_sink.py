"""EmaSink: a sink that slowly becomes what the stream has become (Reward Forcing, arXiv 2512.04678, EMA-Sink)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rollforce.cache.commit_plan import Candidates, Marks, Role
from rollforce.errors import ConfigError


@dataclass(frozen=True)
class EmaSink:
    """Keeps the first `latents` that fall to it; each later one is averaged into one of them, in turn.

    sink <- decay * sink + (1 - decay) * leaving, keys and values, at the same place of the picture and with the time
    of the rotary position taken out. `latents` should be the chunk or a multiple of it, so that a place in the chunk
    always meets the same place. Deviation from the release: the average is kept in float32; in bfloat16, at .999, two
    thirds of its entries would never change."""

    latents: int
    decay: float = 0.999
    kind: Literal["ema_sink"] = "ema_sink"
    role: ClassVar[Role] = "anchor"

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay {self.decay:g} must lie in [0, 1]: 1 is a plain sink, 0 forgets at once.")

    def keep(self, held: Candidates) -> tuple[int, ...]:
        return held.indices[: self.latents]

    def share(self) -> float:
        return 1 - self.decay

    def pair(self, kept: tuple[int, ...], left: tuple[int, ...], marks: Marks) -> tuple[tuple[int, int], ...]:
        return tuple((kept[index % len(kept)], index) for index in left) if kept else ()
