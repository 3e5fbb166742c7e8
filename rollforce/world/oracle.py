"""The oracle: what a video shows and how well that is what its prompt asked for, from pixels alone.

    report = score(frames, "a red ball bounces over green hills")       # frames uint8 [F, H, W, 3] at 12 fps
    report.shape, report.motion, report.seams.chunk_ratio

Networks see single frames (`eyes.py`), things are put together from them (`perception.py`), the rest is counting.
Whether a thing stays itself over time is told by `identity.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from rollforce.errors import ShapeError
from rollforce.video.drift import Drift, DriftMeter
from rollforce.world.caption import Wish, WishedThing, motion_fits, parse
from rollforce.world.eyes import Eyes, EyesOutput
from rollforce.world.perception import TrackedThing, count_things, pick_commonest, track_things
from rollforce.world.scenes import COLOURS, FPS, GROUND, PLACES, RADIUS, SHAPES, TIMES

BLOCK = 240  # frames worked on at once, so that memory does not grow with the video


@dataclass(frozen=True)
class Report:
    """How well a video fits its wish: shares in 0..1, None where the wish does not say or nothing can be said.

    `scene`, `colour`, `motion`, `shape`, `count` judge the clip as a whole (two things: the share that is right), the
    `..._per_frame` ones single frames (those that show the thing), `motion_per_window` windows of 5 s. `whole` is 1
    minus the share of torn things, `present` the share of frames that show a thing at all. `both` is whether both of
    two wished things have their colour and their shape."""

    scene: float | None
    colour: float | None
    motion: float | None
    shape: float | None
    count: float | None
    both: float | None
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
        """Return every measure by its name; seams and drift as "seams.chunk", "drift.luma" and so on."""
        flat = {name: value for name, value in vars(self).items() if name not in ("seams", "drift", "seen")}
        flat |= {f"seams.{name}": getattr(self.seams, name) for name in
                 ("chunk", "latent", "inside", "chunk_ratio", "latent_ratio")}
        return flat | {f"drift.{name}": ratio for name, ratio in (self.drift.ratios() if self.drift else {}).items()}


def score(frames: np.ndarray, prompt: str | Wish, chunk: int = 12, latent: int = 4, eyes: Eyes | None = None) -> Report:
    """Judge uint8 [F, H, W, 3] (12 fps, any size) against `prompt`. `chunk` and `latent`: their lengths in frames."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) < 2:
        raise ShapeError(f"a video to judge is uint8 [frames >= 2, height, width, 3], not {frames.dtype} "
                         f"{list(frames.shape)}; stack the chunks' frames first")
    wish = parse(prompt) if isinstance(prompt, str) else prompt
    return judge(frames, (eyes or Eyes.load()).look(frames), wish, chunk, latent)


def judge(frames: np.ndarray, look: EyesOutput, wish: Wish, chunk: int = 12, latent: int = 4) -> Report:
    """Judge frames that were looked at already: `look` is what `Eyes.look` saw in just these `frames`."""
    place, time = look.place.argmax(1), look.time.argmax(1)
    asked = [(values, names.index(value)) for values, names, value in
             ((place, PLACES, wish.place), (time, TIMES, wish.time)) if value is not None]
    seen = track_things(look, count := count_things(look))
    match = _match(wish.things, seen)
    torn = [thing.torn for thing in seen if thing.torn is not None]
    things = " and ".join(f"{t.colour} {t.shape or 'thing'} {t.motion or 'moves oddly'}" for t in seen)
    return Report(scene=float(all(pick_commonest(values) == right for values, right in asked)) if asked else None,
                  colour=_share(match, "colour"), motion=_share(match, "motion"), shape=_share(match, "shape"),
                  count=None if wish.count is None else float(count == wish.count), both=_judge_pair(match),
                  scene_per_frame=float(np.all([v == right for v, right in asked], 0).mean()) if asked else None,
                  colour_per_frame=_per_frame(match, "colour"), shape_per_frame=_per_frame(match, "shape"),
                  motion_per_window=_per_frame(match, "motion"), whole=1 - float(np.mean(torn)) if torn else None,
                  present=float(np.mean([len(things) > 0 for things in look.things])),
                  flicker=flicker(frames, _mask_moving(look, frames.shape[1:3])), seams=seams(frames, chunk, latent),
                  drift=_measure_drift(DriftMeter(FPS), frames),
                  seen=f"{PLACES[pick_commonest(place)]}, {TIMES[pick_commonest(time)]}: {things or 'nothing'}")


def _measure_drift(meter: DriftMeter, *parts: np.ndarray) -> Drift | None:
    for frames in parts:
        meter.add(frames)
    return meter.result()


def _mask_moving(look: EyesOutput, shape: tuple[int, ...]) -> np.ndarray:
    """Return where things and their shadows are within three quarters of a second: bool [F, H, W]."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape)
    near = np.zeros((len(look.things), *shape), bool)
    for f, s in ((f, s) for f, things in enumerate(look.things) for s in things):
        across = np.abs(columns - s.x)[None, :]
        near[f] |= (across**2 + (rows - s.y)[:, None] ** 2) < (1.7 * RADIUS) ** 2
        near[f] |= (across < 1.5 * RADIUS) & (rows > GROUND - 0.12)[:, None]
    total = np.concatenate([np.zeros((1, *shape), np.int32), near.cumsum(0, dtype=np.int32)])
    reach, ends = round(0.75 * FPS), np.arange(len(near))
    return total[np.minimum(ends + reach + 1, len(near))] > total[np.maximum(ends - reach, 0)]


# -- seen against wished -----------------------------------------------------------------------------------------------

def _fits(wished: WishedThing, seen: TrackedThing | None, attribute: str) -> bool:
    """Return whether the clip's `seen` thing has the wished attribute (which must be said)."""
    value = getattr(seen, attribute, None)
    if attribute == "motion":
        return value is not None and motion_fits(wished.motion or "", value)
    return bool(value == getattr(wished, attribute))


