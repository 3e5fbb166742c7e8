"""What a commit will do to memory: plain integers, made once per call, carried out in every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

Slots = dict[str, dict[int, int]]
"""Where everything is: region -> stream index -> slot."""
Place = tuple[str, int]  # region, slot
Marks = Mapping[str, tuple[int, ...]]
"""Where something happened: its name (`switch` of the prompt, `shot`) -> stream indices at which it came to be."""


@dataclass(frozen=True)
class Candidates:
    """What a tier chooses from: stream indices, rising, the arriving ones among them; and what happened where."""

    indices: tuple[int, ...]
    marks: Marks = field(default_factory=dict)
    arriving: tuple[int, ...] = ()


class Tier(Protocol):
    """A policy that owns a region of memory. Tiers form a waterfall: what one lets go falls to the next."""

    @property
    def kind(self) -> str: ...
    @property
    def latents(self) -> int:
        """Room of the region; for tokens chosen on the device, the stretch of time over which they stand."""
        ...

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Which latents stay."""
        ...


@runtime_checkable
class MergingTier(Tier, Protocol):
    """A tier in which what it lets go lives on: averaged into what it keeps, at the same place of the picture."""

    def share(self) -> float:
        """Of a latent that leaves, in the average: 0 drops it, 1 replaces what is kept."""
        ...

    def fold(self, kept: tuple[int, ...], left: tuple[int, ...], marks: Marks) -> tuple[tuple[int, int], ...]:
        """(kept, left) for each latent that is averaged, oldest first."""
        ...


@dataclass(frozen=True)
class Contents:
    """All that the host knows of a memory. Never changed in place.

    `absorbed`: of regions that keep no latents as they are (see region.py), the newest indices that came to them, as
    many as the region spans: where its tokens stand in time.
    """

    slots: Slots
    absorbed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    marks: Marks = field(default_factory=dict)

    def held(self) -> dict[str, tuple[int, ...]]:
        """Of each region, the stream indices that it holds or stands for, rising."""
        return {name: self.absorbed[name] if name in self.absorbed else tuple(sorted(slots))
                for name, slots in self.slots.items()}  # fmt: skip

    def marked(self, name: str, index: int) -> Contents:
        """The same, and `name` happened at `index`. The last few of each name are remembered."""
        return replace(self, marks={**self.marks, name: (*self.marks.get(name, ()), index)[-MARKS:]})

    def filtered(self, stays: Callable[[str, int], bool]) -> Contents:
        """The same without the latents, (region, index), that do not stay. What was absorbed is not touched."""
        slots = {name: {i: slot for i, slot in held.items() if stays(name, i)} for name, held in self.slots.items()}
        return replace(self, slots=slots)


MARKS = 8


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

    region: str
    latents: tuple[tuple[int, Place | None], ...]
    after: tuple[int, Place | None] | None = None


@dataclass(frozen=True)
class CommitPlan:
    """`after`: what the host will know then."""

    after: Contents
    lays: tuple[LatentWrite, ...] = ()
    folds: tuple[LatentMerge, ...] = ()
    absorbs: tuple[Eviction, ...] = ()


def plan_commit(
    tiers: Sequence[Tier], offset: Mapping[str, int], before: Contents, start: int, latents: int
) -> CommitPlan:
    """What happens when `latents` from `start` on are committed. `offset`: first slot of each region."""
    sources = {index: (region, slot) for region, slots in before.slots.items() for index, slot in slots.items()}
    falling = tuple(range(start, start + latents))
    slots: Slots = {}
    absorbed: dict[str, tuple[int, ...]] = {}
    lays: list[LatentWrite] = []
    folds: list[LatentMerge] = []
    absorbs: list[Eviction] = []
    for tier in tiers:
        region, mine = tier.kind, before.slots[tier.kind]
        if region in before.absorbed:
            if falling:
                follows = falling[-1] + 1
                known = follows in sources or start <= follows < start + latents
                absorbs.append(Eviction(region, tuple((index, sources.get(index)) for index in falling),
                                      (follows, sources.get(follows)) if known else None))  # fmt: skip
            span = (*before.absorbed[region], *falling)
            slots[region], absorbed[region], falling = {}, span[max(0, len(span) - tier.latents) :], ()
            continue
        candidates = tuple(sorted((*mine, *falling)))
        kept = tier.keep(Candidates(candidates, before.marks, falling))
        falling = tuple(index for index in candidates if index not in set(kept))
        stay = {index: mine[index] for index in kept if index in mine}
        free = (slot for slot in range(offset[region], offset[region] + tier.latents) if slot not in stay.values())
        come = {index: next(free) for index in kept if index not in mine}
        slots[region] = stay | come
        lays += [LatentWrite((region, slot), index, sources.get(index)) for index, slot in come.items()]
        if isinstance(tier, MergingTier):
            folds += [LatentMerge(tier, (region, slots[region][into]), into, left, sources.get(left))
                      for into, left in tier.fold(kept, falling, before.marks)]  # fmt: skip
    return CommitPlan(Contents(slots, absorbed, before.marks), tuple(lays), tuple(folds), tuple(absorbs))
