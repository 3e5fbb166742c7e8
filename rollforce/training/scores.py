"""Scores: what a network believes the clean video is. `Score = (noisy, sigma_BT) -> clean estimate`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rollforce.engine import flow
from rollforce.models.transformer.transformer import Condition, VideoTransformer

Score = Callable[[Tensor, Tensor], Tensor]
Level = Callable[[Tensor], Tensor]
"""The noise level that is computed with, of the one a network is told. They are the same but in the reference."""


def exact(sigma_BT: Tensor) -> Tensor:
    """The level as it is."""
    return sigma_BT


def looked_up(shift: float, entries: int = 1000) -> Level:
    """The reference's habit, for comparison: the nearest of `entries` shifted levels, none of which is 0.

    As released, noise is added by the table of shift 5 and undone by that of shift 8."""
    even = 1 - torch.arange(entries, dtype=torch.float64) / entries
    table = shift * even / (1 + (shift - 1) * even)

    def level(sigma_BT: Tensor) -> Tensor:
        nearest = (table.to(sigma_BT.device) - sigma_BT.double()[..., None]).abs().argmin(-1)
        return table.to(sigma_BT.device)[nearest].to(sigma_BT.dtype)

    return level


def score_of(model: VideoTransformer, condition: Condition, level: Level = exact) -> Score:
    """The clean estimate of a transformer that sees all latents of the video together."""

    def clean(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        index = torch.arange(noisy_BTCHW.shape[1], device=noisy_BTCHW.device)
        velocity = model(noisy_BTCHW, sigma_BT, index, condition)
        return flow.clean_of(noisy_BTCHW, velocity, level(sigma_BT))

    return clean


def guided(wished: Score, free: Score, scale: float) -> Score:
    """Classifier-free guidance (Ho & Salimans 2022): free + scale * (wished - free). Scale 1 is `wished` alone.

    Rolling Forcing writes wished + s * (wished - free) in its DMD: its s = 3 is scale 4."""

    def clean(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        base = free(noisy_BTCHW, sigma_BT)
        return base + scale * (wished(noisy_BTCHW, sigma_BT) - base)

    return clean
