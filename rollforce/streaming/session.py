"""Session: one endless stream of pictures from a prompt, which may be told otherwise while it runs."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial, wraps
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch

from rollforce.config import to_dict
from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Rollout
from rollforce.engine.transitions import AnyTransition
from rollforce.engine.transitions import transition as find_transition
from rollforce.errors import ConfigError, SessionClosed, SnapshotError
from rollforce.streaming.batch import Batch
from rollforce.streaming.bundle import ModelBundle, compute_on
from rollforce.streaming.events import Chunk, Cue, Event, Timings
from rollforce.streaming.inputs import Follower, Past, SessionOptions, encode_past
from rollforce.streaming.pace import Measures, PaceController
from rollforce.streaming.prefetch import Prefetcher, await_result
from rollforce.streaming.snapshot import Snapshot, fork, to_device
from rollforce.streaming.steering import Steering
from rollforce.streaming.stream_state import (
    ChunkResult,
    Driver,
    FrameQueue,
    RewindHistory,
    RewindPoint,
    Stepper,
    StreamState,  # fmt: skip
    run_stepper,
    step_to_commit,
)
from rollforce.video.values import check_prompt, check_seconds, check_seed

P = ParamSpec("P")
T = TypeVar("T")


def alone(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Let one thread at a time do this with a session: others wait until the chunk in work is there."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


class Session:
    """One stream. Pull-driven: nothing is computed until a chunk is asked for (but with `ahead`, one chunk more than
    that), and nothing is kept that is not needed. Threads may share it: each pull hands the next chunk to one of them.
    Use it as a context manager, or call `close()`; either frees its memory. `given_frames` are the frames that the
    stream goes on from, uint8 [F, H, W, 3], as its autoencoder draws them, and `skipped_frames` how many of the clip's
    are before them; `stream` hands out what comes after them."""

    def __init__(self, model: ModelBundle, prompt: str, seed: int, size: tuple[int, int] | None,
                 options: SessionOptions | None = None) -> None:  # fmt: skip
        self.options = options or SessionOptions()
        self.grid, seed = model.grid(size), check_seed(seed)
        self._lock, self._process = RLock(), os.getpid()
        self.model, self.size = model, None if size is None else (int(size[0]), int(size[1]))
        follows = self.options.inputs.follow is not None
        self.pace = PaceController(self.options.pace, model.stream_settings, model.fps, follows)
        steering = Steering(model, prompt, seed, self.options.cues, follows)
        with compute_on(model.threads), torch.no_grad():
            rollout, past = self._begin(steering)
        self.given_frames = np.empty((0, *self._pixels, 3), dtype=np.uint8)
        self._frames: FrameQueue | None = FrameQueue(model.autoencoder.decoder(), self.given_frames, prompt)
        self.skipped_frames = 0 if past is None else past.skipped
        if past is not None:
            with compute_on(model.threads):
                self.given_frames = self._frames.decoder.decode(past.latents)
        state = StreamState(rollout, steering, 0 if past is None else past.latents.shape[1])
        self._state: StreamState | None = state
        self.history = RewindHistory(round(self.options.remember * model.fps))
        self._next: ChunkResult | None = None  # the next commit, where it was computed but not yet decoded
        self._drive(state)

    def _begin(self, steering: Steering) -> tuple[Rollout, Past | None]:
        """Build the rollout, and write into its memory the latents of what the stream goes on from, if anything."""
        model, inputs, settings, grid = self.model, self.options.inputs, self.model.stream_settings, self.grid
        source = None
        past = encode_past(inputs, model.autoencoder, self._pixels, model.fps)
        if inputs.follow is not None:
            layout = inputs.following.layout(settings.layout)
            settings = dataclasses.replace(settings, layout=layout)  # which checks that memory still fits
            source = Follower(inputs, model.autoencoder, self._pixels, model.fps, layout.chunk)
        cache = settings.memory(model.transformer.config.shape(grid), model.dtype, model.device)
        noise = Noise.of(steering.seed, (grid.channels, grid.height, grid.width))
        start = 0 if past is None else past.latents.shape[1]
        rollout = Rollout(model.transformer, steering.condition(), cache, settings.layout.build(), noise,
                          settings.stepping, start=start, source=source)  # fmt: skip
        if past is not None:
            rollout.prefill(past.latents)
        return rollout, past

    def _drive(self, state: StreamState) -> None:
        """Choose who steps the stream. Where others do, the number of threads is held as long as the session lives."""
        model, self._open = self.model, ExitStack()
        begin = partial(step_to_commit, state, self.options.remember > 0)
        step = partial(_step, model, begin, self.pace.meter.clock)
        if self.options.batch is not None:
            self._driver: Driver | None = self.options.batch.join(model, begin)
        else:
            self._driver = Prefetcher(step, model.device) if self.options.ahead else Driver(step)
        if type(self._driver) is not Driver:
            self._open.enter_context(compute_on(model.threads))

    # -- frames -------------------------------------------------------------------------------------------------

    def stream(self, seconds: float | None = None) -> Iterator[Chunk]:
        """Yield chunks of frames, each as soon as it exists; for ever, or for the next `seconds` of video."""
        return self._chunks(self._expect(seconds))

    def astream(self, seconds: float | None = None) -> AsyncIterator[Chunk]:
        """`stream` for asyncio, computed by one thread for all streams of the model, or of the batch. Cancelled, it
        ends once the chunk that is under way is there: it is the first of the next `stream`."""
        return self._async_chunks(self._expect(seconds))

    def _expect(self, seconds: float | None) -> float:
        """Return how many frames are asked for; from here on others of its batch may compute the next of them."""
        driver = self.driver
        limit = count_frames(seconds, self.model.fps)
        if self.idle:
            driver.expect()
        return limit

    def _chunks(self, limit: float) -> Iterator[Chunk]:
        while limit > 0:
            if (chunk := self._take(limit)) is None:
                return
            limit -= len(chunk.frames)
            yield chunk

    @alone
    def _take(self, limit: float) -> Chunk | None:
        self._prepare(limit)
        return self._alive()[1].take(limit, self.model.fps)

    async def _async_chunks(self, limit: float) -> AsyncIterator[Chunk]:
        worker = (self.options.batch or self.model).worker
        while limit > 0:
            await await_result(worker, partial(self._prepare, limit))
            if (chunk := self._take(limit)) is None:  # of what is there, unless another task was quicker
                return
            limit -= len(chunk.frames)
            yield chunk

    @alone
    def _prepare(self, limit: float) -> None:
        """Step and decode, unless there are frames that were not yet handed out."""
        state, frames, driver = self._alive()
        if len(frames.frames):
            return
        clock = self.pace.meter.clock
        asked, result, self._next = clock(), self._next, None
        result = result or driver.take(go_on=limit > self.model.frames_per_chunk)
        if result.before is not None:
            self.history.keep(RewindPoint(frames.count, result.before, fork(frames.decoder)))
        begun = clock()
        with compute_on(self.model.threads), driver.beside(result):
            frames.put(result, self.model)
        frames.timings = Timings(result.seconds, clock() - begun)
        self.pace.take(asked, len(frames.frames), frames.timings, frames.events, state.steering, self.seconds)

    # -- steering -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> StreamState:
        """Where the ticking stands: rollout, memory, cues. Look, and change nothing while a chunk is computed.
        SessionClosed after `close`."""
        return self._alive()[0]

    @property
    def driver(self) -> Driver:
        """Who steps it to its next commit. SessionClosed after `close`."""
        return self._alive()[2]

    @property
    def seconds(self) -> float:
        """Seconds of video that were handed out."""
        return self._alive()[1].count / self.model.fps

    @property
    def measures(self) -> Measures:
        """Latency, deadlines and work so far: see pace.Measures."""
        return self.pace.meter.measures

    @property
    def seed(self) -> int:
        """The seed of the noise that is drawn now."""
        return self.state.steering.seed

    @property
    def shown(self) -> str:
        """The prompt in force as it is shown: see `Model.complete_prompt`."""
        return self.state.steering.shown

    @property
    def cues(self) -> tuple[Cue, ...]:
        """What the stream was told: given to another one of this model, prompt and seed, it makes the same bytes."""
        return self.state.steering.cues

    def prompt(self, text: str, transition: AnyTransition | str = "recache", *, at: float | None = None,
               seed: int | None = None) -> Event:  # fmt: skip
        """Go on with another prompt, from the next chunk that is not begun, or from the first that begins `at` seconds
        of video or later; perhaps with another seed. May be called from any thread. `transition`: a name or settings,
        see engine/transitions.py. Chunks say in their `events` when it was applied, and from which frame on it is seen.
        ConfigError if the prompt, or the transition for this stream, cannot be."""
        check_prompt(text)
        cue = Cue(self.seconds if at is None else at, text, find_transition(transition), seed)
        return self.state.steering.add(cue, now=at is None)

    @alone
    def fork(self, seed: int | None = None) -> Session:
        """Return a second stream that goes on from here on its own: copy on write, so it costs memory only where the
        two differ. With `seed` it draws other noise from the next chunk on; else the same, to the same bytes.
        SnapshotError if it follows a video."""
        state, frames = self._settle("forked")
        twin = copy.copy(self)
        twin._lock = RLock()
        twin._state = other = fork(state)
        twin._frames, twin.history = fork(frames), self.history.copy()
        twin.pace = self.pace.fork(state.steering)
        twin._drive(other)
        return twin._reseed(seed)

    @alone
    def rewind(self, seconds: float, seed: int | None = None) -> Session:
        """Go back by that much video or a little more, to where a chunk begins; with `seed`, to go on otherwise. What
        it was told since is forgotten. Returns itself. ConfigError beyond `remember`, the seconds that `model.session`
        was asked to keep. SnapshotError if it follows a video."""
        check_seconds(seconds, "rewind", remedy="Seconds of video to go back.")
        state, frames = self._settle("rewound")
        if (point := self.history.go_back(max(0, frames.count - round(seconds * self.model.fps)))) is None:
            raise ConfigError(f"{seconds:g} s back is more than this stream remembers ({self.options.remember:g} s): "
                              f"start it with model.session(..., remember={seconds:g}).")  # fmt: skip
        state.become(point.state)
        frames.go_back(point)
        self._next = None
        self.pace.jump(state.steering)
        return self._reseed(seed)

    @property
    def remembered(self) -> float:
        """Seconds of video that it can be rewound."""
        points = self.history.points
        return (self._alive()[1].count - points[0].frame) / self.model.fps if points else 0.0

    def _reseed(self, seed: int | None) -> Session:
        if seed is not None:
            self.state.steering.add(Cue(self.seconds, seed=seed), now=True)
        return self

    def _settle(self, what: str) -> tuple[StreamState, FrameQueue]:
        """Stand still: what was computed ahead becomes the next commit. SnapshotError if it follows a video."""
        state, frames, driver = self._alive()
        if state.rollout.source is not None:
            raise SnapshotError(f"A stream that follows a video cannot be {what}: start it again where that stands.")
        if self._next is None:
            self._next = driver.hand_over()
        return state, frames

    # -- saving and ending --------------------------------------------------------------------------------------

    @alone
    def snapshot(self) -> Snapshot:
        """Return the stream as it stands between two chunks; `model.resume` continues it to the same bytes.
        SnapshotError if it follows a video: what comes of that is not in the stream's hands."""
        state, frames = self._settle("saved")
        parts = {"stream": state.state_dict(), "frames": frames.state_dict(),
                 "next": None if self._next is None else self._next.state_dict()}
        model, steering = self.model, state.steering
        return Snapshot(model.fingerprint, to_dict(model.identity), steering.prompt, steering.seed, self.size, parts)

    @alone
    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of a stream of this model and size: `model.resume` checks that it is one."""
        state, frames = self._settle("restored")
        parts = to_device(snapshot.state, self.model.device)
        state.load_state_dict(parts["stream"])
        frames.load_state_dict(parts["frames"])
        self._next = None if parts["next"] is None else ChunkResult.from_state(parts["next"])
        self.pace.jump(state.steering)

    def close(self) -> None:
        """Free the stream's memory. Closing twice is fine."""
        if self._driver is not None:
            self._driver.close()
        self._state = self._frames = self._driver = self._next = None
        self.history.points.clear()
        self._open.close()

    @property
    def idle(self) -> bool:
        """Whether nothing of its next chunk was computed yet."""
        return self._next is None and not len(self._alive()[1].frames)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._state is None

    def _alive(self) -> tuple[StreamState, FrameQueue, Driver]:
        if self._state is None or self._frames is None or self._driver is None:
            raise SessionClosed("This session is closed. Open another with model.session(prompt), or "
                                "model.resume(snapshot).")  # fmt: skip
        if self._process != os.getpid() and type(self._driver) is not Driver:
            raise SessionClosed("This session was opened before the process was forked, and its thread did not come "
                                "along. Open another with model.session(prompt).")  # fmt: skip
        return self._state, self._frames, self._driver

    @property
    def _pixels(self) -> tuple[int, int]:
        stride = self.model.autoencoder.stride
        return self.grid.height * stride, self.grid.width * stride

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _step(model: ModelBundle, begin: Callable[[], Stepper], clock: Callable[[], float]) -> ChunkResult:
    """Step a stream to its next commit, by itself."""
    begun = clock()
    with compute_on(model.threads), torch.no_grad():
        result = run_stepper(begin(), model.transformer)
    return dataclasses.replace(result, seconds=clock() - begun)


def step_together(sessions: Sequence[Session]) -> None:
    """Compute what the next chunk of each session needs, their model calls as one; `stream` then only decodes it. The
    sessions are of one model, and none has a driver that computes by itself."""
    model = sessions[0].model
    batch = Batch(model, limit=len(sessions))
    waiting = [session for session in sessions if session.idle]
    members = [batch.join(model, partial(step_to_commit, session.state)) for session in waiting]
    for member in members:
        member.expect()
    for session, member in zip(waiting, members, strict=True):
        session._next = member.take(go_on=False)


def count_frames(seconds: float | None, fps: float) -> float:
    """Return seconds as whole frames, at least one; of None or infinity, infinity. ConfigError for any other length."""
    if seconds is None:
        return math.inf
    length = check_seconds(seconds, endless=True, remedy="Leave it out for an endless stream.")
    return length if math.isinf(length) else max(1, round(length * fps))
