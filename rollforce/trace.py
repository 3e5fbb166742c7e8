"""Trace: what every call of a stream attends to, where it stands and what it takes, without a model.

THE loop (rollout.py) walks as ever; in the model's place stands one that computes nothing and notes what it was given,
and the memory lies on the meta device, which holds nothing. So this is what the engine does, not a second account of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from rollforce.cache import Group, KVCache, Shape
from rollforce.cache.cache import View
from rollforce.cache.memory import Memory
from rollforce.cache.region import Placed
from rollforce.models.transformer import Condition, VideoTransformer
from rollforce.rollout import Rollout
from rollforce.settings import StreamSettings
from rollforce.types import KVBlock


@dataclass(frozen=True)
class Stretch:
    """What a call sees of one region: stream indices, and the positions at which they stand for it (the call's own
    latents stand at their index). Of a region of chosen or merged tokens: the stretch of time they came from."""

    region: str
    indices: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """What one attention group of a call sees. `sigma`: noise of each of its own latents, from `start` on.

    `read`: bytes of keys and values that attention reads of the past, in all layers; `dense`: whether as one slice."""

    start: int
    sigma: tuple[float, ...]
    commit: bool
    stretches: tuple[Stretch, ...]
    read: int
    dense: bool

    @property
    def own(self) -> range:
        """Stream indices of the call's own latents."""
        return range(self.start, self.start + len(self.sigma))

    @property
    def attended(self) -> int:
        """Latents attended to, the call's own included."""
        return len(self.sigma) + sum(len(stretch.indices) for stretch in self.stretches)


@dataclass(frozen=True)
class Call:
    """One model call. `bytes`: allocated by the memory after it; `held`: what it then holds of each region."""

    looks: tuple[Look, ...]
    bytes: int
    held: Mapping[str, tuple[int, ...]]

    @property
    def read(self) -> int:
        """Bytes that attention reads of the past in this call."""
        return sum(look.read for look in self.looks)


def trace(
    stream: StreamSettings,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    *,
    start: int = 0,
    length: int | None = None,
    switches: Sequence[int] = (),
) -> Iterator[Call]:
    """Every call of a stream of `length` latents from `start` on (None: for ever), in order.

    `switches`: stream indices at which the prompt changes; it does so with the next latent that enters."""
    watching = _Watching(stream, shape, dtype)
    rollout, waiting = watching.rollout(start, length), sorted(switches)
    entered = start
    while rollout.admit():
        while waiting and waiting[0] < rollout.live[1]:
            watching.cache.mark("switch", max(entered, waiting.pop(0)))
        entered = rollout.live[1]
        sigma = rollout.tick().sigma_T
        rollout.commit()
        yield from watching.taken(sigma)


class _Watching:
    """The model that computes nothing. State: the memory, and the calls since some were handed out."""

    def __init__(self, stream: StreamSettings, shape: Shape, dtype: torch.dtype) -> None:
        self.stream, self.layout = stream, stream.layout.build()
        self.cache = KVCache(stream.cache, shape, max(self.layout.slots, self.layout.shift), dtype, "meta")
        keys = sum(torch.Size(shape.of(layer, shape.tokens)).numel() for layer in range(shape.layers))
        self.latent = 2 * keys * dtype.itemsize  # bytes of one latent, keys and values of all layers
        self.cache.device = torch.device("cpu")  # where the loop steps; arithmetic on meta imports half of torch
        self.room = {tier.kind: tier.latents for tier in stream.cache}
        self.copied: set[str] = set()
        self.sizes: dict[tuple[str, int], int] = {}
        self.calls: list[Call] = []

    def rollout(self, start: int, length: int | None) -> Rollout:
        """One number per latent is enough to be stepped."""
        nothing = torch.zeros(1, 1, 1, 1)
        condition = Condition(((KVBlock(nothing, nothing),),))
        return Rollout(cast(VideoTransformer, self), condition, self.cache, self.layout,
                       lambda index, draw: nothing, self.stream.stepping, length=length, start=start)  # fmt: skip

    def __call__(
        self, x: Tensor, sigma: Tensor, index: Tensor, condition: Condition, memory: Memory, phase_T: Tensor | None = None
    ) -> Tensor:
        looks = []
        for group in memory.groups:
            looks.append(self._look(group, self.cache.view(group)))
            if group.commit:
                self.cache.adopt(self.cache.plan(group.start, group.latents).after)
        self.calls.append(Call(tuple(looks), self._bytes(), self.cache.held()))
        return torch.zeros_like(x)

    def taken(self, sigma: tuple[float, ...]) -> list[Call]:
        """The calls of a tick, whose own latents had noise `sigma`; it was the last one."""
        calls, self.calls = self.calls, []
        last = calls[-1]
        looks = (*last.looks[:-1], replace(last.looks[-1], sigma=sigma))
        return [*calls[:-1], replace(last, looks=looks)]

    def _look(self, group: Group, view: View) -> Look:
        where = {slot: (name, index) for name, slots in self.cache.contents.slots.items()
                 for index, slot in slots.items()}  # fmt: skip
        moves, seen = dict(view.moves), [where[slot] for slot in view.slots]
        stretches = []
        for name, move in moves.items():
            indices = tuple(sorted(index for region, index in seen if region == name))
            stretches.append(Stretch(name, indices, tuple(index + move for index in indices)))
            if move and name not in self.cache.arena.masters:
                self.copied.add(name)  # Arena.show keeps its unturned keys from now on
        for name, placed in view.apart:
            indices = self.cache.held()[name]
            stretches.append(Stretch(name, indices, tuple(_stands(placed, index) for index in indices)))
        read = len(seen) * self.latent + sum(self._apart(name, placed) for name, placed in view.apart)
        sigma = (self.stream.stepping.context_sigma,) * group.latents
        return Look(group.start, sigma, group.commit, tuple(s for s in stretches if s.indices), read, view.dense)

    def _bytes(self) -> int:
        return self.cache.bytes + sum(self.room[name] for name in self.copied) * self.latent // 2

    def _apart(self, name: str, placed: Placed) -> int:
        """Bytes that attention gets of a region, all layers."""
        if not placed.filled:
            return 0
        if (name, placed.filled) not in self.sizes:
            parts = [self.cache.regions[name].seen(layer, placed) for layer in range(self.cache.shape.layers)]
            tensors = [tensor for part in parts if part for tensor in (part.key, part.value)]
            self.sizes[name, placed.filled] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return self.sizes[name, placed.filled]


def _stands(placed: Placed, index: int) -> int:
    """Placed.turns of one token, as its place."""
    return index + placed.move if placed.lowest is None else max(index + placed.move, placed.lowest)
