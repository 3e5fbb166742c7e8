"""What a change of prompt does to a video: how soon it is seen, and whether what it did not ask for stays.

Frames are at 12 fps; `at` is the frame with which the change took effect. Lengths are in picture widths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollforce.world.caption import Wish
from rollforce.world.eyes import Detection, EyesOutput
from rollforce.world.scenes import COLOURS, FPS, PLACES, RADIUS, SHAPES, TIMES

STEADY = 12  # frames over which it must be seen, to count
MOST = 0.8  # of those that show it


@dataclass(frozen=True)
class SwitchResult:
    """`first`: seconds of video that show nothing of what is new, until some of it (place, time, colour or shape) is
    seen and stays; `delay`: until all of it is. None if never. Frames from which it cannot be told do not count.

    `jump`: by how much more than at chunk borders before the thing leaves its way at the change (second difference of
    its place), in widths; `background`: change of the picture where no thing is, there, divided by that at chunk
    borders before. Both None where nothing can be said."""

    first: float | None
    delay: float | None
    jump: float | None
    background: float | None


def judge_switch(frames: np.ndarray, look: EyesOutput, old: Wish, new: Wish, at: int, chunk: int = 12) -> SwitchResult:
    """Judge uint8 [F, H, W, 3], seen as `look`, that was `old` and had to become `new` from frame `at` on."""
    right = np.array([_judge_frame(look, old, new, f) for f in range(at, len(frames))])
    arrivals = [_find_delay(right[:, n]) for n in range(right.shape[1]) if (right[:, n] >= 0).any()]
    came = [arrival for arrival in arrivals if arrival is not None]
    track = [max(things, key=lambda s: s.heat, default=None) for things in look.things]
    before = range(at - chunk, chunk - 1, -chunk)
    bend, *bends = (_measure_bend(track, f) for f in (at, *before))
    known = [each for each in bends if each is not None]
    changes = [_measure_change(frames, look, f) for f in before]
    return SwitchResult(
        first=min(came, default=None),
        delay=max(came) if came and len(came) == len(arrivals) else None,
        jump=None if bend is None or not known else bend - float(np.mean(known)),
        background=_measure_change(frames, look, at) / max(float(np.mean(changes)), 1e-3) if changes else None,
    )


def _find_delay(right: np.ndarray) -> float | None:
    """Return seconds of frames that are wrong until the first that is right and stays so."""
    told = right[right >= 0]
    steady = (f for f in range(len(told) - STEADY + 1) if told[f] and told[f : f + STEADY].mean() >= MOST)
    return next((f / FPS for f in steady), None)


def _judge_frame(look: EyesOutput, old: Wish, new: Wish, frame: int) -> tuple[int, int, int, int]:
    """Return of place, time, colour and shape whether a frame shows the new one, 1 or 0; -1 where it cannot be told, or
    where nothing else was wished before."""
    seen = max(look.things[frame], key=lambda s: s.heat, default=None)
    was, thing = old.things[0], new.things[0]
    said = ((look.place[frame], PLACES, old.place, new.place), (look.time[frame], TIMES, old.time, new.time),
            (getattr(seen, "colour", None), COLOURS, was.colour, thing.colour),
            (getattr(seen, "shape", None), SHAPES, was.shape, thing.shape))  # fmt: skip
    return tuple(-1 if values is None or asked in (None, before) else int(values.argmax() == names.index(asked))
                 for values, names, before, asked in said)  # type: ignore[return-value]  # four of them


def _measure_bend(track: list[Detection | None], frame: int) -> float | None:
    """Return how far a thing is, in this frame, from where its way of the last two would have led it."""
    match track[frame - 2 : frame + 1] if frame >= 2 else []:
        case [Detection() as first, Detection() as last, Detection() as now]:
            return float(np.hypot(now.x - 2 * last.x + first.x, now.y - 2 * last.y + first.y))
    return None


def _measure_change(frames: np.ndarray, look: EyesOutput, frame: int) -> float:
    """Return the mean |difference| to the frame before, in grey levels, where neither shows a thing."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in frames.shape[1:3])
    free = np.ones(frames.shape[1:3], bool)
    for seen in (*look.things[frame], *look.things[frame - 1]):
        free &= (columns - seen.x)[None, :] ** 2 + (rows - seen.y)[:, None] ** 2 > (1.7 * RADIUS) ** 2
    apart = np.abs(frames[frame].astype(np.int16) - frames[frame - 1])
    return float(apart[free].mean()) if free.any() else 0.0
