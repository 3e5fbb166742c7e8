"""Measures of a video that need no prompt: drift, seams and flicker. Grey levels are 0..255."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rollforce.world.scenes import FPS

BLOCK = 240  # frames worked on at once, so that memory does not grow with the video


@dataclass(frozen=True)
class Drift:
    """Relative change of the last seconds against the first, 0.1: 10 % more. `motion`: mean frame difference."""

    luma: float
    saturation: float
    sharpness: float
    contrast: float
    motion: float


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


def drift(frames: np.ndarray, seconds: float = 5.0, fps: float = FPS) -> Drift:
    """The last `seconds` of uint8 [F, H, W, 3] against the first; halves if the video is shorter than both."""
    count = min(round(seconds * fps), len(frames) // 2)
    first, last = _looks(frames[:count]), _looks(frames[-count:])
    return Drift(*(float((b - a) / max(abs(a), 1e-6)) for a, b in zip(first, last, strict=True)))


def _looks(frames: np.ndarray) -> tuple[float, float, float, float, float]:
    x = frames.astype(np.float32)
    luma = x @ np.array([0.299, 0.587, 0.114], np.float32)
    saturation = (x.max(-1) - x.min(-1)).mean()
    inner = luma[:, 1:-1, 1:-1]
    edges = 4 * inner - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1] - luma[:, 1:-1, :-2] - luma[:, 1:-1, 2:]
    motion = np.abs(np.diff(x, axis=0)).mean() if len(x) > 1 else 0.0
    return (float(luma.mean()), float(saturation), float(np.abs(edges).mean()), float(luma.std((1, 2)).mean()),
            float(motion))


def differences(frames: np.ndarray) -> np.ndarray:
    """Mean |difference| between each frame and the next: [F - 1]."""
    parts = [np.abs(np.diff(block.astype(np.int16), axis=0)).mean((1, 2, 3)) for block in _blocks(frames, 1)]
    return np.concatenate(parts) if parts else np.zeros(0)


def seams(frames: np.ndarray, chunk: int = 12, latent: int = 4) -> Seams:
    """Frame differences of uint8 [F, H, W, 3] at the borders of chunks and latents, given in frames."""
    change = differences(frames)
    after = np.arange(1, len(frames))
    at_chunk, at_latent = after % chunk == 0, after % latent == 0
    groups = (at_chunk, at_latent & ~at_chunk, ~at_latent)
    return Seams(*(float(change[group].mean()) if group.any() else None for group in groups))


def flicker(frames: np.ndarray, moving: np.ndarray | None = None) -> float | None:
    """Mean second difference |x(t-1) - 2 x(t) + x(t+1)| of uint8 [F, H, W, 3] where nothing moves.

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


def _blocks(frames: np.ndarray, overlap: int) -> Iterator[np.ndarray]:
    for at in range(0, len(frames) - overlap, BLOCK):
        yield frames[at : at + BLOCK + overlap]


def _ratio(value: float | None, inside: float | None) -> float | None:
    return None if value is None or inside is None else value / max(inside, 1e-6)
