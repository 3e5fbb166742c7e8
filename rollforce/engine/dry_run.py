"""Trace: what every call of a stream attends to, where it stands and what it takes, without a model.

THE loop (rollout.py) walks as ever; in the model's place stands one that computes nothing and notes what it was
given, and the memory lies on the meta device, which holds nothing. So this is what the engine does, not a second
account of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import ParameterDict

from rollforce.cache.head_groups import HeadGroups, HeadMemory
from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.region import Placement
from rollforce.engine.rollout import Rollout
from rollforce.engine.settings import StreamSettings
from rollforce.models.transformer.attention import KVBlock, KVShape
from rollforce.models.transformer.transformer import Condition, VideoTransformer

StreamEvent = Callable[[Rollout], object]
"""Something that happens to a stream between two chunks."""


@dataclass(frozen=True)
class RegionSpan:
    """What a call sees of one region: stream indices, and the positions at which they stand for it (the call's own
    latents stand at their index). Of a region of chosen or merged tokens: the stretch of time they came from.
    `heads`: the group of heads that sees it, where there are several."""

    region: str
    indices: tuple[int, ...]
    positions: tuple[int, ...]
    heads: str = ""


@dataclass(frozen=True)
class GroupTrace:
    """What one attention group of a call sees. `sigma`: noise of each of its own latents, from `start` on.

    `read`: bytes of keys and values that attention reads of the past, in all layers; `dense`: whether as one slice."""

    start: int
    sigma: tuple[float, ...]
    commit: bool
    stretches: tuple[RegionSpan, ...]
    read: int
    dense: bool

    @property
    def own(self) -> range:
        """Stream indices of the call's own latents."""
        return range(self.start, self.start + len(self.sigma))

    @property
    def attended(self) -> int:
        """Latents attended to, the call's own included; by the heads that attend to most."""
        seen = dict.fromkeys((stretch.heads for stretch in self.stretches), len(self.sigma)) or {"": len(self.sigma)}
        for stretch in self.stretches:
            seen[stretch.heads] += len(stretch.indices)
        return max(seen.values())


@dataclass(frozen=True)
class CallTrace:
    """One model call. `regions`: bytes that each region of memory takes after it, and `in flight` the room for the
    call's own; `held`: the stream indices that each then holds, or stands for."""

    looks: tuple[GroupTrace, ...]
    regions: Mapping[str, int]
    held: Mapping[str, tuple[int, ...]]

    @property
    def bytes(self) -> int:
        """Allocated by the memory."""
        return sum(self.regions.values())

    @property
    def read(self) -> int:
        """Bytes that attention reads of the past in this call."""
        return sum(look.read for look in self.looks)


def trace(
    stream: StreamSettings, shape: KVShape, dtype: torch.dtype = torch.float32, *, start: int = 0,
    length: int | None = None, events: Mapping[int, StreamEvent] | None = None,
) -> Iterator[CallTrace]:  # fmt: skip
    """Every call of a stream of `length` latents from `start` on (None: for ever), in order.

    `events`: what happens (transitions.py) before the chunk in which the latent of this stream index enters."""
    watching = _Watching(stream, shape, dtype)
    rollout, waiting = watching.rollout(start, length), sorted((events or {}).items(), key=lambda event: event[0])
    while rollout.admit():
        while waiting and rollout.row == 0 and waiting[0][0] < rollout.live[1]:
            waiting.pop(0)[1](rollout)
        sigma = rollout.tick().sigma_T
        rollout.commit()
        yield from watching.taken(sigma)


