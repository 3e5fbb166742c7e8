"""Which part of a student's video is judged, and at which noise level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rollforce.schedule import shifted


def levels(
    rng: np.random.Generator, batch: int, latents: int, shift: float = 3.0, clamp: tuple[float, float] = (0.02, 0.98)
) -> Tensor:
    """One noise level per video, spread evenly over the batch, shifted towards noise, clamped: [B, T]."""
    even = (np.arange(batch) + rng.random(batch)) / batch
    level = torch.tensor([shifted(float(s), shift) for s in even], dtype=torch.float32).clamp(*clamp)
    return level[:, None].expand(-1, latents)


def window(video_BTCHW: Tensor, length: int, rng: np.random.Generator) -> Tensor:
    """`length` consecutive latents at a drawn place; all if there are no more."""
    at = int(rng.integers(max(0, video_BTCHW.shape[1] - length) + 1))
    return video_BTCHW[:, at : at + length]


def as_beginning(
    video_BTCHW: Tensor, length: int, chunk: int, image_latent: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The last `length` latents of a longer video, made to look like a beginning, and where they learn, bool [B, T].

    A bidirectional teacher knows first latents that stand for one frame (Wan). As in Rolling Forcing, what comes before
    is decoded, its last frame encoded as an image, and that latent (no gradient) takes the first place; its chunk does
    not learn. `image_latent`: latents [B, T, C, h, w] -> the image latent [B, 1, C, h, w] of the last frame they show.
    """
    if video_BTCHW.shape[1] <= length:
        learns = torch.ones(video_BTCHW.shape[:2], dtype=torch.bool, device=video_BTCHW.device)
        return video_BTCHW, learns
    with torch.no_grad():
        first = image_latent(video_BTCHW[:, : 1 - length])
    video = torch.cat([first, video_BTCHW[:, 1 - length :]], dim=1)
    learns = torch.arange(length, device=video.device) >= chunk
    return video, learns.expand(video.shape[:2])
