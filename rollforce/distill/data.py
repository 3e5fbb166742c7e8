"""Endless captioned latents to train from: scenes rendered by seed, encoded once, drawn as windows.

Nothing is stored on disk. What a draw returns is a pure function of (seed, step): a run that is stopped and resumed,
or shared out among processes, sees the same data.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollforce.models.autoencoder import TinyAutoencoder
from rollforce.world.caption import caption
from rollforce.world.render import render
from rollforce.world.scenes import Scene, sample_scene

TEST_SEEDS = 10**9  # scenes from this seed on are kept for testing


@dataclass(frozen=True)
class PoolConfig:
    """Settings of a pool.

    `clips`: how many scenes there are; `opened`: at the first step, `per_step`: how many more with each step, so
    that training starts at once; `latents`: length of a clip, longer than any window so that windows differ;
    `dropped`: share of captions left empty, for guidance; `kept`: clips held in memory; `size`: pixels.
    """

    clips: int = 8192
    opened: int = 512
    per_step: float = 4.0
    latents: int = 24
    dropped: float = 0.1
    kept: int = 8192
    size: int = 64


class ClipPool:
    """Windows of captioned latents. `held_out`: only attribute combinations that training never sees."""

    def __init__(
        self, autoencoder: TinyAutoencoder, config: PoolConfig = PoolConfig(), seed: int = 0, held_out: bool = False
    ) -> None:
        self.autoencoder, self.config, self.seed, self.held_out = autoencoder, config, seed, held_out
        self._clips: OrderedDict[int, Tensor] = OrderedDict()

    @torch.no_grad()
    def clip(self, number: int) -> Tensor:
        """All latents of one clip: float16 [T, C, h, w]."""
        if number in self._clips:
            self._clips.move_to_end(number)
            return self._clips[number]
        c = self.config
        start = number * 131 % 4096  # scenes are endless: begin anywhere
        frames = render(self.scene(number), start, c.latents * self.autoencoder.config.frames, c.size)
        latents = self.autoencoder.encode(torch.from_numpy(frames)[None])[0].half()
        self._clips[number] = latents
        if len(self._clips) > c.kept:
            self._clips.popitem(last=False)
        return latents

    def scene(self, number: int) -> Scene:
        """The scene of one clip."""
        return sample_scene((TEST_SEEDS if self.held_out else 0) + number, held_out=self.held_out)

    def draw(self, step: int, part: int, count: int, latents: int) -> tuple[Tensor, list[str]]:
        """`count` windows and captions of `part` of training step `step`: float32 [count, latents, C, h, w], prompts.

        Windows start at any latent of a clip; each draw words its caption afresh or drops it."""
        c = self.config
        rng = np.random.default_rng([self.seed, step, part])
        opened = min(c.clips, c.opened + int(step * c.per_step))
        windows, prompts = [], []
        for _ in range(count):
            number = int(rng.integers(opened))
            at = int(rng.integers(c.latents - latents + 1))
            windows.append(self.clip(number)[at : at + latents])
            wording, keep = int(rng.integers(2**31)), rng.random() >= c.dropped
            prompts.append(caption(self.scene(number), wording) if keep else "")
        return torch.stack(windows).float(), prompts

    def prompts(self, count: int, start: int = 0) -> list[str]:
        """`count` full captions of the scenes from number `start` on."""
        return [caption(self.scene(start + i), i, full=True) for i in range(count)]
