"""What a clip shows: its things, each with its colour, shape and motion, from the sightings of single frames."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from rollforce.world.eyes import Detection, EyesOutput
from rollforce.world.scenes import COLOURS, FPS, GAP, SHAPES, WIDEST

WINDOW = 5.0  # seconds of track from which a motion is named
HOP = 2.5
SEEN_OFTEN = 0.1  # a thing that fewer frames show than this share was not there
ROLLING_HEIGHT = 0.56  # travelling things whose middle is lower roll, the others drift
TOLERANCE = 0.085  # rms distance in picture widths up to which a fit is believed
OUTLIER = 0.15  # no single frame counts for more than this distance


@dataclass(frozen=True)
class TrackedThing:
    """One thing over a whole clip: what it is, and per frame what it looked like (indices; -1 not seen, 4 torn)."""

    colour: str
    shape: str | None
    motion: str | None
    colours: np.ndarray
    shapes: np.ndarray
    motions: tuple[str | None, ...]
    torn: float | None


def slice_output(look: EyesOutput, frames: slice) -> EyesOutput:
    """Return what was seen in some of the frames."""
    return EyesOutput(look.place[frames], look.time[frames], look.things[frames])


def windows(frames: int, seconds: float) -> list[slice]:
    """Return a video's frames in windows of `seconds`; a shorter rest at the end is left out."""
    length = round(seconds * FPS)
    return [slice(at, at + length) for at in range(0, frames - length + 1, length)]


def pick_commonest(values: np.ndarray) -> int:
    """Return the commonest of some small numbers."""
    return int(np.bincount(values).argmax())


def count_things(look: EyesOutput) -> int:
    """Return how many things most frames show."""
    return pick_commonest(np.array([len(things) for things in look.things]))


def track_things(look: EyesOutput, count: int) -> list[TrackedThing]:
    """Return the `count` things of the clip: a track if there is one, else one per colour that is there most."""
    if np.mean([len(things) > 0 for things in look.things]) < SEEN_OFTEN:
        return []
    if count <= 1:
        return [_describe_track([max(things, key=lambda s: s.heat, default=None) for things in look.things])]
    presence = Counter(int(s.colour.argmax()) for things in look.things for s in things)
    mine = ([[s for s in things if int(s.colour.argmax()) == colour] for things in look.things]
            for colour, _ in presence.most_common(count))
    return [_describe_track([max(found, key=lambda s: s.heat, default=None) for found in track]) for track in mine]


def _describe_track(track: list[Detection | None]) -> TrackedThing:
    colours = np.array([-1 if s is None else int(s.colour.argmax()) for s in track])
    shapes = np.array([-1 if s is None or s.shape is None else int(s.shape.argmax()) for s in track])
    colour = COLOURS[int(np.mean([s.colour for s in track if s is not None], 0).argmax())]
    shape, torn = None, None
    if named := [s.shape for s in track if s is not None and s.shape is not None]:
        mean = np.mean(named, 0)
        shape, torn = SHAPES[int(mean[: len(SHAPES)].argmax())], float(mean[len(SHAPES)])
    motions = _name_motions(track)
    votes = Counter(name for name, _ in motions if name)
    motion = max(votes, key=lambda m: (votes[m], -np.mean([e for n, e in motions if n == m])), default=None)
    return TrackedThing(colour, shape, motion, colours, shapes, tuple(name for name, _ in motions), torn)


def _name_motions(track: list[Detection | None]) -> list[tuple[str | None, float]]:
    """Return the motion in each window of 5 s (or the whole shorter clip); windows that show too little are skipped."""
    length, hop = min(round(WINDOW * FPS), len(track)), round(HOP * FPS)
    found = []
    for at in range(0, len(track) - length + 1, hop):
        window = [(f / FPS, s.x, s.y) for f, s in enumerate(track[at : at + length]) if s is not None]
        if len(window) >= max(0.3 * length, 6):
            found.append(name_motion(*np.array(window).T))
    return found


# -- naming a motion from where a thing was seen: the kind whose best fit is closest -----------------------------------

def name_motion(seconds: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[str | None, float]:
    """Return the motion of a thing that was at (x, y) [N] at `seconds` [N], and how far off the fit is, rms in widths.
    The name is one of MOTIONS, "rests", or None if nothing fits. Speeds and periods may be 25 % off."""
    t = seconds - seconds.mean()
    verb = "rolls" if np.median(y) > ROLLING_HEIGHT else "drifts"
    fits = {"rests": _rms(x - np.median(x), y - np.median(y)), "bounces": _bounce(t, x, y), "circles": _circle(t, x, y),
            f"{verb} right": _travel(t, x, y, 1), f"{verb} left": _travel(t, x, y, -1)}
    name = min(fits, key=fits.__getitem__)
    return (name if fits[name] < TOLERANCE else None), fits[name]


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
    best, one, zero = np.inf, np.ones_like(t), np.zeros_like(t)
    for period in np.arange(4.75, 7.3, 0.25):
        for way in (1, -1):
            cos, sin = np.cos(2 * np.pi * t / period), way * np.sin(2 * np.pi * t / period)
            table = np.concatenate([np.stack([one, zero, cos, -sin], 1), np.stack([zero, one, sin, cos], 1)])
            middle_x, middle_y, a, b = np.linalg.lstsq(table, np.concatenate([x, y]), rcond=None)[0]
            scale = np.clip(reach := np.hypot(a, b), 0.08, 0.32) / max(reach, 1e-9)
            a, b = a * scale, b * scale
            best = min(best, _rms(x - middle_x - a * cos + b * sin, y - middle_y - a * sin - b * cos))
    return best


def _bounce(t: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Parabolas of 2.0 to 3.3 s, at least 0.1 high, while x sways slowly."""
    best, dx = np.inf, x - np.clip(np.polyfit(t, x, 1)[0], -0.12, 0.12) * t
    dx -= np.median(dx)
    for period in np.arange(2.0, 3.35, 0.1):
        beat = (t[None] / period + np.arange(24)[:, None] / 24) % 1.0
        arc = 4 * beat * (1 - beat)
        arc -= arc.mean(1, keepdims=True)
        height = -(arc * y).sum(1, keepdims=True) / (arc**2).sum(1, keepdims=True)
        dy = y - y.mean() + np.clip(height, 0.1, 0.5) * arc
        best = min(best, float(np.sqrt(np.minimum(dx**2 + dy**2, OUTLIER**2).mean(1).min())))
    return best
