"""What a change of prompt does to a video: how soon it is seen, and whether what it did not ask for stays.

Frames are at 12 fps; `at` is the frame with which the change took effect. Lengths are in picture widths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollforce.world.caption import Wish
from rollforce.world.eyes import Look, Sighting
from rollforce.world.scenes import COLOURS, FPS, PLACES, RADIUS, SHAPES, TIMES

STEADY = 12  # frames over which a thing must be seen as new, to count as that
MOST = 0.8  # of those that show it


@dataclass(frozen=True)
class Switched:
    """`delay`: seconds until the new prompt's place, time, colour and shape are seen and stay; None if never.

    `jump`: by how much more than at chunk borders before the thing leaves its way at the change (second difference of
    its place), in widths; `background`: change of the picture where no thing is, there, divided by that at chunk
    borders before. Both None where nothing can be said."""

    delay: float | None
    jump: float | None
    background: float | None


def switched(frames: np.ndarray, look: Look, wish: Wish, at: int, chunk: int = 12) -> Switched:
    """Judge uint8 [F, H, W, 3], seen as `look`, that became `wish` at frame `at`."""
    fits = np.array([_fits(look, wish, f) for f in range(at, len(frames))])
    track = [max(things, key=lambda s: s.heat, default=None) for things in look.things]
    before = range(at - chunk, chunk - 1, -chunk)
    bends = [bend for f in before if (bend := _bend(track, f)) is not None]
    bend = _bend(track, at)
    changes = [_change(frames, look, f) for f in before]
    return Switched(
        delay=_delay(fits),
        jump=None if bend is None or not bends else bend - float(np.mean(bends)),
        background=_change(frames, look, at) / max(float(np.mean(changes)), 1e-3) if changes else None,
    )


def _delay(fits: np.ndarray) -> float | None:
    for f in range(len(fits) - STEADY + 1):
        said = fits[f : f + STEADY]
        said = said[said >= 0]
        if len(said) and fits[f] != 0 and (said == 1).mean() >= MOST:
            return f / FPS
    return None


def _fits(look: Look, wish: Wish, frame: int) -> int:
    """Whether a frame shows what is wished: 1, 0, or -1 where no thing is in sight to tell by."""
    for values, names, asked in ((look.place, PLACES, wish.place), (look.time, TIMES, wish.time)):
        if asked is not None and names[int(values[frame].argmax())] != asked:
            return 0
    seen = max(look.things[frame], key=lambda s: s.heat, default=None)
    if seen is None or not wish.things:
        return -1
    thing = wish.things[0]
    if thing.colour is not None and COLOURS[int(seen.colour.argmax())] != thing.colour:
        return 0
    if thing.shape is not None and seen.shape is not None and seen.shape.argmax() != SHAPES.index(thing.shape):
        return 0
    return 1


def _bend(track: list[Sighting | None], frame: int) -> float | None:
    """How far a thing is, in this frame, from where its way of the last two would have led it."""
    if not 2 <= frame < len(track):
        return None
    now, last, first = track[frame], track[frame - 1], track[frame - 2]
    if now is None or last is None or first is None:
        return None
    return float(np.hypot(now.x - 2 * last.x + first.x, now.y - 2 * last.y + first.y))


def _change(frames: np.ndarray, look: Look, frame: int) -> float:
    """Mean |difference| to the frame before, in grey levels, where neither shows a thing."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in frames.shape[1:3])
    free = np.ones(frames.shape[1:3], bool)
    for seen in (*look.things[frame], *look.things[frame - 1]):
        free &= (columns - seen.x)[None, :] ** 2 + (rows - seen.y)[:, None] ** 2 > (1.7 * RADIUS) ** 2
    apart = np.abs(frames[frame].astype(np.int16) - frames[frame - 1])
    return float(apart[free].mean()) if free.any() else 0.0
