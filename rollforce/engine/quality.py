"""Quality levels: a stream with less to do, by fewer steps or less of its past in view. Its memory is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rollforce.cache.region import RegionTier
from rollforce.cache.visibility import Visibility
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError
from rollforce.video.values import check_count, check_number


@dataclass(frozen=True)
class QualityLevel:
    """How much work a chunk is. `steps` of the stream's own noise levels are kept, spread evenly, the highest always
    among them. `past` is the share of what a call sees of the past; what is pinned, regions that are seen whole, and
    the call's own latents are always seen.

    Memory is written as ever, so that it is all there when the stream goes up again.

    What it saves: chunkwise, the calls that are left out (the bundled model on a CPU: 138, 83, 49 ms a chunk with 4, 3,
    2 steps). In a rolling layout a chunk is one call however many steps there are, and fewer make that call smaller:
    much for a large model, little for a small one (75 ms, and 59 on the lowest level); and what is in flight begins
    anew, which costs the first chunk on a level its ticks and a jump of what moves."""

    steps: int
    past: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.steps, "quality.steps")
        check_number(self.past, "quality.past", 0, 1, remedy="It is the share of the past that is seen.")

    def apply(self, settings: StreamSettings) -> StreamSettings:
        """Return the stream at this level. ConfigError if its layout has not so many steps, or cannot do with these."""
        levels, micro, count = settings.layout.levels, settings.layout.micro, len(settings.layout.levels)
        if self.steps > count:
            raise ConfigError(f"quality.steps {self.steps}: this stream has {count}.")
        if settings.layout.kind == "partitioned" and self.steps % micro:
            raise ConfigError(f"quality.steps {self.steps} must be a multiple of the layout's micro, {micro}.")
        chosen = tuple(levels[(i * count + self.steps // 2) // self.steps] for i in range(self.steps))
        layout, before = replace(settings.layout, levels=chosen), settings.layout.build()
        after, stepping = layout.build(), settings.stepping
        stepping = replace(stepping, denoise=self._narrow(settings, stepping.denoise, before.slots, after.slots),
                           commit=self._narrow(settings, stepping.commit, before.shift, after.shift))  # fmt: skip
        return replace(settings, layout=layout, stepping=stepping)

    def _narrow(self, settings: StreamSettings, visibility: Visibility, own: int, left: int) -> Visibility:
        """Return what a call of `left` latents, not `own`, sees: as much of the past as before, or a share of it."""
        always, loose = _visible_latents(settings, visibility)
        if self.past == 1 and (visibility.budget is None or left == own):
            return visibility
        if visibility.budget is not None:
            loose = min(loose, visibility.budget - own - always)  # below 0 where regions that are seen whole fill it
        return replace(visibility, budget=left + always + min(loose, int(loose * self.past)))


def quality_levels(settings: StreamSettings) -> tuple[QualityLevel, ...]:
    """Return the levels of a stream, itself first: step by step down to two, then half of the past, if there is any."""
    count = len(settings.layout.levels)
    less = settings.layout.micro if settings.layout.kind == "partitioned" else 1
    levels = tuple(QualityLevel(steps) for steps in (count, *range(count - less, 1, -less)))
    calls = (settings.stepping.denoise, settings.stepping.commit)
    if any(_visible_latents(settings, visibility)[1] > 1 for visibility in calls):
        levels += (QualityLevel(levels[-1].steps, past=0.5),)
    return levels


def _visible_latents(settings: StreamSettings, visibility: Visibility) -> tuple[int, int]:
    """Return the latents of the past that a call always sees, and that its budget is for: the most of any heads."""
    always, loose = 0, 0
    for tiers in settings.memories:
        pinned = sum(tier.latents for tier in tiers if tier.kind in visibility.pinned or isinstance(tier, RegionTier))
        always, loose = max(always, pinned), max(loose, sum(tier.latents for tier in tiers) - pinned)
    return always, loose
