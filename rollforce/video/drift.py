"""Does a long video stay itself? Five plain measures of every frame, and how they moved from its start to its end.

They know nothing of any model or world: a user can watch for colour creep, blur and dying motion in any stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_STEP = 16  # frames measured together: bounds the float copy


@dataclass(frozen=True)
class Drift:
    """Ratios of the end to the start: 1 means unchanged. `window_s` is the length of what was compared at each end."""

    luma: float
    saturation: float
    sharpness: float
    contrast: float
    motion: float
    window_s: float

    def ratios(self) -> dict[str, float]:
        """Return the measures by name, without the window."""
        return {name: ratio for name, ratio in asdict(self).items() if name != "window_s"}

    def line(self) -> str:
        """Return one line for people."""
        changes = " · ".join(f"{name} {100 * (ratio - 1):+.1f} %" for name, ratio in self.ratios().items())
        return f"{changes} (last {self.window_s:g} s against first {self.window_s:g} s)"


class DriftMeter:
    """Compares the last `window_s` seconds of a video, measured chunk by chunk, with the first, or halves of a shorter
    one. Memory is constant: five numbers for each frame of the two windows, and the last frame."""

    def __init__(self, fps: float, window_s: float = 5.0) -> None:
        self._fps, self._window = fps, round(window_s * fps)
        self._rows = np.zeros((0, 5), np.float32)  # all frames; of a long video those of both windows
        self._last: np.ndarray | None = None

    def add(self, frames_FHWC: np.ndarray) -> None:
        """Measure uint8 frames [F, H, W, 3] that follow those added before."""
        for start in range(0, len(frames_FHWC), _STEP):
            self._keep(self._measure(frames_FHWC[start : start + _STEP]))

    def result(self) -> Drift | None:
        """Return the drift so far, or None below four frames."""
        count = min(self._window, len(self._rows) // 2)
        if count < 2:
            return None
        start, end = (np.nanmean(part, axis=0) for part in (self._rows[:count], self._rows[-count:]))
        ratios = (end + 1e-3) / (start + 1e-3)  # the constant keeps a still or black video at 1
        luma, saturation, sharpness, contrast, motion = (round(float(ratio), 4) for ratio in ratios)
        return Drift(luma, saturation, sharpness, contrast, motion, round(count / self._fps, 3))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return what is held, float32: rows [at most 2 windows, 5] and, if any, the last frame's luma [1, H, W]."""
        return {"rows": self._rows} | ({} if self._last is None else {"last": self._last})

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on measuring from a `state_dict`; one that holds rows of every frame is taken too."""
        self._rows, self._last = np.zeros((0, 5), np.float32), state.get("last")
        self._keep(state["rows"])

    def _keep(self, rows: np.ndarray) -> None:
        rows = np.concatenate([self._rows, rows])
        long = len(rows) > 2 * self._window
        self._rows = np.concatenate([rows[: self._window], rows[-self._window :]]) if long else rows

    def _measure(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Columns: luma, saturation, sharpness (Laplacian), contrast, motion (change since the frame before)."""
        pictures = frames_FHWC.astype(np.float32) / 255
        luma = pictures @ _LUMA
        edges = np.abs(4 * luma[:, 1:-1, 1:-1] - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1] - luma[:, 1:-1, :-2]
                       - luma[:, 1:-1, 2:])
        before = luma[:1] * np.nan if self._last is None else self._last
        change = np.abs(luma - np.concatenate([before, luma[:-1]]))
        self._last = luma[-1:]
        red, green, blue = np.moveaxis(pictures, -1, 0)  # numpy is slow along an axis of three
        saturation = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
        means = [each.mean(axis=(1, 2)) for each in (luma, saturation, edges, change)]
        return np.stack([*means[:3], luma.std(axis=(1, 2)), means[3]], axis=1)
