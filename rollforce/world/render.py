"""The renderer of the tiny world: scene and frame number in, pixels out. Any size, any start, no state.

Shapes and edges are given in picture widths and smoothed over one pixel, so another size shows the same picture.
"""

from __future__ import annotations

import numpy as np

from rollforce.world.scenery import background, sea
from rollforce.world.scenes import FPS, GROUND, Scene, Thing
from rollforce.world.shapes import depth

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
        patch, rows, columns = _patch(thing, seconds, size)
        cover = np.clip(patch.depth * thing.radius * size + 0.5, 0, 1)
        for f in range(frames):
            inside, window = _overlap(rows[f], columns[f], patch.side, size)
            if window is not None:
                uncovered[f][window] *= 1 - cover[f][inside]
    return 1 - uncovered


class _Patch:
    """The pixels around a thing in every frame, in units of its radius: u right, v down, depth below the outline."""

    def __init__(self, thing: Thing, x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray, side: int,
                 size: int) -> None:
        self.side = side
        ticks = np.arange(side) + 0.5
        self.u = (((columns[:, None] + ticks) / size - x[:, None]) / thing.radius).astype(np.float32)[:, None, :]
        self.v = (((rows[:, None] + ticks) / size - y[:, None]) / thing.radius).astype(np.float32)[:, :, None]
        self.depth = depth(thing.shape, self.u, self.v)


def _patch(thing: Thing, seconds: np.ndarray, size: int) -> tuple[_Patch, np.ndarray, np.ndarray]:
    x, y = thing.track(seconds)
    half = 1.25 * thing.radius * size + 1
    side = int(2 * half) + 1
    rows, columns = np.floor(y * size - half).astype(int), np.floor(x * size - half).astype(int)
    return _Patch(thing, x, y, rows, columns, side, size), rows, columns


def _overlap(row: int, column: int, side: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice] | None]:
    """Return slices into the patch and into the picture where both are; None if the patch is outside the picture."""
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + side, size), min(column + side, size)
    inside = (slice(top - row, bottom - row), slice(left - column, right - column))
    return inside, (slice(top, bottom), slice(left, right)) if bottom > top and right > left else None


def _paint(canvas: np.ndarray, thing: Thing, seconds: np.ndarray, light: float) -> None:
    size = canvas.shape[1]
    patch, rows, columns = _patch(thing, seconds, size)
    cover = np.clip(patch.depth * thing.radius * size + 0.5, 0, 1)[..., None]
    rim = np.clip((patch.depth - 0.06) / 0.12, 0, 1)
    shade = light * (0.62 + 0.38 * rim) * (1.0 - 0.10 * patch.v)
    gleam = 0.55 * np.exp(-((patch.u + 0.28) ** 2 + (patch.v + 0.32) ** 2) / 0.06) * light
    colour = np.asarray(COLOURS_RGB[thing.colour], np.float32)
    paint = np.minimum(shade[..., None] * colour, 255)
    paint += gleam[..., None] * (255 - paint)
    for f in range(len(seconds)):
        inside, window = _overlap(rows[f], columns[f], patch.side, size)
        if window is not None:
            behind = canvas[f][window]
            behind += cover[f][inside] * (paint[f][inside] - behind)


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
