"""Naming a motion from where a thing was seen: every kind of motion is fitted to the track, the best fit wins."""

from __future__ import annotations

import numpy as np

from rollforce.world.scenes import GAP, WIDEST

ROLLING_HEIGHT = 0.56  # travelling things whose middle is lower roll, the others drift
TOLERANCE = 0.085  # rms distance in picture widths up to which a fit is believed
OUTLIER = 0.15  # no single frame counts for more than this distance


def name_motion(seconds: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[str | None, float]:
    """Return the motion of a thing that was at (x, y) [N] at `seconds` [N], and how far off the fit is, rms in widths.

    The name is one of MOTIONS, "rests", or None if nothing fits. Speeds and periods may be 25 % off.
    """
    t = seconds - seconds.mean()
    rests = _rms(x - np.median(x), y - np.median(y))
    fits = [("rests", rests), ("bounces", _bounce(t, x, y)), ("circles", _circle(t, x, y))]
    verb = "rolls" if np.median(y) > ROLLING_HEIGHT else "drifts"
    fits += [(f"{verb} {way}", _travel(t, x, y, sign)) for way, sign in (("right", 1), ("left", -1))]
    name, error = min(fits, key=lambda fit: fit[1])
    return (name if error < TOLERANCE else None), error


def _rms(dx: np.ndarray, dy: np.ndarray) -> float:
    return float(np.sqrt(np.minimum(dx**2 + dy**2, OUTLIER**2).mean()))


def _travel(t: np.ndarray, x: np.ndarray, y: np.ndarray, sign: int) -> float:
    """Straight and level, coming in again on the other side after a lap."""
    best = np.inf
    for lap in (1 + 2 * WIDEST * radius + GAP for radius in (0.15, 0.18)):
        for speed in (0.15, 0.175, 0.2, 0.225, 0.25):
            turn = 2 * np.pi * (x - sign * speed * t) / lap
            start = np.angle(np.exp(1j * turn).mean())
            off = np.angle(np.exp(1j * (turn - start))) * lap / (2 * np.pi)
            best = min(best, _rms(off - np.median(off), y - np.median(y)))
    return best


def _circle(t: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """One round in 4.75 to 7.25 s, either way, at least 0.08 wide."""
    best, one = np.inf, np.ones_like(t)
    for period in np.arange(4.75, 7.3, 0.25):
        for way in (1, -1):
            cos, sin = np.cos(2 * np.pi * t / period), way * np.sin(2 * np.pi * t / period)
            zero = np.zeros_like(t)
            table = np.concatenate([np.stack([one, zero, cos, -sin], 1), np.stack([zero, one, sin, cos], 1)])
            middle_x, middle_y, a, b = np.linalg.lstsq(table, np.concatenate([x, y]), rcond=None)[0]
            reach = np.hypot(a, b)
            scale = np.clip(reach, 0.08, 0.32) / max(reach, 1e-9)
            a, b = a * scale, b * scale
            best = min(best, _rms(x - middle_x - a * cos + b * sin, y - middle_y - a * sin - b * cos))
    return best


def _bounce(t: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Parabolas of 2.0 to 3.3 s, at least 0.1 high, while x sways slowly."""
    slope = np.clip(np.polyfit(t, x, 1)[0], -0.12, 0.12)
    dx = x - slope * t
    dx = dx - np.median(dx)
    best = np.inf
    for period in np.arange(2.0, 3.35, 0.1):
        beat = (t[None] / period + np.arange(24)[:, None] / 24) % 1.0
        arc = 4 * beat * (1 - beat)
        arc = arc - arc.mean(1, keepdims=True)
        height = -(arc * y).sum(1, keepdims=True) / (arc**2).sum(1, keepdims=True)
        dy = y - y.mean() + np.clip(height, 0.1, 0.5) * arc
        errors = np.minimum(dx**2 + dy**2, OUTLIER**2).mean(1)
        best = min(best, float(np.sqrt(errors.min())))
    return best
