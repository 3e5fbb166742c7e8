"""Transitions: what becomes of memory when the story goes on differently, between two chunks. Another is in recache.py.

    switch   the tiers are told that the prompt changes here (Anchor Forcing's junction begins)
    flush    all but the sink and the newest latents is forgotten (Infinity-RoPE, arXiv 2511.20649: KV flush)
    skip     the stream's clock jumps on, so that the past lies further back (its RoPE cut; LongLive 2's shot offset)
    shot     a new shot: memory is cleared, and made of a few latents of the shots before (ShotStream)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rollforce.cache import Group
from rollforce.errors import ConfigError
from rollforce.models.transformer import Condition
from rollforce.recache import PROTECTED
from rollforce.rollout import Rollout


def switch(rollout: Rollout, condition: Condition, mark: str = "switch") -> None:
    """Go on under a new condition, and mark the next chunk as the first of it. What is remembered stays."""
    rollout.settle()
    rollout.condition = condition
    rollout.cache.mark(mark, rollout.live[0])


def flush(rollout: Rollout, condition: Condition, keep: int = 2) -> None:
    """Forget all but sinks and the newest `keep` latents. The chunk after it is placed as at any other time: in the
    release queries and their own keys stand apart until memory has filled again."""
    switch(rollout, condition)
    cache = rollout.cache
    kept = (*PROTECTED, *cache.regions)
    loose = sorted(i for region, held in cache.held().items() if region not in kept for i in held)
    newest = set(loose[max(0, len(loose) - keep) :])
    cache.retain(lambda region, index: region in PROTECTED or index in newest)
    cache.forget()


def skip(rollout: Rollout, latents: int) -> None:
    """Let the clock of the stream jump on by `latents`. What it remembers then stands so much further back, until it is
    let go (Infinity-RoPE's release: for one chunk)."""
    _between_chunks(rollout, "skip")
    rollout.settle()
    rollout.first += latents
    rollout.end = None if rollout.end is None else rollout.end + latents
    rollout.recent = None


@dataclass(frozen=True)
class Scene:
    """Latents that shots to come may look back on: their indices, the RoPE phase of their shots, [B, T, C, H, W]."""

    index: tuple[int, ...]
    phase: tuple[float, ...]
    latents_BTCHW: Tensor


@torch.no_grad()
def shot(rollout: Rollout, condition: Condition, before: Scene | None = None, phase: float = 1 / 6) -> Scene:
    """Begin a new shot (ShotStream, context cache with RoPE phase): memory is cleared; its sink is filled, in one call
    whose latents see each other, with latents of the shots before, evenly in time; and from here on every angle of time
    is `phase` larger, which tells the shots apart.

    `before`: what the last call returned. Returns what the next one wants: bounded, however many shots there were.
    Deviation: latents are taken from those that are still at hand (the newest of this shot, and the context of the last
    cut), and they are not decoded and encoded again one by one."""
    _between_chunks(rollout, "shot")
    room = next((tier.latents for tier in rollout.cache.tiers if tier.kind == "sink"), 0)
    if not room:
        raise ConfigError("a new shot looks back through a sink, and this stream has none: {kind: sink, latents: 6}.")
    switch(rollout, condition, "shot")
    scene = _sampled(_with_recent(rollout, before), room)
    rollout.cache.retain(lambda region, index: False)
    rollout.cache.forget()
    rollout.phase, rollout.recent = rollout.phase + phase, None
    if scene.index:
        count, first = len(scene.index), rollout.live[0]
        x, at = scene.latents_BTCHW, torch.arange(first - count, first)
        sigma = torch.full(x.shape[:2], rollout.stepping.context_sigma, device=x.device)
        group = Group(first - count, count, rollout.stepping.commit, commit=True)
        rollout.call(x, sigma, at, [group], torch.tensor(scene.phase))
    return scene


def _with_recent(rollout: Rollout, before: Scene | None) -> Scene:
    recent = rollout.recent
    parts = [] if before is None else [before]
    if recent is not None:
        count = recent.latents_BTCHW.shape[1]
        parts.append(Scene(tuple(range(recent.start, recent.stop)), (rollout.phase,) * count, recent.latents_BTCHW))
    if not parts:
        return Scene((), (), torch.empty(0))
    return Scene(
        tuple(index for part in parts for index in part.index),
        tuple(value for part in parts for value in part.phase),
        torch.cat([part.latents_BTCHW for part in parts], dim=1),
    )


def _sampled(scene: Scene, count: int) -> Scene:
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
    return Scene(
        tuple(scene.index[i] for i in chosen), tuple(scene.phase[i] for i in chosen), scene.latents_BTCHW[:, chosen]
    )


def _between_chunks(rollout: Rollout, what: str) -> None:
    if rollout.layout.slots != rollout.layout.shift:
        raise ConfigError(f"{what} needs a chunkwise layout: here {rollout.layout.slots} latents are always in flight.")
    assert rollout.row == 0, "transitions happen between two chunks"
