"""The drift line notices what goes wrong in long videos, and only that."""

from __future__ import annotations

import numpy as np
import pytest

from rollforce.video.drift import Drift, DriftMeter


def clip(count: int = 240) -> np.ndarray:
    """A coloured pattern that slides one pixel per frame, uint8 [F, H, W, 3]."""
    y, x = np.mgrid[:32, :40]
    pattern = np.stack([128 + 60 * np.sin(x / 3), 120 + 50 * np.cos(y / 4), 90 + 40 * np.sin((x + y) / 5)], -1)
    return np.stack([np.roll(pattern, i, axis=1) for i in range(count)]).astype(np.uint8)


def measure(frames: np.ndarray, chunk: int = 12) -> Drift:
    meter = DriftMeter(fps=12)
    for start in range(0, len(frames), chunk):
        meter.add(frames[start : start + chunk])
    found = meter.result()
    assert found is not None
    return found


def test_an_even_video_does_not_drift() -> None:
    found = measure(clip())
    assert found.window_s == 5
    assert all(abs(ratio - 1) < 0.03 for ratio in found.ratios().values())


def test_chunking_does_not_matter() -> None:
    assert measure(clip(), 12) == measure(clip(), 7) == measure(clip(), 240)


@pytest.mark.parametrize("name", ["luma", "saturation", "sharpness", "motion"])
def test_each_fault_is_noticed_by_its_measure(name: str) -> None:
    frames = clip().astype(np.float32)
    late = frames[120:]
    if name == "luma":
        late *= 0.8
    elif name == "saturation":
        late[:] = 0.5 * late + 0.5 * late.mean(axis=-1, keepdims=True)
    elif name == "sharpness":
        late[:] = (late + np.roll(late, 1, 2) + np.roll(late, 2, 2) + np.roll(late, 3, 2)) / 4
    else:
        late[:] = late[:1]
    assert getattr(measure(frames.astype(np.uint8)), name) < 0.9


def test_short_and_still_videos_are_answered() -> None:
    meter = DriftMeter(fps=12)
    assert meter.result() is None
    meter.add(clip(3))
    assert meter.result() is None
    black = measure(np.zeros((48, 8, 8, 3), np.uint8))
    assert (black.luma, black.motion, black.window_s) == (1.0, 1.0, 2.0)
    assert "luma +0.0 %" in black.line() and "last 2 s against first 2 s" in black.line()
