"""What can be seen in the tiny world: a place, a time of day, and one or two moving things.

A scene is a small frozen record. Everything visible at any moment follows from it (`render.py`), so a scene is also an
endless video. Lengths are in picture widths, x to the right and y down from the top left corner; times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from rollforce.errors import ConfigError

FPS = 12
SHAPES = ("ball", "box", "star", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
MOTIONS = ("bounces", "circles", "drifts left", "drifts right", "rolls left", "rolls right")
PLACES = ("hills", "sea", "city", "mountains")
TIMES = ("day", "sunset", "night")

GROUND = 0.89  # where rolling and bouncing things touch the ground
RADIUS = 0.18
PAIR_RADIUS = 0.15  # two things are a little smaller, so that they have room
BOUNCE_SECONDS = 2.6
SWAY_SECONDS = 14.0
CIRCLE_SECONDS = 6.0
SPEED = 0.2  # widths per second of drifting and rolling things
WIDEST = 1.15  # half the width of the widest shape, in radii
GAP = 0.02  # a thing that left is gone for at least this way before it comes in at the other side
HELD_OUT_SHARE = 8  # one of this many attribute combinations is never trained on


@dataclass(frozen=True)
class Thing:
    """One coloured shape and how it moves. `phase` in [0, 1) is where in its cycle it starts. `x`, `y` is the middle of
    a circling thing, the middle of the sway and the resting height of a bouncing one, and the height of a travelling
    one (its `x` is not used); `reach` is the circle's radius or the bounce's height."""

    colour: str
    shape: str
    motion: str
    radius: float = RADIUS
    phase: float = 0.0
    x: float = 0.5
    y: float = 0.4
    reach: float = 0.0
    sway: float = 0.0

    @property
    def grounded(self) -> bool:
        """Whether the thing touches the ground now and then, and so has a shadow there."""
        return self.motion == "bounces" or self.motion.startswith("rolls")

    @property
    def lap(self) -> float:
        """Length of the way of a travelling thing until it is back where it was."""
        return 1 + 2 * WIDEST * self.radius + GAP

    def track(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return centre (x, y) of the thing at each of `seconds` (any shape, any value)."""
        if self.motion == "bounces":
            beat = (seconds / BOUNCE_SECONDS + self.phase) % 1.0
            sway = np.sin(2 * np.pi * (seconds / SWAY_SECONDS + self.phase * 3))
            return self.x + self.sway * sway, self.y - self.reach * 4 * beat * (1 - beat)
        if self.motion == "circles":
            angle = 2 * np.pi * ((seconds / CIRCLE_SECONDS + self.phase) % 1.0)
            return self.x + self.reach * np.cos(angle), self.y + self.reach * np.sin(angle)
        way = SPEED * seconds if self.motion.endswith("right") else -SPEED * seconds
        x = (way + self.phase * self.lap) % self.lap - WIDEST * self.radius - GAP / 2
        return x, np.full_like(x, self.y)


@dataclass(frozen=True)
class Scene:
    """A place at a time of day with its things; `sun`, `ridge` in [-1, 1] and `swell` in [0, 1) vary it mildly."""

    place: str
    time: str
    things: tuple[Thing, ...]
    sun: float = 0.0
    ridge: float = 0.0
    swell: float = 0.0

    @property
    def held_out(self) -> bool:
        """Whether the attributes of place, time and first thing are among those put aside for testing."""
        first = self.things[0]
        return _held_out(self.place, self.time, first.colour, first.shape, first.motion)


def _held_out(*attributes: str) -> bool:
    return crc32("|".join(attributes).encode()) % HELD_OUT_SHARE == 0


