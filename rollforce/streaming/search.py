"""Search: a stream that is the best of many (Stream-T1, arXiv 2605.04461: test-time scaling for streams).

From where a stream stands, forks go on with other noise; each new chunk is decoded and scored, the best forks live on,
the others are closed. What is handed out is the past of the best one, as soon as it can no longer change.

    with model.session("a red ball bounces over green hills") as session, Search(session, reward) as search:
        for chunk in search.stream(seconds=10): ...
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

import numpy as np

from rollforce.cache.commit_plan import check_lowest
from rollforce.cache.policies.routed import APPEND, AVERAGE
from rollforce.engine.flow import Branched, Noise
from rollforce.engine.transitions import AnyTransition
from rollforce.errors import ConfigError, SessionClosed
from rollforce.streaming.events import Chunk, Event
from rollforce.streaming.session import Session, count_frames, step_together

FrameReward = Callable[[np.ndarray, str], float]
"""How good frames, uint8 [F, H, W, 3], are for a prompt: more is better."""


@dataclass(frozen=True)
class SearchSettings:
    """How wide to search, and what counts. The defaults are those of the release (configs/stream_scaling.yaml).

    `beams` live on after each round; each tries `candidates` (where fewer live, those try more). In a round a candidate
    goes on by `span` chunks. A round is handed out once all beams share it, or `lookahead` later ones are there: then
    the best beam's counts, and beams that do not share it are closed. Never more than 2 x beams + 1 forks are alive;
    or, `together`, all candidates, whose model calls are then one (faster where a call is small for the machine).

    `branch`: where candidates differ. `entering`: in the noise of what enters the buffer from now on, and nothing is
    lost. Where several chunks are in flight (rolling) that shows only in the last chunks of a round, so `span` must be
    longer than the flight. `anew`: what is in flight begins anew, which costs a candidate the calls that fill the
    buffer. The first candidate of a beam always goes on as it is. Chunkwise, the two are one.

    `lean`: sigma of noise propagation, x = sigma * noise of the chunk before + sqrt(1 - sigma^2) * eps.

    The score of a chunk is alpha * short + (1 - alpha) * long: its own reward, and that of the last `window` chunks
    (those of its prompt); alpha = min(time / `ramp`, `most`), in seconds of video. Of a round, it is the mean.

    `better`, `worse`: what the memory tier `routed` does with a chunk. One whose short reward is more than `better`
    above the mean of the last `window` - 1 is kept: appended if the long reward fell by more than `worse` with it (a
    new scene), else averaged in."""

    beams: int = 2
    candidates: int = 2
    lookahead: int = 1
    together: bool = False
    span: int = 1
    branch: Literal["entering", "anew"] = "entering"
    lean: float = -0.1
    window: int = 10
    ramp: float = 5.0
    most: float = 0.4
    better: float = 0.0
    worse: float = 0.2

    def __post_init__(self) -> None:
        check_lowest(self, beams=1, candidates=1, lookahead=0, span=1, window=1)
        if not -1 < self.lean < 1:
            raise ConfigError(f"lean {self.lean:g} must lie between -1 and 1: it is a correlation.")
        if not self.ramp > 0 or not 0 <= self.most <= 1:
            raise ConfigError(f"ramp {self.ramp:g} must be above 0 seconds, and most {self.most:g} in 0..1.")


def candidate_seed(seed: int, round_: int, beam: int, number: int) -> int:
    """Return the seed of a candidate, unrelated to those that people choose, and to each other."""
    return zlib.crc32(f"{seed}/{round_}/{beam}/{number}".encode())


# -- the search ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class ScoredChunk:
    """A chunk, and the reward of itself."""

    chunk: Chunk
    short: float


@dataclass(eq=False)
class Beam:
    """A stream that is alive: its rounds that are not yet handed out, and what its next chunks are compared with.
    `recent` are its last `window` chunks, `long` the reward of them together, `score` that of the last round."""

    session: Session
    rounds: tuple[tuple[Chunk, ...], ...] = ()
    recent: tuple[ScoredChunk, ...] = ()
    long: float = 0.0
    score: float = 0.0

    def fork(self) -> Beam:
        """Return a second one that goes on from here."""
        return replace(self, session=self.session.fork())


class Search:
    """The stream of the best candidates. Pull-driven, as a session. The session that it is given stays as it is.

    Use it as a context manager, or call `close()`; either closes all forks. ConfigError for a session that cannot be
    searched; SnapshotError if it follows a video.

    `reward`: of a chunk and, if `long` is None, of the last chunks together. The timings of what is handed out are
    those of this one candidate.

    Deviations from the release (pipelines/stream_scaling.py): a stream has no end, so alpha counts seconds instead of
    the share of a given length, and what is handed out is settled by the lookahead, not by the reward of whole videos;
    the mean of short rewards is that of the window (there, of all chunks, by a slip of a sign); long rewards are given
    what the stream's own decoder drew (there, the latents of the window decoded by themselves); a beam's first
    candidate goes on with its seed's noise of the next chunk (there, with the same noise again)."""

    def __init__(self, session: Session, reward: FrameReward, settings: SearchSettings | None = None,
                 long: FrameReward | None = None) -> None:  # fmt: skip
        self.settings = settings or SearchSettings()
        _check(session, self.settings)
        self._reward, self._long, self._seed, self._fps = reward, long or reward, session.seed, session.model.fps
        self.beams = [Beam(session.fork())]  # the best first
        rollout = self.beams[0].session.state.rollout
        noise, chunk = rollout.noise, rollout.layout.shift
        assert isinstance(noise, Noise)
        before = noise.branches if isinstance(noise, Branched) else ()
        rollout.noise = Branched(noise.seeds, noise.shape, before, self.settings.lean, chunk)
        self._ready: deque[Chunk] = deque()
        self._round = 0

    def stream(self, seconds: float | None = None) -> Iterator[Chunk]:
        """Yield chunks of frames of the best stream; for ever, or for the next `seconds` of video."""
        self._alive()
        return self._chunks(count_frames(seconds, self._fps))

    def _chunks(self, limit: float) -> Iterator[Chunk]:
        while limit > 0:
            while not self._ready:
                self._go_on()
            chunk = self._ready.popleft()
            if len(chunk.frames) > limit:
                cut = int(limit)
                rest = replace(chunk, frames=chunk.frames[cut:], pts=chunk.pts + cut / self._fps, events=())
                self._ready.appendleft(rest)
                chunk = replace(chunk, frames=chunk.frames[:cut])
            limit -= len(chunk.frames)
            yield chunk

    @property
    def noise(self) -> Branched:
        """The noise of the best stream: a plain session that draws it makes the same bytes, unless its memory is
        routed, or what was in flight began anew."""
        noise = self._alive()[0].session.state.rollout.noise
        assert isinstance(noise, Branched)
        return noise

    def prompt(self, text: str, transition: AnyTransition | str = "recache", *, at: float | None = None) -> Event:
        """Change the prompt of all beams, as Session.prompt does: from the next chunk that is not begun, which is ahead
        of what was handed out. Not while `stream` computes."""
        events = [beam.session.prompt(text, transition, at=at) for beam in self._alive()]
        return events[0]

    # -- a round ------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Try all candidates, keep the best, and hand out what is settled. What goes wrong in it ends the search."""
        best: list[Beam] = []
        beams, self.beams = self._alive(), []
        candidates = self._candidates(beams)
        for group in [list(candidates)] if self.settings.together else ([beam] for beam in candidates):
            self._try(group)
            best = sorted([*best, *group], key=lambda each: -each.score)  # of equal ones the first
            for pruned in best[self.settings.beams :]:
                pruned.session.close()
            best = best[: self.settings.beams]
        self.beams, self._round = best, self._round + 1
        self._hand_out()

    def _candidates(self, beams: Sequence[Beam]) -> Iterator[Beam]:
        """Yield where each candidate begins. The last of a beam is the beam itself."""
        total = self.settings.beams * self.settings.candidates
        for place, beam in enumerate(beams):
            count = total // len(beams) + (place < total % len(beams))
            for number in range(count):
                twin = beam if number == count - 1 else beam.fork()
                if number:
                    self._branch(twin, candidate_seed(self._seed, self._round, place, number))
                yield twin

    def _branch(self, beam: Beam, seed: int) -> None:
        """Draw other noise from the next latent on that is not in flight; or (`anew`) let nothing be in flight."""
        rollout = beam.session.state.rollout
        if self.settings.branch == "anew":
            rollout.restart()
        assert isinstance(rollout.noise, Branched)
        entered = 0 if rollout.x is None else rollout.x.shape[1]
        rollout.noise = rollout.noise.branch(rollout.live[0] + entered, seed)

    def _try(self, candidates: Sequence[Beam]) -> None:
        """Let candidates go on by a round, and score them."""
        rounds: list[list[tuple[Chunk, float]]] = [[] for _ in candidates]
        for _ in range(self.settings.span):
            if len(candidates) > 1:
                step_together([beam.session for beam in candidates])
            for beam, done in zip(candidates, rounds, strict=True):
                chunk = next(beam.session.stream())
                done.append((chunk, self._score(beam, chunk)))
        for beam, done in zip(candidates, rounds, strict=True):
            beam.rounds = (*beam.rounds, tuple(chunk for chunk, _ in done))
            beam.score = sum(score for _, score in done) / len(done)

    def _score(self, beam: Beam, chunk: Chunk) -> float:
        """Return a chunk's score; the chunk is marked for the memory and remembered."""
        wanted, earlier = self.settings, beam.recent[max(0, len(beam.recent) - self.settings.window + 1) :]
        same = list(takewhile(lambda each: each.chunk.prompt == chunk.prompt, reversed(earlier)))
        recent = [each.chunk.frames for each in reversed(same)]
        short = self._reward(chunk.frames, chunk.prompt)
        long = self._long(np.concatenate([*recent, chunk.frames]), chunk.prompt)
        if earlier and short - sum(each.short for each in earlier) / len(earlier) > wanted.better:
            rollout = beam.session.state.rollout
            if rollout.pending is not None:  # its last chunk, which is not yet written to memory
                rollout.cache.mark(APPEND if beam.long - long > wanted.worse else AVERAGE, rollout.pending.start)
        beam.recent, beam.long = (*earlier, ScoredChunk(chunk, short)), long
        alpha = min(chunk.pts / wanted.ramp, wanted.most)
        score = alpha * short + (1 - alpha) * long
        if math.isnan(score):
            raise ConfigError(f"the reward of the chunk at {chunk.pts:g} s is not a number (short {short:g}, long "
                              f"{long:g}): return one for any frames, a low one if nothing can be said.")
        return score

    def _hand_out(self) -> None:
        """Hand out what all beams share, and what is older than the lookahead."""
        while self.beams[0].rounds:
            first = self.beams[0].rounds[0]
            agreed = [beam for beam in self.beams if beam.rounds[0] is first]
            if len(agreed) < len(self.beams) and len(self.beams[0].rounds) <= self.settings.lookahead:
                return
            for beam in self.beams:
                if beam in agreed:
                    beam.rounds = beam.rounds[1:]
                else:
                    beam.session.close()
            self.beams = agreed
            self._ready.extend(first)

    # -- ending -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all forks. Closing twice is fine."""
        for beam in self.beams:
            beam.session.close()
        self.beams = []
        self._ready.clear()

    def _alive(self) -> list[Beam]:
        if not self.beams:
            raise SessionClosed("This search is closed. Begin another with Search(session, reward).")
        return self.beams

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _check(session: Session, settings: SearchSettings) -> None:
    layout = session.state.rollout.layout
    flying = layout.slots // layout.shift - 1
    if settings.branch == "entering" and settings.candidates * settings.beams > 1 and settings.span <= flying:
        raise ConfigError(f"span {settings.span}: with {flying} chunks in flight beside the next, noise that enters "
                          f"now shows {flying} chunks later. Use span {flying + 1} or more, or branch anew.")
    if session.options.ahead or session.options.batch is not None:
        raise ConfigError("a session that computes ahead has begun its next chunk: search in one without ahead.")
    if session.pace.chooser is not None:
        raise ConfigError("a search takes its time: search in a session without pace.")
    if any(cue.seed is not None and cue.at >= session.seconds for cue in session.cues):
        raise ConfigError("a search chooses the seeds itself: cues to come may change the prompt, not the seed.")
