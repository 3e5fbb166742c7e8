"""Trace: what every call of a stream attends to, where it stands and what it takes, without a model.

THE loop (rollout.py) walks as ever; in the model's place stands one that computes nothing and notes what it was
given, and the memory lies on the meta device, which holds nothing. So this is what the engine does, not a second
account of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
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
    """What one attention group of a call sees. `sigma`: noise of each of its own latents, from `start` on. `read`:
    bytes of keys and values that attention reads of the past, in all layers; `dense`: whether as one slice."""

    start: int
    sigma: tuple[float, ...]
    commit: bool
    spans: tuple[RegionSpan, ...]
    read: int
    dense: bool

    @property
    def own(self) -> range:
        """Stream indices of the call's own latents."""
        return range(self.start, self.start + len(self.sigma))

    @property
    def attended(self) -> int:
        """Latents attended to, the call's own included; by the heads that attend to most."""
        past = Counter[str]()
        for span in self.spans:
            past[span.heads] += len(span.indices)
        return len(self.sigma) + max(past.values(), default=0)


@dataclass(frozen=True)
class CallTrace:
    """One model call. `regions`: bytes that each region of memory takes after it, and `in flight` the room for the
    call's own; `held`: the stream indices that each then holds, or stands for."""

    groups: tuple[GroupTrace, ...]
    regions: Mapping[str, int]
    held: Mapping[str, tuple[int, ...]]

    @property
    def bytes(self) -> int:
        """Bytes that the memory allocated."""
        return sum(self.regions.values())

    @property
    def read(self) -> int:
        """Bytes that attention reads of the past in this call."""
        return sum(group.read for group in self.groups)


def trace(stream: StreamSettings, shape: KVShape, dtype: torch.dtype = torch.float32, *, start: int = 0,
          length: int | None = None, events: Mapping[int, StreamEvent] | None = None) -> Iterator[CallTrace]:
    """Yield every call of a stream of `length` latents from `start` on (None: for ever), in order. `events`: what
    happens (transitions.py) before the chunk in which the latent of this stream index enters."""
    model = _TracingModel(stream, shape, dtype)
    rollout, waiting = model.rollout(start, length), sorted((events or {}).items(), key=lambda event: event[0])
    while rollout.admit():
        while waiting and rollout.row == 0 and waiting[0][0] < rollout.live[1]:
            waiting.pop(0)[1](rollout)
        sigma = rollout.tick().sigma_T
        rollout.commit()
        yield from model.take_calls(sigma)


class _TracingModel:
    """The model that computes nothing. State: the memory, and the calls since some were handed out."""

    def __init__(self, stream: StreamSettings, shape: KVShape, dtype: torch.dtype) -> None:
        self.stream, self.cache = stream, stream.memory(shape, dtype, "meta")
        self.cache.device = torch.device("cpu")  # where the loop steps; arithmetic on meta imports half of torch
        parts = self.cache.parts if isinstance(self.cache, HeadGroups) else {"": self.cache}
        self.parts = [_Part(name, part) for name, part in parts.items()]
        self.calls: list[CallTrace] = []
        self.policy = ParameterDict()  # no tier's weights either

    def rollout(self, start: int, length: int | None) -> Rollout:
        """Return a rollout of this model: one number per latent is enough to be stepped."""
        nothing = torch.zeros(1, 1, 1, 1)
        condition = Condition(((KVBlock(nothing, nothing),),))
        return Rollout(cast(VideoTransformer, self), condition, self.cache, self.stream.layout.build(),
                       lambda index, draw: nothing, self.stream.stepping, length=length, start=start)  # fmt: skip

    def __call__(self, x: Tensor, sigma: Tensor, index: Tensor, condition: Condition, memory: CallMemory | HeadMemory,
                 phase_T: Tensor | None = None) -> Tensor:  # fmt: skip
        one = memory if isinstance(memory, CallMemory) else next(iter(memory.parts.values()))
        groups = tuple(self._trace_group(group) for group in one.groups)
        bytes_of = {name: count for part in self.parts for name, count in part.bytes().items()}
        held = {part.named(name): indices for part in self.parts for name, indices in part.cache.held().items()}
        self.calls.append(CallTrace(groups, bytes_of, held))
        return torch.zeros_like(x)

    def _trace_group(self, group: LatentGroup) -> GroupTrace:
        """Return what all heads see of a group; a committing one is then written."""
        spans, reads, dense = zip(*(part.trace_group(group) for part in self.parts), strict=True)
        sigma = (self.stream.stepping.context_sigma,) * group.latents
        return GroupTrace(group.start, sigma, group.commit, tuple(chain(*spans)), sum(reads), all(dense))

    def take_calls(self, sigma: tuple[float, ...]) -> list[CallTrace]:
        """Return the calls of a tick, whose own latents had noise `sigma`; it was the last one."""
        *before, last = self.calls
        self.calls = []
        return [*before, replace(last, groups=(*last.groups[:-1], replace(last.groups[-1], sigma=sigma)))]