class _Watching:
    """The model that computes nothing. State: the memory, and the calls since some were handed out."""

    def __init__(self, stream: StreamSettings, shape: KVShape, dtype: torch.dtype) -> None:
        self.stream, self.layout = stream, stream.layout.build()
        self.cache = stream.memory(shape, dtype, "meta")
        self.cache.device = torch.device("cpu")  # where the loop steps; arithmetic on meta imports half of torch
        parts = self.cache.parts if isinstance(self.cache, HeadGroups) else {"": self.cache}
        self.parts = [_Part(name, part) for name, part in parts.items()]
        self.calls: list[CallTrace] = []
        self.policy = ParameterDict()  # no tier's weights either

    def rollout(self, start: int, length: int | None) -> Rollout:
        """One number per latent is enough to be stepped."""
        nothing = torch.zeros(1, 1, 1, 1)
        condition = Condition(((KVBlock(nothing, nothing),),))
        return Rollout(cast(VideoTransformer, self), condition, self.cache, self.layout,
                       lambda index, draw: nothing, self.stream.stepping, length=length, start=start)  # fmt: skip

    def __call__(
        self, x: Tensor, sigma: Tensor, index: Tensor, condition: Condition,
        memory: CallMemory | HeadMemory, phase_T: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        context, looks = self.stream.stepping.context_sigma, []
        one = memory if isinstance(memory, CallMemory) else next(iter(memory.parts.values()))
        for group in one.groups:
            seen = [part.seen(group) for part in self.parts]
            stretches = tuple(stretch for found in seen for stretch in found.stretches)
            looks.append(GroupTrace(group.start, (context,) * group.latents, group.commit, stretches,
                              sum(found.read for found in seen), all(found.dense for found in seen)))  # fmt: skip
        bytes_of = {name: count for part in self.parts for name, count in part.bytes().items()}
        held = {part.named(name): indices for part in self.parts for name, indices in part.cache.held().items()}
        self.calls.append(CallTrace(tuple(looks), bytes_of, held))
        return torch.zeros_like(x)

    def taken(self, sigma: tuple[float, ...]) -> list[CallTrace]:
        """The calls of a tick, whose own latents had noise `sigma`; it was the last one."""
        calls, self.calls = self.calls, []
        last = calls[-1]
        looks = (*last.looks[:-1], replace(last.looks[-1], sigma=sigma))
        return [*calls[:-1], replace(last, looks=looks)]


class _Part:
    """The memory of all heads, or of a group of them."""

    def __init__(self, name: str, cache: KVCache) -> None:
        self.name, self.cache = name, cache
        shape = cache.shape
        keys = sum(torch.Size(shape.of(layer, shape.tokens)).numel() for layer in range(shape.layers))
        self.latent = 2 * keys * cache.dtype.itemsize  # bytes of one latent, keys and values of all layers
        self.turned: set[str] = set()
        self.sizes: dict[int, int] = {}

    def named(self, region: str) -> str:
        return f"{self.name} {region}" if self.name else region

    def seen(self, group: LatentGroup) -> _Seen:
        """What a group of latents sees; a committing one is then written."""
        view = self.cache.view(group)
        moves = dict(view.moves)
        self.turned |= {name for name, move in moves.items() if move} - self.cache.arena.masters.keys()
        stretches = []
        for name, move in moves.items():
            indices = tuple(sorted(index for region, index in view.latents if region == name))
            stretches.append(RegionSpan(self.named(name), indices, tuple(index + move for index in indices), self.name))
        if view.region is not None and self.cache.region_tier is not None:
            name, indices = self.cache.region_tier.kind, self.cache.contents.absorbed
            positions = tuple(_stands(view.region, index) for index in indices)
            stretches.append(RegionSpan(self.named(name), indices, positions, self.name))
        read = len(view.slots) * self.latent + self._region(view.region)
        if group.commit:
            self.cache.adopt(self.cache.plan(group.start, group.latents).after)
        return _Seen(tuple(stretch for stretch in stretches if stretch.indices), read, view.dense)

    def bytes(self) -> dict[str, int]:
        """What every region takes; of latents kept as they are, also the room for the call in flight."""
        arena, found = self.cache.arena, {}
        for name, latents in arena.size.items():
            copied = name in self.turned  # Arena.turn keeps the unturned keys of what a policy moves
            exact = [*arena.masters.get(name, ()), *arena.exact.get(name, ())]
            found[self.named(name)] = latents * (self.latent + copied * self.latent // 2) + _bytes(exact)
        if self.cache.region is not None and self.cache.region_tier is not None:
            found[self.named(self.cache.region_tier.kind)] = self.cache.region.bytes
        return found | {self.named("in flight"): arena.flight * self.latent}

    def _region(self, placed: Placement | None) -> int:
        """Bytes that attention gets of the region of the last tier, in all layers."""
        region = self.cache.region
        if region is None or placed is None or not placed.filled:
            return 0
        if placed.filled not in self.sizes:
            shape = self.cache.shape
            alike = isinstance(shape.heads, int)  # then one layer stands for all
            parts = [region.read(layer, placed) for layer in range(1 if alike else shape.layers)]
            found = _bytes([x for part in parts if part for x in (part.key, part.value)])
            self.sizes[placed.filled] = found * (shape.layers if alike else 1)
        return self.sizes[placed.filled]


@dataclass(frozen=True)
class _Seen:
    stretches: tuple[RegionSpan, ...]
    read: int
    dense: bool


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _stands(placed: Placement, index: int) -> int:
    """Placed.turns of one token, as its place."""
    return index + placed.move if placed.lowest is None else max(index + placed.move, placed.lowest)
