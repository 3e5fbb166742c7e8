"""The renderer of the tiny world: scene and frame number in, pixels out. Any size, any start, no state.

Shapes and edges are given in picture widths and smoothed over one pixel, so another size shows the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, hypot, pi, sin, sqrt

import numpy as np

from rollforce.world.scenes import FPS, GROUND, Scene, Thing

COLOURS_RGB = {"red": (230, 36, 42), "orange": (255, 138, 16), "yellow": (252, 224, 40),
               "green": (24, 176, 72), "blue": (38, 88, 236), "purple": (162, 52, 206)}
NIGHT_LIGHT = 0.85


def render(scene: Scene, start: int, frames: int, size: int = 64) -> np.ndarray:
    """Return frames `start .. start + frames` of a scene's endless video: uint8 [F, `size`, `size`, 3], 12 fps."""
    seconds = (start + np.arange(frames)) / FPS
    canvas = np.repeat(background(scene, size)[None], frames, axis=0)
    if scene.place == "sea":
        sea(canvas, scene, seconds)
    for thing in scene.things:
        if thing.grounded:
            _shadow(canvas, thing, seconds)
    for thing in scene.things:
        _paint(canvas, thing, seconds, NIGHT_LIGHT if scene.time == "night" else 1.0)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def sprite_mask(scene: Scene, start: int, frames: int, size: int = 64) -> np.ndarray:
    """Return how much of each pixel the things cover: float32 [F, H, W] in 0..1."""
    seconds = (start + np.arange(frames)) / FPS
    uncovered = np.ones((frames, size, size), np.float32)
    for thing in scene.things:
        patch = _Patch(thing, seconds, size)
        for f, inside, window in patch.overlaps():
            uncovered[f][window] *= 1 - patch.cover[f][inside]
    return 1 - uncovered


class _Patch:
    """The pixels around a thing in every frame, in radii (u right, v down, depth below the outline), and its cover."""

    def __init__(self, thing: Thing, seconds: np.ndarray, size: int) -> None:
        x, y = thing.track(seconds)
        half = 1.25 * thing.radius * size + 1
        self.size, self.side = size, int(2 * half) + 1
        self.rows, self.columns = (np.floor(at * size - half).astype(int) for at in (y, x))
        ticks = np.arange(self.side) + 0.5
        self.u = (((self.columns[:, None] + ticks) / size - x[:, None]) / thing.radius).astype(np.float32)[:, None, :]
        self.v = (((self.rows[:, None] + ticks) / size - y[:, None]) / thing.radius).astype(np.float32)[:, :, None]
        self.depth = depth(thing.shape, self.u, self.v)
        self.cover = np.clip(self.depth * thing.radius * size + 0.5, 0, 1)

    def overlaps(self) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """Yield each frame that shows the patch, with slices into the patch and into the picture where both are."""
        for frame, (row, column) in enumerate(zip(self.rows, self.columns, strict=True)):
            top, left = max(row, 0), max(column, 0)
            bottom, right = min(row + self.side, self.size), min(column + self.side, self.size)
            if bottom > top and right > left:
                inside = (slice(top - row, bottom - row), slice(left - column, right - column))
                yield frame, inside, (slice(top, bottom), slice(left, right))


def _paint(canvas: np.ndarray, thing: Thing, seconds: np.ndarray, light: float) -> None:
    patch = _Patch(thing, seconds, canvas.shape[1])
    rim = np.clip((patch.depth - 0.06) / 0.12, 0, 1)
    shade = light * (0.62 + 0.38 * rim) * (1.0 - 0.10 * patch.v)
    gleam = 0.55 * np.exp(-((patch.u + 0.28) ** 2 + (patch.v + 0.32) ** 2) / 0.06) * light
    colour = np.asarray(COLOURS_RGB[thing.colour], np.float32)
    paint = np.minimum(shade[..., None] * colour, 255)
    paint += gleam[..., None] * (255 - paint)
    for f, inside, window in patch.overlaps():
        behind = canvas[f][window]
        behind += patch.cover[f][inside][..., None] * (paint[f][inside] - behind)


def _shadow(canvas: np.ndarray, thing: Thing, seconds: np.ndarray) -> None:
    """A soft dark spot on the ground, paler the higher the thing is."""
    size = canvas.shape[1]
    x, y = thing.track(seconds)
    top, bottom = int((GROUND - 0.05) * size), min(int((GROUND + 0.08) * size), size)
    columns = (np.arange(size) + 0.5) / size
    rows = (np.arange(top, bottom) + 0.5) / size
    across = ((columns - x[:, None]) / (0.9 * thing.radius))[:, None, :]
    along = ((rows - GROUND - 0.01) / 0.032)[None, :, None]
    height = np.clip((GROUND - thing.radius - y) / 0.34, 0, 1)
    strength = (0.5 - 0.3 * height)[:, None, None]
    dark = strength * np.clip(1.6 - 1.6 * (across**2 + along**2), 0, 1)
    canvas[:, top:bottom] *= (1 - dark[..., None]).astype(np.float32)


