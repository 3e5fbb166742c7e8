"""Rewards of frames: what a search asks of a chunk. Any callable is one; here are two ways to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from rollforce.world.measures import flicker

if TYPE_CHECKING:
    from rollforce.distill import rewards

FrameReward = Callable[[np.ndarray, str], float]
"""How good frames, uint8 [F, H, W, 3], are for their prompt: more is better."""


def judged(reward: rewards.Reward) -> FrameReward:
    """A reward of distill/rewards.py, such as the oracle's, as the mean of its axes."""

    def judge(frames: np.ndarray, prompt: str) -> float:
        axes = reward(torch.from_numpy(np.ascontiguousarray(frames))[None] / 255, [prompt])
        return float(torch.stack(list(axes.values())).mean())

    return judge


def calm(frames: np.ndarray, prompt: str) -> float:
    """Frames without flicker (mean second difference in grey levels, negated). A reward that a search can cheat: what
    stands still is calmest, whatever was asked for."""
    return -(flicker(frames) or 0.0)