Match = list[tuple[WishedThing, TrackedThing | None]]


def _match(wished: tuple[WishedThing, ...], seen: list[TrackedThing]) -> Match:
    """Return the pairing of wished with seen things under which most attributes are right."""
    candidates: list[TrackedThing | None] = [*seen, *[None] * len(wished)]

    def right(pairing: Iterable[TrackedThing | None]) -> int:
        return sum(_fits(w, s, name) for w, s in zip(wished, pairing, strict=True)
                   for name in ("colour", "shape", "motion") if getattr(w, name) is not None)

    return list(zip(wished, max(permutations(candidates, len(wished)), key=right), strict=True))


def _share(match: Match, attribute: str) -> float | None:
    said = [_fits(w, s, attribute) for w, s in match if getattr(w, attribute) is not None]
    return float(np.mean(said)) if said else None


def _judge_pair(match: Match) -> float | None:
    """Return whether both of two things have colour and shape; None if the wish is not two things with both said."""
    if len(match) != 2 or not all(wished.colour and wished.shape for wished, _ in match):
        return None
    return float(all(_fits(w, s, name) for w, s in match for name in ("colour", "shape")))


def _per_frame(match: Match, attribute: str) -> float | None:
    """Return the share of the frames (motion: windows) that show the thing and show it right, over all things."""
    shares = []
    for said, seen in ((getattr(wished, attribute), seen) for wished, seen in match):
        if said is None:
            continue
        hits: Sequence[bool] | np.ndarray = []
        if seen is not None and attribute == "motion":
            hits = [m is not None and motion_fits(said, m) for m in seen.motions]
        elif seen is not None:
            values, names = (seen.colours, COLOURS) if attribute == "colour" else (seen.shapes, SHAPES)
            hits = values[values >= 0] == names.index(said)
        shares.append(float(np.mean(hits)) if len(hits) else 0.0)
    return float(np.mean(shares)) if shares else None


# -- measures that need no prompt: seams, flicker, drift over time; grey levels are 0..255 -----------------------------

@dataclass(frozen=True)
class Seams:
    """Mean |frame difference| in grey levels at chunk borders, at the other latent borders and inside latents. None
    where the video has no such border. The ratios are against `inside`; 1 means no seam."""

    chunk: float | None
    latent: float | None
    inside: float | None

    @property
    def chunk_ratio(self) -> float | None:
        return _ratio(self.chunk, self.inside)

    @property
    def latent_ratio(self) -> float | None:
        return _ratio(self.latent, self.inside)


def differences(frames: np.ndarray) -> np.ndarray:
    """Return the mean |difference| between each frame and the next: [F - 1]."""
    parts = (np.abs(np.diff(block.astype(np.int16), axis=0)).mean((1, 2, 3)) for block in _blocks(frames, 1))
    return np.concatenate([np.zeros(0), *parts])


def seams(frames: np.ndarray, chunk: int = 12, latent: int = 4) -> Seams:
    """Return the frame differences of uint8 [F, H, W, 3] at the borders of chunks and latents, given in frames."""
    change, after = differences(frames), np.arange(1, len(frames))
    at_chunk, at_latent = after % chunk == 0, after % latent == 0
    groups = (at_chunk, at_latent & ~at_chunk, ~at_latent)
    return Seams(*(float(change[group].mean()) if group.any() else None for group in groups))


def flicker(frames: np.ndarray, moving: np.ndarray | None = None) -> float | None:
    """Return the mean second difference |x(t-1) - 2 x(t) + x(t+1)| of uint8 [F, H, W, 3] where nothing moves. `moving`
    [F, H, W] marks what to leave out around t. None for fewer than 3 frames or if something moves everywhere."""
    total = pixels = 0.0
    for at, block in enumerate(_blocks(frames, 2)):
        x = block.astype(np.int16)
        second, start = np.abs(x[:-2] - 2 * x[1:-1] + x[2:]).mean(-1), at * BLOCK + 1
        still = np.ones(second.shape, bool) if moving is None else ~moving[start : start + len(second)]
        total += float(second[still].sum())
        pixels += float(still.sum())
    return total / pixels if pixels else None


def drift_curve(frames: np.ndarray, parts: Sequence[slice]) -> list[dict[str, float]]:
    """Return how each of some equal `parts` of uint8 [F, H, W, 3] differs from the first: `Drift`'s ratios."""
    motions, curve = [float(differences(frames[part]).mean()) for part in parts], []
    for part, motion in zip(parts, motions, strict=True):
        meter = DriftMeter(fps=1, window_s=len(frames[part]))
        drift = _measure_drift(meter, frames[parts[0]], frames[part])
        ratios = drift.ratios() if drift else {}
        curve.append(ratios | {"motion": (motion + 0.1) / (motions[0] + 0.1)})  # without the jump from part to part
    return curve


def _blocks(frames: np.ndarray, overlap: int) -> Iterator[np.ndarray]:
    for at in range(0, len(frames) - overlap, BLOCK):
        yield frames[at : at + BLOCK + overlap]


def _ratio(value: float | None, inside: float | None) -> float | None:
    return None if value is None or inside is None else value / max(inside, 1e-6)
