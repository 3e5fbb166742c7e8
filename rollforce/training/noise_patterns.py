"""What a training window looks like: which chunk has which noise, and who may see whom.

The rolling student meets clean chunks behind it and noise rising ahead and, when a stream fills, a few chunks with no
past. Two such fillings share a window, hidden from each other: all windows have one length, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollforce.engine.flow import shift_level
from rollforce.errors import ConfigError
from rollforce.training.causal_masking import additive, per_token

SHIFT = 3.0


@dataclass(frozen=True)
class NoisePattern:
    """A window's noise: sigma [B, T]; additive mask [L, L] or None; weight [T], where the loss counts 1, else 0."""

    sigma_BT: Tensor
    mask: Tensor | None
    weight_T: Tensor


@dataclass(frozen=True)
class ChunkGroup:
    """Consecutive chunks that see each other: `clean` ones (each seeing those before it), then `noisy` ones."""

    clean: int
    noisy: int


PATTERNS: dict[str, tuple[ChunkGroup, ...]] = {"past": (ChunkGroup(1, 4),), "long past": (ChunkGroup(2, 3),),
                                               "filling 1+4": (ChunkGroup(0, 1), ChunkGroup(0, 4)),
                                               "filling 2+3": (ChunkGroup(0, 2), ChunkGroup(0, 3))}  # fmt: skip


def draw_level_per_video(rng: np.random.Generator, batch: int, latents: int) -> NoisePattern:
    """Draw one noise level for all latents of a video, spread evenly over the batch: the bidirectional teacher."""
    return NoisePattern(draw_levels(rng, batch, latents, SHIFT, (0, 1)), None, torch.ones(latents))


def draw_rolling(rng: np.random.Generator, batch: int, groups: Sequence[ChunkGroup], chunk: int, tokens: int,
                 ladder: Sequence[float]) -> NoisePattern:  # fmt: skip
    """Draw rising noise: on the ladder for half of the videos, between its steps for others. `tokens`: per latent."""
    if (most := max(group.noisy for group in groups)) > len(ladder):
        raise ConfigError(f"a window of {most} noisy chunks needs as many levels, and the stream's ladder has "
                          f"{len(ladder)}: choose another noising.stream or other shares.")
    rows = []
    for _ in range(batch):
        levels = [level for group in groups for level in [0.0] * group.clean + _rising(rng, group, ladder)]
        rows.append(np.repeat(levels, chunk))
    sigma = torch.tensor(np.array(rows), dtype=torch.float32)
    return NoisePattern(sigma, additive(visibility_mask(groups, chunk * tokens)), (sigma[0] > 0).float())


def _rising(rng: np.random.Generator, group: ChunkGroup, ladder: Sequence[float]) -> list[float]:
    up = sorted(ladder)
    if rng.random() < 0.5:
        spare = len(up) - group.noisy
        at = int(rng.integers(spare + 1)) if group.clean else spare  # a filling stream has the noisiest levels
        return up[at : at + group.noisy]
    return sorted(shift_level(float(s), SHIFT) for s in rng.uniform(0.02, 1, group.noisy))


def visibility_mask(groups: Sequence[ChunkGroup], tokens_per_chunk: int) -> Tensor:
    """Return a bool mask [L, L], true where the row's token may see the column's."""
    group, noisy = (torch.tensor(values) for values in zip(*(
        (number, place >= chunks.clean) for number, chunks in enumerate(groups)
        for place in range(chunks.clean + chunks.noisy)), strict=True))
    order = torch.arange(len(group))
    return per_token((group[:, None] == group) & (noisy[:, None] | (order[:, None] >= order)), tokens_per_chunk)


def draw_levels(rng: np.random.Generator, batch: int, latents: int, shift: float, clamp: tuple[float, float]) -> Tensor:
    """Draw one noise level per video, spread evenly over the batch, shift_level towards noise and clamped: [B, T]."""
    even = (np.arange(batch) + rng.random(batch)) / batch
    level = shift_level(torch.from_numpy(even), shift).float().clamp(*clamp)
    return level[:, None].expand(-1, latents)


def draw_window(video_BTCHW: Tensor, length: int, rng: np.random.Generator) -> Tensor:
    """Return `length` consecutive latents from a drawn place of a video, or all if there are no more."""
    at = int(rng.integers(max(0, video_BTCHW.shape[1] - length) + 1))
    return video_BTCHW[:, at : at + length]


def begin_with_image(video_BTCHW: Tensor, length: int, chunk: int,
                     image_latent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the end of a video, `length` latents made to look like a beginning, and where they learn, bool [B, T].

    A bidirectional teacher knows first latents that stand for one frame (Wan). As in Rolling Forcing, what comes before
    is decoded, its last frame encoded as an image, and that latent (no gradient) takes the first place; its chunk does
    not learn. `image_latent`: latents [B, T, C, h, w] -> the image latent [B, 1, C, h, w] of their last frame."""
    if video_BTCHW.shape[1] <= length:
        return video_BTCHW, torch.ones(video_BTCHW.shape[:2], dtype=torch.bool, device=video_BTCHW.device)
    with torch.no_grad():
        first = image_latent(video_BTCHW[:, : 1 - length])
    video = torch.cat([first, video_BTCHW[:, 1 - length :]], dim=1)
    return video, (torch.arange(length, device=video.device) >= chunk).expand(video.shape[:2])
