"""Session: one endless stream of pictures from one prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from time import perf_counter
from types import TracebackType

import numpy as np
import torch

from rollforce.ahead import Advance, Ahead
from rollforce.errors import ConfigError, SessionClosed, SnapshotError
from rollforce.given import Follower, Given, past
from rollforce.loaded import Loaded
from rollforce.machine import computing_on
from rollforce.models.decoder import Decoder
from rollforce.noise import Noise
from rollforce.rollout import Rollout
from rollforce.snapshot import Snapshot, on_device
from rollforce.types import Chunk, Commit, Timings


class Session:
    """One stream. Pull-driven: nothing is computed until a chunk is asked for (but with `ahead`, one chunk more than
    that), and nothing is kept that is not needed.

    Use it as a context manager, or call `close()`; either frees its memory. `given_frames`: the frames that the stream
    goes on from, uint8 [F, H, W, 3], as its autoencoder draws them; `stream` hands out what comes after them.
    """

    def __init__(
        self,
        model: Loaded,
        prompt: str,
        seed: int,
        size: tuple[int, int] | None,
        given: Given | None = None,
        ahead: bool = False,
    ) -> None:
        model.check_prompt(prompt)
        self.model, self.seed, self.size = model, seed, size
        self._prompt, self._given = prompt, given or Given()
        self._grid = model.grid(size)
        self._pixels = (self._grid.height * model.autoencoder.stride, self._grid.width * model.autoencoder.stride)
        self._index = 0  # chunks handed out
        self._frames = 0  # frames handed out
        self.given_frames = self._left = np.empty((0, *self._pixels, 3), dtype=np.uint8)  # _left: not yet asked for
        self._open = ExitStack()
        if ahead:  # two threads compute: how many each may use is settled once
            self._open.enter_context(computing_on(model.threads))
        self._decoder: Decoder | None = model.autoencoder.decoder()
        with self._computing():
            self._rollout: Rollout | None = self._begin()
        self._ahead = Ahead(self._advance, model.device) if ahead else None
        self._settled: Advance | None = None  # the next commit, where a snapshot had it already

    @torch.no_grad()
    def _begin(self) -> Rollout:
        model, grid, settings = self.model, self._grid, self.model.stream_settings
        text = model.text.encode([self._prompt]).to(model.device, model.dtype)
        condition = model.transformer.condition(text)
        layout = settings.layout
        source, before = None, past(self._given, model.autoencoder, self._pixels, model.fps)
        if self._given.follow is not None:
            layout = self._given.following.layout(layout)
            settings = dataclasses.replace(settings, layout=layout)  # which checks that memory still fits
            source = Follower(self._given, model.autoencoder, self._pixels, model.fps, layout.chunk)
        table = layout.build()
        cache = settings.memory(model.transformer.config.shape(grid), model.dtype, model.device)
        noise = Noise.of(self.seed, (grid.channels, grid.height, grid.width))
        start = 0 if before is None else before.shape[1]
        rollout = Rollout(model.transformer, condition, cache, table, noise, settings.stepping,
                          start=start, source=source)  # fmt: skip
        if before is not None and self._decoder is not None:
            rollout.prefill(before)
            self.given_frames = self._decoder.decode(before)
        return rollout

    # -- pictures -----------------------------------------------------------------------------------------------

    def stream(self, seconds: float | None = None) -> Iterator[Chunk]:
        """Chunks of frames, each as soon as it exists; for ever, or for the next `seconds` of video."""
        self._alive()
        return self._chunks(None if seconds is None else frames_of(seconds, self.model.fps))

    def _chunks(self, limit: int | None) -> Iterator[Chunk]:
        while limit is None or limit > 0:
            chunk = self._next(limit)
            if chunk is None:
                return
            if limit is not None:
                limit -= len(chunk.frames)
            yield chunk

    def _next(self, limit: int | None) -> Chunk | None:
        """The next frames, at most `limit`; what a chunk has beyond them waits for the next call. None at the end."""
        timings = Timings(0.0, 0.0)
        frames = self._left
        if not len(frames):
            frames, timings = self._computed(limit)
        if not len(frames):
            return None
        count = len(frames) if limit is None else min(limit, len(frames))
        chunk = Chunk(frames[:count], self._index, self._frames / self.model.fps, self._prompt, timings)
        self._left = frames[count:]
        self._frames += count
        self._index += 1
        return chunk

    def _computed(self, limit: int | None) -> tuple[np.ndarray, Timings]:
        """The next commit's frames; none when the stream is over."""
        _, decoder = self._alive()
        done, self._settled = self._settled, None
        if done is None:
            go_on = limit is None or limit > self.model.frames_per_chunk
            done = self._ahead.take(go_on) if self._ahead else self._advance()
        begun = perf_counter()
        with self._computing(), self._ahead.beside(done) if self._ahead else nullcontext():
            frames = decoder.flush() if done.commit is None else decoder.decode(done.commit.latents_BTCHW)
        return frames, Timings(done.seconds, perf_counter() - begun)

    @torch.no_grad()
    def _advance(self) -> Advance:
        """Tick on to the next commit."""
        rollout, _ = self._alive()
        begun, commit = perf_counter(), None
        with self._computing():
            while commit is None and rollout.admit():
                rollout.tick()
                commit = rollout.commit()
        if commit is not None and not self._index and not torch.isfinite(commit.latents_BTCHW).all():
            raise ConfigError(f"The first chunk is not a number: {self.model.dtype} is not for these weights or this "
                              "device. Use --dtype float32, or bfloat16 where there is some.")  # fmt: skip
        return Advance(commit, perf_counter() - begun)

    def _computing(self) -> AbstractContextManager[None]:
        return computing_on(self.model.threads)

    # -- saving and ending --------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The stream as it stands between two chunks; `model.resume` continues it to the same bytes.

        SnapshotError if it follows a video: what comes of that is not in the stream's hands."""
        rollout, decoder = self._alive()
        if rollout.source is not None:
            raise SnapshotError("A stream that follows a video cannot be saved: start it again where the video stands.")
        waiting = self._settled or (self._ahead.settle() if self._ahead else None)
        state = {
            "ahead": None if waiting is None or waiting.commit is None else waiting.commit.latents_BTCHW.clone(),
            "rollout": rollout.state_dict(),
            "decoder": decoder.state_dict(),
            "left": torch.from_numpy(self._left.copy()),
            "index": self._index,
            "frames": self._frames,
        }
        return Snapshot(self.model.fingerprint, self.model.signature, self._prompt, self.seed, self.size, state)

    def _restore(self, snapshot: Snapshot) -> None:
        rollout, decoder = self._alive()
        state = on_device(snapshot.state, self.model.device)
        rollout.load_state_dict(state["rollout"])
        decoder.load_state_dict(state["decoder"])
        self._left = snapshot.state["left"].numpy()
        self._index, self._frames = int(state["index"]), int(state["frames"])
        if state["ahead"] is not None:
            self._settled = Advance(Commit(rollout.first, state["ahead"]), 0.0)

    def close(self) -> None:
        """Free the stream's memory. Closing twice is fine."""
        if self._ahead is not None:
            self._ahead.close()
        self._rollout = self._decoder = self._ahead = None
        self._open.close()

    def _alive(self) -> tuple[Rollout, Decoder]:
        if self._rollout is None or self._decoder is None:
            raise SessionClosed(
                "This session is closed. Open another with model.session(prompt), or model.resume(snapshot)."
            )
        return self._rollout, self._decoder

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
