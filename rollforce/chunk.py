"""Chunk: what a stream hands out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rollforce.cues import Event

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Timings:
    """Seconds spent on one chunk."""

    denoise_s: float
    decode_s: float


@dataclass(frozen=True)
class Chunk:
    """Decoded pictures: frames uint8 [F, H, W, 3]; pts = seconds from the start to the first one.

    `prompt`: in force when it was finished; `events`: what became of cues with it."""

    frames: np.ndarray
    index: int
    pts: float
    prompt: str
    timings: Timings = field(default_factory=lambda: Timings(0.0, 0.0))
    events: tuple[Event, ...] = ()
