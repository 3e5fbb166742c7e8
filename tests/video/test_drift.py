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


def held(meter: DriftMeter) -> int:
    return sum(value.nbytes for value in meter.state_dict().values())


def test_a_day_takes_no_more_memory_than_two_windows() -> None:
    meter, frames = DriftMeter(fps=12), clip(96)
    meter.add(frames)
    meter.add(frames[:24])
    ten_seconds = held(meter)
    hour = np.tile(frames[:, :8, :8], (3600 // 8, 1, 1, 1))
    long = DriftMeter(fps=12)
    long.add(frames[:60, :8, :8])
    long.add(hour)
    assert len(long.state_dict()["rows"]) == 120 and held(long) < ten_seconds
    rows = np.random.default_rng(0).random((24 * 3600 * 12, 5), np.float32)
    day = DriftMeter(fps=12)
    day.load_state_dict({"rows": rows, "last": meter.state_dict()["last"]})  # as it was kept once, row by row
    assert held(day) == ten_seconds
    found = day.result()
    assert found is not None
    means = [part.mean(0) + 1e-3 for part in (rows[:60], rows[-60:])]
    np.testing.assert_allclose(list(found.ratios().values()), means[1] / means[0], atol=1e-4)


@pytest.mark.parametrize("count", [4, 7, 59, 60, 119, 120, 121, 240])
def test_windows_are_halves_until_there_are_two(count: int) -> None:
    frames = np.random.default_rng(count).integers(0, 255, (count, 8, 8, 3)).astype(np.uint8)
    meter = DriftMeter(fps=12)
    for start in range(0, count, 7):
        meter.add(frames[start : start + 7])
    found, window = meter.result(), min(60, count // 2)
    assert found is not None and found.window_s == round(window / 12, 3)
    luma = frames.astype(np.float32) / 255 @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    first, last = luma[:window].mean(), luma[-window:].mean()
    assert found.luma == pytest.approx((last + 1e-3) / (first + 1e-3), abs=2e-4)


def test_it_goes_on_from_what_was_kept() -> None:
    frames, whole, parts = clip(200), DriftMeter(fps=12), DriftMeter(fps=12)
    whole.add(frames)
    parts.add(frames[:130])
    again = DriftMeter(fps=12)
    again.load_state_dict(parts.state_dict())
    again.add(frames[130:])
    assert again.result() == whole.result()
