"""Pace: what is measured while a stream runs, and the quality level, lower when it is late and higher when it has time.

A player shows frames at a fixed rate from the moment the first chunk is there; when it has run out it stands still
until the next one comes. A chunk is late (it misses its deadline) if it comes more than `grace` after the frames before
it have run out, or after it was asked for if that was later: a consumer's pause is not held against the stream.
"""

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
from rollforce.video.values import check_count, check_kind, check_number, check_seconds

RECENT = 512  # chunks that percentiles are over


@dataclass(frozen=True)
class Pace:
    """How a stream keeps up with its player: by going down and up between quality levels, from the highest on.

    Down by one: of the last `among` chunks, `misses` were late.
    Up by one: of the last `calm` chunks none was late, and each took at most `ample` of the time that it plays to make
    (denoising and decoding one after the other).
    Counting begins anew with the second chunk on a level: the first pays for the change, and what was under way before
    it is of the level before. So two changes are never nearer than `misses` + 1 chunks, and because going up by one
    step costs less than 1 / `ample` times as much, it leads to no misses by itself.

    `fps` is the player's (None: the model's), `grace` are seconds that nobody minds. `levels` go from the highest down
    (None: those of `quality_levels`); with one there is nothing to choose. `clock` counts seconds, from any start.

    StreamDiffusionV2 (arXiv 2511.07399) plans for deadlines with the size of its batch; here it is the work of a chunk
    that changes while the stream runs, and the rules are ours."""

    fps: float | None = None
    levels: tuple[QualityLevel, ...] | None = None
    grace: float = 0.1
    misses: int = 2
    among: int = 4
    ample: float = 0.5
    calm: int = 8
    clock: Callable[[], float] = field(default=perf_counter, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.fps is not None:
            check_number(self.fps, "pace.fps", 0, 1e9, above=True, remedy="Frames a second of the player.")
        check_kind(self.clock, Callable, "pace.clock", "a function that returns seconds")
        check_seconds(self.grace, "pace.grace", zero=True)
        check_count(self.among, "pace.among", most=RECENT)
        check_count(self.misses, "pace.misses", most=self.among, remedy="It counts among the last pace.among chunks.")
        check_number(self.ample, "pace.ample", 0, 1, above=True, below=True)
        check_count(self.calm, "pace.calm")
        if self.levels is not None:
            right = "at least one QualityLevel, the highest first, or None, which derives them from the stream"
            for level in check_kind(self.levels or None, list | tuple, "pace.levels", right):
                check_kind(level, QualityLevel, "pace.levels", right)

    def levels_of(self, settings: StreamSettings) -> tuple[QualityLevel, ...]:
        """Return the quality levels of a stream, highest first. ConfigError if it cannot stream at one of them."""
        if self.levels is None:
            return quality_levels(settings)
        for level in self.levels:
            level.apply(settings)
        return self.levels


@dataclass(frozen=True)
class Measures:
    """What a stream was measured to do so far. `fps` is of the player that deadlines are of, `first_frame_s` counts
    from opening the session, `latency_*` are seconds from asking for a chunk to its frames, over the newest RECENT
    chunks (nearest rank), and `misses` the chunks that were late. Everything but latencies is of the whole stream."""

    fps: float
    chunks: int
    frames: int
    first_frame_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    misses: int
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
        self.until: float | None = None  # when the player will have shown all frames that it has
        self._begun = clock()
        self._first: float | None = None
        self._chunks = self._frames = self._misses = 0
        self._denoise = self._decode = 0.0
        self.recent: deque[float] = deque(maxlen=RECENT)

    def add(self, asked: float, frames: int, timings: Timings) -> tuple[bool, float]:
        """Count a chunk of so many frames, asked for at `asked`, that is there now. Return whether it is late, and the
        work that it took as a share of the time that it plays."""
        now, plays = self.clock(), frames / self.fps
        late = self.until is not None and now > max(self.until, asked) + self.grace
        self.until = (now if self.until is None else max(self.until, now)) + plays
        self._first = now - self._begun if self._first is None else self._first
        self.recent.append(now - asked)
        self._chunks, self._frames, self._misses = self._chunks + 1, self._frames + frames, self._misses + late
        self._denoise, self._decode = self._denoise + timings.denoise_s, self._decode + timings.decode_s
        return late, (timings.denoise_s + timings.decode_s) / plays

    def jump(self) -> None:
        """Note that the stream goes on elsewhere: its player begins anew."""
        self.until = None

    @property
    def measures(self) -> Measures:
        """What was measured so far."""
        p50, p95, p99 = (percentile(self.recent, share) for share in (0.5, 0.95, 0.99))
        return Measures(self.fps, self._chunks, self._frames, self._first, p50, p95, p99, self._misses, self._denoise,
                        self._decode)  # fmt: skip


class LevelChooser:
    """Chooses, chunk by chunk, at which quality level a stream should be made: the rules of `Pace`."""

    def __init__(self, pace: Pace, levels: Sequence[QualityLevel], at: int = 0) -> None:
        self.pace, self.levels, self.at = pace, tuple(levels), at
        self._asked: QualityLevel | None = None  # and not yet there
        self._late: deque[bool] = deque(maxlen=pace.among)
        self._calm = 0

    def choose(self, late: bool, load: float, arrived: QualityLevel | None = None) -> QualityLevel | None:
        """Return the level to go to, if any. `arrived` is the level that this chunk is the first of."""
        if arrived is not None:
            self.at = self.levels.index(arrived) if arrived in self.levels else self.at
            self._asked, self._calm = None, 0
            self._late.clear()
            return None
        if self._asked is not None:
            return None
        self._late.append(late)
        self._calm = 0 if late or load > self.pace.ample else self._calm + 1
        step = 1 if sum(self._late) >= self.pace.misses else -1 if self._calm >= self.pace.calm else 0
        if step and 0 <= self.at + step < len(self.levels):
            self._asked = self.levels[self.at + step]
        return self._asked


class PaceController:
    """The meter of one session and, if it has a `pace`, who chooses its quality level."""

    def __init__(self, pace: Pace | None, settings: StreamSettings, fps: float, follows: bool = False) -> None:
        if pace is not None and follows:
            raise ConfigError("a stream that follows a video has its pace: it cannot begin anew at another level.")
        self._made = (pace, settings, fps, follows)
        wanted = pace or Pace()
        self.meter = LatencyMeter(wanted.fps or fps, wanted.grace, wanted.clock)
        self.chooser = None if pace is None else LevelChooser(pace, pace.levels_of(settings))

    def take(self, asked: float, frames: int, timings: Timings, events: Sequence[Event], steering: Steering,
             seconds: float) -> None:  # fmt: skip
        """Count a chunk that is there, and ask `steering` for another quality level if that is due: it holds from the
        next chunk on that is not begun."""
        if not frames:
            return
        late, load = self.meter.add(asked, frames, timings)
        if self.chooser is None:
            return
        arrived = [event.cue.quality for event in events if event.kind == "pace"]
        if (level := self.chooser.choose(late, load, arrived[-1] if arrived else None)) is not None:
            steering.add(Cue(seconds, quality=level), now=True)

    def jump(self, steering: Steering) -> None:
        """Note that the stream went back, or was resumed: measuring goes on, at the level that it has there."""
        self.meter.jump()
        if self.chooser is not None:
            levels = self.chooser.levels
            at = levels.index(steering.quality) if steering.quality in levels else 0
            self.chooser = LevelChooser(self.chooser.pace, levels, at)

    def fork(self, steering: Steering) -> PaceController:
        """Return a controller for a fork: it measures from here on."""
        twin = PaceController(*self._made)
        twin.jump(steering)
        return twin


def percentile(values: Sequence[float] | deque[float], share: float) -> float | None:
    """Return the smallest value that at least `share` of all are not above (nearest rank); None if there are none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None
