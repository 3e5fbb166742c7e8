"""The videos a student learns on, made by the student itself, with gradient (`practice` in a recipe).

    lessons   whole rollouts from the start                                 Self Forcing, Rolling Forcing
    lasting   persistent streams, one tick of a group of them per step      LongLive's streaming long tuning
    forced    no rollout: true videos noised and restored in one call       CausVid

All are functions of (step, part): a run that is stopped and resumed makes the same videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollforce.cache.head_groups import AnyCache
from rollforce.checkpoints.catalog import preset_file
from rollforce.config import build
from rollforce.engine import flow
from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Rollout
from rollforce.engine.rollout_group import RolloutGroup, cache_shape, count_exits, roll_out
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError
from rollforce.training import recipes
from rollforce.training.causal_masking import noise_like, own_past, repeat_per_chunk, score_of_velocity, true_past
from rollforce.training.data import Data, TrainingBatch
from rollforce.training.network import Network
from rollforce.training.reference_cache import ReferenceGradientCache


@dataclass(frozen=True)
class StudentVideo:
    """A video of the student, [B, T, C, h, w], with gradient where it learned; and what it was asked for."""

    video_BTCHW: Tensor
    text_BLD: Tensor
    prompts: tuple[str, ...]


class VideoSource:
    """Where a student's videos come from: `count` a part, of the prompts of `data`."""

    def __init__(self, student: Network, data: Data, count: int, seed: int) -> None:
        self.student, self.data, self.count, self.seed = student, data, count, seed

    def generate(self, step: int, part: int) -> StudentVideo:
        """Return the videos of one part of a step."""
        raise NotImplementedError

    def state_dict(self, part: int) -> dict[str, Any]:
        """Return what lasts of one part."""
        return {}

    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None:
        """Go on with what a `state_dict` holds."""

    @torch.no_grad()
    def _encode(self, batch: TrainingBatch) -> Tensor:
        return self.student.vectors(batch).detach()

    def _noise_seeds(self, step: int, part: int) -> tuple[int, ...]:
        rng = np.random.default_rng([self.seed, step, part, 3])
        return tuple(int(n) for n in rng.integers(2**31, size=self.count))


def open_practice(recipe: recipes.DistillRecipe, student: Network, stream: StreamSettings, data: Data) -> VideoSource:
    """Return the source of videos that a recipe asks for. ConfigError if it does not go with the stream."""
    given = student, data, recipe.batch // recipe.run.parts, recipe.run.seed
    if isinstance(recipe.practice, recipes.PersistentStreamSettings):
        return PersistentStreams(*given, stream, recipe.practice)
    if isinstance(recipe.practice, recipes.TeacherForcingSettings):
        return TeacherForcedVideos(*given, stream, recipe.practice)
    second = build(StreamSettings, preset_file(recipe.practice.second))
    return WholeRollouts(*given, (stream, second), recipe.practice)


