"""What a commit will do to memory: plain integers, made once per call, carried out in every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

from rollforce.errors import ConfigError

Slots = dict[str, dict[int, int]]
"""Where everything is: region -> stream index -> slot."""
Place = tuple[str, int]
"""A region and a slot of it."""
Marks = Mapping[str, tuple[int, ...]]
"""Where something happened: its name (`switch` of the prompt, `shot`) -> stream indices at which it came to be."""
MARKS = 8  # of each name, the last so many are remembered
Role = Literal["window", "past", "sink", "junction", "anchor"]
"""What a tier is for a stream whose story changes.

    window     the newest latents; made anew under another prompt; a user may choose how many there are
    past       what is older; made anew under another prompt as far as it can be
    sink       the beginning of the stream; stays under another prompt; a new shot looks back through it
    junction   the beginning of a prompt or shot; stays under another prompt
    anchor     anything else that stays under another prompt
"""


@dataclass(frozen=True)
class Candidates:
    """What a tier chooses from: stream indices, rising, the arriving ones among them; and what happened where."""

    indices: tuple[int, ...]
    marks: Marks = field(default_factory=dict)
    arriving: tuple[int, ...] = ()


def check_lowest(settings: object, **lowest: float) -> None:
    """Raise ConfigError if one of these fields is below its lowest value. None stands for no number, and passes."""
    kind = getattr(settings, "kind", "")
    for name, low in lowest.items():
        if (value := getattr(settings, name)) is not None and value < low:
            raise ConfigError(f"{kind}{kind and '.'}{name} {value} must be at least {low}.")


class Tier(Protocol):
    """A policy that owns a region of memory. Tiers form a waterfall: what one lets go falls to the next."""

    role: ClassVar[Role]

    @property
    def kind(self) -> str: ...
    @property
    def latents(self) -> int:
        """Room of the region; for tokens chosen on the device, the stretch of time over which they stand."""

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Return the latents that stay."""


@runtime_checkable
class MergingTier(Tier, Protocol):
    """A tier in which what it lets go lives on: averaged into what it keeps, at the same place of the picture."""

    def share(self) -> float:
        """Return the weight of a leaving latent in the average: 0 drops it, 1 replaces what is kept."""

    def pair(self, kept: tuple[int, ...], left: tuple[int, ...], marks: Marks) -> tuple[tuple[int, int], ...]:
        """Pair each latent that is averaged with the one it goes into: (kept, left), oldest first."""


@dataclass(frozen=True)
class Contents:
    """All that the host knows of a memory. Never changed in place. `absorbed`: the newest indices that came to a region
    which keeps no latents as they are (see region.py), as many as it spans: where its tokens stand in time."""

    slots: Slots
    absorbed: tuple[int, ...] = ()
    marks: Marks = field(default_factory=dict)

    def held(self) -> dict[str, tuple[int, ...]]:
        """Return the stream indices, rising, that each tier holds."""
        return {name: tuple(sorted(slots)) for name, slots in self.slots.items()}

    def mark(self, name: str, index: int) -> Contents:
        """Return the same contents after `name` happened at `index`. The last few of each name are remembered."""
        return replace(self, marks={**self.marks, name: (*self.marks.get(name, ()), index)[-MARKS:]})

    def filter(self, stays: Callable[[str, int], bool]) -> Contents:
        """Return the contents without the latents, (region, index), that do not stay; what was absorbed stays."""
        slots = {name: {i: slot for i, slot in held.items() if stays(name, i)} for name, held in self.slots.items()}
        return replace(self, slots=slots)


@dataclass(frozen=True)
class LatentWrite:
    """Latent `index` comes to `place`: from `source`, or with the commit."""

    place: Place
    index: int
    source: Place | None


@dataclass(frozen=True)
class LatentMerge:
    """Latent `index`, from `source` or with the commit, is averaged into `place`, where `kept` stands."""

    tier: MergingTier
    place: Place
    kept: int
    index: int
    source: Place | None


@dataclass(frozen=True)
class Eviction:
    """These latents, (index, source) or with the commit, are given to a region that keeps what it wants of them.
    `after`: the latent that follows the newest of them, unless it is still to come."""

    latents: tuple[tuple[int, Place | None], ...]
    after: tuple[int, Place | None] | None = None


@dataclass(frozen=True)
class CommitPlan:
    """What a commit writes, averages and evicts. `after`: what the host will know then."""

    after: Contents
    writes: tuple[LatentWrite, ...] = ()
    merges: tuple[LatentMerge, ...] = ()
    eviction: Eviction | None = None


def plan_commit(tiers: Sequence[Tier], last: Tier | None, offset: Mapping[str, int], before: Contents, start: int,
                latents: int) -> CommitPlan:  # fmt: skip
    """Plan what happens when `latents` from `start` on are committed. `last`: the tier behind `tiers` that absorbs all
    that falls to it; `offset`: first slot of each region."""
    sources = {index: (region, slot) for region, slots in before.slots.items() for index, slot in slots.items()}
    falling = tuple(range(start, start + latents))
    slots: Slots = {}
    writes: list[LatentWrite] = []
    merges: list[LatentMerge] = []
    for tier in tiers:
        region, mine = tier.kind, before.slots[tier.kind]
        candidates = tuple(sorted((*mine, *falling)))
        kept = tier.keep(Candidates(candidates, before.marks, falling))
        falling = tuple(index for index in candidates if index not in set(kept))
        stay = {index: mine[index] for index in kept if index in mine}
        free = (slot for slot in range(offset[region], offset[region] + tier.latents) if slot not in stay.values())
        come = {index: next(free) for index in kept if index not in mine}
        slots[region] = stay | come
        writes += [LatentWrite((region, slot), index, sources.get(index)) for index, slot in come.items()]
        if isinstance(tier, MergingTier):
            merges += [LatentMerge(tier, (region, slots[region][into]), into, left, sources.get(left))
                       for into, left in tier.pair(kept, falling, before.marks)]  # fmt: skip
    absorbed, eviction = before.absorbed, None
    if last is not None and falling:
        absorbed = (*absorbed, *falling)[max(0, len(absorbed) + len(falling) - last.latents) :]
        follows = falling[-1] + 1
        after = (follows, sources.get(follows)) if follows in sources or start <= follows < start + latents else None
        eviction = Eviction(tuple((index, sources.get(index)) for index in falling), after)
    return CommitPlan(Contents(slots, absorbed, before.marks), tuple(writes), tuple(merges), eviction)
