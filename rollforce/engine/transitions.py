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
from itertools import pairwise
from typing import Literal, get_args

import torch

from rollforce.cache.commit_plan import Tier
from rollforce.cache.kv_cache import LatentGroup
from rollforce.engine.rollout import Rollout, ShotContext
from rollforce.errors import ConfigError
from rollforce.models.geometry import index_range
from rollforce.models.transformer.transformer import Condition


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


PROTECTED = ("sink", "ema_sink", "junction", "routed")  # regions that stay as they are


@torch.no_grad()
def recache(rollout: Rollout, condition: Condition, together: bool = False) -> None:
    """Give a rollout, between two chunks, a new condition and a memory that was made under it.

    `together`: all latents in one call that see each other, as LongLive's release does it; else chunk by chunk, each
    seeing those before it, as the stream itself would have made them. Noise in flight stays as it is.
    """
    rollout.condition = condition
    recent, cache = rollout.recent, rollout.cache
    if recent is None:
        return
    kept = [*PROTECTED, *cache.regions]
    replayed = sorted(index for region, held in cache.held().items() if region not in kept for index in held)
    replayed = [index for index in replayed if index >= recent.start]  # what is older cannot be made again
    if not replayed:
        return
    cache.retain(lambda region, index: region in kept or index < recent.start)
    chunk, first = rollout.layout.shift, replayed[0]
    lead = len(replayed) if together else len(replayed) % chunk or chunk
    cuts = [first, *range(first + lead, recent.stop + 1, chunk)]
    for low, high in pairwise(cuts):
        x = recent.latents_BTCHW[:, low - recent.start : high - recent.start]
        sigma = torch.full(x.shape[:2], rollout.stepping.context_sigma, device=x.device)
        rollout.call(
            x, sigma, index_range(low, high - low), [LatentGroup(low, high - low, rollout.stepping.commit, True)]
        )


@torch.no_grad()
def new_shot(rollout: Rollout, condition: Condition, phase: float) -> None:
    """Memory is cleared; its sink is filled, in one call whose latents see each other, with latents of the shots
    before, evenly in time; and from here on every angle of time is `phase` larger, which tells the shots apart.

    `rollout.scene` is what there is to look back at: bounded, however many shots there were. Deviation: latents are
    taken from those that are still at hand (the newest of this shot, and the context of the last cut), and they are not
    decoded and encoded again one by one."""
    room = next(tier.latents for tier in rollout.cache.tiers if tier.kind == "sink")
    rollout.restart()
    rollout.settle()
    rollout.condition = condition
    for mark in ("switch", "shot"):
        rollout.cache.mark(mark, rollout.live[0])
    scene = _sampled(_with_recent(rollout), room)
    rollout.cache.retain(lambda region, index: False)
    rollout.cache.forget()
    rollout.scene, rollout.phase, rollout.recent = scene, rollout.phase + phase, None
    if scene.index:
        count, first = len(scene.index), rollout.live[0]
        x, at = scene.latents_BTCHW, torch.arange(first - count, first)
        sigma = torch.full(x.shape[:2], rollout.stepping.context_sigma, device=x.device)
        group = LatentGroup(first - count, count, rollout.stepping.commit, commit=True)
        rollout.call(x, sigma, at, [group], torch.tensor(scene.phase))


def _with_recent(rollout: Rollout) -> ShotContext:
    recent, parts = rollout.recent, [] if rollout.scene is None else [rollout.scene]
    if recent is not None:
        count = recent.latents_BTCHW.shape[1]
        parts.append(
            ShotContext(tuple(range(recent.start, recent.stop)), (rollout.phase,) * count, recent.latents_BTCHW)
        )
    if not parts:
        return ShotContext((), (), torch.empty(0))
    return ShotContext(
        tuple(index for part in parts for index in part.index),
        tuple(value for part in parts for value in part.phase),
        torch.cat([part.latents_BTCHW for part in parts], dim=1),
    )


def _sampled(scene: ShotContext, count: int) -> ShotContext:
    """At most `count` of the latents, as even in time as they are there to be had."""
    if len(scene.index) <= count:
        return scene
    low, high = scene.index[0], scene.index[-1]
    chosen: list[int] = []
    for n in range(count):
        wanted = low + (high - low) * n / max(1, count - 1)
        free = [place for place in range(len(scene.index)) if place not in chosen]
        chosen.append(min(free, key=lambda place: abs(scene.index[place] - wanted)))
    chosen.sort()
    return ShotContext(
        tuple(scene.index[i] for i in chosen), tuple(scene.phase[i] for i in chosen), scene.latents_BTCHW[:, chosen]
    )
