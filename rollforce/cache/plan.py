"""What a commit will do to memory: plain integers, made once per call, carried out in every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Slots = dict[str, dict[int, int]]
"""Where everything is: region -> stream index -> slot."""
Place = tuple[str, int]  # region, slot


class Tier(Protocol):
    """A policy that owns a region of memory. Tiers form a waterfall: what one lets go falls to the next."""

    @property
    def kind(self) -> str: ...
    @property
    def latents(self) -> int: ...
    def keep(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """Which of `held` (rising stream indices, the arriving ones among them) stay."""
        ...


@runtime_checkable
class Folding(Tier, Protocol):
    """A tier in which what it lets go lives on: averaged into what it keeps, at the same place of the picture."""

    def share(self) -> float:
        """Of a latent that leaves, in the average: 0 drops it, 1 replaces what is kept."""
        ...

    def fold(self, kept: tuple[int, ...], left: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(kept, left) for each latent that is averaged, oldest first."""
        ...


@dataclass(frozen=True)
class Lay:
    """Latent `index` comes to `place`: from `source`, or with the commit."""

    place: Place
    index: int
    source: Place | None


@dataclass(frozen=True)
class Fold:
    """Latent `index`, from `source` or with the commit, is averaged into `place`, where `kept` stands."""

    tier: Folding
    place: Place
    kept: int
    index: int
    source: Place | None


@dataclass(frozen=True)
class Plan:
    """`slots`: where everything will be afterwards."""

    slots: Slots
    lays: tuple[Lay, ...] = ()
    folds: tuple[Fold, ...] = ()


def planned(
    tiers: Sequence[Tier], offset: Mapping[str, int], before: Slots, start: int, latents: int
) -> Plan:
    """What happens when `latents` from `start` on are committed. `offset`: first slot of each region."""
    sources = {index: (region, slot) for region, slots in before.items() for index, slot in slots.items()}
    falling = tuple(range(start, start + latents))
    after: Slots = {}
    lays: list[Lay] = []
    folds: list[Fold] = []
    for tier in tiers:
        region, mine = tier.kind, before[tier.kind]
        candidates = tuple(sorted((*mine, *falling)))
        kept = tier.keep(candidates)
        falling = tuple(index for index in candidates if index not in set(kept))
        stay = {index: mine[index] for index in kept if index in mine}
        free = (slot for slot in range(offset[region], offset[region] + tier.latents) if slot not in stay.values())
        come = {index: next(free) for index in kept if index not in mine}
        after[region] = stay | come
        lays += [Lay((region, slot), index, sources.get(index)) for index, slot in come.items()]
        if isinstance(tier, Folding):
            folds += [Fold(tier, (region, after[region][into]), into, left, sources.get(left))
                      for into, left in tier.fold(kept, falling)]  # fmt: skip
    return Plan(after, tuple(lays), tuple(folds))
