"""The oracle: what a video shows and how well that is what its prompt asked for, from pixels alone.

    report = score(frames, "a red ball bounces over green hills")       # frames uint8 [F, H, W, 3] at 12 fps
    report.shape, report.motion, report.seams.chunk_ratio

Networks see single frames (`eyes.py`), motion is fitted to the track (`motion.py`), the rest is counting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from rollforce.drift import Drift, DriftMeter
from rollforce.errors import ShapeError
from rollforce.world.caption import Wish, WishedThing, motion_fits, parse
from rollforce.world.eyes import Eyes, Look, Sighting
from rollforce.world.measures import Seams, flicker, seams
from rollforce.world.motion import name_motion
from rollforce.world.scenes import COLOURS, FPS, GROUND, PLACES, RADIUS, SHAPES, TIMES

WINDOW = 5.0  # seconds of track from which a motion is named
HOP = 2.5
SEEN_OFTEN = 0.1  # a thing that fewer frames show than this share was not there


@dataclass(frozen=True)
class SeenThing:
    """One thing over a whole clip: what it is, and per frame what it looked like (indices; -1 not seen, 4 torn)."""

    colour: str
    shape: str | None
    motion: str | None
    colours: np.ndarray
    shapes: np.ndarray
    motions: tuple[str | None, ...]
    torn: float | None


@dataclass(frozen=True)
class Report:
    """How well a video fits its wish: shares in 0..1, None where the wish does not say or nothing can be said.

    `scene`, `colour`, `motion`, `shape`, `count` judge the clip as a whole (two things: the share that is right), the
    `..._per_frame` ones single frames (those that show the thing), `motion_per_window` windows of 5 s. `whole` is 1
    minus the share of torn things, `present` the share of frames that show a thing at all.
    """

    scene: float | None
    colour: float | None
    motion: float | None
    shape: float | None
    count: float | None
    scene_per_frame: float | None
    colour_per_frame: float | None
    shape_per_frame: float | None
    motion_per_window: float | None
    whole: float | None
    present: float
    flicker: float | None
    seams: Seams
    drift: Drift | None
    seen: str

    def numbers(self) -> dict[str, float | None]:
        """Every measure by its name; those of seams and drift are called "seams.chunk", "drift.luma" and so on."""
        flat = {name: value for name, value in vars(self).items() if name not in ("seams", "drift", "seen")}
        flat |= {f"seams.{name}": getattr(self.seams, name) for name in
                 ("chunk", "latent", "inside", "chunk_ratio", "latent_ratio")}
        return flat | {f"drift.{name}": ratio for name, ratio in (self.drift.ratios() if self.drift else {}).items()}


def score(frames: np.ndarray, prompt: str | Wish, chunk: int = 12, latent: int = 4, eyes: Eyes | None = None) -> Report:
    """Judge uint8 [F, H, W, 3] (12 fps, any size) against `prompt`. `chunk` and `latent`: their lengths in frames."""
    _check(frames)
    return _report(frames, (eyes or Eyes.load()).look(frames), _wish(prompt), chunk, latent)


def score_windows(frames: np.ndarray, prompt: str | Wish, seconds: float = 5.0, chunk: int = 12, latent: int = 4,
                  eyes: Eyes | None = None) -> list[Report]:
    """A report for each `seconds` of the video, for curves over time; a shorter rest at the end is left out."""
    _check(frames)
    look, wish, length = (eyes or Eyes.load()).look(frames), _wish(prompt), round(seconds * FPS)
    reports = []
    for at in range(0, len(frames) - length + 1, length):
        part = slice(at, at + length)
        seen = Look(look.place[part], look.time[part], look.things[part])
        reports.append(_report(frames[part], seen, wish, chunk, latent))
    return reports


def _check(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) < 2:
        raise ShapeError(f"a video to judge is uint8 [frames >= 2, height, width, 3], not {frames.dtype} "
                         f"{list(frames.shape)}; stack the chunks' frames first")


def _wish(prompt: str | Wish) -> Wish:
    return parse(prompt) if isinstance(prompt, str) else prompt


def _report(frames: np.ndarray, look: Look, wish: Wish, chunk: int, latent: int) -> Report:
    place, time = look.place.argmax(1), look.time.argmax(1)
    asked = [(values, names.index(value)) for values, names, value in
             ((place, PLACES, wish.place), (time, TIMES, wish.time)) if value is not None]
    count = _most(np.array([len(things) for things in look.things]))
    seen = _things(look, count)
    match = _match(wish.things, seen)
    torn = [thing.torn for thing in seen if thing.torn is not None]
    return Report(
        scene=float(all(_most(values) == right for values, right in asked)) if asked else None,
        colour=_share(match, "colour"), motion=_share(match, "motion"), shape=_share(match, "shape"),
        count=None if wish.count is None else float(count == wish.count),
        scene_per_frame=float(np.all([v == right for v, right in asked], 0).mean()) if asked else None,
        colour_per_frame=_per_frame(match, "colour"), shape_per_frame=_per_frame(match, "shape"),
        motion_per_window=_per_frame(match, "motion"),
        whole=1 - float(np.mean(torn)) if torn else None,
        present=float(np.mean([len(things) > 0 for things in look.things])),
        flicker=flicker(frames, _moving(look, frames.shape[1:3])), seams=seams(frames, chunk, latent),
        drift=_drift(frames), seen=_words(PLACES[_most(place)], TIMES[_most(time)], seen))


def _drift(frames: np.ndarray) -> Drift | None:
    meter = DriftMeter(FPS)
    meter.add(frames)
    return meter.result()


def _most(values: np.ndarray) -> int:
    return int(np.bincount(values).argmax())


# ---------------------------------------------------------------------------------------------------- what was seen


def _things(look: Look, count: int) -> list[SeenThing]:
    """The things of the clip: one track if there is one thing, else one per colour that is there most."""
    if np.mean([len(things) > 0 for things in look.things]) < SEEN_OFTEN:
        return []
    if count <= 1:
        return [_thing([max(things, key=lambda s: s.heat, default=None) for things in look.things])]
    presence = Counter(int(s.colour.argmax()) for things in look.things for s in things)
    tracks = []
    for colour, _ in presence.most_common(count):
        mine = ([s for s in things if int(s.colour.argmax()) == colour] for things in look.things)
        tracks.append(_thing([max(found, key=lambda s: s.heat, default=None) for found in mine]))
    return tracks


def _thing(track: list[Sighting | None]) -> SeenThing:
    colours = np.array([-1 if s is None else int(s.colour.argmax()) for s in track])
    shapes = np.array([-1 if s is None or s.shape is None else int(s.shape.argmax()) for s in track])
    named = [s.shape for s in track if s is not None and s.shape is not None]
    mean_shape = np.mean(named, 0) if named else None
    mean_colour = np.mean([s.colour for s in track if s is not None], 0)
    motions = _motions(track)
    votes = Counter(name for name, _ in motions if name)
    motion = max(votes, key=lambda m: (votes[m], -np.mean([e for n, e in motions if n == m]))) if votes else None
    return SeenThing(COLOURS[int(mean_colour.argmax())],
                     None if mean_shape is None else SHAPES[int(mean_shape[: len(SHAPES)].argmax())],
                     motion, colours, shapes, tuple(name for name, _ in motions),
                     None if mean_shape is None else float(mean_shape[len(SHAPES)]))


def _motions(track: list[Sighting | None]) -> list[tuple[str | None, float]]:
    """The motion in each window of 5 s (or the whole shorter clip); windows that show too little are skipped."""
    length, hop = min(round(WINDOW * FPS), len(track)), round(HOP * FPS)
    found = []
    for at in range(0, len(track) - length + 1, hop):
        window = [(f / FPS, s.x, s.y) for f, s in enumerate(track[at : at + length]) if s is not None]
        if len(window) >= max(0.3 * length, 6):
            found.append(name_motion(*np.array(window).T))
    return found


def _moving(look: Look, shape: tuple[int, ...]) -> np.ndarray:
    """Where things and their shadows are within three quarters of a second: bool [F, H, W]."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape)
    near = np.zeros((len(look.things), *shape), bool)
    for f, things in enumerate(look.things):
        for s in things:
            across = np.abs(columns - s.x)[None, :]
            near[f] |= (across**2 + (rows - s.y)[:, None] ** 2) < (1.7 * RADIUS) ** 2
            near[f] |= (across < 1.5 * RADIUS) & (rows > GROUND - 0.12)[:, None]
    reach = round(0.75 * FPS)
    total = np.concatenate([np.zeros((1, *shape), np.int32), near.cumsum(0, dtype=np.int32)])
    ends = np.arange(len(near))
    return total[np.minimum(ends + reach + 1, len(near))] > total[np.maximum(ends - reach, 0)]


