"""Transitions: how a stream goes on when its story changes, between two chunks.

    keep     what is remembered and what is in flight stay; the new prompt takes over from here
    blend    as keep, but the prompt becomes the new one over several chunks
    recache  memory is made anew under the new prompt (LongLive, arXiv 2509.22622)
    anchors  as recache, and a junction begins to be kept here (Anchor Forcing)
    flush    all but the sink and the newest latents is forgotten (Infinity-RoPE, arXiv 2511.20649: KV flush)
    cut      a new shot: nothing is remembered, or all of it from further back (RoPE cut)
    shot     a new shot that looks back at the ones before (ShotStream)

All but keep and blend begin what is in flight anew, so that the next chunk is the new prompt's alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from rollforce.cache import Tier
from rollforce.errors import ConfigError
from rollforce.models.transformer import Condition
from rollforce.recache import PROTECTED, recache
from rollforce.rollout import Rollout
from rollforce.shots import new_shot


@dataclass(frozen=True)
class Keep:
    """Memory speaks for the old prompt until it is let go: the new one comes slowly, and nothing jumps.

    Where several chunks are in flight (rolling), those go on under the new prompt with the steps they have left."""

    kind: Literal["keep"] = "keep"

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Between two chunks: what changes."""
        _switch(rollout, condition)


@dataclass(frozen=True)
class Blend:
    """Text embeddings are interpolated in a straight line, and reach the new prompt with the `chunks`-th chunk."""

    chunks: int = 4
    kind: Literal["blend"] = "blend"

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ConfigError(f"blend.chunks {self.chunks} must be at least 1.")

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Between two chunks: what changes."""
        _switch(rollout, condition)


@dataclass(frozen=True)
class Recache:
    """The newest clean latents go through the network again, under the new prompt; see recache.py for `together`."""

    together: bool = False
    kind: Literal["recache"] = "recache"

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Between two chunks: what changes."""
        rollout.restart()
        _switch(rollout, condition)
        recache(rollout, condition, self.together)


@dataclass(frozen=True)
class Anchors:
    """Recache, with the junction before this one in view; the first latents of the new prompt become the next one."""

    together: bool = False
    kind: Literal["anchors"] = "anchors"

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Between two chunks: what changes."""
        Recache(self.together).begin(rollout, condition)


@dataclass(frozen=True)
class Flush:
    """Memory keeps its sink and the newest `keep` latents. The chunk after it is placed as at any other time: in the
    release queries and their own keys stand apart until memory has filled again."""

    keep: int = 2
    kind: Literal["flush"] = "flush"

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ConfigError(f"flush.keep {self.keep} must be at least 0.")

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Between two chunks: what changes."""
        rollout.restart()
        _switch(rollout, condition)
        cache = rollout.cache
        kept = (*PROTECTED, *cache.regions)
        loose = sorted(i for region, held in cache.held().items() if region not in kept for i in held)
        newest = set(loose[max(0, len(loose) - self.keep) :])
        cache.retain(lambda region, index: region in PROTECTED or index in newest)
        cache.forget()


@dataclass(frozen=True)
class Cut:
    """A new shot. Memory is cleared, so that the first latents of the shot become its sink; with `remember` it stays
    and the clock jumps on by `jump` latents (Infinity-RoPE's RoPE cut; LongLive 2's offset of a shot, with a sink that
    stays and a `junction` of shots that pins the new one)."""

    remember: bool = False
    jump: int = 8
    kind: Literal["cut"] = "cut"

    def __post_init__(self) -> None:
        if self.jump < 0:
            raise ConfigError(f"cut.jump {self.jump} must be at least 0.")

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Between two chunks: what changes."""
        rollout.restart(self.jump if self.remember else 0)
        _switch(rollout, condition, "switch", "shot")
        if not self.remember:
            rollout.cache.retain(lambda region, index: False)
            rollout.cache.forget()
            rollout.recent = None


@dataclass(frozen=True)
class Shot:
    """A new shot whose sink holds latents of the shots before, at another `phase`: see shots.py."""

    phase: float = 1 / 6
    kind: Literal["shot"] = "shot"

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Between two chunks: what changes."""
        new_shot(rollout, condition, self.phase)


AnyTransition = Keep | Blend | Recache | Anchors | Flush | Cut | Shot
NAMES: tuple[str, ...] = tuple(kind.kind for kind in get_args(AnyTransition))


def transition(choice: AnyTransition | str) -> AnyTransition:
    """A transition by its name, or itself. ConfigError lists the names that exist."""
    if not isinstance(choice, str):
        return choice
    if choice not in NAMES:
        raise ConfigError(f"transition {choice!r} is not known. Use one of: {', '.join(NAMES)}.")
    return next(kind for kind in get_args(AnyTransition) if kind.kind == choice)()


def shares(choice: AnyTransition) -> tuple[float, ...]:
    """Of each chunk from here on: how far the text has come from the old prompt to the new one. The last is 1."""
    chunks = choice.chunks if isinstance(choice, Blend) else 1
    return tuple(chunk / chunks for chunk in range(1, chunks + 1))


def check(choice: AnyTransition, tiers: Iterable[Tier], follows: bool = False) -> None:
    """ConfigError if a stream with this memory, or one that follows a video, cannot go on so."""
    kinds = {tier.kind for tier in tiers}
    if choice.kind == "anchors" and "junction" not in kinds:
        raise ConfigError("anchors keep a junction, and this stream's memory has none: --stream anchor_forcing.")
    if choice.kind == "shot" and "sink" not in kinds:
        raise ConfigError("a shot looks back through a sink, and this stream's memory has none: --stream shotstream.")
    if follows and choice.kind not in ("keep", "blend"):
        raise ConfigError("a stream that follows a video cannot take back what is in flight: keep or blend.")


def _switch(rollout: Rollout, condition: Condition, *marks: str) -> None:
    """Go on under a new condition, and mark the next chunk as the first of it: a junction may begin."""
    rollout.settle()
    rollout.condition = condition
    for mark in marks or ("switch",):
        rollout.cache.mark(mark, rollout.live[0])
