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
from torch import Tensor

from rollforce.cache.commit_plan import Role, Tier, check_lowest
from rollforce.cache.head_groups import AnyCache
from rollforce.cache.kv_cache import LatentGroup
from rollforce.cache.region import RegionTier
from rollforce.engine.rollout import Rollout, ShotContext, index_range
from rollforce.errors import ConfigError
from rollforce.models.transformer.transformer import Condition
from rollforce.video.values import show

LASTING: tuple[Role, ...] = ("sink", "junction", "anchor")
"""Roles of the tiers that stay as they are under another prompt."""


@dataclass(frozen=True)
class Keep:
    """Memory speaks for the old prompt until it is let go: the new one comes slowly, and nothing jumps. Where several
    chunks are in flight (rolling), those go on under the new prompt with the steps they have left."""

    kind: Literal["keep"] = "keep"

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Go on under the new prompt."""
        _switch(rollout, condition)


@dataclass(frozen=True)
class Blend:
    """Text embeddings are interpolated in a straight line, and reach the new prompt with the `chunks`-th chunk."""

    chunks: int = 4
    kind: Literal["blend"] = "blend"

    def __post_init__(self) -> None:
        check_lowest(self, chunks=1)

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Go on under the first share of the new prompt; see `shares`."""
        _switch(rollout, condition)


@dataclass(frozen=True)
class Recache:
    """The newest clean latents go through the network again, under the new prompt. `together`: all of them in one call,
    in which they see each other, as LongLive's release does it; else chunk by chunk, each seeing those before it, as
    the stream itself would have made them."""

    together: bool = False
    kind: Literal["recache"] = "recache"

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Begin anew what is in flight, and make memory anew under the new prompt."""
        rollout.restart()
        _switch(rollout, condition)
        recache(rollout, condition, self.together)


@dataclass(frozen=True)
class Anchors:
    """Recache, with the junction before this one in view; the first latents of the new prompt become the next one."""

    together: bool = False
    kind: Literal["anchors"] = "anchors"

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Do as `Recache` does: its mark of the switch begins the next junction."""
        Recache(self.together).begin(rollout, condition)


@dataclass(frozen=True)
class Flush:
    """Memory keeps its sink and the newest `keep` latents. The chunk after it is placed as at any other time: in the
    release queries and their own keys stand apart until memory has filled again."""

    keep: int = 2
    kind: Literal["flush"] = "flush"

    def __post_init__(self) -> None:
        check_lowest(self, keep=0)

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Begin anew what is in flight, and forget all but what lasts and the newest latents."""
        rollout.restart()
        _switch(rollout, condition)
        loose, lasting = _loose(rollout.cache)
        newest = set(loose[max(0, len(loose) - self.keep) :])
        rollout.cache.retain(lambda region, index: region in lasting or index in newest)
        rollout.cache.forget()


@dataclass(frozen=True)
class Cut:
    """A new shot. Memory is cleared, so that the first latents of the shot become its sink; with `remember` it stays
    and the clock jumps on by `jump` latents (Infinity-RoPE's RoPE cut; LongLive 2's offset of a shot, with a sink that
    stays and a `junction` of shots that pins the new one)."""

    remember: bool = False
    jump: int = 8
    kind: Literal["cut"] = "cut"

    def __post_init__(self) -> None:
        check_lowest(self, jump=0)

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Begin anew what is in flight, and forget everything or let the clock jump."""
        rollout.restart(self.jump if self.remember else 0)
        _switch(rollout, condition, "switch", "shot")
        if not self.remember:
            _clear(rollout)


@dataclass(frozen=True)
class Shot:
    """A new shot. Memory is cleared; its sink is filled, in one call whose latents see each other, with latents of the
    shots before, evenly in time; and from here on every angle of time is `phase` larger, which tells the shots apart.

    `Rollout.scene` is what there is to look back at: bounded, however many shots there were. Deviation: latents are
    taken from those that are still at hand (the newest of this shot, and the context of the last cut), and they are not
    decoded and encoded again one by one."""

    phase: float = 1 / 6
    kind: Literal["shot"] = "shot"

    def begin(self, rollout: Rollout, condition: Condition) -> None:
        """Begin the new shot."""
        rollout.restart()
        _switch(rollout, condition, "switch", "shot")
        scene = _sample(_scene(rollout), next(tier.latents for tier in rollout.cache.tiers if tier.role == "sink"))
        _clear(rollout)
        rollout.scene, rollout.phase = scene, rollout.phase + self.phase
        if scene.index:
            _write(rollout, rollout.live[0] - len(scene.index), scene.latents_BTCHW, torch.tensor(scene.phase))


AnyTransition = Keep | Blend | Recache | Anchors | Flush | Cut | Shot
NAMES: tuple[str, ...] = tuple(kind.kind for kind in get_args(AnyTransition))


def transition(choice: AnyTransition | str) -> AnyTransition:
    """Return the transition of this name, or the one given. ConfigError lists the names that exist."""
    if not isinstance(choice, AnyTransition) and choice not in NAMES:
        raise ConfigError(f"transition {show(choice)} is not known. Use one of: {', '.join(NAMES)}.")
    return get_args(AnyTransition)[NAMES.index(choice)]() if isinstance(choice, str) else choice