class _Part:
    """The memory of all heads, or of a group of them."""

    def __init__(self, name: str, cache: KVCache) -> None:
        self.name, self.cache, shape = name, cache, cache.shape
        keys = sum(prod(shape.of(layer, shape.tokens)) for layer in range(shape.layers))
        self.latent = 2 * keys * cache.dtype.itemsize  # bytes of one latent, keys and values of all layers
        self.turned: set[str] = set()
        self.sizes: dict[int, int] = {}

    def named(self, region: str) -> str:
        return f"{self.name} {region}" if self.name else region

    def trace_group(self, group: LatentGroup) -> tuple[list[RegionSpan], int, bool]:
        """Return the spans that these heads see, the bytes that are read, and whether as one slice. Then write."""
        view, spans = self.cache.view(group), []
        self.turned |= {name for name, move in view.moves if move} - self.cache.arena.masters.keys()
        for name, move in view.moves:
            indices = tuple(sorted(index for region, index in view.latents if region == name))
            spans.append(RegionSpan(self.named(name), indices, tuple(index + move for index in indices), self.name))
        if view.region is not None and self.cache.region_tier is not None:
            indices, region = self.cache.contents.absorbed, self.named(self.cache.region_tier.kind)
            low = view.region.lowest
            places = (index + view.region.move for index in indices)  # where Placement.turns puts them
            spans.append(RegionSpan(region, indices, tuple(p if low is None else max(p, low) for p in places),
                                    self.name))  # fmt: skip
        read = len(view.slots) * self.latent + self._region_bytes(view.region)
        if group.commit:
            self.cache.adopt(self.cache.plan(group.start, group.latents).after)
        return [span for span in spans if span.indices], read, view.dense

    def bytes(self) -> dict[str, int]:
        """Return what every region takes; of latents kept as they are, also the room for the call in flight."""
        arena, found = self.cache.arena, {}
        for name, latents in arena.size.items():
            copied = name in self.turned  # Arena.turn keeps the unturned keys of what a policy moves
            exact = sum(x.nbytes for x in (*arena.masters.get(name, ()), *arena.exact.get(name, ())))
            found[self.named(name)] = latents * (self.latent + copied * self.latent // 2) + exact
        if self.cache.region is not None and self.cache.region_tier is not None:
            found[self.named(self.cache.region_tier.kind)] = self.cache.region.bytes
        return found | {self.named("in flight"): arena.flight * self.latent}

    def _region_bytes(self, placed: Placement | None) -> int:
        """Return the bytes that attention gets of the region of the last tier, in all layers."""
        region, shape = self.cache.region, self.cache.shape
        if region is None or placed is None or not placed.filled:
            return 0
        if placed.filled not in self.sizes:
            layers = 1 if isinstance(shape.heads, int) else shape.layers  # all alike: then one stands for all
            parts = [part for layer in range(layers) if (part := region.read(layer, placed))]
            found = sum(part.key.nbytes + part.value.nbytes for part in parts)
            self.sizes[placed.filled] = found * (shape.layers // layers)
        return self.sizes[placed.filled]
