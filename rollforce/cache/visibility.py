"""What one call may see of the past, and where it stands. Denoising and committing calls may differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rollforce.cache.region import Query
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import Kernel, KVShape
from rollforce.models.transformer.block_sparse import BlockSparse
from rollforce.models.transformer.hash_attention import HashAttention, HashTextAttention

AnySparse = BlockSparse | HashAttention


@dataclass(frozen=True)
class Visibility:
    """`budget`: latents one call attends to, its own included (None: all that is held). `pinned` regions are always in
    view; the others fill the rest of the budget, newest first. `positions` says where the visible regions stand in
    time. `sparse`: of what it could see, it attends to a part; `text`: the same for the prompt."""

    budget: int | None = None
    pinned: tuple[str, ...] = ("sink",)
    positions: AnyPositions = "realigned"
    sparse: AnySparse | None = None
    text: HashTextAttention | None = None

    def __post_init__(self) -> None:
        positions(self.positions)
        if self.budget is not None and self.budget < 1:
            raise ConfigError(f"budget {self.budget}: a call needs at least 1 latent, its own; null means no limit.")

    def visible(self, held: Mapping[str, tuple[int, ...]], own: int,
                whole: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:  # fmt: skip
        """Return the stream indices of each region that a call of `own` latents sees. `whole`: regions that are seen
        whole or not at all, hence always."""
        if self.budget is None:
            return dict(held)
        pinned = {*self.pinned, *whole}
        always = sum(len(held.get(region, ())) for region in pinned)
        rest = sorted(i for region, indices in held.items() if region not in pinned for i in indices)
        newest = set(rest[max(0, len(rest) - max(0, self.budget - own - always)) :])
        return {region: indices if region in pinned else tuple(i for i in indices if i in newest)
                for region, indices in held.items()}  # fmt: skip

    @property
    def masked(self) -> bool:
        """Whether the attention kernel must know masks, whatever tiers there are."""
        return any(each is not None and each.masked for each in (self.sparse, self.text))

    def at(self, sigma: float) -> Visibility:
        """Return what a call sees whose noisiest latent has this much noise."""
        return replace(self, sparse=None) if self.sparse is not None and sigma > self.sparse.below else self

    def kernel(self, attend: Kernel, shape: KVShape, query: Query) -> Kernel:
        """Return how a call attends, in a layer, to what it sees."""
        if self.sparse is None or query.layer < round(shape.layers * (1 - self.sparse.layers)):
            return attend
        return self.sparse.kernel(attend, shape.tokens, query.start)

    def text_kernel(self, attend: Kernel, shape: KVShape) -> Kernel:
        """Return how it attends to the prompt."""
        return attend if self.text is None else self.text.kernel(attend, shape.tokens)


# -- positions: where the visible past stands in time; integers in, moves out ------------------------------------------

Visible = Mapping[str, Sequence[int]]  # region -> stream indices that a call sees of it, rising
Moves = dict[str, int]  # region -> latents by which its keys are moved in time; absent = 0
Positions = Callable[[Visible, range], Moves]  # the range: stream indices of the call's own latents


def absolute(visible: Visible, own: range) -> Moves:
    """Move nothing: every latent stands at its own index (Self Forcing, LongLive), a sink ever further away."""
    return {}


def realigned(visible: Visible, own: range) -> Moves:
    """Let regions follow each other without a gap, the last one ending where the call's own latents start. Rolling
    Forcing's sink (section 3.3), generalised to any number of regions: positions never leave the range seen in
    training, however long the stream."""
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
    as the range, places count from its beginning, where a sink at 0 stands unmoved, wherever that is in time."""

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
    """A region that stands in the future, always ahead of the call, as a goal to be reached (Knot Forcing). It stands
    `first` latents after its own index, which is the beginning of the stream for a sink, and jumps on by `step` as soon
    as fewer than `knot` latents are left between the call and it."""

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
    if isinstance(choice, str) and choice not in NAMED:
        kinds = (*NAMED, "{kind: anchored, ...}", "{kind: running_ahead, ...}")
        raise ConfigError(f"positions {choice!r} are not known. Use one of: {', '.join(kinds)}.")
    return NAMED[choice] if isinstance(choice, str) else choice
