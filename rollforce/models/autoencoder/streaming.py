"""Causal autoencoders as streams: one decoder and one encoder for all that draw and read one latent at a time.

A whole clip is nothing but a stream that begins and ends in one call, so the two agree to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rollforce.errors import ShapeError
from rollforce.models.autoencoder.features import FeatureStream
from rollforce.models.autoencoder.pixels import as_bytes, check_count, check_latents, check_stream, on_host, planes


class CausalAutoencoder(Protocol):
    """An autoencoder whose first latent holds `first_frames` frames and every other `frames`, and that looks back only.

    `again`: how many of a latent's last frames are read once more with those of the next."""

    again: int

    @property
    def channels(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def first_frames(self) -> int: ...
    @property
    def weight(self) -> Tensor:
        """Any weight: it is on the device of all."""
        ...

    def drawing(self) -> FeatureStream:
        """A new past for drawing: a latent [1, 1, C, h, w] in, its frames [1, F, 3, H, W] out, near 0..1."""
        ...

    def reading(self) -> FeatureStream:
        """A new past for reading: frames [1, F, 3, H, W] in 0..1 in, their latent [1, 1, C, h, w] out."""
        ...


class CausalDecoder:
    """Decoder of one stream. Every latent gives its frames at once; none are held back."""

    def __init__(self, autoencoder: CausalAutoencoder) -> None:
        self.autoencoder = autoencoder
        self._drawing = autoencoder.drawing()

    @torch.no_grad()
    def decode(self, latents_BTCHW: Tensor) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] of latents [1, T, C, h, w]. ShapeError if they are not of this stream."""
        check_latents(latents_BTCHW, self.autoencoder.channels)
        check_stream(latents_BTCHW)
        latents = latents_BTCHW.to(self.autoencoder.weight.device)
        parts = [as_bytes(frames[0]) for frames in _drawn(latents, self._drawing)]
        height, width = (self.autoencoder.stride * size for size in latents.shape[-2:])
        return on_host(parts, height, width)

    def flush(self) -> np.ndarray:
        return on_host([], 0, 0)

    def reset(self) -> None:
        self._drawing.reset()

    def state_dict(self) -> dict[str, Any]:
        return self._drawing.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. SnapshotError if it is of another autoencoder or tiling."""
        self._drawing.load_state_dict(state, self.autoencoder.weight.device)


class CausalEncoder:
    """Encoder of one stream. Frames that do not yet fill a latent wait."""

    def __init__(self, autoencoder: CausalAutoencoder) -> None:
        self.autoencoder = autoencoder
        self._reading = autoencoder.reading()
        self._waiting: np.ndarray | None = None

    @torch.no_grad()
    def encode(self, frames_FHWC: np.ndarray) -> Tensor:
        """Latents float32 [1, T, C, h, w] that uint8 frames [F, H, W, 3] complete. ShapeError if a size is wrong."""
        model = self.autoencoder
        frames = frames_FHWC if self._waiting is None else np.concatenate([self._waiting, frames_FHWC])
        pixels = planes(torch.from_numpy(frames[None]), model.stride, model.weight.device)
        latents, at = [], 0
        for cut in _groups(model, len(frames), self._reading.begun):
            latents.append(self._reading(pixels[:, cut]))
            at = cut.stop - model.again
        self._waiting = frames[at:].copy()
        if latents:
            return torch.cat(latents, dim=1)
        height, width = (size // model.stride for size in frames.shape[1:3])
        return torch.empty(1, 0, model.channels, height, width, device=pixels.device)

    def reset(self) -> None:
        self._reading.reset()
        self._waiting = None


def decode_clip(model: CausalAutoencoder, latents_BTCHW: Tensor) -> Tensor:
    """All latents [B, T, C, h, w] of videos from their beginning -> frames [B, F, H, W, 3], float32 in 0..1."""
    check_latents(latents_BTCHW, model.channels)
    if 0 in latents_BTCHW.shape[:2]:
        raise ShapeError(f"latents of shape {tuple(latents_BTCHW.shape)}: there is nothing to decode.")
    videos = latents_BTCHW.to(model.weight.device).split(1)
    return torch.cat([torch.cat(list(_drawn(video, model.drawing())), dim=1) for video in videos])


def encode_clip(model: CausalAutoencoder, frames_BFHWC: Tensor) -> Tensor:
    """Videos from their beginning, uint8 or float in 0..1 -> latents [B, T, C, h, w], float32."""
    frames = planes(frames_BFHWC, model.stride, model.weight.device)
    check_count(frames.shape[1], model.first_frames, model.frames)
    videos = []
    for video in frames.split(1):
        reading = model.reading()
        videos.append(torch.cat([reading(video[:, cut]) for cut in _groups(model, video.shape[1], False)], dim=1))
    return torch.cat(videos)


def _drawn(latents_BTCHW: Tensor, drawing: FeatureStream) -> Iterator[Tensor]:
    """The frames [1, F, H, W, 3], in 0..1, of one latent after the other."""
    for t in range(latents_BTCHW.shape[1]):
        yield drawing(latents_BTCHW[:, t : t + 1]).clamp(0, 1).movedim(2, -1)


def _groups(model: CausalAutoencoder, count: int, begun: bool) -> Iterator[slice]:
    """Where the frames of each next latent lie among `count`, which begin with those to be read again."""
    at = 0
    while (stop := at + (model.again + model.frames if begun else model.first_frames)) <= count:
        yield slice(at, stop)
        at, begun = stop - model.again, True