class PersistentStreams(VideoSource):
    """Groups of streams that stay alive over many steps; each step takes the next group (engine.rollout_group)."""

    def __init__(self, student: Network, data: Data, count: int, seed: int, stream: StreamSettings,
                 settings: recipes.PersistentStreamSettings) -> None:  # fmt: skip
        super().__init__(student, data, count, seed)
        self.stream, self.settings = stream, settings
        self.groups: dict[tuple[int, int], RolloutGroup] = {}  # (part, place) -> group

    def generate(self, step: int, part: int) -> StudentVideo:
        """Make one tick of the group whose turn it is; one of full age starts again. At first, groups differ in age."""
        s, place = self.settings, step % self.settings.groups
        ticks = self.stream.layout.build().ticks  # of a chunk
        group, age = self.groups.get((part, place)), s.age * ticks
        if group is None or group.ticks >= age:
            self.groups[part, place] = group = self._begin(step, part, place * age // s.groups if group is None else 0)
        if s.switch and group.ticks == round(s.switch * s.age) * ticks:
            batch = self.data.prompts(step, part + 1_000_000, self.count)
            group.switch(self._encode(batch), batch.prompts)
        video = group.tick()
        return StudentVideo(video, group.text_BLD, group.prompts)

    @torch.no_grad()
    def _begin(self, step: int, part: int, age: int) -> RolloutGroup:
        """New streams, walked `age` ticks without learning."""
        batch = self.data.prompts(step, part, self.count)
        group = RolloutGroup(self.student.transformer, self.stream, self._encode(batch), self._noise_seeds(step, part),
                             self.data.latent, batch.prompts, self.settings.behind)
        for _ in range(age):
            group.tick()
        return group

    def state_dict(self, part: int) -> dict[str, Any]:
        return {str(place): group.state_dict() for (p, place), group in self.groups.items() if p == part}

    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None:
        for place, saved in state.items():
            self.groups[part, int(place)] = RolloutGroup.resume(
                self.student.transformer, self.stream, self.data.latent, saved)


class WholeRollouts(VideoSource):
    """Rollouts from the start to a drawn length, one per step and part."""

    def __init__(self, student: Network, data: Data, count: int, seed: int,
                 streams: tuple[StreamSettings, StreamSettings], settings: recipes.WholeRolloutSettings) -> None:
        """Take the stream the student is made for and the one mixed in. ConfigError if a setting does not fit them."""
        super().__init__(student, data, count, seed)
        self.streams, self.settings = streams, settings
        for stream in streams[: 2 if settings.mix else 1]:
            self._check(stream)

    def generate(self, step: int, part: int) -> StudentVideo:
        """Walk one rollout, whose length, layout and exit all processes draw alike; return the latents to judge."""
        s, rng = self.settings, np.random.default_rng([self.seed, step, 4])
        length = int(rng.choice(s.latents))
        stream = self.streams[int(rng.random() < s.mix)]
        batch = self.data.prompts(step, part, self.count)
        text = self._encode(batch)
        rollout = self._begin(stream, text, self._noise_seeds(step, part), length)
        exit = int(rng.integers(count_exits(rollout)))
        video = roll_out(rollout, lambda: self.student.transformer.condition(text), exit, s.last)
        return StudentVideo(video, text, batch.prompts)

    @torch.no_grad()
    def _begin(self, stream: StreamSettings, text: Tensor, seeds: tuple[int, ...], length: int) -> Rollout:
        layout, latent = stream.layout.build(), self.data.latent
        shape = cache_shape(self.student.transformer, len(seeds), latent)
        cache: AnyCache = (
            ReferenceGradientCache(stream.cache, shape, max(layout.slots, layout.shift), text.dtype, text.device,
                                   chunk=layout.shift)
            if self.settings.leak else stream.memory(shape, text.dtype, text.device))  # fmt: skip
        return Rollout(self.student.transformer, self.student.transformer.condition(text), cache, layout,
                       Noise.of(seeds, latent), replace(stream.stepping, ride=False), length=length)

    def _check(self, stream: StreamSettings) -> None:
        if self.settings.leak and stream.heads is not None:
            raise ConfigError("practice.leak true is not for streams with head groups: leave one of them out.")
        for length in self.settings.latents:
            if length % stream.layout.chunk:
                raise ConfigError(f"practice.latents {length} is not a multiple of the stream's chunk, "
                                  f"{stream.layout.chunk}: choose one.")
        if self.settings.first == "image" and self.settings.last <= stream.layout.chunk:
            raise ConfigError(f"practice.last {self.settings.last}: with first=image the first chunk, "
                              f"{stream.layout.chunk} latents, does not learn; make it longer.")


class TeacherForcedVideos(VideoSource):
    """True videos noised to the ladder, chunk by chunk, and restored in one call: training without self-rollout."""

    def __init__(self, student: Network, data: Data, count: int, seed: int, stream: StreamSettings,
                 settings: recipes.TeacherForcingSettings) -> None:  # fmt: skip
        super().__init__(student, data, count, seed)
        self.layout, self.settings = stream.layout, settings

    def generate(self, step: int, part: int) -> StudentVideo:
        """Return clean estimates of all chunks, each drawn at one level of the ladder."""
        s, chunk, ladder = self.settings, self.layout.chunk, self.layout.ladder
        batch = self.data.draw(step, part, self.count, s.latents)
        clean, text = self.student.clean_latents(batch), self._encode(batch)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 64 + part)
        shape = self.count, -(-s.latents // chunk)
        levels = torch.tensor(ladder)[torch.randint(len(ladder), shape, generator=generator)]
        sigma = repeat_per_chunk(levels, s.latents, chunk).to(clean)
        model, tokens = self.student.transformer, self.student.tokens_per_latent(clean.shape)
        condition = model.condition(text)
        velocity = (own_past(model, condition, chunk, tokens) if s.past == "noisy"
                    else true_past(model, condition, clean, chunk, tokens))
        video = score_of_velocity(velocity)(flow.noised(clean, noise_like(clean, generator), sigma), sigma)
        return StudentVideo(video, text, batch.prompts)