def sample_scene(seed: int, count: int | None = None, held_out: bool | None = None, alike: bool = False) -> Scene:
    """Return the scene of this seed; the same arguments always give the same scene. `count`: 1 or 2 things; None: two
    in 15 % of the scenes. `held_out`: True draws only attribute combinations put aside for testing, False never. With
    `alike` two things move in the same way, which is hard to learn. Raises ConfigError for another count."""
    if count not in (None, 1, 2):
        raise ConfigError(f"a scene has 1 or 2 things, not {count}; pass count=1, count=2 or None")
    rng = np.random.default_rng(seed)
    if count is None:
        count = 2 if rng.random() < 0.15 else 1
    while True:
        place, time, colour, shape, motion = (str(rng.choice(n)) for n in (PLACES, TIMES, COLOURS, SHAPES, MOTIONS))
        if held_out is None or _held_out(place, time, colour, shape, motion) == held_out:
            break
    first = _alone(Thing(colour, shape, motion), rng)
    things = (first,) if count == 1 else _pair(first, rng, alike)
    sun, ridge = rng.uniform(-1, 1, 2)
    return Scene(place, time, things, float(sun), float(ridge), float(rng.random()))


def _alone(thing: Thing, rng: np.random.Generator) -> Thing:
    """Return a thing that has the picture for itself: its size, phase and place."""
    radius = RADIUS * rng.uniform(0.94, 1.06)
    thing = replace(thing, radius=radius, phase=float(rng.random()))
    if thing.motion == "bounces":
        return replace(thing, x=rng.uniform(0.45, 0.55), y=GROUND - radius, reach=0.34, sway=0.2)
    if thing.motion == "circles":
        return replace(thing, x=rng.uniform(0.47, 0.53), y=rng.uniform(0.44, 0.48), reach=0.21)
    if thing.motion.startswith("rolls"):
        return replace(thing, y=GROUND - radius)
    return replace(thing, y=rng.uniform(0.36, 0.42))


def _pair(first: Thing, rng: np.random.Generator, alike: bool) -> tuple[Thing, Thing]:
    """Two things of different colour and shape whose ways hardly cross."""
    colour = str(rng.choice([c for c in COLOURS if c != first.colour]))
    shape = str(rng.choice([s for s in SHAPES if s != first.shape]))
    motion = first.motion if alike else str(rng.choice([m for m in MOTIONS if _fits(first.motion, m)]))
    radius = PAIR_RADIUS * rng.uniform(0.94, 1.06)
    first = replace(first, radius=radius)
    second = Thing(colour, shape, motion, radius=radius, phase=float(rng.random()))
    if motion == first.motion and motion not in ("bounces", "circles"):
        second = replace(second, phase=(first.phase + rng.uniform(0.42, 0.58)) % 1.0)
    left, right = (0.26, 0.74) if rng.random() < 0.5 else (0.74, 0.26)
    return _beside(first, second.motion, left), _beside(second, first.motion, right)


def _kind(motion: str) -> str:
    return motion.split()[0]


def _fits(one: str, other: str) -> bool:
    """Return whether two things that move so can share the picture without hiding each other for long."""
    kinds = {_kind(one), _kind(other)}
    if kinds == {"bounces", "rolls"}:
        return False
    return one == other or len(kinds) == 2 or kinds <= {"bounces", "circles"}


def _beside(thing: Thing, other: str, x: float) -> Thing:
    """`thing` moved so that it leaves room for one that moves like `other`: beside it or in another lane."""
    kind, floor = _kind(thing.motion), GROUND - thing.radius
    if kind == "rolls":
        return replace(thing, y=floor)
    if kind == "drifts":
        return replace(thing, y=0.24 if _kind(other) in ("bounces", "circles", "rolls") else 0.39)
    travelling = _kind(other) in ("drifts", "rolls")
    if kind == "bounces":
        return replace(thing, x=0.5 if travelling else x, y=floor, reach=0.22 if travelling else 0.34,
                       sway=0.2 if travelling else 0.03)
    if not travelling:
        return replace(thing, x=x, y=0.45, reach=0.17)
    return replace(thing, x=0.5, y=0.62 if _kind(other) == "drifts" else 0.28, reach=0.14)
