"""Reward weighting as the student's loss uses it: a video's latents in, a weight for its loss out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rollforce.distill.recipe import Rewards
from rollforce.distill.rewards import EyesReward, OracleReward, Reward, Shuffled
from rollforce.distill.weights import History, balanced, reward_weight, saliency, space_time_weight
from rollforce.errors import ConfigError
from rollforce.models.autoencoder import TinyAutoencoder


class Weighting:
    """Re-DMD (exp(beta * mean reward)) or Stream-R1 (that of the balanced reward, times a map in space and time).

    Stream-R1 remembers past rewards: one history for each part of the batch, so that any number of processes may go on.
    """

    def __init__(self, settings: Rewards, autoencoder: TinyAutoencoder) -> None:
        if settings.kind == "stream_r1" and settings.reward == "oracle":
            raise ConfigError("rewards.reward oracle has no gradient, and stream_r1 needs one: use eyes.")
        self.settings, self.autoencoder = settings, autoencoder
        self.histories: dict[int, History] = {}

    def __call__(self, latents_BTCHW: Tensor, prompts: tuple[str, ...], step: int, part: int) -> Tensor:
        """Weight that broadcasts over [B, T, C, h, w], with mean 1 over the batch: the learning rate stays."""
        frames, _ = self.autoencoder.decode(latents_BTCHW.detach().float().to(self.autoencoder.basis))
        reward, asked = self._reward(step, part), list(prompts)
        if self.settings.kind == "re_dmd":
            axes = reward(frames, asked)
            weight = reward_weight(torch.stack(list(axes.values())).mean(0), self.settings.beta, mean_one=True)
            return weight.to(latents_BTCHW.device)
        rewards, maps = saliency(reward, frames, asked)
        level, self.histories[part] = balanced(rewards, self.histories.get(part, History()))
        _, T, _, h, w = latents_BTCHW.shape
        weight = reward_weight(level, self.settings.beta, mean_one=True) * space_time_weight(rewards, maps, (T, h, w))
        return weight.to(latents_BTCHW.device)

    def _reward(self, step: int, part: int) -> Reward:
        if self.settings.reward == "oracle":
            return OracleReward()
        eyes = EyesReward(self.autoencoder.basis.device)
        if self.settings.reward == "eyes":
            return eyes
        return Shuffled(eyes, torch.Generator().manual_seed(step * 64 + part))  # the control

    def state_dict(self, part: int) -> dict[str, Any]:
        """The history of one part."""
        return self.histories.get(part, History()).state_dict()

    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None:
        """Go on with a history."""
        self.histories[part] = History.from_state(state)
