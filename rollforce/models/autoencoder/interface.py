"""Autoencoders as streams see them: latents in, pictures out as soon as they can be drawn, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

State = tuple[Tensor, ...]  # what a TinyDecoder remembers of the past


class Decoder(Protocol):
    """Turns the latents of one stream into frames. How latents are cut into calls never changes a frame."""

    def decode(self, latents_BTCHW: Tensor) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] that these latents (B = 1) complete; F may be 0."""
        ...

    def flush(self) -> np.ndarray:
        """Frames still held back at the end of a stream."""
        ...

    def reset(self) -> None:
        """Begin a new stream."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Encoder(Protocol):
    """Turns the frames of one stream into latents. How frames are cut into calls never changes a latent."""

    def encode(self, frames_FHWC: np.ndarray) -> Tensor:
        """Latents float32 [1, T, C, h, w], on the weights' device, that these uint8 frames complete; T may be 0."""
        ...

    def reset(self) -> None:
        """Begin a new stream."""
        ...


class Autoencoder(Protocol):
    """What a model's autoencoder must tell and make. Weights are shared; every stream has a decoder of its own."""

    @property
    def channels(self) -> int:
        """Of a latent."""
        ...

    @property
    def stride(self) -> int:
        """Pixels per latent pixel, in each direction."""
        ...

    @property
    def frames(self) -> int:
        """Frames per latent."""
        ...

    @property
    def first_frames(self) -> int:
        """Frames of the first latent of a stream: 1 in Wan, as many as any other in the bundled model."""
        ...

    def decoder(self) -> Decoder: ...
    def encoder(self) -> Encoder: ...


@dataclass(frozen=True)
class PairedAutoencoder:
    """Encodes with one autoencoder and decodes with another, smaller one that knows the same latents."""

    full: Autoencoder
    small: Autoencoder

    @property
    def channels(self) -> int:
        return self.full.channels

    @property
    def stride(self) -> int:
        return self.full.stride

    @property
    def frames(self) -> int:
        return self.full.frames

    @property
    def first_frames(self) -> int:
        return self.full.first_frames

    def decoder(self) -> Decoder:
        return self.small.decoder()

    def encoder(self) -> Encoder:
        return self.full.encoder()


class LatentBasis(Protocol):
    """What TinyDecoder and TinyEncoder need of the bundled autoencoder."""

    basis: Tensor

    @property
    def channels(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def frames(self) -> int: ...
    def encode(self, frames_BFHWC: Tensor) -> Tensor: ...
    def decode(self, latents_BTCHW: Tensor, state: State | None = None) -> tuple[Tensor, State]: ...


class TinyDecoder:
    """Decoder of the bundled autoencoder: every latent gives its frames at once; the causal past is its state."""

    def __init__(self, autoencoder: LatentBasis) -> None:
        self.autoencoder = autoencoder
        self.past: State | None = None

    @torch.no_grad()
    def decode(self, latents_BTCHW: Tensor) -> np.ndarray:
        frames, self.past = self.autoencoder.decode(latents_BTCHW.to(self.autoencoder.basis), self.past)
        return np.asarray(frames[0].mul(255).round_().to("cpu", torch.uint8).numpy())

    def flush(self) -> np.ndarray:
        return np.empty((0, 0, 0, 3), dtype=np.uint8)

    def reset(self) -> None:
        self.past = None

    def state_dict(self) -> dict[str, Any]:
        return {"past": None if self.past is None else [part.clone() for part in self.past]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        past = state["past"]
        self.past = None if past is None else tuple(past)


class TinyEncoder:
    """Encoder of the bundled autoencoder: every four frames are a latent; those that are not yet four wait."""

    def __init__(self, autoencoder: LatentBasis) -> None:
        self.autoencoder = autoencoder
        self.waiting: np.ndarray | None = None

    @torch.no_grad()
    def encode(self, frames_FHWC: np.ndarray) -> Tensor:
        frames = frames_FHWC if self.waiting is None else np.concatenate([self.waiting, frames_FHWC])
        count = len(frames) // self.autoencoder.frames * self.autoencoder.frames
        self.waiting = frames[count:].copy()
        if not count:
            stride, channels = self.autoencoder.stride, self.autoencoder.channels
            height, width = frames.shape[1] // stride, frames.shape[2] // stride
            return self.autoencoder.basis.new_empty(1, 0, channels, height, width)
        return self.autoencoder.encode(torch.from_numpy(frames[None, :count]).to(self.autoencoder.basis.device))

    def reset(self) -> None:
        self.waiting = None
