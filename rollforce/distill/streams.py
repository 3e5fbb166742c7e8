"""Persistent streams: the student's own rollouts, kept running while it learns.

A rollout from the start for every update would spend eight calls on one gradient. Instead several groups of streams of
different age stay alive: an update makes one tick of one group with gradient, and that tick also moves the group on. So
the student always learns on what it really meets, at every noise level, and no call is wasted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rollforce.cache import KVCache, Shape
from rollforce.models.transformer import VideoTransformer
from rollforce.noise import Noise
from rollforce.rollout import Rollout
from rollforce.settings import StreamSettings


class Streams:
    """One group: a batch of streams with their own prompts, walked by the same Rollout that inference walks."""

    def __init__(
        self,
        student: VideoTransformer,
        settings: StreamSettings,
        text_BLD: Tensor,
        seeds: tuple[int, ...],
        latent: tuple[int, int, int],
    ) -> None:
        """`text_BLD`: encoded prompts; `seeds`: one per stream; `latent`: C, h, w."""
        config, layout = student.config, settings.layout.build()
        tokens = latent[1] * latent[2] // config.patch**2
        shape = Shape(config.num_layers, len(seeds), config.num_attention_heads, tokens, config.attention_head_dim)
        cache = KVCache(settings.cache, shape, max(layout.slots, layout.shift), text_BLD.dtype, text_BLD.device)
        with torch.no_grad():
            condition = student.condition(text_BLD)
        self.text_BLD = text_BLD
        self.rollout = Rollout(student, condition, cache, layout, Noise.of(seeds, latent), settings.stepping)
        self.ticks = 0
        self._behind: Tensor | None = None  # the chunk just before the live slots, clean

    def tick(self) -> Tensor:
        """One tick with gradient. Returns the video it believes in, [B, T, C, h, w]: the chunk behind (no gradient),
        then the clean estimates of all live slots."""
        rollout = self.rollout
        rollout.condition = rollout.model.condition(self.text_BLD)  # afresh: the weights have changed, and may learn
        clean = rollout.tick(with_grad=True).clean_BTCHW
        video = clean if self._behind is None else torch.cat([self._behind, clean], dim=1)
        finished = rollout.commit()
        if finished is not None:
            self._behind = finished.latents_BTCHW
        self.ticks += 1
        return video