# -- outlines: the depth below each shape's outline, in units of the radius (negative outside) -------------------------

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
    half, diagonal = 0.66, sqrt(0.5)
    u, v = np.abs(u), v - 0.02
    p, q = (u + v) * diagonal, (u - v) * diagonal
    return np.maximum(half - np.maximum(np.abs(p), np.abs(q)), half - np.sqrt((q - half) ** 2 + p**2))


# -- scenery: what stands still, and the sea, which alone of it moves a little -----------------------------------------

RGB = tuple[float, float, float]

SKY: dict[str, tuple[RGB, RGB]] = {"day": ((86, 156, 240), (206, 232, 252)),  # zenith, horizon
                                   "sunset": ((92, 66, 138), (255, 172, 104)), "night": ((10, 12, 36), (36, 46, 92))}
LIGHT: dict[str, RGB] = {"day": (255, 246, 190), "sunset": (255, 222, 120), "night": (240, 240, 218)}  # sun or moon
GLOW = {"day": 0.35, "sunset": 0.5, "night": 0.18}
HORIZON = 0.6

LAND: dict[str, dict[str, tuple[RGB, RGB, RGB]]] = {  # far, near, foot of the picture
    "hills": {"day": ((158, 208, 150), (124, 196, 96), (96, 168, 70)),
              "sunset": ((168, 132, 96), (138, 118, 66), (104, 88, 48)),
              "night": ((38, 62, 84), (30, 62, 60), (18, 40, 42))},
    "mountains": {"day": ((128, 142, 180), (240, 246, 252), (206, 220, 236)),
                  "sunset": ((112, 84, 116), (238, 190, 176), (206, 150, 148)),
                  "night": ((40, 50, 92), (92, 104, 150), (64, 76, 122))},
    "city": {"day": ((176, 190, 212), (104, 112, 132), (84, 90, 108)),
             "sunset": ((150, 98, 122), (84, 56, 82), (64, 42, 66)),
             "night": ((34, 42, 82), (18, 22, 50), (12, 14, 34))},
    "sea": {"day": ((92, 176, 214), (24, 96, 160), (24, 96, 160)),
            "sunset": ((206, 140, 116), (44, 66, 104), (44, 66, 104)),
            "night": ((36, 58, 112), (8, 24, 66), (8, 24, 66))},
}
SNOW: dict[str, RGB] = {"day": (250, 252, 255), "sunset": (250, 210, 190), "night": (128, 140, 184)}
WINDOW: dict[str, RGB] = {"day": (150, 172, 198), "sunset": (255, 206, 120), "night": (250, 212, 116)}
PEAKS = ((-0.2, 0.62), (0.02, 0.47), (0.2, 0.6), (0.3, 0.55), (0.52, 0.36), (0.74, 0.57), (0.84, 0.52), (1.0, 0.44),
         (1.2, 0.62))
TOWERS = ((0.0, 0.13, 0.46), (0.13, 0.3, 0.54), (0.3, 0.42, 0.4), (0.42, 0.6, 0.56), (0.6, 0.74, 0.47),
          (0.74, 0.86, 0.58), (0.86, 1.0, 0.43))  # left, right, top
HOUSES = ((0.0, 0.2, 0.68), (0.2, 0.42, 0.62), (0.42, 0.58, 0.72), (0.58, 0.8, 0.64), (0.8, 1.0, 0.7))
STARS = ((0.08, 0.1), (0.22, 0.26), (0.36, 0.08), (0.5, 0.2), (0.12, 0.42), (0.62, 0.07), (0.6, 0.36), (0.93, 0.36))


def background(scene: Scene, size: int) -> np.ndarray:
    """Return a scene's surroundings without things and water, 0..255: float32 [size, size, 3]."""
    ticks = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = ticks[None, :], ticks[:, None]
    picture = _sky(scene, x, y, size)
    if paint := {"hills": _hills, "mountains": _mountains, "city": _city}.get(scene.place):
        paint(picture, scene, x, y)
    return picture


def sun_at(scene: Scene) -> tuple[float, float, float]:
    """Return the middle (x, y) and radius of the sun or moon."""
    if scene.time == "sunset":
        return 0.7 + 0.05 * scene.sun, 0.53, 0.1
    return 0.78 + 0.05 * scene.sun, 0.16, 0.075


def sea(canvas: np.ndarray, scene: Scene, seconds: np.ndarray) -> None:
    """Paint the water into `canvas` [F, H, W, 3] at each of `seconds` [F]: slow swell, light below the sun."""
    size = canvas.shape[1]
    top = int(HORIZON * size)
    ticks = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = ticks[None, None, :], ticks[None, top:, None]
    t = (2 * np.pi * (seconds / 4.0 % 1.0 + scene.swell)).astype(np.float32)[:, None, None]
    deep = np.clip((y - HORIZON) / (1 - HORIZON), 0, 1)
    far, near, _ = (np.asarray(c, np.float32) for c in LAND["sea"][scene.time])
    swell = np.sin(46 * np.sqrt(deep + 0.05) + 2.2 * np.sin(2 * np.pi * x + 1.5) - t) * (0.25 + 0.75 * deep)
    below_sun = np.exp(-(((x - sun_at(scene)[0]) / (0.07 + 0.1 * deep)) ** 2))
    glitter = below_sun * np.clip(0.5 + 0.5 * swell, 0, 1) * (1 - 0.45 * deep)
    glitter *= {"day": 0.45, "sunset": 0.75, "night": 0.5}[scene.time]
    water = far + (near - far) * np.sqrt(deep)[..., None] + (swell * (14 if scene.time == "day" else 9))[..., None]
    water += glitter[..., None] * (np.asarray(LIGHT[scene.time], np.float32) - water)
    cover = np.clip((y - HORIZON) * size + 0.5, 0, 1)[..., None]
    canvas[:, top:] += cover * (water - canvas[:, top:])


