"""Does a thing stay itself? Told from what was seen alone, whatever the prompt had asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from rollforce.world.eyes import Detection, EyesOutput
from rollforce.world.perception import count_things, slice_output, track_things, windows
from rollforce.world.scenes import COLOURS, FPS, SHAPES

WINDOW = 5.0  # seconds
AWAY = round(1.0 * FPS)  # frames without a thing from which it has been away
BRIEF = round(0.5 * FPS)  # what was seen for less is not named
NEAR, STEP = 0.12, 0.03  # how far a thing may have moved: in any time, and per frame; picture widths
OTHER_COLOUR = 0.3  # another colour counts like this distance, so that things that meet are not mixed up

Name = tuple[str, str | None]


@dataclass(eq=False)
class Track:
    """One thing from its coming until it is gone: what was seen of it, in which frames."""

    frames: list[int] = field(default_factory=list)
    sightings: list[Detection] = field(default_factory=list)

    @property
    def name(self) -> Name:
        """Its colour and shape, by what all sightings together say."""
        colour = np.mean([s.colour for s in self.sightings], 0)
        shape = np.mean([s.shape for s in self.sightings if s.shape is not None], 0)
        return COLOURS[int(colour.argmax())], SHAPES[int(shape[: len(SHAPES)].argmax())]


def identity(look: EyesOutput) -> dict[str, float | None]:
    """Return two shares: `identity`, of the windows after the first that show the same things as it, and `recognised`,
    of the things coming back that are what had left. None if there was no such case."""
    same, back = sameness(look)[1:], match_returns(look)
    return {"identity": float(np.mean(same)) if same else None, "recognised": float(np.mean(back)) if back else None}


def sameness(look: EyesOutput) -> list[bool]:
    """Return for each window of 5 s whether its things have the colours and shapes of the first window's. Empty if the
    first window shows nothing: there is nothing that could stay itself."""
    parts = (slice_output(look, part) for part in windows(len(look.things), WINDOW))
    names = [Counter((thing.colour, thing.shape) for thing in track_things(part, count_things(part))) for part in parts]
    return [now == names[0] for now in names] if names and names[0] else []


def match_returns(look: EyesOutput) -> list[bool]:
    """Return for each thing that comes after another was away for a second or more: is it one that had left? A thing is
    away while its middle is out of the picture or it cannot be seen at all."""
    known = [track for track in follow_things(look) if len(track.frames) >= BRIEF]
    left: list[Track] = []
    found = []
    for track in known:
        if gone := [other for other in known if other.frames[-1] + AWAY <= track.frames[0] and other not in left]:
            same = [other for other in gone if other.name == track.name]
            left.append((same or gone)[0])
            found.append(bool(same))
    return found


def follow_things(look: EyesOutput) -> list[Track]:
    """Follow everything that is seen with its middle in the picture, from frame to frame; in order of coming."""
    followed: list[Track] = []
    for frame, things in enumerate(look.things):
        seen = [s for s in things if s.shape is not None]
        open_ = [track for track in followed if frame - track.frames[-1] < AWAY]
        costs = sorted((_apart(track, sighting, frame), n, m) for n, track in enumerate(open_)
                       for m, sighting in enumerate(seen))
        taken: dict[int, Track] = {}
        for cost, n, m in costs:
            if cost < np.inf and open_[n] not in taken.values() and m not in taken:
                taken[m] = open_[n]
        for m, sighting in enumerate(seen):
            if m not in taken:
                followed.append(taken.setdefault(m, Track()))
            taken[m].frames.append(frame)
            taken[m].sightings.append(sighting)
    return followed


def _apart(track: Track, sighting: Detection, frame: int) -> float:
    """Return how little `detection` looks like the next of `track`; infinite if it is too far away."""
    last = track.sightings[-1]
    distance = float(np.hypot(sighting.x - last.x, sighting.y - last.y))
    if distance > NEAR + STEP * (frame - track.frames[-1]):
        return np.inf
    return distance + OTHER_COLOUR * (1 - float(np.minimum(last.colour, sighting.colour).sum()))
