"""What was loaded: the parts of a model, and what can be told of them."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.interface import Autoencoder
from rollforce.models.geometry import Grid
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.text.encoder import Text
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.video.size import check_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelBundle:
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
    running: RuntimeOptions
    device: torch.device

    @cached_property
    def parameters(self) -> int:
        """Weights in memory: a text encoder that is loaded when it is needed does not count."""
        parts = (self.transformer, self.text, self.autoencoder)
        return sum(tensor.numel() for part in parts if isinstance(part, nn.Module) for tensor in part.parameters())

    @cached_property
    def worker(self) -> ThreadPoolExecutor:
        """The thread that computes for those who may not wait (async)."""
        return ThreadPoolExecutor(1, thread_name_prefix="rollforce")

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
    def dtype(self) -> torch.dtype:
        return self.transformer.proj_out.weight.dtype

    @property
    def signature(self) -> str:
        """The settings that a snapshot must meet again to continue to the same bytes."""
        return f"{self.stream_settings!r} in {self.dtype} on {self.threads} threads, {self.running!r}"

    def check_prompt(self, text: str) -> None:
        """ConfigError for an empty prompt or a word that this model does not know."""
        if not text.strip():
            raise ConfigError('The prompt is empty. Say what to show, e.g. "a red ball bounces over green hills".')
        self.text.check(text)

    def grid(self, size: tuple[int, int] | None = None) -> Grid:
        """Latent geometry of a picture size (height, width). ShapeError if it does not fit."""
        stride, patch = self.autoencoder.stride, self.transformer.config.patch
        check_size(size or self.size, stride * patch, f" (autoencoder stride {stride} x patch {patch})")
        height, width = size or self.size
        if (height, width) != self.size:
            log.warning("%dx%d is not the size this model was trained at (%dx%d): expect lower quality.",
                        width, height, self.size[1], self.size[0])  # fmt: skip
        return Grid(self.autoencoder.channels, height // stride, width // stride, patch)