def _blend(picture: np.ndarray, colour: RGB | np.ndarray, cover: np.ndarray) -> None:
    picture += np.clip(cover, 0, 1)[..., None] * (np.asarray(colour, np.float32) - picture)


def _fade(top: RGB, bottom: RGB, along: np.ndarray) -> np.ndarray:
    """Return colours that go from `top` at 0 to `bottom` at 1: [..., 3]."""
    first, last = np.asarray(top, np.float32), np.asarray(bottom, np.float32)
    return first + (last - first) * np.clip(along, 0, 1)[..., None]


def _sky(scene: Scene, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    picture = np.ascontiguousarray(np.broadcast_to(_fade(*SKY[scene.time], y / 0.66), (size, size, 3)))
    if scene.time == "night":
        for star_x, star_y in STARS:
            _blend(picture, (226, 230, 250), 0.85 * np.exp(-((x - star_x) ** 2 + (y - star_y) ** 2) / (2 * 0.013**2)))
    sun_x, sun_y, radius = sun_at(scene)
    distance = np.sqrt((x - sun_x) ** 2 + (y - sun_y) ** 2)
    _blend(picture, LIGHT[scene.time], GLOW[scene.time] * np.exp(-((distance / (2.2 * radius)) ** 2)))
    _blend(picture, LIGHT[scene.time], (radius - distance) * size + 0.5)
    return picture


def _hills(picture: np.ndarray, scene: Scene, x: np.ndarray, y: np.ndarray) -> None:
    far, near, foot = LAND["hills"][scene.time]
    size, shift = len(picture), 0.04 * scene.ridge
    _blend(picture, far, (y - 0.6 - 0.05 * np.sin(2 * np.pi * (x + shift) * 1.1 + 2.2)) * size + 0.5)
    ridge = 0.72 + 0.045 * np.sin(2 * np.pi * (x + shift) * 0.8 + 0.3)
    _blend(picture, _fade(near, foot, (y - 0.7) / 0.3), (y - ridge) * size + 0.5)


def _mountains(picture: np.ndarray, scene: Scene, x: np.ndarray, y: np.ndarray) -> None:
    rock, near, foot = LAND["mountains"][scene.time]
    size, shift = len(picture), 0.03 * scene.ridge
    at, height = np.array(PEAKS, np.float32).T
    ridge = np.interp(x[0] + shift, at, height)[None]
    slope = (y - ridge) * size * 0.75 + 0.5
    _blend(picture, SNOW[scene.time], slope)
    _blend(picture, rock, (y - ridge - 0.035 - 0.32 * np.maximum(0.58 - ridge, 0)) * size * 0.75 + 0.5)
    field = 0.7 + 0.025 * np.sin(2 * np.pi * (x + shift) + 1.0)
    _blend(picture, _fade(near, foot, (y - 0.7) / 0.3), (y - field) * size + 0.5)


def _city(picture: np.ndarray, scene: Scene, x: np.ndarray, y: np.ndarray) -> None:
    far, near, foot = LAND["city"][scene.time]
    shift = 0.02 * scene.ridge
    for colour, (left, right, top) in (*((far, tower) for tower in TOWERS), *((near, house) for house in HOUSES)):
        left, right = left - 0.1 * (left == 0), right + 0.1 * (right == 1)
        _blend(picture, colour, _block(picture, x + shift, y, left, right, top, 1.1))
    street = np.clip((y - 0.88) * len(picture) + 0.5, 0, 1) * np.ones_like(x)
    for left, right, top in HOUSES:
        middle = (left + right) / 2
        for row in (r for r in (top + 0.04, top + 0.135) if r < 0.8):
            for column in (middle - 0.07, middle + 0.02):
                pane = _block(picture, x + shift, y, column, column + 0.05, row, row + 0.055)
                _blend(picture, WINDOW[scene.time], pane)
    _blend(picture, foot, street)


def _block(picture: np.ndarray, x: np.ndarray, y: np.ndarray, left: float, right: float, top: float,
           bottom: float) -> np.ndarray:
    size = len(picture)
    across = np.clip((x - left) * size + 0.5, 0, 1) * np.clip((right - x) * size + 0.5, 0, 1)
    return across * np.clip((y - top) * size + 0.5, 0, 1) * np.clip((bottom - y) * size + 0.5, 0, 1)
