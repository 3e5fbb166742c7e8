"""Settings of a stream: all that a person may choose between a prompt and its latents. Data; YAML maps onto it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from rollforce.cache import AnyTier, Window
from rollforce.errors import ConfigError
from rollforce.layout import Layout, bidirectional, chunkwise, partitioned, rolling
from rollforce.rollout import Stepping
from rollforce.schedule import Ladder, warped


@dataclass(frozen=True)
class LayoutSettings:
    """How latents step down to clean: see layout.py. `micro` is read by `partitioned` only."""

    kind: Literal["chunkwise", "rolling", "partitioned", "bidirectional"] = "rolling"
    chunk: int = 3
    levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    shift: float = 1.0
    micro: int = 1

    def __post_init__(self) -> None:
        self.build()  # refuse now what cannot stream

    @property
    def ladder(self) -> Ladder:
        """Noise levels after the shift."""
        return warped(self.levels, self.shift)

    def build(self) -> Layout:
        """The table."""
        if self.kind == "partitioned":
            return partitioned(self.ladder, self.chunk, self.micro)
        return {"chunkwise": chunkwise, "rolling": rolling, "bidirectional": bidirectional}[self.kind](
            self.ladder, self.chunk
        )


@dataclass(frozen=True)
class StreamSettings:
    """A whole stream: layout, memory, and how calls see it. ConfigError for a combination that cannot work.

    `float32_islands`: norms, modulation and residuals in float32 whatever the weights are in. The released students of
    Self Forcing's code were trained without: it matters in bfloat16 only.
    """

    layout: LayoutSettings = field(default_factory=LayoutSettings)
    cache: tuple[AnyTier, ...] = (Window(6),)
    stepping: Stepping = field(default_factory=Stepping)
    float32_islands: bool = True

    def with_window(self, latents: int) -> StreamSettings:
        """The same with a longer or shorter window. ConfigError if there is none."""
        if not any(tier.kind == "window" for tier in self.cache):
            raise ConfigError("this stream's memory has no window whose length could be chosen.")
        if latents < 1:
            raise ConfigError(f"window {latents}: at least 1 latent.")
        tiers = tuple(replace(tier, latents=latents) if tier.kind == "window" else tier for tier in self.cache)
        return replace(self, cache=tiers)

    def __post_init__(self) -> None:
        table = self.layout.build()
        for name, sight, own in (
            ("denoise", self.stepping.denoise, table.slots),
            ("commit", self.stepping.commit, table.shift),
        ):
            pinned = sum(tier.latents for tier in self.cache if tier.kind in sight.pinned)
            if sight.budget is not None and sight.budget < pinned + own:
                raise ConfigError(
                    f"stepping.{name}.budget {sight.budget} must hold what is pinned ({pinned}) and the call's own "
                    f"latents ({own}): use at least {pinned + own}, or null for no limit."
                )