def shares(choice: AnyTransition) -> tuple[float, ...]:
    """Return, for each chunk from here on, how far the text has come from the old prompt to the new one: 1 at last."""
    chunks = choice.chunks if isinstance(choice, Blend) else 1
    return tuple(chunk / chunks for chunk in range(1, chunks + 1))


def check(choice: AnyTransition, tiers: Iterable[Tier], follows: bool = False) -> None:
    """Raise ConfigError if a stream with this memory, or one that follows a video (`follows`), cannot go on so."""
    roles = {tier.role for tier in tiers}
    if choice.kind == "anchors" and "junction" not in roles:
        raise ConfigError("anchors keep a junction, and this stream's memory has none: --stream anchor_forcing.")
    if choice.kind == "shot" and "sink" not in roles:
        raise ConfigError("a shot looks back through a sink, and this stream's memory has none: --stream shotstream.")
    if follows and choice.kind not in ("keep", "blend"):
        raise ConfigError("a stream that follows a video cannot take back what is in flight: keep or blend.")


@torch.no_grad()
def recache(rollout: Rollout, condition: Condition, together: bool = False) -> None:
    """Give a rollout, between two chunks, a new condition and a memory that was made under it; see `Recache`. Noise in
    flight stays as it is. What is older than `Rollout.recent` cannot be made again, and stays."""
    rollout.condition = condition
    recent, (loose, lasting) = rollout.recent, _loose(rollout.cache)
    if recent is None or not (replayed := [index for index in loose if index >= recent.start]):
        return
    rollout.cache.retain(lambda region, index: region in lasting or index < recent.start)
    chunk, first = rollout.layout.shift, replayed[0]
    lead = len(replayed) if together else len(replayed) % chunk or chunk
    for low, high in pairwise([first, *range(first + lead, recent.stop + 1, chunk)]):
        _write(rollout, low, recent.latents_BTCHW[:, low - recent.start : high - recent.start])


def _switch(rollout: Rollout, condition: Condition, *marks: str) -> None:
    """Go on under a new condition, and mark the next chunk as the first of it: a junction may begin."""
    rollout.settle()
    rollout.condition = condition
    for mark in marks or ("switch",):
        rollout.cache.mark(mark, rollout.live[0])


def _loose(cache: AnyCache) -> tuple[list[int], set[str]]:
    """Stream indices that another prompt does not leave as they are, rising; and the kinds of the tiers that it does. A
    tier that keeps no latents as they are cannot make some of them anew."""
    lasting = {tier.kind for tier in cache.tiers if tier.role in LASTING or isinstance(tier, RegionTier)}
    return sorted(i for region, held in cache.held().items() if region not in lasting for i in held), lasting


def _clear(rollout: Rollout) -> None:
    """Forget everything that was."""
    rollout.cache.retain(lambda region, index: False)
    rollout.cache.forget()
    rollout.recent = None


@torch.no_grad()
def _write(rollout: Rollout, first: int, latents_BTCHW: Tensor, phase_T: Tensor | None = None) -> None:
    """Write clean latents, from stream index `first` on, into memory, in one call in which they see each other."""
    stepping, count = rollout.stepping, latents_BTCHW.shape[1]
    sigma = torch.full(latents_BTCHW.shape[:2], stepping.context_sigma, device=latents_BTCHW.device)
    group = LatentGroup(first, count, stepping.commit, commit=True)
    rollout.call(latents_BTCHW, sigma, index_range(first, count), [group], phase_T)


def _scene(rollout: Rollout) -> ShotContext:
    """All that a new shot may look back at: the scene of the last cut, and the newest latents of this shot."""
    recent, parts = rollout.recent, [] if rollout.scene is None else [rollout.scene]
    if recent is not None:
        index = tuple(range(recent.start, recent.stop))
        parts.append(ShotContext(index, (rollout.phase,) * len(index), recent.latents_BTCHW))
    if not parts:
        return ShotContext((), (), torch.empty(0))
    return ShotContext(tuple(index for part in parts for index in part.index),
                       tuple(value for part in parts for value in part.phase),
                       torch.cat([part.latents_BTCHW for part in parts], dim=1))  # fmt: skip


def _sample(scene: ShotContext, count: int) -> ShotContext:
    """At most `count` of the latents, as even in time as they are there to be had."""
    if len(scene.index) <= count:
        return scene
    free = list(range(len(scene.index)))
    for n in range(count):
        wanted = scene.index[0] + (scene.index[-1] - scene.index[0]) * n / max(1, count - 1)
        free.remove(min(free, key=lambda place: abs(scene.index[place] - wanted)))
    chosen = [place for place in range(len(scene.index)) if place not in free]
    return ShotContext(tuple(scene.index[i] for i in chosen), tuple(scene.phase[i] for i in chosen),
                       scene.latents_BTCHW[:, chosen])  # fmt: skip
