"""What a training window looks like: which chunk has which noise, and who may see whom.

The rolling student meets three pictures: clean chunks behind it and noise rising ahead; the same with more past; and,
when a stream fills, a few chunks with no past. Two such fillings share a window, hidden from each other, so that all
windows have one length and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollforce.engine.schedule import shift_level
from rollforce.training.masks import additive

SHIFT = 3.0


@dataclass(frozen=True)
class Noising:
    """sigma [B, T]; additive mask [L, L] or None; weight [T]: 1 where the loss counts, 0 on clean context."""

    sigma_BT: Tensor
    mask: Tensor | None
    weight_T: Tensor


@dataclass(frozen=True)
class Group:
    """Consecutive chunks that see each other: `clean` ones (each seeing those before it), then `noisy` ones."""

    clean: int
    noisy: int


PATTERNS: dict[str, tuple[Group, ...]] = {
    "past": (Group(1, 4),),
    "long past": (Group(2, 3),),
    "filling 1+4": (Group(0, 1), Group(0, 4)),
    "filling 2+3": (Group(0, 2), Group(0, 3)),
}


def together(rng: np.random.Generator, batch: int, latents: int) -> Noising:
    """One noise level for all latents of a video, spread evenly over the batch: the bidirectional teacher."""
    even = (np.arange(batch) + rng.random(batch)) / batch
    sigma = torch.tensor([[shift_level(float(s), SHIFT)] * latents for s in even], dtype=torch.float32)
    return Noising(sigma, None, torch.ones(latents))


def rolling(
    rng: np.random.Generator, batch: int, groups: Sequence[Group], chunk: int, tokens: int, ladder: Sequence[float]
) -> Noising:
    """Rising noise as a rolling stream has it: on the ladder for half of the videos, between its steps for others.

    `chunk`: latents per chunk; `tokens`: per latent."""
    rows = []
    for _ in range(batch):
        levels: list[float] = []
        for group in groups:
            levels += [0.0] * group.clean + _rising(rng, group, ladder)
        rows.append(np.repeat(levels, chunk))
    sigma = torch.tensor(np.array(rows), dtype=torch.float32)
    return Noising(sigma, additive(visible(groups, chunk * tokens)), (sigma[0] > 0).float())


def _rising(rng: np.random.Generator, group: Group, ladder: Sequence[float]) -> list[float]:
    up = sorted(ladder)
    if rng.random() < 0.5:
        spare = len(up) - group.noisy
        at = int(rng.integers(spare + 1)) if group.clean else spare  # a filling stream has the noisiest levels
        return up[at : at + group.noisy]
    return sorted(shift_level(float(s), SHIFT) for s in rng.uniform(0.02, 1, group.noisy))


def visible(groups: Sequence[Group], tokens_per_chunk: int) -> Tensor:
    """bool [L, L]: True where the row's token may see the column's."""
    numbers, noisy = [], []
    for number, group in enumerate(groups):
        numbers += [number] * (group.clean + group.noisy)
        noisy += [False] * group.clean + [True] * group.noisy
    same = torch.tensor(numbers)[:, None] == torch.tensor(numbers)
    order = torch.arange(len(numbers))
    seen = same & (torch.tensor(noisy)[:, None] | (order[:, None] >= order))
    return seen.repeat_interleave(tokens_per_chunk, 0).repeat_interleave(tokens_per_chunk, 1)


def levels(
    rng: np.random.Generator, batch: int, latents: int, shift: float = 3.0, clamp: tuple[float, float] = (0.02, 0.98)
) -> Tensor:
    """One noise level per video, spread evenly over the batch, shifted towards noise, clamped: [B, T]."""
    even = (np.arange(batch) + rng.random(batch)) / batch
    level = torch.tensor([shift_level(float(s), shift) for s in even], dtype=torch.float32).clamp(*clamp)
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
