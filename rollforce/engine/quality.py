"""Rungs: a stream with less to do: fewer steps, less of its past in view. What it remembers is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rollforce.cache.region import RegionTier
from rollforce.cache.visibility import Visibility
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError


@dataclass(frozen=True)
class QualityLevel:
    """`steps`: of the stream's own levels, spread evenly, the highest always among them. `past`: share of what a call
    sees of the past; what is pinned, regions that are seen whole, and the call's own latents are always seen.

    Memory is written as ever, so that it is all there when the stream goes up again.

    What it saves: chunkwise, the calls that are left out (the bundled model on a CPU: 138, 83, 49 ms a chunk with 4, 3,
    2 steps). In a rolling layout a chunk is one call however many steps there are, and fewer make that call smaller:
    much for a large model, little for a small one (75 ms, and 59 on the last rung); and what is in flight begins anew,
    which costs the first chunk on a rung its ticks and a jump of what moves."""

    steps: int
    past: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"rung.steps {self.steps}: at least 1.")
        if not 0 <= self.past <= 1:
            raise ConfigError(f"rung.past {self.past:g} must lie in [0, 1]: a share of the past that is seen.")

    def on(self, settings: StreamSettings) -> StreamSettings:
        """The stream on this rung. ConfigError if its layout has not so many steps, or cannot do with these."""
        levels, micro = settings.layout.levels, settings.layout.micro
        count = len(levels)
        if self.steps > count:
            raise ConfigError(f"rung.steps {self.steps}: this stream has {count}.")
        if settings.layout.kind == "partitioned" and self.steps % micro:
            raise ConfigError(f"rung.steps {self.steps} must be a multiple of the layout's micro, {micro}.")
        chosen = tuple(levels[(i * count + self.steps // 2) // self.steps] for i in range(self.steps))
        layout, before = replace(settings.layout, levels=chosen), settings.layout.build()
        after, stepping = layout.build(), settings.stepping
        stepping = replace(
            stepping,
            denoise=self._less(settings, stepping.denoise, before.slots, after.slots),
            commit=self._less(settings, stepping.commit, before.shift, after.shift),
        )
        return replace(settings, layout=layout, stepping=stepping)

    def _less(self, settings: StreamSettings, sight: Visibility, own: int, left: int) -> Visibility:
        """A sight of a call of `left` latents instead of `own`: as much of the past as before, or a share of it."""
        always, loose = _rooms(settings, sight)
        if self.past == 1 and (sight.budget is None or left == own):
            return sight
        if sight.budget is not None:
            loose = min(loose, sight.budget - own - always)  # below 0 where regions that are seen whole fill it
        return replace(sight, budget=left + always + min(loose, int(loose * self.past)))


def quality_levels(settings: StreamSettings) -> tuple[QualityLevel, ...]:
    """The rungs of a stream, itself first: step by step down to two, then half of the past (if there is enough)."""
    count = len(settings.layout.levels)
    less = settings.layout.micro if settings.layout.kind == "partitioned" else 1
    steps = [count, *range(count - less, 1, -less)]
    rungs = [QualityLevel(number) for number in steps]
    if any(_rooms(settings, sight)[1] > 1 for sight in (settings.stepping.denoise, settings.stepping.commit)):
        rungs.append(QualityLevel(steps[-1], past=0.5))
    return tuple(rungs)


def _rooms(settings: StreamSettings, sight: Visibility) -> tuple[int, int]:
    """Latents of the past that a call always sees, and those that its budget is for; of the group with most of each."""
    always, loose = [0], [0]
    for tiers in settings.memories:
        pinned = [tier.latents for tier in tiers if tier.kind in sight.pinned or isinstance(tier, RegionTier)]
        always.append(sum(pinned))
        loose.append(sum(tier.latents for tier in tiers) - sum(pinned))
    return max(always), max(loose)
