"""Does a long video stay itself? Five plain measures of every frame, and how they moved from its start to its end.

They know nothing of any model or world: a user can watch for colour creep, blur and dying motion in any stream.
"""

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
        """The measures by name, without the window."""
        return {name: ratio for name, ratio in asdict(self).items() if name != "window_s"}

    def line(self) -> str:
        """One line for people."""
        changes = " · ".join(f"{name} {100 * (ratio - 1):+.1f} %" for name, ratio in self.ratios().items())
        return f"{changes} (last {self.window_s:g} s against first {self.window_s:g} s)"


class DriftMeter:
    """Collects measures chunk by chunk; holds five numbers per frame and the last frame."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._rows: list[np.ndarray] = []
        self._last: np.ndarray | None = None

    def add(self, frames_FHWC: np.ndarray) -> None:
        """Measure uint8 frames [F, H, W, 3] that follow those added before."""
        for start in range(0, len(frames_FHWC), _STEP):
            self._rows.append(self._measure(frames_FHWC[start : start + _STEP]))

    def result(self, window_s: float = 5.0) -> Drift | None:
        """The last `window_s` seconds against the first, or halves of a shorter video; None below four frames."""
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, 5), np.float32)
        count = min(round(window_s * self._fps), len(rows) // 2)
        if count < 2:
            return None
        start, end = (np.nanmean(part, axis=0) for part in (rows[:count], rows[-count:]))
        ratios = (end + 1e-3) / (start + 1e-3)  # the constant keeps a still or black video at 1
        luma, saturation, sharpness, contrast, motion = (round(float(ratio), 4) for ratio in ratios)
        return Drift(luma, saturation, sharpness, contrast, motion, round(count / self._fps, 3))

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that was measured: rows [F, 5] and, if there is one, the luma of the last frame [1, H, W]; float32."""
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, 5), np.float32)
        return {"rows": rows} | ({} if self._last is None else {"last": self._last})

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on measuring from a `state_dict`."""
        self._rows, self._last = [state["rows"]], state.get("last")

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
