"""Positions: where the visible past stands in time. Plain integers in, moves out.

RoPE attention only sees differences, so queries and the newest past keep their stream index for ever, and a policy
only says by how much a region further back is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rollforce.errors import ConfigError

Visible = Mapping[str, Sequence[int]]  # region -> stream indices that a call sees of it, rising
Moves = dict[str, int]  # region -> latents by which its keys are moved in time; absent = 0
Positions = Callable[[Visible, range], Moves]  # the range: stream indices of the call's own latents


def absolute(visible: Visible, own: range) -> Moves:
    """Move nothing: every latent stands at its own index (Self Forcing, LongLive), a sink ever further away."""
    return {}


def realigned(visible: Visible, own: range) -> Moves:
    """Let regions follow each other without a gap, the last one ending where the call's own latents start.

    Rolling Forcing's sink (section 3.3), generalised to any number of regions: positions never leave the range
    seen in training, however long the stream.
    """
    moves: Moves = {}
    end = own.start
    for region, held in sorted(visible.items(), key=lambda item: max(item[1], default=-1), reverse=True):
        if held:
            moves[region] = end - 1 - held[-1]
            end = held[0] + moves[region]
    return moves


@dataclass(frozen=True)
class Anchored:
    """Some regions stand at fixed places of the trained range, which ends with the call's newest latent; all others
    follow each other up to the call, as `realigned` (Anchor Forcing's tri-region RoPE; Context Forcing's and Hybrid
    Forcing's sink at 0..2 with everything else ending at 20).

    `reach`: latents of the trained range; `at`: region -> place of its first latent in it. Before the stream is as long
    as the range, places count from its beginning, where a sink at 0 stands unmoved, wherever that is in time.
    """

    reach: int = 21
    at: dict[str, int] = field(default_factory=lambda: {"sink": 0})
    kind: Literal["anchored"] = "anchored"

    def __post_init__(self) -> None:
        for region, place in self.at.items():
            if not 0 <= place < self.reach:
                raise ConfigError(f"at.{region} {place} lies outside the trained range of {self.reach} latents.")

    def __call__(self, visible: Visible, own: range) -> Moves:
        moves = realigned({region: held for region, held in visible.items() if region not in self.at}, own)
        begun = {region: held[0] - self.at[region] for region, held in visible.items() if held and region in self.at}
        base = max(own[-1] - (self.reach - 1), min(begun.values(), default=0))
        return moves | {region: base - beginning for region, beginning in begun.items()}


@dataclass(frozen=True)
class RunningAhead:
    """A region that stands in the future, always ahead of the call, as a goal to be reached (Knot Forcing).

    It stands `first` latents after its own index, which is the beginning of the stream for a sink, and jumps on by
    `step` as soon as fewer than `knot` latents are left between the call and it.
    """

    first: int = 8
    step: int = 4
    knot: int = 1
    region: str = "sink"
    kind: Literal["running_ahead"] = "running_ahead"

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ConfigError(f"step {self.step} must be at least 1 latent.")

    def __call__(self, visible: Visible, own: range) -> Moves:
        held = visible.get(self.region)
        if not held:
            return {}
        jumps = max(0, -(-(own.stop + self.knot - held[0] - self.first) // self.step))
        return {self.region: self.first + jumps * self.step}


NAMED: dict[str, Positions] = {"absolute": absolute, "realigned": realigned}
AnyPositions = str | Anchored | RunningAhead  # a name of NAMED, or settings


def positions(choice: AnyPositions) -> Positions:
    """Return the position policy chosen. ConfigError lists the names that exist."""
    if not isinstance(choice, str):
        return choice
    if choice not in NAMED:
        kinds = (*NAMED, "{kind: anchored, ...}", "{kind: running_ahead, ...}")
        raise ConfigError(f"positions {choice!r} are not known. Use one of: {', '.join(kinds)}.")
    return NAMED[choice]