# ------------------------------------------------------------------------------------------ seen against wished


def _fits(wished: WishedThing, seen: SeenThing | None, attribute: str) -> bool:
    """Whether the clip's `seen` thing has the wished attribute (which must be said)."""
    value = None if seen is None else getattr(seen, attribute)
    if value is None:
        return False
    return motion_fits(wished.motion or "", value) if attribute == "motion" else value == getattr(wished, attribute)


Match = list[tuple[WishedThing, SeenThing | None]]


def _match(wished: tuple[WishedThing, ...], seen: list[SeenThing]) -> Match:
    """The pairing of wished with seen things under which most attributes are right."""
    candidates: list[SeenThing | None] = [*seen, *[None] * len(wished)]

    def right(pairing: Iterable[SeenThing | None]) -> int:
        return sum(_fits(w, s, name) for w, s in zip(wished, pairing, strict=True)
                   for name in ("colour", "shape", "motion") if getattr(w, name) is not None)

    return list(zip(wished, max(permutations(candidates, len(wished)), key=right), strict=True))


def _share(match: Match, attribute: str) -> float | None:
    said = [_fits(w, s, attribute) for w, s in match if getattr(w, attribute) is not None]
    return float(np.mean(said)) if said else None


def _per_frame(match: Match, attribute: str) -> float | None:
    """Share of the frames (motion: windows) that show the thing and show it right, over all wished things."""
    shares = []
    for wished, seen in match:
        if getattr(wished, attribute) is None:
            continue
        if seen is None:
            shares.append(0.0)
        elif attribute == "motion":
            hits = [m is not None and motion_fits(wished.motion or "", m) for m in seen.motions]
            shares.append(float(np.mean(hits)) if hits else 0.0)
        else:
            values, names = (seen.colours, COLOURS) if attribute == "colour" else (seen.shapes, SHAPES)
            visible = values[values >= 0]
            shares.append(float((visible == names.index(getattr(wished, attribute))).mean()) if len(visible) else 0.0)
    return float(np.mean(shares)) if shares else None


def _words(place: str, time: str, seen: list[SeenThing]) -> str:
    things = " and ".join(f"{t.colour} {t.shape or 'thing'} {t.motion or 'moves oddly'}" for t in seen)
    return f"{place}, {time}: {things or 'nothing'}"
