"""The parts of a loaded model, what follows from them, and how many CPU threads they compute with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.interface import Autoencoder
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.text.encoder import Text
from rollforce.models.transformer.transformer import Grid, VideoTransformer
from rollforce.streaming.snapshot import StreamIdentity
from rollforce.video.size import check_size
from rollforce.video.values import check_picture_size, check_prompt
from rollforce.world.caption import WORDS
from rollforce.world.phrasing import complete

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelBundle:
    """What was loaded: text encoder, transformer, autoencoder, and the settings they stream with. `size` is (height,
    width) in pixels, as trained; `fingerprint` a sha256 over the weights; `threads` of the CPU belong to a model
    because another number gives another last digit."""

    name: str
    licence: str
    fps: int
    size: tuple[int, int]
    transformer: VideoTransformer
    text: Text
    autoencoder: Autoencoder
    stream_settings: StreamSettings
    fingerprint: str
    threads: int
    running: RuntimeOptions
    device: torch.device

    @cached_property
    def parameters(self) -> int:
        """How many weights are in memory; a text encoder that is loaded when it is needed does not count."""
        parts = (self.transformer, self.text, self.autoencoder)
        return sum(tensor.numel() for part in parts if isinstance(part, nn.Module) for tensor in part.parameters())

    @cached_property
    def worker(self) -> ThreadPoolExecutor:
        """The thread that computes for those who may not wait (async)."""
        return open_pool(1, "rollforce")

    @property
    def words(self) -> tuple[str, ...]:
        """The words that prompts may use."""
        return self.text.words

    @property
    def frames_per_latent(self) -> int:
        """Frames of a latent, but for the first of a stream: see `autoencoder.first_frames`."""
        return self.autoencoder.frames

    @cached_property
    def frames_per_chunk(self) -> int:
        """Frames that are handed out at a time."""
        return self.frames_per_latent * self.stream_settings.layout.build().shift

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        return self.transformer.proj_out.weight.dtype

    @property
    def identity(self) -> StreamIdentity:
        """The settings that a snapshot must meet again to continue to the same bytes."""
        dtype = str(self.dtype).removeprefix("torch.")
        return StreamIdentity(self.stream_settings, self.running, dtype, self.threads)

    def complete_prompt(self, text: str) -> str:
        """Return what a prompt is shown as. A model of the tiny world takes other words, in any order, and what they
        leave out is filled in (world/phrasing.py); any other model shows a prompt as it is. ConfigError for an empty
        prompt, and for words that this model does not know."""
        check_prompt(text)
        shown = complete(text) if self.words == WORDS else text
        self.text.check(shown)
        return shown

    def check_prompt(self, text: str) -> None:
        """Refuse an empty prompt or a word that this model does not know, by a ConfigError."""
        self.complete_prompt(text)

    def grid(self, size: tuple[int, int] | None = None) -> Grid:
        """Return the latent geometry of a picture size (height, width). ShapeError if it does not fit."""
        stride, patch = self.autoencoder.stride, self.transformer.config.patch
        height, width = check_picture_size(self.size if size is None else size)
        check_size((height, width), stride * patch, f" (autoencoder stride {stride} x patch {patch})")
        if (height, width) != self.size:
            log.warning("%dx%d is not the size this model was trained at (%dx%d): expect lower quality.",
                        width, height, self.size[1], self.size[0])  # fmt: skip
        return Grid(self.autoencoder.channels, height // stride, width // stride, patch)


# -- threads: a number of the whole process, which several streams hold at once ----------------------------------------

SMALL = 50_000_000  # parameters: a model with fewer computes on one thread

_lock = Lock()
_forked = False  # whether this process was forked from one that had loaded this module
_pools: WeakKeyDictionary[ThreadPoolExecutor, tuple[int, str]] = WeakKeyDictionary()
_held: list[int] = []  # a number for each block that is running now
_outside = 1  # torch's number before the first of them


def threads_for(parameters: int, device: torch.device) -> int:
    """Return how many CPU threads a model should compute with: one if it is small, else torch's own number. A small
    model's layers are too short to share: a second thread gains little on an idle machine, waits ten times longer on a
    busy one, and would make the bytes depend on the number of cores."""
    return 1 if parameters < SMALL and device.type == "cpu" else torch.get_num_threads()


@contextmanager
def compute_on(threads: int) -> Iterator[None]:
    """Let torch compute with this many threads inside the block. Blocks may overlap in any order, in one thread or
    several: the number from before the first of them comes back when the last one ends, not before."""
    global _outside
    with _lock:
        if not _held:
            _outside = torch.get_num_threads()
        _held.append(threads)
        _set(threads)
    try:
        yield
    finally:
        with _lock:
            _held.remove(threads)
            _set(_held[-1] if _held else _outside)


def _set(threads: int) -> None:
    if _forked and threads > 1:
        raise ConfigError(f"threads {threads}: this process was forked, and threads that compute did not come along. "
                          'Load the model with threads=1, or begin processes by "spawn".')  # fmt: skip
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def open_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of threads that a forked process finds empty, and fills with threads of its own."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    _pools[pool] = threads, name
    return pool


def _begin_forked() -> None:
    """Make a forked process able to compute: with one thread, for whoever waits for its parent's waits for ever."""
    global _lock, _forked
    _lock, _forked = Lock(), True
    _held.clear()
    for pool, (threads, name) in _pools.items():
        pool.__init__(threads, name)  # type: ignore[misc]
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_forked)
