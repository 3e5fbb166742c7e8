"""How training shows what it has come to: samples of a teacher, error against the truth, seams between latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rollforce.engine import flow
from rollforce.engine.flow import linear, shift_level
from rollforce.training.data import TrainingBatch
from rollforce.training.network import Network


@torch.no_grad()
def sample(network: Network, noise_BTCHW: Tensor, prompts: Sequence[str], scale: float, steps: int,
           shift: float = 3.0) -> Tensor:  # fmt: skip
    """Return videos [B, T, C, h, w] of prompts by Euler's method, all latents together, with guidance
    free + scale * (wished - free) (Ho & Salimans 2022)."""
    x, index = noise_BTCHW, torch.arange(noise_BTCHW.shape[1], device=noise_BTCHW.device)
    wished, free = (network.condition(TrainingBatch(None, tuple(p))) for p in (prompts, [""] * len(prompts)))
    for now, later in pairwise([*(shift_level(s, shift) for s in linear(steps)), 0.0]):
        sigma = torch.full(x.shape[:2], now, device=x.device)
        base = network.transformer(x, sigma, index, free)
        velocity = base + scale * (network.transformer(x, sigma, index, wished) - base)
        x = flow.euler(x, velocity, sigma, torch.full_like(sigma, later))
    return x


def psnr(video_BFHWC: Tensor, truth_BFHWC: Tensor, weight_BFHW: Tensor | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB of videos in 0..1, over all pixels or weighted ones."""
    error = (video_BFHWC.float() - truth_BFHWC.float()).square().mean(-1)
    if weight_BFHW is not None:
        error = (error * weight_BFHW).sum() / weight_BFHW.sum()
    return -10 * math.log10(float(error.mean()) + 1e-12)


def border_ratio(video_BFHWC: Tensor, every: int) -> float:
    """Return the mean |frame difference| where a latent of `every` frames begins, divided by that inside latents."""
    step = (video_BFHWC[:, 1:].float() - video_BFHWC[:, :-1].float()).abs().mean(dim=(0, 2, 3, 4))
    border = torch.arange(1, video_BFHWC.shape[1]) % every == 0
    return float(step[border].mean() / step[~border].mean())
