"""Shots: a new one forgets, but may look back at a few latents of the ones before (ShotStream: context cache)."""

from __future__ import annotations

import torch

from rollforce.cache import Group
from rollforce.models.transformer import Condition
from rollforce.rollout import Rollout
from rollforce.types import Scene


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
        group = Group(first - count, count, rollout.stepping.commit, commit=True)
        rollout.call(x, sigma, at, [group], torch.tensor(scene.phase))


def _with_recent(rollout: Rollout) -> Scene:
    recent, parts = rollout.recent, [] if rollout.scene is None else [rollout.scene]
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
