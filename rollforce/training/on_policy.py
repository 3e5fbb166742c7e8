"""What a student practises on: its own videos, made with gradient, by lessons or by lasting streams.

Both are functions of (step, part): a run that is stopped and resumed makes the same videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rollforce.cache.head_groups import AnyCache
from rollforce.engine import flow
from rollforce.engine.noise import Noise
from rollforce.engine.rollout import Rollout
from rollforce.engine.rollout_group import RolloutGroup, cache_shape
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError
from rollforce.training.causal_masking import drawn_like, own_past, score_by, spread, true_past
from rollforce.training.data import Data
from rollforce.training.network import Network
from rollforce.training.recipes import Forced, Lasting, Lessons
from rollforce.training.reference_cache import LeakyCache
from rollforce.training.self_rollout import exits, lesson


@dataclass(frozen=True)
class Made:
    """A video of the student, [B, T, C, h, w], with gradient where it learned; what it was asked for."""

    video_BTCHW: Tensor
    text_BLD: Tensor
    prompts: tuple[str, ...]


class Practice(Protocol):
    def make(self, step: int, part: int) -> Made: ...
    def state_dict(self, part: int) -> dict[str, Any]: ...
    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None: ...


class LastingStreams:
    """Groups of persistent streams; each step takes the next group."""

    def __init__(
        self, student: Network, stream: StreamSettings, settings: Lasting, data: Data, count: int, seed: int = 0
    ) -> None:
        """`count`: streams in a group, of one part."""
        self.student, self.stream, self.settings = student, stream, settings
        self.data, self.count, self.seed = data, count, seed
        self.groups: dict[tuple[int, int], RolloutGroup] = {}  # (part, place) -> group

    def make(self, step: int, part: int) -> Made:
        """One tick of the group whose turn it is. A group of full age starts again; at first, groups differ in age."""
        s, place = self.settings, step % self.settings.groups
        ticks = self.stream.layout.build().ticks  # of a chunk
        age = s.age * ticks
        group = self.groups.get((part, place))
        if group is None or group.ticks >= age:
            group = self._begin(step, part, place * age // s.groups if group is None else 0)
            self.groups[part, place] = group
        if s.switch and group.ticks == round(s.switch * s.age) * ticks:
            batch = self.data.prompts(step, part + 1_000_000, self.count)
            with torch.no_grad():
                group.switch(self.student.vectors(batch).detach(), batch.prompts)
        video = group.tick()
        return Made(video, group.text_BLD, group.prompts)

    def _begin(self, step: int, part: int, age: int) -> RolloutGroup:
        """New streams, walked `age` ticks without learning."""
        batch = self.data.prompts(step, part, self.count)
        rng = np.random.default_rng([self.seed, step, part, 3])
        seeds = tuple(int(n) for n in rng.integers(2**31, size=self.count))
        with torch.no_grad():
            text = self.student.vectors(batch).detach()
            group = RolloutGroup(self.student.transformer, self.stream, text, seeds, self.data.latent, batch.prompts,
                            self.settings.behind)
            for _ in range(age):
                group.tick()
        return group

    def state_dict(self, part: int) -> dict[str, Any]:
        """The running streams of one part."""
        return {str(place): group.state_dict() for (p, place), group in self.groups.items() if p == part}

    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None:
        """Go on with the streams of a `state_dict`."""
        for place, saved in state.items():
            self.groups[part, int(place)] = RolloutGroup.resume(
                self.student.transformer, self.stream, self.data.latent, saved)


class WholeLessons:
    """Rollouts from the start to a drawn length, one per step and part."""

    def __init__(
        self, student: Network, streams: tuple[StreamSettings, StreamSettings], settings: Lessons, data: Data,
        count: int, seed: int = 0,
    ) -> None:
        """`streams`: the preset the student is made for, and the one that `settings.mix` mixes in."""
        self.student, self.streams, self.settings = student, streams, settings
        self.data, self.count, self.seed = data, count, seed
        for stream in streams[: 2 if settings.mix else 1]:
            self._refuse(stream)

    def make(self, step: int, part: int) -> Made:
        """Walk one rollout; return its last latents, as many as can be judged. Length, layout and exit are drawn per
        step, so that all processes make equal calls."""
        s, rng = self.settings, np.random.default_rng([self.seed, step, 4])
        length = int(rng.choice(s.latents))
        stream = self.streams[int(rng.random() < s.mix)]
        batch = self.data.prompts(step, part, self.count)
        with torch.no_grad():
            text = self.student.vectors(batch).detach()
        seeds = np.random.default_rng([self.seed, step, part, 3]).integers(2**31, size=self.count)
        rollout = self._rollout(stream, text, tuple(int(n) for n in seeds), length)
        exit = int(rng.integers(exits(rollout)))
        video = lesson(rollout, lambda: self.student.transformer.condition(text), exit, s.last)
        return Made(video, text, batch.prompts)

    def _rollout(self, stream: StreamSettings, text: Tensor, seeds: tuple[int, ...], length: int) -> Rollout:
        layout, latent = stream.layout.build(), self.data.latent
        shape = cache_shape(self.student.transformer, len(seeds), latent)
        if self.settings.leak:
            flight = max(layout.slots, layout.shift)
            cache: AnyCache = LeakyCache(stream.cache, shape, flight, text.dtype, text.device, chunk=layout.shift)
        else:
            cache = stream.memory(shape, text.dtype, text.device)
        with torch.no_grad():
            condition = self.student.transformer.condition(text)
        stepping = replace(stream.stepping, ride=False)
        noise = Noise.of(seeds, latent)
        return Rollout(self.student.transformer, condition, cache, layout, noise, stepping, length=length)

    def _refuse(self, stream: StreamSettings) -> None:
        if self.settings.leak and stream.heads is not None:
            raise ConfigError("practice.leak true is not for streams with head groups: leave one of them out.")
        for length in self.settings.latents:
            if length % stream.layout.chunk:
                raise ConfigError(
                    f"practice.latents {length} is not a multiple of the stream's chunk, {stream.layout.chunk}.")
        if self.settings.first == "image" and self.settings.last <= stream.layout.chunk:
            raise ConfigError(f"practice.last {self.settings.last}: with first=image the first chunk, "
                              f"{stream.layout.chunk} latents, does not learn; make it longer.")

    def state_dict(self, part: int) -> dict[str, Any]:
        """Nothing lasts."""
        return {}

    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None:
        """Nothing lasted."""


class ForcedVideos:
    """True videos noised to the ladder, chunk by chunk, and restored in one call: training without self-rollout."""

    def __init__(
        self, student: Network, stream: StreamSettings, settings: Forced, data: Data, count: int, seed: int = 0
    ) -> None:
        self.student, self.stream, self.settings = student, stream, settings
        self.data, self.count, self.seed = data, count, seed

    def make(self, step: int, part: int) -> Made:
        """Clean estimates of all chunks, each drawn at one level of the ladder."""
        s, chunk, ladder = self.settings, self.stream.layout.chunk, self.stream.layout.ladder
        batch = self.data.draw(step, part, self.count, s.latents)
        assert batch.latents_BTCHW is not None
        clean = batch.latents_BTCHW.to(self.student.device)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 64 + part)
        chunks = -(-s.latents // chunk)
        levels = torch.tensor(ladder)[torch.randint(len(ladder), (self.count, chunks), generator=generator)]
        sigma = spread(levels, s.latents, chunk).to(clean)
        with torch.no_grad():
            text = self.student.vectors(batch).detach()
        model = self.student.transformer
        tokens = clean.shape[-2] * clean.shape[-1] // model.config.patch**2
        condition = model.condition(text)
        velocity = (own_past(model, condition, chunk, tokens) if s.past == "noisy"
                    else true_past(model, condition, clean, chunk, tokens))
        video = score_by(velocity)(flow.noised(clean, drawn_like(clean, generator), sigma), sigma)
        return Made(video, text, batch.prompts)

    def state_dict(self, part: int) -> dict[str, Any]:
        """Nothing lasts."""
        return {}

    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None:
        """Nothing lasted."""
