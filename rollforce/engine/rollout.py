"""Rollout: THE loop. Inference, streaming and training walk it; layouts, memory and samplers are data to it.

One tick is one model call: every live slot of the buffer takes one step down its ladder. The clean pass that writes a
finished chunk into memory rides along with the next tick as a second attention group: the numbers of two calls for
the price of one. State is (first, row, x, pending) and the cache; noise is a pure function, so there is no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rollforce.cache.head_groups import AnyCache
from rollforce.cache.kv_cache import LatentGroup
from rollforce.cache.visibility import Visibility
from rollforce.engine import flow
from rollforce.engine.flow import NoiseSource
from rollforce.engine.layout import Layout
from rollforce.errors import ConfigError
from rollforce.models.transformer.transformer import Condition, VideoTransformer
from rollforce.video.values import check_number


def index_range(start: int, count: int) -> Tensor:
    """Return stream indices of `count` latents from `start`, int64 [T]."""
    return torch.arange(start, start + count, dtype=torch.int64)


@dataclass(frozen=True)
class Tick:
    """What one model call produced: clean estimates of the slots that were alive in it."""

    first: int  # stream index of the first live latent
    clean_BTCHW: Tensor
    sigma_T: tuple[float, ...]  # noise that each latent had before the call
    with_grad: bool = False


@dataclass(frozen=True)
class Commit:
    """Latents that became clean: `start` is the stream index of the first one."""

    start: int
    latents_BTCHW: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.latents_BTCHW.shape[1]


@dataclass(frozen=True)
class ShotContext:
    """Latents that shots to come may look back on: their indices, the RoPE phase of their shots, [B, T, C, H, W]."""

    index: tuple[int, ...]
    phase: tuple[float, ...]
    latents_BTCHW: Tensor


CONTEXT_DRAW = -1  # the number of the noise that context_noise mixes in


class Source(Protocol):
    """A video that a stream follows: its latents enter noised instead of as pure noise (SDEdit, Meng et al. 2021)."""

    def __call__(self, index: int) -> tuple[Tensor, float] | None:
        """Clean latent [B, C, H, W] of a stream index, asked for once and in order, and the noise level at which it
        enters; None: the video is over."""


@dataclass(frozen=True)
class Stepping:
    """How a rollout steps and what its calls see.

    `sampler`: `renoise` forgets the noise at each step (consistency sampler of distilled students), `euler` keeps it.
    `context_sigma`: noise level that clean latents are said to have when written to memory; 0 everywhere so far.
    `context_noise`: noise level they are really given for that (Self Forcing trains with .005 and says 0).
    `ride`: let the clean pass ride along with the next tick (False: a call of its own; same numbers, for measuring)."""

    denoise: Visibility = field(default_factory=Visibility)
    commit: Visibility = field(default_factory=Visibility)
    sampler: Literal["renoise", "euler"] = "renoise"
    context_sigma: float = 0.0
    context_noise: float = 0.0
    ride: bool = True

    def __post_init__(self) -> None:
        for name in ("context_sigma", "context_noise"):
            check_number(getattr(self, name), f"stepping.{name}", 0, 1, below=True, remedy="A noise level; 0 is clean.")


@dataclass(frozen=True)
class ModelCall:
    """A model call that a rollout waits for: noisy latents, their noise and stream indices, and what they see."""

    x_BTCHW: Tensor
    sigma_BT: Tensor
    index_T: Tensor
    groups: tuple[LatentGroup, ...]
    condition: Condition
    cache: AnyCache
    phase_T: Tensor | None

    def run(self, model: VideoTransformer) -> Tensor:
        """Make the call and return the velocity, [B, T, C, H, W]. It writes the past, once."""
        memory = self.cache.memory(self.groups, model.policy)
        return model(self.x_BTCHW, self.sigma_BT, self.index_T, self.condition, memory, phase_T=self.phase_T)


class Rollout:
    """Steps one batch of streams through a layout: `length` latents in all (None: for ever), the first at `start`.

    `source` enters instead of pure noise; the stream ends when it does. State, which `state_dict` saves: `x` holds the
    live slots [B, T, C, H, W] of the buffer whose slot 0 is latent `first`, before tick `row` of the layout; `pending`
    is clean and handed out, but not yet in memory; `recent` is clean and in memory, as many of the newest latents as
    fit, for a recache; `phase` (of RoPE in time) and `scene` are what `transitions.Shot` changes."""

    def __init__(self, model: VideoTransformer, condition: Condition, cache: AnyCache, layout: Layout,
                 noise: NoiseSource, stepping: Stepping | None = None, *, length: int | None = None, start: int = 0,
                 source: Source | None = None) -> None:  # fmt: skip
        self.model, self.condition, self.cache = model, condition, cache
        self.layout, self.noise, self.stepping = layout, noise, stepping or Stepping()
        self.start, self.source = start, source
        self.end = None if length is None else start + length
        self.first = start + layout.first
        self.row = 0
        self.x: Tensor | None = None
        self.entry: dict[int, float] = {}  # noise levels of latents of the source that entered and were not yet ticked
        self.phase = 0.0
        self.scene: ShotContext | None = None
        self.pending: Commit | None = None
        self.recent: Commit | None = None
        self._sigma: tuple[float, ...] = ()  # noise of the live latents in the call that is under way

    def prefill(self, latents_BTCHW: Tensor) -> None:
        """Give the stream a past, before its first tick: clean latents that stand just before `start`. They are written
        chunk by chunk, each seeing those before it, as if the stream had made them. What does not fill a chunk comes
        first: a single image is a chunk of its own (Self Forcing's image to video)."""
        assert self.x is None and self.pending is None, "a past is given before the first tick"
        count, chunk = latents_BTCHW.shape[1], self.layout.shift
        cuts = [0, *range(count % chunk or chunk, count + 1, chunk)]
        x = latents_BTCHW.to(self._device, self.cache.dtype)
        for low, high in pairwise(cuts):
            self.pending = self._as_context(Commit(self.start - count + low, x[:, low:high]))
            self.settle()

    @property
    def live(self) -> tuple[int, int]:
        """Stream indices [low, high) of the slots that hold latents."""
        high = self.first + self.layout.slots
        return max(self.first, self.start), high if self.end is None else min(high, self.end)

    @property
    def done(self) -> bool:
        """Whether no slot holds a latent any more."""
        low, high = self.live
        return low >= high

    def tick(self, with_grad: bool = False) -> Tick:
        """Make one model call and step down. `with_grad`: clean estimates carry gradient; past and state never do."""
        with torch.set_grad_enabled(with_grad):
            return self.apply(self.next_call(apart=with_grad).run(self.model))

    def next_call(self, apart: bool = False) -> ModelCall:
        """Return the model call that the next tick needs: its first half. Nothing may come between it and `apply`. The
        clean pass of what is pending rides along, unless it is to be a call of its own (`apart`)."""
        self.admit()
        low, high = self.live
        assert self.x is not None and low < high, "a finished rollout was ticked"
        levels = self.layout.sigma[self.row][low - self.first : high - self.first]
        self._sigma = now = tuple(self.entry.pop(low + i, level) for i, level in enumerate(levels))
        if apart or not self.stepping.ride:
            self.settle()
        riding, x, count = self._take_pending(), self.x, high - low
        groups = [LatentGroup(low, count, self.stepping.denoise.at(max(now)))]
        index, sigma = index_range(low, count), self._levels(now)
        if riding is not None:
            groups.insert(0, self._commit_group(riding))
            x = torch.cat([riding.latents_BTCHW, x], dim=1)
            index = torch.cat([index_range(riding.start, riding.latents_BTCHW.shape[1]), index])
            sigma = torch.cat([self._context_levels(riding), sigma], dim=1)
        return self._build_call(x, sigma, index, groups)

    def apply(self, velocity_BTCHW: Tensor) -> Tick:
        """Step down by the velocity of `next_call`, [B, T, C, H, W]: the second half of a tick."""
        (low, high), now, x = self.live, self._sigma, self.x
        assert x is not None
        later = self.layout.sigma[self.row + 1][low - self.first : high - self.first]
        velocity = velocity_BTCHW[:, velocity_BTCHW.shape[1] - x.shape[1] :]
        clean = flow.clean_of(x, velocity, self._levels(now))
        with torch.no_grad():
            self.x = self._step_down(x, velocity.detach(), clean.detach(), now, later, low)
        self.row += 1
        return Tick(low, clean, now, clean.requires_grad)

    def commit(self) -> Commit | None:
        """Hand out the clean slots after the layout's last row, and move on. None before that, or if none is live."""
        if self.row < self.layout.ticks:
            return None
        assert self.x is not None
        low = self.live[0]
        count = max(0, self.first + self.layout.shift - low)
        finished = Commit(low, self.x[:, :count]) if count else None
        self.x, self.first, self.row = self.x[:, count:], self.first + self.layout.shift, 0
        if finished is not None:
            self.settle()  # never two pending: a tick has carried the last one unless none came between
            self.pending = self._as_context(finished)
        return finished

    def restart(self, skip: int = 0) -> None:
        """Throw away what is in flight, between two chunks, and begin it anew, from noise. With `skip` the stream's
        clock jumps on by so many latents: what it remembers stands so much further back, until it is let go.
        ConfigError if the stream follows a video, which comes but once."""
        assert self.row == 0, "a stream begins anew between two chunks"
        if self.source is not None:
            raise ConfigError("a stream that follows a video cannot take back what is in flight: keep or blend.")
        low = self.live[0]
        if skip:
            self.settle()
            self.recent = None  # it would no longer lie before what comes
            self.end = None if self.end is None else self.end + skip
        self.start, self.x = low + skip, None
        self.first = self.start + self.layout.first

    def finish(self, clean_BTCHW: Tensor) -> Commit | None:
        """Leave the ladder here, and commit these estimates of all live slots. Chunkwise layouts only."""
        assert self.layout.slots == self.layout.shift, "only a layout with one chunk in flight can stop early"
        self.x, self.row = clean_BTCHW.detach(), self.layout.ticks
        return self.commit()

    def commits(self) -> Iterator[Commit]:
        """Tick on, and yield latents as soon as they are clean."""
        while self.admit():
            self.tick()
            if (finished := self.commit()) is not None:
                yield finished

    # -- one call -----------------------------------------------------------------------------------------------

    def call(self, x: Tensor, sigma: Tensor, index: Tensor, groups: Sequence[LatentGroup],
             phase: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the velocity of latents that see memory in these groups, by a call of its own."""
        return self._build_call(x, sigma, index, groups, phase).run(self.model)

    def _build_call(self, x: Tensor, sigma: Tensor, index: Tensor, groups: Sequence[LatentGroup],
                    phase: Tensor | None = None) -> ModelCall:  # fmt: skip
        if phase is None and self.phase:
            phase = torch.full(index.shape, self.phase)
        return ModelCall(x, sigma, index, tuple(groups), self.condition, self.cache, phase)

    @torch.no_grad()
    def settle(self) -> None:
        """Write what is pending into memory: the clean pass as a call of its own."""
        if (pending := self._take_pending()) is not None:
            index = index_range(pending.start, pending.latents_BTCHW.shape[1])
            self.call(pending.latents_BTCHW, self._context_levels(pending), index, [self._commit_group(pending)])

    def _take_pending(self) -> Commit | None:
        """Return the pending latents, about to be written to memory, and count them among the recent ones."""
        pending, self.pending = self.pending, None
        if pending is not None:
            both = [pending] if self.recent is None else [self.recent, pending]
            latents = torch.cat([part.latents_BTCHW for part in both], dim=1)[:, -max(1, self.cache.capacity) :]
            self.recent = Commit(pending.stop - latents.shape[1], latents)
        return pending

    def _as_context(self, finished: Commit) -> Commit:
        """Return what is written to memory of a finished chunk: itself, or a little noised."""
        if not (level := self.stepping.context_noise):
            return finished
        x, low = finished.latents_BTCHW, finished.start
        noise = torch.stack([self._draw(low + i, CONTEXT_DRAW) for i in range(x.shape[1])], dim=1)
        return Commit(low, flow.noised(x, noise, self._levels((level,) * x.shape[1])))

    def _commit_group(self, pending: Commit) -> LatentGroup:
        return LatentGroup(pending.start, pending.latents_BTCHW.shape[1], self.stepping.commit, commit=True)

    def _context_levels(self, pending: Commit) -> Tensor:
        return self._levels((self.stepping.context_sigma,) * pending.latents_BTCHW.shape[1])

    def _levels(self, sigma: tuple[float, ...]) -> Tensor:
        return torch.tensor([sigma], dtype=torch.float32, device=self._device).expand(self.condition.batch, -1)

    @property
    def _device(self) -> torch.device:
        return self.cache.device

    # -- the buffer ---------------------------------------------------------------------------------------------

    def admit(self) -> bool:
        """Fill the free slots of the buffer, with pure noise or from the source. Return False if the stream is done."""
        low, high = self.live
        count = 0 if self.x is None else self.x.shape[1]
        fresh = []
        for index in range(low + count, high):
            if (entering := self._admit_one(index)) is None:
                self.end = index
                break
            fresh.append(entering)
        if fresh:
            new = torch.stack(fresh, dim=1)
            self.x = new if self.x is None else torch.cat([self.x, new], dim=1)
        return not self.done

    def _admit_one(self, index: int) -> Tensor | None:
        noise = self._draw(index, 0)
        if self.source is None:
            return noise
        if (given := self.source(index)) is None:
            return None
        clean, self.entry[index] = given
        return flow.noised(clean.to(noise), noise, torch.tensor(self.entry[index], device=self._device))

    def _step_down(self, x: Tensor, velocity: Tensor, clean: Tensor, now: tuple[float, ...], later: tuple[float, ...],
                   low: int) -> Tensor:  # fmt: skip
        if self.stepping.sampler == "euler":
            return flow.euler(x, velocity, self._levels(now), self._levels(later))
        draws = self.layout.draws[self.row][low - self.first :]
        noise = [self._draw(low + i, draws[i] + 1) if level > 0 else torch.zeros_like(x[:, i])
                 for i, level in enumerate(later)]  # fmt: skip
        return flow.renoise(clean, torch.stack(noise, dim=1), self._levels(later))

    def _draw(self, index: int, draw: int) -> Tensor:
        return self.noise(index, draw).to(self._device, self.cache.dtype)

    # -- saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything but model, prompt and settings: the stream goes on from it, bit for bit."""
        return {"start": self.start, "first": self.first, "row": self.row, "phase": self.phase,
                "scene": None if self.scene is None else {**vars(self.scene)},
                "x": None if self.x is None else self.x.clone(),
                "recent_stop": None if self.recent is None else self.recent.stop,
                "recent": None if self.recent is None else self.recent.latents_BTCHW.clone(),
                "pending_start": None if self.pending is None else self.pending.start,
                "pending": None if self.pending is None else self.pending.latents_BTCHW.clone(),
                "cache": self.cache.state_dict()}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a rollout with the same settings."""
        self.start, self.first = int(state["start"]), int(state["first"])
        self.row, self.x, self.phase = int(state["row"]), state["x"], float(state["phase"])
        pending, recent, scene = state["pending"], state["recent"], state["scene"]
        self.scene = None if scene is None else ShotContext(
            tuple(scene["index"]), tuple(scene["phase"]), scene["latents_BTCHW"])  # fmt: skip
        self.recent = None if recent is None else Commit(int(state["recent_stop"]) - recent.shape[1], recent)
        self.pending = None if pending is None else Commit(int(state["pending_start"]), pending)
        self.cache.load_state_dict(state["cache"])
