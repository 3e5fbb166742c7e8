"""Session: one endless stream of pictures from a prompt, which may be told otherwise while it runs."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from types import TracebackType

import numpy as np
import torch

from rollforce.engine.noise import Noise
from rollforce.engine.rollout import Rollout
from rollforce.engine.threads import computing_on
from rollforce.engine.transitions import AnyTransition, transition
from rollforce.errors import ConfigError, SessionClosed, SnapshotError
from rollforce.models.autoencoder.interface import Decoder
from rollforce.streaming.batch import BatchMember
from rollforce.streaming.bundle import ModelBundle
from rollforce.streaming.events import Chunk, Cue, Event, Timings
from rollforce.streaming.inputs import Follower, SessionOptions, encode_past
from rollforce.streaming.pace import Measures, PaceController
from rollforce.streaming.prefetch import ChunkResult, Prefetcher, Stepper, await_result, step_alone
from rollforce.streaming.snapshot import Snapshot, fork, on_device
from rollforce.streaming.steering import Steering
from rollforce.streaming.stream_state import RewindPoint, StreamState, decode_result, step_to_commit

NONE: tuple[Timings, tuple[Event, ...]] = (Timings(0.0, 0.0), ())


class Session:
    """One stream. Pull-driven: nothing is computed until a chunk is asked for (but with `ahead`, one chunk more than
    that), and nothing is kept that is not needed.

    Use it as a context manager, or call `close()`; either frees its memory. `given_frames`: the frames that the stream
    goes on from, uint8 [F, H, W, 3], as its autoencoder draws them; `stream` hands out what comes after them.
    """

    def __init__(
        self,
        model: ModelBundle,
        prompt: str,
        seed: int,
        size: tuple[int, int] | None,
        opening: SessionOptions | None = None,
    ) -> None:
        how = opening or SessionOptions()
        self._given, follows = how.given, how.given.follow is not None
        self._live = PaceController(how.pace, model.stream_settings, model.fps, follows)
        self.model, self.size, self.remember, self.batch = model, size, how.remember, how.batch
        self._grid = model.grid(size)
        self._pixels = (self._grid.height * model.autoencoder.stride, self._grid.width * model.autoencoder.stride)
        self._prompt = prompt  # of the frames that were decoded last
        self._index = 0  # chunks handed out
        self._frames = 0  # frames handed out
        self.given_frames = self._left = np.empty((0, *self._pixels, 3), dtype=np.uint8)  # _left: not yet asked for
        self._points: deque[RewindPoint] = deque()
        self._open = ExitStack()
        self._news = NONE  # of the frames in _left
        self._decoder: Decoder | None = model.autoencoder.decoder()
        steering = Steering(model, prompt, seed, how.cues, follows)
        with self._computing():
            self._stand: StreamState | None = StreamState(self._begin(steering), steering, self._past)
        self._ahead = self._beside() if how.ahead or how.batch is not None else None
        self._settled: ChunkResult | None = None  # the next commit, where a snapshot had it already

    @torch.no_grad()
    def _begin(self, steering: Steering) -> Rollout:
        model, grid, settings = self.model, self._grid, self.model.stream_settings
        layout = settings.layout
        source, before = None, encode_past(self._given, model.autoencoder, self._pixels, model.fps)
        if self._given.follow is not None:
            layout = self._given.following.layout(layout)
            settings = dataclasses.replace(settings, layout=layout)  # which checks that memory still fits
            source = Follower(self._given, model.autoencoder, self._pixels, model.fps, layout.chunk)
        table = layout.build()
        cache = settings.memory(model.transformer.config.shape(grid), model.dtype, model.device)
        noise = Noise.of(steering.seed, (grid.channels, grid.height, grid.width))
        self._past = 0 if before is None else before.shape[1]  # latents of the past that was given
        rollout = Rollout(model.transformer, steering.condition(), cache, table, noise, settings.stepping,
                          start=self._past, source=source)  # fmt: skip
        if before is not None and self._decoder is not None:
            rollout.prefill(before)
            self.given_frames = self._decoder.decode(before)
        return rollout

    # -- pictures -----------------------------------------------------------------------------------------------

    def stream(self, seconds: float | None = None) -> Iterator[Chunk]:
        """Chunks of frames, each as soon as it exists; for ever, or for the next `seconds` of video."""
        return self._chunks(self._asked(seconds))

    def astream(self, seconds: float | None = None) -> AsyncIterator[Chunk]:
        """`stream` for asyncio, computed by one thread for all streams of the model, or of the batch.

        Cancelled, it ends once the chunk that is under way is there: it is the first of the next `stream`."""
        return self._async_chunks(self._asked(seconds))

    def _asked(self, seconds: float | None) -> int | None:
        """The frames that are asked for; from here on others of its batch may compute the next of them."""
        self._alive()
        limit = None if seconds is None else frames_of(seconds, self.model.fps)
        if isinstance(self._ahead, BatchMember) and self._settled is None and not len(self._left):
            self._ahead.expect(self._advancing())
        return limit

    def _chunks(self, limit: int | None) -> Iterator[Chunk]:
        while limit is None or limit > 0:
            self._prepare(limit)
            chunk = self._hand_out(limit)
            if chunk is None:
                return
            limit = None if limit is None else limit - len(chunk.frames)
            yield chunk

    async def _async_chunks(self, limit: int | None) -> AsyncIterator[Chunk]:
        worker = self.model.worker if self.batch is None else self.batch.worker
        while limit is None or limit > 0:
            await await_result(worker, partial(self._prepare, limit))
            chunk = self._hand_out(limit)
            if chunk is None:
                return
            limit = None if limit is None else limit - len(chunk.frames)
            yield chunk

    def _prepare(self, limit: int | None) -> None:
        """Compute, unless there are frames that were not yet handed out."""
        stand, _ = self._alive()
        if not len(self._left):
            asked = self._live.meter.clock()
            self._news = timings, events = self._compute(limit)
            self._live.took(asked, len(self._left), timings, events, stand.steering, self.seconds)

    def _hand_out(self, limit: int | None) -> Chunk | None:
        """Frames that are there, at most `limit`; what a chunk has beyond them waits for the next call. None: over."""
        if not len(self._left):
            return None
        count = len(self._left) if limit is None else min(limit, len(self._left))
        chunk = Chunk(self._left[:count], self._index, self.seconds, self._prompt, *self._news)
        self._left, self._news = self._left[count:], NONE
        self._frames += count
        self._index += 1
        return chunk

    def _compute(self, limit: int | None) -> tuple[Timings, tuple[Event, ...]]:
        """The next commit's frames, into `_left`; none when the stream is over."""
        _, decoder = self._alive()
        done, self._settled = self._settled, None
        if done is None:
            go_on = limit is None or limit > self.model.frames_per_chunk
            done = self._take(go_on)
        if done.before is not None:
            self._keep(RewindPoint(self._frames, done.before, fork(decoder)))
        begun = self._live.meter.clock()
        with self._computing(), self._ahead.beside(done) if self._ahead else nullcontext():
            self._left = decode_result(done, decoder, self.model.autoencoder)
        self._prompt = done.prompt
        events = tuple(replace(event, frame=self._frames) for event in done.events)
        return Timings(done.seconds, self._live.meter.clock() - begun), events

    def _take(self, go_on: bool) -> ChunkResult:
        if isinstance(self._ahead, BatchMember):
            return self._ahead.take(self._advancing(), go_on)
        return self._ahead.take(go_on) if self._ahead else self._advance()

    def _advancing(self) -> Callable[[], Stepper]:
        return partial(step_to_commit, self._alive()[0], bool(self.remember))

    @torch.no_grad()
    def _advance(self) -> ChunkResult:
        """Apply the cues that are due, and tick on to the next commit."""
        begun = self._live.meter.clock()
        with self._computing():
            done = step_alone(self._advancing()(), self.model.transformer)
        return replace(done, seconds=self._live.meter.clock() - begun)

    def _beside(self) -> Prefetcher | BatchMember:
        """Another thread, or others' pulls, will compute: how many threads each may use is settled once."""
        self._open.enter_context(computing_on(self.model.threads))
        return Prefetcher(self._advance, self.model.device) if self.batch is None else self.batch.join(self.model)

    def _computing(self) -> AbstractContextManager[None]:
        return computing_on(self.model.threads)

    # -- steering -----------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Of video that were handed out."""
        return self._frames / self.model.fps

    @property
    def measures(self) -> Measures:
        """Latency, deadlines and work so far: see live.py."""
        return self._live.meter.measures

    @property
    def seed(self) -> int:
        """Of the noise that is drawn now."""
        return self._alive()[0].steering.seed

    @property
    def cues(self) -> tuple[Cue, ...]:
        """What the stream was told: given to another one of this model, prompt and seed, it makes the same bytes."""
        return self._alive()[0].steering.cues

    def prompt(
        self, text: str, transition_: AnyTransition | str = "recache", *, at: float | None = None,
        seed: int | None = None,
    ) -> Event:  # fmt: skip
        """Go on with another prompt, from the next chunk that is not begun, or from the first that begins `at` seconds
        of video or later; perhaps with another seed. May be called from any thread.

        `transition_`: a name or settings, see transitions.py. Chunks say in their `events` when it was applied, and
        from which frame on it is seen. ConfigError if the prompt, or the transition for this stream, cannot be."""
        stand, _ = self._alive()
        cue = Cue(self.seconds if at is None else at, text, transition(transition_), seed)
        return stand.steering.add(cue, now=at is None)

    def fork(self, seed: int | None = None) -> Session:
        """A second stream that goes on from here on its own: copy on write, so it costs memory only where the two
        differ. With `seed` it draws other noise from the next chunk on; else the same, to the same bytes.

        SnapshotError if it follows a video."""
        stand, decoder = self._settle("forked")
        twin = copy.copy(self)
        twin._stand, twin._decoder, twin._points = fork(stand), fork(decoder), self._points.copy()
        twin._open, twin._live = ExitStack(), self._live.twin(stand.steering)
        twin._ahead = None if self._ahead is None else twin._beside()
        return twin._reseeded(seed)

    def rewind(self, seconds: float, seed: int | None = None) -> Session:
        """Go back by that much video or a little more, to where a chunk begins; with `seed`, to go on otherwise. What
        it was told since is forgotten. Returns itself.

        ConfigError beyond `remember`, the seconds that `model.session` was asked to keep. SnapshotError if it follows a
        video."""
        if not seconds > 0:
            raise ConfigError(f"rewind {seconds:g}: seconds to go back, above 0.")
        self._settle("rewound")
        target = max(0, self._frames - round(seconds * self.model.fps))
        points = [point for point in self._points if point.frame <= target]
        if not points:
            raise ConfigError(f"{seconds:g} s back is more than this stream remembers ({self.remember:g} s): start it "
                              f"with model.session(..., remember={seconds:g}).")  # fmt: skip
        point = points[-1]
        self._stand, self._decoder = fork(point.stand), fork(point.decoder)
        self._points = deque(points[:-1])
        self._frames, self._left, self._settled = point.frame, self._left[:0], None
        self._live.jumped(point.stand.steering)
        return self._reseeded(seed)

    @property
    def remembered(self) -> float:
        """Seconds that it can be rewound."""
        return (self._frames - self._points[0].frame) / self.model.fps if self._points else 0.0

    def _reseeded(self, seed: int | None) -> Session:
        if seed is not None:
            self._alive()[0].steering.add(Cue(self.seconds, seed=seed), now=True)
        return self

    def _keep(self, point: RewindPoint) -> None:
        """Remember a place, and forget those that are too far back for `remember`."""
        self._points.append(point)
        oldest = self._frames - round(self.remember * self.model.fps)
        while len(self._points) > 1 and self._points[1].frame <= oldest:
            self._points.popleft()

    def _settle(self, what: str) -> tuple[StreamState, Decoder]:
        """Stand still: what was computed ahead becomes the next commit. SnapshotError if it follows a video."""
        stand, decoder = self._alive()
        if stand.rollout.source is not None:
            raise SnapshotError(f"A stream that follows a video cannot be {what}: "
                                "start it again where the video stands.")  # fmt: skip
        if self._ahead is not None and self._settled is None:
            self._settled = self._ahead.hand_over()
        return stand, decoder

    # -- saving and ending --------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The stream as it stands between two chunks; `model.resume` continues it to the same bytes.

        SnapshotError if it follows a video: what comes of that is not in the stream's hands."""
        stand, decoder = self._settle("saved")
        state = {
            "stand": stand.state_dict(),
            "decoder": decoder.state_dict(),
            "settled": None if self._settled is None else self._settled.state_dict(),
            "left": torch.from_numpy(self._left.copy()),
            "index": self._index,
            "frames": self._frames,
            "prompt": self._prompt,
        }
        steering = stand.steering
        return Snapshot(self.model.fingerprint, self.model.signature, steering.prompt, steering.seed, self.size, state)

    def _restore(self, snapshot: Snapshot) -> None:
        stand, decoder = self._alive()
        state = on_device(snapshot.state, self.model.device)
        stand.load_state_dict(state["stand"])
        decoder.load_state_dict(state["decoder"])
        self._settled = None if state["settled"] is None else ChunkResult.of(state["settled"])
        self._left, self._prompt = snapshot.state["left"].numpy(), state["prompt"]
        self._index, self._frames = int(state["index"]), int(state["frames"])
        self._live.jumped(stand.steering)

    def close(self) -> None:
        """Free the stream's memory. Closing twice is fine."""
        if self._ahead is not None:
            self._ahead.close()
        self._stand = self._decoder = self._ahead = self._settled = None
        self._points.clear()
        self._open.close()

    def _alive(self) -> tuple[StreamState, Decoder]:
        if self._stand is None or self._decoder is None:
            raise SessionClosed(
                "This session is closed. Open another with model.session(prompt), or model.resume(snapshot)."
            )
        return self._stand, self._decoder

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def frames_of(seconds: float, fps: int) -> int:
    """Seconds as whole frames, at least one. ConfigError if not positive."""
    if not seconds > 0:
        raise ConfigError(f"seconds {seconds:g} must be positive; leave it out for an endless stream.")
    return max(1, round(seconds * fps))
