"""Streaming decoders: latents in, pictures out, as soon as they can be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rollforce.models.autoencoder import State, TinyAutoencoder


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


class TinyDecoder:
    """Decoder of the bundled autoencoder: every latent gives its frames at once; the causal past is its state."""

    def __init__(self, autoencoder: TinyAutoencoder) -> None:
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
