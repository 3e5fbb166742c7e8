"""The nouns that travel through the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rollforce.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Latent geometry: one latent is `channels` x `height` x `width`, cut into square patches of `patch`."""

    channels: int
    height: int
    width: int
    patch: int = 2

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if value < self.patch or value % self.patch:
                low = max(self.patch, value // self.patch * self.patch)
                raise ShapeError(
                    f"latent {name} {value} is not a multiple of the patch {self.patch}. "
                    f"Nearest: {low} or {low + self.patch}."
                )

    @property
    def rows(self) -> int:
        return self.height // self.patch

    @property
    def columns(self) -> int:
        return self.width // self.patch

    @property
    def tokens_per_latent(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class KVBlock:
    """Keys (rotated at their own index) and values of consecutive latents: each [B, N, L, K], L = latents x tokens."""

    key: Tensor
    value: Tensor

    def latents(self, start: int, stop: int, tokens: int) -> KVBlock:
        part = slice(start * tokens, stop * tokens)
        return KVBlock(self.key[:, :, part], self.value[:, :, part])


@dataclass(frozen=True)
class Tick:
    """What one model call produced: clean estimates of the slots that were alive in it."""

    first: int  # stream index of the first live latent
    clean_BTCHW: Tensor
    sigma_T: tuple[float, ...]  # noise that each latent had before the call
    with_grad: bool = False


@dataclass(frozen=True)
class Commit:
    """Latents that became clean: `start` is the stream index of the first one."""

    start: int
    latents_BTCHW: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.latents_BTCHW.shape[1]


@dataclass(frozen=True)
class Scene:
    """Latents that shots to come may look back on: their indices, the RoPE phase of their shots, [B, T, C, H, W]."""

    index: tuple[int, ...]
    phase: tuple[float, ...]
    latents_BTCHW: Tensor


def index_range(start: int, count: int) -> Tensor:
    """Stream indices of `count` latents from `start`, int64 [T]."""
    return torch.arange(start, start + count, dtype=torch.int64)
