"""Settings of a stream: all that a person may choose between a prompt and its latents. Data; YAML maps onto it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from rollforce.cache.head_groups import AnyCache, HeadGroups, read_labels
from rollforce.cache.kv_cache import KVCache
from rollforce.cache.policies import AnyTier, Window
from rollforce.config import resource
from rollforce.engine.flow import Ladder, warped
from rollforce.engine.layout import Layout, bidirectional, chunkwise, partitioned, rolling
from rollforce.engine.rollout import Stepping
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import KVShape
from rollforce.video.values import check_count, check_number

CHUNK, STEPS = 1000, 1000  # at most
SHIFTS = (0.01, 100.0)  # of noise levels: released models use 1 to 17


@dataclass(frozen=True)
class LayoutSettings:
    """How latents step down to clean: see engine/layout.py. Only the kind `partitioned` reads `micro`."""

    kind: Literal["chunkwise", "rolling", "partitioned", "bidirectional"] = "rolling"
    chunk: int = 3
    levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    shift: float = 1.0
    micro: int = 1

    def __post_init__(self) -> None:
        check_count(self.chunk, "layout.chunk", most=CHUNK, remedy="Latents that are committed together.")
        if not 1 <= len(self.levels) <= STEPS:
            raise ConfigError(f"layout.levels must be 1 to {STEPS} noise levels, got {len(self.levels)}.")
        check_number(self.shift, "layout.shift", SHIFTS[0], SHIFTS[1], remedy="1 leaves the levels as they are.")
        check_count(self.micro, "layout.micro", most=len(self.levels))
        if self.micro != 1 and self.kind != "partitioned":
            raise ConfigError(f"layout.micro {self.micro} has no effect: only the layout partitioned reads it, and "
                              f"this is {self.kind}. Leave it out, or use layout.kind=partitioned.")
        self.build()  # refuse now what cannot stream

    @property
    def ladder(self) -> Ladder:
        """Noise levels after the shift."""
        return warped(self.levels, self.shift)

    def build(self) -> Layout:
        """Return the layout's table."""
        if self.kind == "partitioned":
            return partitioned(self.ladder, self.chunk, self.micro)
        build = {"chunkwise": chunkwise, "rolling": rolling, "bidirectional": bidirectional}[self.kind]
        return build(self.ladder, self.chunk)


@dataclass(frozen=True)
class HeadSettings:
    """Heads that remember differently: `groups` are the tiers of each group. `file` says which head is of which group;
    it is made for one model (infer/heads.py), and is a path or the name of a file that ships with rollforce."""

    file: str
    groups: dict[str, tuple[AnyTier, ...]]

    def memory(self, shape: KVShape, flight: int, dtype: torch.dtype, device: str | torch.device) -> HeadGroups:
        """Return an empty memory of all groups. ConfigError if the file cannot be read or is of another model."""
        path = Path(self.file)
        labels = read_labels(path if path.exists() else resource(self.file))
        return HeadGroups(self.groups, labels, shape, flight, dtype, device)


PLAIN: tuple[AnyTier, ...] = (Window(6),)
LATENTS = 10_000  # of one tier at most: an hour of video, and a plan of it in seconds


@dataclass(frozen=True)
class StreamSettings:
    """A whole stream: layout, memory, and what calls see of it. ConfigError for a combination that cannot work. With
    `heads`, groups of heads have tiers of their own; then `cache`, the tiers of all heads, is empty. `float32_islands`
    keeps norms, modulation and residuals in float32 whatever the weights are in. The released students of Self
    Forcing's code were trained without: it matters in bfloat16 only."""

    layout: LayoutSettings = field(default_factory=LayoutSettings)
    cache: tuple[AnyTier, ...] = PLAIN
    stepping: Stepping = field(default_factory=Stepping)
    float32_islands: bool = True
    heads: HeadSettings | None = None

    @property
    def memories(self) -> tuple[tuple[AnyTier, ...], ...]:
        """The tiers of each group of heads; of all heads, if there are no groups."""
        return (self.cache,) if self.heads is None else tuple(self.heads.groups.values())

    @property
    def tiers(self) -> tuple[AnyTier, ...]:
        """All tiers, of all heads."""
        return tuple(tier for tiers in self.memories for tier in tiers)

    @property
    def masked(self) -> bool:
        """Whether what calls see asks for an attention kernel that knows masks."""
        return self.stepping.denoise.masked or self.stepping.commit.masked

    def memory(self, shape: KVShape, dtype: torch.dtype = torch.float32,
               device: str | torch.device = "cpu") -> AnyCache:  # fmt: skip
        """Return an empty memory for a batch of these streams."""
        slots = self.layout.build().slots
        if self.heads is not None:
            return self.heads.memory(shape, slots, dtype, device)
        return KVCache(self.cache, shape, slots, dtype, device)

    def with_window(self, latents: int) -> StreamSettings:
        """Return the same settings with a window of so many latents. ConfigError if there is no window."""
        if not any(tier.role == "window" for tier in self.cache):
            raise ConfigError(f"window {latents}: this stream's memory has no window whose length could be chosen.")
        check_count(latents, "window", least=self.layout.build().shift, most=LATENTS,
                    remedy="At least one chunk of the stream's layout.")  # fmt: skip
        length: dict[str, Any] = {"latents": latents}  # a field of any tier of this role
        tiers = tuple(replace(tier, **length) if tier.role == "window" else tier for tier in self.cache)
        return replace(self, cache=tiers)

    def __post_init__(self) -> None:
        for tiers in self.memories:
            for number, tier in enumerate(tiers):
                check_count(tier.latents, f"cache.{number}.latents ({tier.kind})", least=0, most=LATENTS)
        if self.heads is not None:
            if self.cache not in ((), PLAIN):
                raise ConfigError("cache and heads.groups both give tiers: with heads, leave cache out.")
            object.__setattr__(self, "cache", ())
        table = self.layout.build()
        sparse, calmest = self.stepping.denoise.sparse, min(max(row) for row in table.sigma[:-1])
        if sparse is not None and sparse.below < calmest:
            raise ConfigError(f"stepping.denoise.sparse.below {sparse.below:g} is never reached: each call of this "
                              f"layout has a latent of noise {calmest:g} or more. Use 1, or the layout chunkwise.")
        for name, sight, own in (("denoise", self.stepping.denoise, table.slots),
                                 ("commit", self.stepping.commit, table.shift)):  # fmt: skip
            pinned = max((sum(tier.latents for tier in tiers if tier.kind in sight.pinned)
                          for tiers in self.memories), default=0)  # fmt: skip
            if sight.budget is not None and sight.budget < pinned + own:
                raise ConfigError(f"stepping.{name}.budget {sight.budget} must hold what is pinned ({pinned}) and the "
                                  f"call's own latents ({own}): use at least {pinned + own}, or null for no limit.")
