"""Session: one endless stream of pictures from one prompt. Model: the loaded parts that sessions share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from types import TracebackType

import numpy as np
import torch
from torch import nn

from rollforce.cache import KVCache, Shape
from rollforce.errors import ConfigError, SessionClosed, ShapeError, SnapshotError
from rollforce.machine import computing_on
from rollforce.models.decoder import Autoencoder, Decoder
from rollforce.models.text import Text
from rollforce.models.transformer import VideoTransformer
from rollforce.noise import Noise
from rollforce.rollout import Rollout
from rollforce.settings import StreamSettings
from rollforce.snapshot import Snapshot as Snapshot
from rollforce.snapshot import on_device
from rollforce.types import Chunk, Commit, Grid, Timings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A loaded model: text encoder, transformer, autoencoder, and the settings it streams with."""

    name: str
    licence: str
    fps: int
    size: tuple[int, int]  # height, width in pixels that it was trained at
    transformer: VideoTransformer
    text: Text
    autoencoder: Autoencoder
    stream_settings: StreamSettings
    fingerprint: str  # sha256 over the weights
    threads: int  # of the CPU; another number gives another last digit, so it belongs to the model

    @cached_property
    def parameters(self) -> int:
        """Weights in memory: a text encoder that is loaded when it is needed does not count."""
        parts = (self.transformer, self.text, self.autoencoder)
        return sum(tensor.numel() for part in parts if isinstance(part, nn.Module) for tensor in part.parameters())

    @property
    def words(self) -> tuple[str, ...]:
        """The words that prompts may use."""
        return self.text.words

    @property
    def frames_per_latent(self) -> int:
        return self.autoencoder.frames

    @property
    def frames_per_chunk(self) -> int:
        return self.frames_per_latent * self.stream_settings.layout.build().shift

    @property
    def device(self) -> torch.device:
        return self.transformer.proj_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.proj_out.weight.dtype

    @property
    def signature(self) -> str:
        """The settings that a snapshot must meet again to continue to the same bytes."""
        return f"{self.stream_settings!r} in {self.dtype} on {self.threads} threads"

    def check_prompt(self, text: str) -> None:
        """ConfigError for an empty prompt or a word that this model does not know."""
        if not text.strip():
            raise ConfigError('The prompt is empty. Say what to show, e.g. "a red ball bounces over green hills".')
        self.text.check(text)

    def grid(self, size: tuple[int, int] | None = None) -> Grid:
        """Latent geometry of a picture size (height, width). ShapeError if it does not fit."""
        stride, patch = self.autoencoder.stride, self.transformer.config.patch
        step = stride * patch
        for name, value in zip(("height", "width"), size or self.size, strict=True):
            if value < step or value % step:
                low = max(step, value // step * step)
                raise ShapeError(
                    f"{name} {value} is not a multiple of {step} (autoencoder stride {stride} x patch {patch}). "
                    f"Nearest: {low} or {low + step}."
                )
        height, width = size or self.size
        if (height, width) != self.size:
            log.warning("%dx%d is not the size this model was trained at (%dx%d): expect lower quality.",
                        width, height, self.size[1], self.size[0])  # fmt: skip
        return Grid(self.autoencoder.channels, height // stride, width // stride, patch)

    def session(self, prompt: str, seed: int = 0, size: tuple[int, int] | None = None) -> Session:
        """Start a stream. `size` is (height, width) in pixels; default the trained one."""
        return Session(self, prompt, seed, size)

    def resume(self, snapshot: Snapshot) -> Session:
        """Continue a saved stream to the same bytes. SnapshotError if it has another model or other settings."""
        if snapshot.model != self.fingerprint:
            raise SnapshotError(
                f"The snapshot was made with other weights than those of {self.name!r}; load the model it came from."
            )
        if snapshot.settings != self.signature:
            raise SnapshotError(
                "The snapshot was made with other settings; load the model with the same ones, dtype and threads."
            )
        session = Session(self, snapshot.prompt, snapshot.seed, snapshot.size)
        session._restore(snapshot)
        return session


class Session:
    """One stream. Pull-driven: nothing is computed until a chunk is asked for, and nothing is kept that is not needed.

    Use it as a context manager, or call `close()`; either frees its memory.
    """

    def __init__(self, model: Model, prompt: str, seed: int, size: tuple[int, int] | None) -> None:
        model.check_prompt(prompt)
        self.model, self.seed, self.size = model, seed, size
        self._prompt = prompt
        self._grid = model.grid(size)
        with computing_on(model.threads):
            self._rollout: Rollout | None = self._begin()
        self._decoder: Decoder | None = model.autoencoder.decoder()
        self._index = 0  # chunks handed out
        self._frames = 0  # frames handed out
        self._left = np.empty((0, self._grid.height, self._grid.width, 3), dtype=np.uint8)  # decoded, not yet asked for

    @torch.no_grad()
    def _begin(self) -> Rollout:
        model, grid, settings = self.model, self._grid, self.model.stream_settings
        text = model.text.encode([self._prompt]).to(model.device, model.dtype)
        condition = model.transformer.condition(text)
        config, layout = model.transformer.config, settings.layout.build()
        shape = Shape(
            config.num_layers, 1, config.num_attention_heads, grid.tokens_per_latent, config.attention_head_dim
        )
        cache = KVCache(settings.cache, shape, max(layout.slots, layout.shift), model.dtype, model.device)
        noise = Noise.of(self.seed, (grid.channels, grid.height, grid.width))
        return Rollout(model.transformer, condition, cache, layout, noise, settings.stepping)

    # -- pictures -----------------------------------------------------------------------------------------------

    def stream(self, seconds: float | None = None) -> Iterator[Chunk]:
        """Chunks of frames, each as soon as it exists; for ever, or for the next `seconds` of video."""
        self._alive()
        return self._chunks(None if seconds is None else frames_of(seconds, self.model.fps))

    def _chunks(self, limit: int | None) -> Iterator[Chunk]:
        while limit is None or limit > 0:
            chunk = self._next(limit)
            if limit is not None:
                limit -= len(chunk.frames)
            yield chunk

    def _next(self, limit: int | None) -> Chunk:
        """The next frames, at most `limit`; what a chunk has beyond them waits for the next call."""
        timings = Timings(0.0, 0.0)
        frames = self._left
        if not len(frames):
            frames, timings = self._computed()
        count = len(frames) if limit is None else min(limit, len(frames))
        chunk = Chunk(frames[:count], self._index, self._frames / self.model.fps, self._prompt, timings)
        self._left = frames[count:]
        self._frames += count
        self._index += 1
        return chunk

    @torch.no_grad()
    def _computed(self) -> tuple[np.ndarray, Timings]:
        rollout, decoder = self._alive()
        begun = perf_counter()
        commit: Commit | None = None
        with computing_on(self.model.threads):
            while commit is None:
                rollout.tick()
                commit = rollout.commit()
            denoised = perf_counter()
            frames = decoder.decode(commit.latents_BTCHW)
        return frames, Timings(denoised - begun, perf_counter() - denoised)

    # -- saving and ending --------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The stream as it stands between two chunks; `model.resume` continues it to the same bytes."""
        rollout, decoder = self._alive()
        state = {
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

    def close(self) -> None:
        """Free the stream's memory. Closing twice is fine."""
        self._rollout = self._decoder = None

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
