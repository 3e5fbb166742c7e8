"""Traces of what each call sees, and a stand-in for the transformer that writes them down.

`"0-2@12 15-32"` reads "latents 0 to 2, standing at 12 to 14, then 15 to 32 at their own places". The real Rollout and
KVCache are walked; the stand-in reads the latent from each value and the place from the rotation of each key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rollforce.cache.kv_cache import CallMemory, KVCache
from rollforce.config import build, resource
from rollforce.engine.rollout import Rollout
from rollforce.engine.settings import StreamSettings
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape

WIDTH = 16  # channels of the stand-in's only head; each latent is one token
FARTHEST = 120


def spans(text: str) -> dict[int, int]:
    """Latent -> place: "0-2@12 15-16" is {0: 12, 1: 13, 2: 14, 15: 15, 16: 16}."""
    seen: dict[int, int] = {}
    for part in text.split():
        ends, _, place = part.partition("@")
        low, high = (int(end) for end in ends.split("-"))
        move = int(place) - low if place else 0
        seen |= {latent: latent + move for latent in range(low, high + 1)}
    return seen


@dataclass(frozen=True)
class Call:
    """What one group of a model call was given and saw."""

    start: int
    sigma: tuple[float, ...]
    seen: dict[int, int]
    x: Tensor = field(compare=False)
    velocity: Tensor = field(compare=False)


@cache
def rotated() -> Tensor:
    """The one key there is, at every place: [places, WIDTH]."""
    one = torch.ones(1, 1, FARTHEST, WIDTH)
    return rope.rotate(one, rope.angles(torch.arange(FARTHEST), 1, 1, WIDTH))[0, 0]


class StandIn:
    """Called as the transformer is; answers random velocities; writes down what its memory showed it."""

    def __init__(self) -> None:
        self.policy: dict[str, Tensor] = {}
        self.denoised: list[Call] = []
        self.committed: list[Call] = []

    def __call__(
        self, x: Tensor, sigma_BT: Tensor, index_T: Tensor, condition: Any, memory: CallMemory,
        phase_T: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        seen: list[dict[int, int]] = []

        def spy(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
            latents = value[0, 0, :, 0].round().int().tolist()
            distance = torch.cdist(key[0, 0], rotated())
            assert distance.min(dim=1).values.max() < 1e-2, "a key stands nowhere"
            assert len(set(latents)) == len(latents), "a latent is seen twice"
            seen.append(dict(sorted(zip(latents, distance.argmin(dim=1).tolist(), strict=True))))
            return query

        key = rotated()[index_T][None, None].contiguous()
        value = index_T.float()[None, None, :, None].expand_as(key).contiguous()
        memory.attend(0, key, KVBlock(key, value), spy)
        velocity, at = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(self.denoised))), 0
        for group, shown in zip(memory.groups, seen, strict=True):
            own = slice(at, at + group.latents)
            call = Call(group.start, tuple(sigma_BT[0, own].tolist()), shown, x[:, own].clone(), velocity[:, own])
            (self.committed if group.commit else self.denoised).append(call)
            at += group.latents
        return velocity


class OneStream:
    """All of a Condition that the loop asks for."""

    batch = 1


def settings_of(name: str) -> StreamSettings:
    return build(StreamSettings, resource(f"configs/stream/{name}.yaml"))


def noise(index: int, draw: int) -> Tensor:
    return torch.randn(1, 2, 1, 1, generator=torch.Generator().manual_seed(1000 * index + draw + 1))


@torch.no_grad()
def walk(name: str, chunks: int, length: int | None = None) -> tuple[StandIn, dict[int, Tensor]]:
    """Stream `chunks` chunks and one tick more, so that the last one's clean pass has run; latents by stream index."""
    settings, model = settings_of(name), StandIn()
    layout = settings.layout.build()
    arena = KVCache(settings.cache, KVShape(1, 1, 1, 1, WIDTH), layout.slots)
    rollout = Rollout(model, OneStream(), arena, layout, noise, settings.stepping, length=length)  # type: ignore[arg-type]
    clean: dict[int, Tensor] = {}
    for commit in rollout.commits():
        clean |= {commit.start + i: commit.latents_BTCHW[:, i] for i in range(commit.latents_BTCHW.shape[1])}
        if len(clean) == 3 * chunks:
            break
    if not rollout.done:
        rollout.tick()
    return model, clean
