"""What a clip shows: its things, each with its colour, shape and motion, from the sightings of single frames."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from rollforce.world.eyes import Detection, EyesOutput
from rollforce.world.scenes import COLOURS, FPS, SHAPES, name_motion

WINDOW = 5.0  # seconds of track from which a motion is named
HOP = 2.5
SEEN_OFTEN = 0.1  # a thing that fewer frames show than this share was not there


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
    tracks = []
    for colour, _ in presence.most_common(count):
        mine = ([s for s in things if int(s.colour.argmax()) == colour] for things in look.things)
        tracks.append(_describe_track([max(found, key=lambda s: s.heat, default=None) for found in mine]))
    return tracks


def _describe_track(track: list[Detection | None]) -> TrackedThing:
    colours = np.array([-1 if s is None else int(s.colour.argmax()) for s in track])
    shapes = np.array([-1 if s is None or s.shape is None else int(s.shape.argmax()) for s in track])
    named = [s.shape for s in track if s is not None and s.shape is not None]
    mean_shape = np.mean(named, 0) if named else None
    mean_colour = np.mean([s.colour for s in track if s is not None], 0)
    motions = _name_motions(track)
    votes = Counter(name for name, _ in motions if name)
    motion = max(votes, key=lambda m: (votes[m], -np.mean([e for n, e in motions if n == m]))) if votes else None
    return TrackedThing(COLOURS[int(mean_colour.argmax())],
                     None if mean_shape is None else SHAPES[int(mean_shape[: len(SHAPES)].argmax())],
                     motion, colours, shapes, tuple(name for name, _ in motions),
                     None if mean_shape is None else float(mean_shape[len(SHAPES)]))


def _name_motions(track: list[Detection | None]) -> list[tuple[str | None, float]]:
    """Return the motion in each window of 5 s (or the whole shorter clip); windows that show too little are skipped."""
    length, hop = min(round(WINDOW * FPS), len(track)), round(HOP * FPS)
    found = []
    for at in range(0, len(track) - length + 1, hop):
        window = [(f / FPS, s.x, s.y) for f, s in enumerate(track[at : at + length]) if s is not None]
        if len(window) >= max(0.3 * length, 6):
            found.append(name_motion(*np.array(window).T))
    return found
