"""Live: what is measured while a stream runs, and the rungs it goes down when it is late and up when it has time.

A player shows frames at a fixed rate from the moment the first chunk is there; when it has run out it stands still
until the next one comes. A chunk is late (it misses its deadline) if it comes more than `grace` after the frames before
it have run out, or after it was asked for if that was later: a consumer's pause is not held against the stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from time import perf_counter

from rollforce.engine.quality import QualityLevel, quality_levels
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError
from rollforce.streaming.events import Cue, Event, Timings
from rollforce.streaming.steering import Steering

RECENT = 512  # chunks that percentiles are over


@dataclass(frozen=True)
class Pace:
    """How a stream keeps up with its player: it stands on a ladder of rungs (rungs.py), at first on the highest.

    Down by one: of the last `among` chunks, `misses` were late.
    Up by one: of the last `calm` chunks none was late, and each took at most `ample` of the time that it plays to make
    (denoising and decoding one after the other).
    Counting begins anew with the second chunk on a rung: the first pays for the change, and what was under way before
    it is of the rung before. So two changes are never nearer than `misses` + 1 chunks, and because going up by one step
    costs less than 1 / `ample` times as much, it leads to no misses by itself.

    `fps`: of the player (None: the model's). `grace`: seconds that nobody minds. `rungs`: from the highest down (None:
    those of `quality_levels`); with one there is nothing to choose. `clock`: seconds, any start.

    StreamDiffusionV2 (arXiv 2511.07399) plans for deadlines with the size of its batch; here it is the work of a chunk
    that changes while the stream runs, and the rules are ours."""

    fps: float | None = None
    rungs: tuple[QualityLevel, ...] | None = None
    grace: float = 0.1
    misses: int = 2
    among: int = 4
    ample: float = 0.5
    calm: int = 8
    clock: Callable[[], float] = field(default=perf_counter, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"pace.fps {self.fps:g} must be above 0 frames a second.")
        if not self.grace >= 0:
            raise ConfigError(f"pace.grace {self.grace:g}: seconds, 0 or more.")
        if not 1 <= self.misses <= self.among:
            raise ConfigError(f"pace.misses {self.misses} must lie in 1..among, which is {self.among}.")
        if not 0 < self.ample < 1 or self.calm < 1:
            raise ConfigError(f"pace.ample {self.ample:g} must lie between 0 and 1, calm {self.calm} be 1 or more.")
        if self.rungs is not None and not self.rungs:
            raise ConfigError("pace.rungs: at least one, the highest first; None derives them from the stream.")

    def ladder(self, settings: StreamSettings) -> tuple[QualityLevel, ...]:
        """The rungs of a stream, highest first. ConfigError if it cannot stand on one of them."""
        if self.rungs is None:
            return quality_levels(settings)
        for rung in self.rungs:
            rung.on(settings)
        return self.rungs


@dataclass(frozen=True)
class Measures:
    """What a stream was measured to do so far. `latency_*`: seconds from asking for a chunk to its frames, over the
    newest RECENT chunks (nearest rank); everything else since the start."""

    fps: float  # of the player that deadlines are of
    chunks: int
    frames: int
    first_frame_s: float | None  # from opening the session to the first frames
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    misses: int  # chunks that were late
    denoise_s: float
    decode_s: float

    @property
    def times_real_time(self) -> float | None:
        """Seconds of video, at `fps`, for one second of work: denoising and decoding one after the other."""
        work = self.denoise_s + self.decode_s
        return self.frames / self.fps / work if work > 0 else None


class LatencyMeter:
    """Counts what a stream does, in bounded memory."""

    def __init__(self, fps: float, grace: float, clock: Callable[[], float] = perf_counter) -> None:
        self.fps, self.grace, self.clock = fps, grace, clock
        self._begun = clock()
        self._first: float | None = None
        self._chunks = self._frames = self._misses = 0
        self._denoise = self._decode = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._out: float | None = None  # when the player will have shown all

    def add(self, asked: float, frames: int, timings: Timings) -> tuple[bool, float]:
        """A chunk of so many frames, asked for at `asked`, is there now. Whether it is late, and the work it took as a
        share of the time that it plays."""
        now, plays = self.clock(), frames / self.fps
        late = self._out is not None and now > max(self._out, asked) + self.grace
        self._out = (now if self._out is None else max(self._out, now)) + plays
        self._first = now - self._begun if self._first is None else self._first
        self._recent.append(now - asked)
        self._chunks, self._frames, self._misses = self._chunks + 1, self._frames + frames, self._misses + late
        self._denoise, self._decode = self._denoise + timings.denoise_s, self._decode + timings.decode_s
        return late, (timings.denoise_s + timings.decode_s) / plays

    def jumped(self) -> None:
        """The stream goes on elsewhere: its player begins anew."""
        self._out = None

    @property
    def measures(self) -> Measures:
        """So far."""
        p50, p95, p99 = (percentile(self._recent, share) for share in (0.5, 0.95, 0.99))
        return Measures(self.fps, self._chunks, self._frames, self._first, p50, p95, p99, self._misses, self._denoise,
                        self._decode)  # fmt: skip


class LevelChooser:
    """Judges chunk by chunk on which rung a stream should stand: the rules of `Pace`."""

    def __init__(self, pace: Pace, rungs: Sequence[QualityLevel], at: int = 0) -> None:
        self.pace, self.rungs, self.at = pace, tuple(rungs), at
        self._asked: QualityLevel | None = None  # and not yet there
        self._late: deque[bool] = deque(maxlen=pace.among)
        self._calm = 0

    def judge(self, late: bool, load: float, arrived: QualityLevel | None = None) -> QualityLevel | None:
        """The rung to go to, if any. `arrived`: the one that this chunk is the first of."""
        if arrived is not None:
            self.at = self.rungs.index(arrived) if arrived in self.rungs else self.at
            self._asked = None
            self.anew()
            return None
        if self._asked is not None:
            return None
        self._late.append(late)
        self._calm = 0 if late or load > self.pace.ample else self._calm + 1
        to = self.at
        if sum(self._late) >= self.pace.misses:
            to = min(self.at + 1, len(self.rungs) - 1)
        elif self._calm >= self.pace.calm:
            to = max(self.at - 1, 0)
        if to == self.at:
            return None
        self._asked = self.rungs[to]
        return self._asked

    def anew(self) -> None:
        """Forget what was counted."""
        self._late.clear()
        self._calm = 0


class PaceController:
    """The meter of one session, and its ladder if it has a `pace`."""

    def __init__(self, pace: Pace | None, settings: StreamSettings, fps: float, follows: bool = False) -> None:
        if pace is not None and follows:
            raise ConfigError("a stream that follows a video has its pace: it cannot begin anew on another rung.")
        self._made = (pace, settings, fps, follows)
        chosen = pace or Pace()
        self.meter = LatencyMeter(chosen.fps or fps, chosen.grace, chosen.clock)
        self.ladder = None if pace is None else LevelChooser(pace, pace.ladder(settings))

    def took(
        self, asked: float, frames: int, timings: Timings, events: Sequence[Event], steering: Steering, seconds: float
    ) -> None:
        """A chunk is there. What it was told of the pace is asked of `steering`, for the next that is not begun."""
        if not frames:
            return
        late, load = self.meter.add(asked, frames, timings)
        if self.ladder is None:
            return
        arrived = [event.cue.rung for event in events if event.kind == "pace"]
        rung = self.ladder.judge(late, load, arrived[-1] if arrived else None)
        if rung is not None:
            steering.add(Cue(seconds, rung=rung), now=True)

    def jumped(self, steering: Steering) -> None:
        """The stream went back, or was resumed: what is measured goes on, on the rung that it stands on there."""
        self.meter.jumped()
        if self.ladder is not None:
            rungs = self.ladder.rungs
            at = rungs.index(steering.rung) if steering.rung in rungs else 0
            self.ladder = LevelChooser(self.ladder.pace, rungs, at)

    def twin(self, steering: Steering) -> PaceController:
        """For a fork: measured from here on."""
        live = PaceController(*self._made)
        live.jumped(steering)
        return live


def percentile(values: Sequence[float] | deque[float], share: float) -> float | None:
    """The smallest value that at least `share` of all are not above (nearest rank). None of none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None
