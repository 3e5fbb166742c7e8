"""One whole stream, judged: as a whole, its first and last 10 s, and window by window of 5 s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rollforce.world.caption import Wish
from rollforce.world.eyes import Eyes
from rollforce.world.identity import identity, sameness
from rollforce.world.oracle import drift_curve, judge
from rollforce.world.perception import slice_output, windows
from rollforce.world.scenes import FPS

ENDS_S = 10  # the first and last seconds that are compared in longer videos
WINDOW_S = 5
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Judgement:
    """Numbers of the whole stream; of "first_10s" and "last_10s" if it has 20 s; of every 5 s if it has 10 s. In
    `curve`, the `drift.*` are ratios to the first window, and `identity` is whether the things are the first ones."""

    whole: Numbers
    ends: dict[str, Numbers]
    curve: list[Numbers]
    seen: str


def judge_stream(video: np.ndarray, wish: Wish, eyes: Eyes, chunk: int = 12, latent: int = 4) -> Judgement:
    """Judge uint8 [F, H, W, 3] (12 fps) against `wish`; `chunk` and `latent` are lengths in frames."""
    look, end = eyes.look(video), ENDS_S * FPS

    def numbers(part: slice) -> Numbers:
        return judge(video[part], slice_output(look, part), wish, chunk, latent).numbers()

    report = judge(video, look, wish, chunk, latent)
    long = len(video) >= 2 * end
    ends = {"first_10s": slice(0, end), "last_10s": slice(len(video) - end, len(video))} if long else {}
    at = windows(len(video), WINDOW_S)
    curve = [numbers(part) for part in at] if len(at) > 1 else []
    for row, drift in zip(curve, drift_curve(video, at), strict=False):
        row |= {f"drift.{name}": ratio for name, ratio in drift.items()}
    for row, same in zip(curve, sameness(look), strict=False):
        row["identity"] = float(same)
    return Judgement(report.numbers() | identity(look), {name: numbers(part) for name, part in ends.items()}, curve,
                     report.seen)


def seams_to_real(ours: Mapping[str, float | None], real: Mapping[str, float | None]) -> Numbers:
    """Return the frame differences at borders, divided by those of real video through the autoencoder."""
    pairs = {name: (ours[name], real[name]) for name in ("seams.chunk", "seams.latent")}
    return {f"{name}_to_real": here / max(there, 1e-6) if here is not None and there else None
            for name, (here, there) in pairs.items()}
