"""The still surroundings of the tiny world, and the sea, which alone of them moves a little."""

from __future__ import annotations

import numpy as np

from rollforce.world.scenes import Scene

RGB = tuple[float, float, float]

SKY: dict[str, tuple[RGB, RGB]] = {  # zenith, horizon
    "day": ((86, 156, 240), (206, 232, 252)),
    "sunset": ((92, 66, 138), (255, 172, 104)),
    "night": ((10, 12, 36), (36, 46, 92)),
}
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
    if scene.place != "sea":
        {"hills": _hills, "mountains": _mountains, "city": _city}[scene.place](picture, scene, x, y)
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
    sun_x = sun_at(scene)[0]
    width = 0.07 + 0.1 * deep
    glitter = np.exp(-(((x - sun_x) / width) ** 2)) * np.clip(0.5 + 0.5 * swell, 0, 1) * (1 - 0.45 * deep)
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
