"""Small measures of video for the training logs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def psnr(video_BFHWC: Tensor, truth_BFHWC: Tensor, weight_BFHW: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of videos in 0..1, over all pixels or weighted ones."""
    error = (video_BFHWC.float() - truth_BFHWC.float()).square().mean(-1)
    if weight_BFHW is not None:
        error = (error * weight_BFHW).sum() / weight_BFHW.sum()
    return -10 * math.log10(float(error.mean()) + 1e-12)


def border_ratio(video_BFHWC: Tensor, every: int) -> float:
    """Mean |frame difference| where a new latent begins, divided by that inside latents of `every` frames."""
    step = (video_BFHWC[:, 1:].float() - video_BFHWC[:, :-1].float()).abs().mean(dim=(0, 2, 3, 4))
    border = torch.arange(1, video_BFHWC.shape[1]) % every == 0
    return float(step[border].mean() / step[~border].mean())
