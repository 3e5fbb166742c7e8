"""The outlines of the four shapes, as depth below the outline in units of the radius (negative outside)."""

from __future__ import annotations

from math import cos, hypot, pi, sin, sqrt

import numpy as np

STAR_OUTER, STAR_INNER = 1.2, 0.58


def depth(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return how deep the points (u right, v down; broadcast together) lie inside `shape`; 0 on the outline."""
    return {"ball": _ball, "box": _box, "star": _star, "heart": _heart}[shape](u, v)


def _ball(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 1 - np.sqrt(u * u + v * v)


def _box(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    half, corner = 0.88, 0.08
    du, dv = np.abs(u) - half + corner, np.abs(v) - half + corner
    outside = np.sqrt(np.maximum(du, 0) ** 2 + np.maximum(dv, 0) ** 2)
    return corner - outside - np.minimum(np.maximum(du, dv), 0)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points, one upward. The plane is folded onto one half of one point, whose outline is a straight line."""
    across, up = np.abs(u), -(v + 0.06)
    for angle in (3 * pi / 5, pi / 5):  # from upward to the notches: mirror what lies beyond them
        beyond = np.maximum(across * cos(angle) - up * sin(angle), 0)
        across, up = across - 2 * cos(angle) * beyond, up + 2 * sin(angle) * beyond
    across = np.abs(across)
    run, rise = STAR_INNER * sin(pi / 5), STAR_INNER * cos(pi / 5) - STAR_OUTER  # from the tip to the notch
    return (across * rise - (up - STAR_OUTER) * run) / hypot(run, rise)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a square standing on its corner and a disc on each of its upper sides."""
    half = 0.66
    u, v = np.abs(u), v - 0.02
    diagonal = sqrt(0.5)
    p, q = (u + v) * diagonal, (u - v) * diagonal
    square = half - np.maximum(np.abs(p), np.abs(q))
    disc = half - np.sqrt((q - half) ** 2 + p**2)
    return np.maximum(square, disc)
