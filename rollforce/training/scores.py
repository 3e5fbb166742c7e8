"""Scores: what a network believes the clean video is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rollforce.engine import flow
from rollforce.models.transformer.transformer import Condition, VideoTransformer

Score = Callable[[Tensor, Tensor], Tensor]
"""(noisy [B, T, C, h, w], sigma [B, T]) -> the clean estimate, in the shape of the noisy video."""


def score_of(model: VideoTransformer, condition: Condition) -> Score:
    """Return the score of a transformer that sees all latents of the video together."""

    def clean(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        index = torch.arange(noisy_BTCHW.shape[1], device=noisy_BTCHW.device)
        velocity = model(noisy_BTCHW, sigma_BT, index, condition)
        return flow.clean_of(noisy_BTCHW, velocity, sigma_BT)

    return clean


def guide(wished: Score, free: Score, scale: float) -> Score:
    """Return the score of classifier-free guidance (Ho & Salimans 2022), free + scale * (wished - free); scale 1 is
    `wished` alone.

    Rolling Forcing writes wished + s * (wished - free) in its DMD: its s = 3 is scale 4."""

    def clean(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        base = free(noisy_BTCHW, sigma_BT)
        return base + scale * (wished(noisy_BTCHW, sigma_BT) - base)

    return clean
