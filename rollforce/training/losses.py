"""Losses: pure functions of tensors and scores.

Weights are given, never made here: `weight` is anything that broadcasts over the video, such as exp(beta * reward) per
video [B, 1, 1, 1, 1] (Re-DMD) or a map in space and time [B, T, 1, h, w] (Stream-R1); see rewards.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rollforce.engine import flow
from rollforce.models.transformer.transformer import Condition, VideoTransformer


def velocity(predicted_BTCHW: Tensor, clean_BTCHW: Tensor, noise_BTCHW: Tensor,
             weight_BT: Tensor | None = None) -> Tensor:  # fmt: skip
    """Return the mean squared error of the velocity noise - clean (flow matching). `weight_BT` 0: latent left out."""
    error = (predicted_BTCHW - (noise_BTCHW - clean_BTCHW)).square().mean((2, 3, 4))
    if weight_BT is None:
        return error.mean()
    weight = weight_BT.expand_as(error)
    return (error * weight).sum() / weight.sum()


def regression(predicted_BTCHW: Tensor, target_BTCHW: Tensor, learns_BT: Tensor | None = None) -> Tensor:
    """Return the mean squared error of clean estimates, where `learns_BT` is true (ODE pairs, consistency)."""
    return _mean((predicted_BTCHW - target_BTCHW).float().square(), None, learns_BT)


def _mean(error_BTCHW: Tensor, weight: Tensor | None, learns_BT: Tensor | None) -> Tensor:
    error = error_BTCHW if weight is None else error_BTCHW * weight
    return error.mean() if learns_BT is None else error[learns_BT.expand(error.shape[:2])].mean()


def dmd(x_BTCHW: Tensor, teacher: Score, critic: Score, sigma_BT: Tensor, noise_BTCHW: Tensor,
        weight: Tensor | None = None, learns_BT: Tensor | None = None) -> Tensor:  # fmt: skip
    """Distribution matching distillation (Yin et al. 2024, as in Self Forcing): its gradient is along critic - teacher.

    With both scores' clean estimates of the noised x, per video: g = (critic - teacher) / mean|x - teacher|;
    loss = mean of weight * (x - stopgrad(x - g))^2 / 2 over the latents where `learns_BT` is true (None: all), so
    d loss / d x = weight * g / count."""
    x = x_BTCHW.float()
    with torch.no_grad():
        noisy = flow.noised(x, noise_BTCHW.float(), sigma_BT)
        wanted = teacher(noisy, sigma_BT).float()
        scale = (x - wanted).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
        target = x - (critic(noisy, sigma_BT).float() - wanted) / scale
    return _mean(0.5 * (x - target).square(), weight, learns_BT)


def sid(x_BTCHW: Tensor, teacher: Score, critic: Score, sigma_BT: Tensor, noise_BTCHW: Tensor,
        weight: Tensor | None = None, learns_BT: Tensor | None = None, alpha: float = 1.0) -> Tensor:  # fmt: skip
    """Score identity distillation (Zhou et al. 2024, as in Self Forcing): with r, f the clean estimates of teacher and
    critic, mean of (r - f) * ((r - x) - alpha * (r - f)) / mean|x - r|.

    The gradient passes through both networks into x, so their parameters should not require one."""
    x = x_BTCHW.float()
    noisy = flow.noised(x, noise_BTCHW.float(), sigma_BT)
    real, fake = teacher(noisy, sigma_BT).float(), critic(noisy, sigma_BT).float()
    scale = (x - real).detach().abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
    return _mean((real - fake) * ((real - x) - alpha * (real - fake)) / scale, weight, learns_BT)


# -- scores: what a network believes the clean video is ----------------------------------------------------------------


Score = Callable[[Tensor, Tensor], Tensor]
"""(noisy [B, T, C, h, w], sigma [B, T]) -> the clean estimate, in the shape of the noisy video."""


def score_of(model: VideoTransformer, condition: Condition) -> Score:
    """Return the score of a transformer that sees all latents of the video together."""

    def clean(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        index = torch.arange(noisy_BTCHW.shape[1], device=noisy_BTCHW.device)
        return flow.clean_of(noisy_BTCHW, model(noisy_BTCHW, sigma_BT, index, condition), sigma_BT)

    return clean


def guide(wished: Score, free: Score, scale: float) -> Score:
    """Return the score of classifier-free guidance (Ho & Salimans 2022), free + scale * (wished - free).

    Rolling Forcing writes wished + s * (wished - free) in its DMD: its s = 3 is scale 4."""

    def clean(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        base = free(noisy_BTCHW, sigma_BT)
        return base + scale * (wished(noisy_BTCHW, sigma_BT) - base)

    return clean
