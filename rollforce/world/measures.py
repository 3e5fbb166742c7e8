"""Measures of a video that need no prompt: seams, flicker, and drift over time. Grey levels are 0..255."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rollforce.video.drift import DriftMeter

BLOCK = 240  # frames worked on at once, so that memory does not grow with the video


@dataclass(frozen=True)
class Seams:
    """Mean |frame difference| in grey levels at chunk borders, at the other latent borders and inside latents.

    None where the video has no such border. The ratios are against `inside`; 1 means no seam.
    """

    chunk: float | None
    latent: float | None
    inside: float | None

    @property
    def chunk_ratio(self) -> float | None:
        return _ratio(self.chunk, self.inside)

    @property
    def latent_ratio(self) -> float | None:
        return _ratio(self.latent, self.inside)


def differences(frames: np.ndarray) -> np.ndarray:
    """Return the mean |difference| between each frame and the next: [F - 1]."""
    parts = [np.abs(np.diff(block.astype(np.int16), axis=0)).mean((1, 2, 3)) for block in _blocks(frames, 1)]
    return np.concatenate(parts) if parts else np.zeros(0)


def seams(frames: np.ndarray, chunk: int = 12, latent: int = 4) -> Seams:
    """Return the frame differences of uint8 [F, H, W, 3] at the borders of chunks and latents, given in frames."""
    change = differences(frames)
    after = np.arange(1, len(frames))
    at_chunk, at_latent = after % chunk == 0, after % latent == 0
    groups = (at_chunk, at_latent & ~at_chunk, ~at_latent)
    return Seams(*(float(change[group].mean()) if group.any() else None for group in groups))


def flicker(frames: np.ndarray, moving: np.ndarray | None = None) -> float | None:
    """Return the mean second difference |x(t-1) - 2 x(t) + x(t+1)| of uint8 [F, H, W, 3] where nothing moves.

    `moving` [F, H, W] marks what to leave out around t. None for fewer than 3 frames or if something moves everywhere.
    """
    total = pixels = 0.0
    for at, block in enumerate(_blocks(frames, 2)):
        x = block.astype(np.int16)
        second = np.abs(x[:-2] - 2 * x[1:-1] + x[2:]).mean(-1)
        still = np.ones(second.shape, bool)
        if moving is not None:
            still = ~moving[at * BLOCK + 1 : at * BLOCK + 1 + len(second)]
        total += float(second[still].sum())
        pixels += float(still.sum())
    return total / pixels if pixels else None


def drift_curve(frames: np.ndarray, parts: Sequence[slice]) -> list[dict[str, float]]:
    """Return how each of some equal `parts` of uint8 [F, H, W, 3] differs from the first: `Drift`'s ratios."""
    change = [float(differences(frames[part]).mean()) for part in parts]
    curve = []
    for part, motion in zip(parts, change, strict=True):
        meter = DriftMeter(fps=1, window_s=len(frames[part]))
        meter.add(frames[parts[0]])
        meter.add(frames[part])
        drift = meter.result()
        ratios = drift.ratios() if drift else {}
        curve.append(ratios | {"motion": (motion + 0.1) / (change[0] + 0.1)})  # without the jump from part to part
    return curve


def _blocks(frames: np.ndarray, overlap: int) -> Iterator[np.ndarray]:
    for at in range(0, len(frames) - overlap, BLOCK):
        yield frames[at : at + BLOCK + overlap]


def _ratio(value: float | None, inside: float | None) -> float | None:
    return None if value is None or inside is None else value / max(inside, 1e-6)
