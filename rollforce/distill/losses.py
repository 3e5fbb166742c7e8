"""Losses: pure functions of tensors and scores."""

from __future__ import annotations

import torch
from torch import Tensor

from rollforce import flow
from rollforce.distill.scores import Score


def velocity(
    predicted_BTCHW: Tensor, clean_BTCHW: Tensor, noise_BTCHW: Tensor, weight_BT: Tensor | None = None
) -> Tensor:
    """Flow matching: mean squared error of the velocity noise - clean. `weight_BT` 0 leaves a latent out."""
    error = (predicted_BTCHW - (noise_BTCHW - clean_BTCHW)).square().mean((2, 3, 4))
    if weight_BT is None:
        return error.mean()
    weight = weight_BT.expand_as(error)
    return (error * weight).sum() / weight.sum()


def dmd(
    x_BTCHW: Tensor,
    teacher: Score,
    critic: Score,
    sigma_BT: Tensor,
    noise_BTCHW: Tensor,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Distribution matching distillation (Yin et al. 2024, as in Self Forcing): a loss whose gradient moves x along
    critic - teacher.

    With both scores' clean estimates of the noised x, per video: g = (critic - teacher) / mean|x - teacher|;
    loss = mean over videos of weight * mean((x - stopgrad(x - g))^2) / 2, so d loss / d x = weight * g / numel(x).
    `weight_B` makes videos count more, for example exp(beta * reward).
    """
    x = x_BTCHW.float()
    with torch.no_grad():
        noisy = flow.noised(x, noise_BTCHW.float(), sigma_BT)
        wanted = teacher(noisy, sigma_BT).float()
        scale = (x - wanted).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
        target = x - (critic(noisy, sigma_BT).float() - wanted) / scale
    per_video = 0.5 * (x - target).square().mean((1, 2, 3, 4))
    return (per_video if weight_B is None else per_video * weight_B).mean()
