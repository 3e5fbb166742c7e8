"""Autoencoders as streams see them: latents in, pictures out as soon as they can be drawn, and the other way round.

There is one decoder and one encoder for all: an autoencoder says how it draws and reads one latent at a time, and a
`FeatureStream` keeps what it remembers. A whole clip is nothing but a stream that begins and ends in one call, so the
two agree to the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from rollforce.errors import ShapeError, SnapshotError
from rollforce.models.autoencoder.tiling import Tiling, mosaic
from rollforce.video.size import check_size


class Autoencoder(Protocol):
    """What a model's autoencoder must tell and make. Weights are shared; every stream has a decoder of its own."""

    @property
    def channels(self) -> int:
        """Channels of a latent."""

    @property
    def stride(self) -> int:
        """Pixels per latent pixel, in each direction."""

    @property
    def frames(self) -> int:
        """Frames per latent."""

    @property
    def first_frames(self) -> int:
        """Frames of the first latent of a stream: 1 in Wan, as many as any other in the bundled model."""

    def decoder(self) -> Decoder:
        """Begin a stream of pictures."""

    def encoder(self) -> Encoder:
        """Begin a stream of latents."""


class PairedAutoencoder:
    """Encodes with one autoencoder and decodes with another, smaller one that knows the same latents."""

    def __init__(self, full: Autoencoder, small: Autoencoder) -> None:
        self.full, self.small = full, small
        self.channels, self.stride = full.channels, full.stride
        self.frames, self.first_frames = full.frames, full.first_frames

    def decoder(self) -> Decoder:
        return self.small.decoder()

    def encoder(self) -> Encoder:
        return self.full.encoder()


class CausalAutoencoder(nn.Module, ABC):
    """An Autoencoder that looks back only, and draws and reads one latent at a time.

    `again`: how many of a latent's last frames are read once more with those of the next."""

    channels: int
    stride: int
    frames: int
    first_frames: int
    again = 0

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """Any weight: it has the dtype and the device of all."""

    @abstractmethod
    def drawing(self) -> FeatureStream:
        """Begin a past for drawing: a latent [1, 1, C, h, w] in, its frames [1, F, 3, H, W] out, near 0..1."""

    @abstractmethod
    def reading(self) -> FeatureStream:
        """Begin a past for reading: frames [1, F, 3, H, W] in 0..1 in, their latent [1, 1, C, h, w] out."""

    def decoder(self) -> Decoder:
        """Begin a stream of pictures."""
        return Decoder(self)

    def encoder(self) -> Encoder:
        """Begin a stream of latents."""
        return Encoder(self)


class ClipAutoencoder(CausalAutoencoder):
    """A CausalAutoencoder of Wan's kind: one frame for the first latent of a clip, and as many as `frames` for others.

    Whole clips are streams of their own, so neither the cutting nor what else is in the batch changes a bit."""

    first_frames = 1

    def encode(self, frames_BFHWC: Tensor) -> Tensor:
        """Return latents float32 [B, 1 + k, C, h, w] of frames [B, 1 + k frames, H, W, 3], uint8 or float in 0..1.
        Raises ShapeError when a size does not fit."""
        frames = planes(frames_BFHWC, self.stride, self.weight.device)
        check_count(frames.shape[1], self.first_frames, self.frames)
        cuts = list(_cuts(self, frames.shape[1], begun=False))
        videos = ((video, self.reading()) for video in frames.split(1))
        return torch.cat([torch.cat([reading(video[:, cut]) for cut in cuts], dim=1) for video, reading in videos])

    def decode(self, latents_BTCHW: Tensor) -> Tensor:
        """Return frames [B, F, H, W, 3], float32 in 0..1, of latents [B, T, C, h, w], F = 1 + (T - 1) frames. Raises
        ShapeError when a size does not fit."""
        check_latents(latents_BTCHW, self.channels)
        if 0 in latents_BTCHW.shape[:2]:
            raise ShapeError(f"latents of shape {tuple(latents_BTCHW.shape)}: there is nothing to decode.")
        videos = latents_BTCHW.to(self.weight.device).split(1)
        return torch.cat([torch.cat(list(_draw_all(video, self.drawing())), dim=1) for video in videos])

    @torch.no_grad()
    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        """Encode the last frame that these latents show as the first latent of a video: [B, 1, C, h, w]."""
        return self.encode(self.decode(latents_BTCHW)[:, -1:]).to(latents_BTCHW.dtype)


class Moments:
    """Mean and deviation of each channel of a latent, float32 [C, 1, 1].

    A transformer sees (latent - mean) / deviation. They are no buffers of a module: casting it to bfloat16 would round
    them."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self._pair = (mean, deviation)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and deviation on a device."""
        if self._pair[0].device != device:
            self._pair = (self._pair[0].to(device), self._pair[1].to(device))
        return self._pair


class Decoder:
    """Turns the latents of one stream into frames. How latents are cut into calls never changes a frame."""

    def __init__(self, autoencoder: CausalAutoencoder) -> None:
        self.autoencoder = autoencoder
        self._drawing = autoencoder.drawing()

    @torch.no_grad()
    def decode(self, latents_BTCHW: Tensor) -> np.ndarray:
        """Return the frames uint8 [F, H, W, 3] of latents [1, T, C, h, w]. ShapeError if they are of another stream."""
        check_latents(latents_BTCHW, self.autoencoder.channels)
        if latents_BTCHW.shape[0] != 1:
            raise ShapeError(f"latents of {latents_BTCHW.shape[0]} videos: a decoder draws one stream; give every one "
                             "a decoder of its own, or use the autoencoder's decode() for whole clips.")  # fmt: skip
        latents = latents_BTCHW.to(self.autoencoder.weight.device)
        parts = [frames[0].mul(255).round_().to(torch.uint8) for frames in _draw_all(latents, self._drawing)]
        height, width = (self.autoencoder.stride * size for size in latents.shape[-2:])
        return on_host(parts, height, width)

    def flush(self) -> np.ndarray:
        """Return the frames still held back at the end of a stream: none, every latent gives its frames at once."""
        return on_host([], 0, 0)

    def reset(self) -> None:
        """Begin a new stream."""
        self._drawing.reset()

    def state_dict(self) -> dict[str, Any]:
        return self._drawing.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. SnapshotError if it is of another autoencoder or tiling."""
        if "past" in state:  # as snapshots of the bundled autoencoder once were: its features and no size
            past = state["past"]
            size = None if past is None else [*past[0].shape[-2:]]
            state = {"size": size, "features": [] if past is None else [past]}
        self._drawing.load_state_dict(state, self.autoencoder.weight.device)


class Encoder:
    """Turns the frames of one stream into latents. How frames are cut into calls never changes a latent."""

    def __init__(self, autoencoder: CausalAutoencoder) -> None:
        self.autoencoder = autoencoder
        self._reading = autoencoder.reading()
        self._waiting: np.ndarray | None = None

    @torch.no_grad()
    def encode(self, frames_FHWC: np.ndarray) -> Tensor:
        """Return the latents float32 [1, T, C, h, w], on the weights' device, that uint8 frames [F, H, W, 3] complete.
        T may be 0: frames that do not yet fill a latent wait. ShapeError if a size is wrong."""
        model = self.autoencoder
        frames = frames_FHWC if self._waiting is None else np.concatenate([self._waiting, frames_FHWC])
        pixels = planes(torch.from_numpy(frames[None]), model.stride, model.weight.device)
        latents, at = [], 0
        for cut in _cuts(model, len(frames), self._reading.begun):
            latents.append(self._reading(pixels[:, cut]))
            at = cut.stop - model.again
        self._waiting = frames[at:].copy()
        if latents:
            return torch.cat(latents, dim=1)
        height, width = (size // model.stride for size in frames.shape[1:3])
        return torch.empty(1, 0, model.channels, height, width, device=pixels.device)

    def reset(self) -> None:
        """Begin a new stream."""
        self._reading.reset()
        self._waiting = None


def _draw_all(latents_BTCHW: Tensor, drawing: FeatureStream) -> Iterator[Tensor]:
    """The frames [1, F, H, W, 3], in 0..1, of one latent after the other."""
    for t in range(latents_BTCHW.shape[1]):
        yield rearrange(drawing(latents_BTCHW[:, t : t + 1]).clamp(0, 1), "b f c h w -> b f h w c")


def _cuts(model: CausalAutoencoder, count: int, begun: bool) -> Iterator[slice]:
    """Where the frames of each next latent lie among `count`, which begin with those to be read again."""
    at = 0
    while (stop := at + (model.again + model.frames if begun else model.first_frames)) <= count:
        yield slice(at, stop)
        at, begun = stop - model.again, True


# -- the past of one stream through a causal network: its features, for every tile -------------------------------------


Features = list[Any]  # a tensor per causal layer; None before its first input; "Rep" after a first one without history


class FeatureStream:
    """Calls `step(input, features)` for every next piece of a stream and keeps the features between.

    Pictures are cut into tiles, each with features of its own, where `tiling` says so. `scale_in` and `scale_out` are
    pixels per latent pixel of what goes in and comes out; `slots` is how many features the network counts through.
    `step` may change the list of features, but no tensor in it: states that were taken stay what they were."""

    def __init__(self, step: Callable[[Tensor, Features], Tensor], slots: int, scale_in: int, scale_out: int,
                 tiling: Tiling | None, stride: int) -> None:  # fmt: skip
        self._step, self._slots, self._tiling, self._stride = step, slots, tiling, stride
        self._scale_in, self._scale_out = scale_in, scale_out
        self._size: tuple[int, int] | None = None
        self._features: list[Features] = []

    @property
    def begun(self) -> bool:
        """Whether something has gone through."""
        return self._size is not None

    def __call__(self, x: Tensor) -> Tensor:
        """Return what `step` makes of the next piece, [..., H, W]. ShapeError if its size is not that of the stream."""
        if x.shape[-2] % self._scale_in or x.shape[-1] % self._scale_in:
            raise ShapeError(f"{x.shape[-2]} x {x.shape[-1]} pixels are not multiples of {self._scale_in}")
        size = (x.shape[-2] // self._scale_in, x.shape[-1] // self._scale_in)
        if self._size is None:
            self._begin(*size)
        if size != self._size:
            was, now = (tuple(self._stride * side for side in sides) for sides in (self._size or (0, 0), size))
            raise ShapeError(f"pictures of {now[0]} x {now[1]} in a stream of {was[0]} x {was[1]}: a stream keeps its "
                             "size; reset() begins a new one.")  # fmt: skip
        if len(self._features) == 1:
            return self._step(x, self._features[0]).float()
        return self._mosaic.blend(self._steps(x), self._scale_out)

    def _begin(self, height: int, width: int) -> None:
        self._size, self._mosaic = (height, width), mosaic(height, width, self._tiling, self._stride)
        self._features = [[None] * self._slots for _ in range(len(self._mosaic))]

    def _steps(self, x: Tensor) -> Iterator[Tensor]:
        for features, (ys, xs) in zip(self._features, self._mosaic.places(self._scale_in), strict=True):
            if self._on_host:
                _move(features, x.device)
            yield self._step(x[..., ys, xs], features)
            if self._on_host:
                _move(features, torch.device("cpu"))

    @property
    def _on_host(self) -> bool:
        """Whether features wait in main memory."""
        return self._tiling is not None and self._tiling.host and len(self._features) > 1

    def reset(self) -> None:
        """Forget the past: what comes next begins a stream."""
        self._size, self._features = None, []

    def state_dict(self) -> dict[str, Any]:
        return {"size": self._size and list(self._size), "features": [list(features) for features in self._features]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a `state_dict`, on `device`. SnapshotError if it is of another network or tiling."""
        self.reset()
        if state["size"] is None:
            return
        self._begin(*state["size"])
        told, own = ([len(features) for features in each] for each in (state["features"], self._features))
        if told != own:
            self.reset()
            raise SnapshotError(f"the saved stream has {len(told)} tile(s) of {told[0] if told else 0} features, this "
                                f"autoencoder {len(own)} of {own[0]}: resume with the autoencoder and the tiling that "
                                "it was saved with.")  # fmt: skip
        self._features = [list(features) for features in state["features"]]
        for features in self._features:
            _move(features, torch.device("cpu") if self._on_host else device)


def _move(features: Features, device: torch.device) -> None:
    features[:] = [feature.to(device) if isinstance(feature, Tensor) else feature for feature in features]


# -- between pixels and what autoencoders read: shapes checked with a remedy, bytes to numbers and back ----------------


PATCH = 2  # of the transformers that read such latents: sizes that suit both are named in messages


def check_latents(latents_BTCHW: Tensor, channels: int) -> None:
    """Raise ShapeError unless these are latents [B, T, channels, h, w] of at least one pixel."""
    shape = tuple(latents_BTCHW.shape)
    if len(shape) != 5 or shape[2] != channels or not shape[3] or not shape[4]:
        raise ShapeError(f"latents of shape {shape}: this autoencoder reads [B, T, {channels}, h, w], with {channels} "
                         "channels.")  # fmt: skip


def check_count(frames: int, first: int, each: int) -> None:
    """Raise ShapeError unless `frames` frames fill whole latents: `first` of them the first one, `each` every other."""
    if frames < first or (frames - first) % each:
        lower = first + (frames - first) // each * each
        nearest = f"{first}" if frames < first else f"{lower} or {lower + each}"
        raise ShapeError(f"{frames} frames do not fill whole latents: the first holds {first} frame(s), every other "
                         f"{each}. Nearest: {nearest}.")  # fmt: skip


def planes(frames_BFHWC: Tensor, stride: int, device: torch.device) -> Tensor:
    """Return frames [B, F, H, W, 3], uint8 or float in 0..1, as float32 [B, F, 3, H, W] in 0..1. Raises ShapeError if
    they are none, or no multiple of `stride`."""
    shape = tuple(frames_BFHWC.shape)
    if len(shape) != 5 or shape[-1] != 3:
        raise ShapeError(f"video of shape {shape}: expected [B, F, H, W, 3]")
    why = f", the autoencoder's stride ({stride * PATCH} with the transformer's patches)"
    check_size((shape[2], shape[3]), stride, why, near=stride * PATCH)
    frames = frames_BFHWC.to(device)
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
    return rearrange(frames, "b f h w c -> b f c h w")


def on_host(parts: list[Tensor], height: int, width: int) -> np.ndarray:
    """Return parts of uint8 frames [F, H, W, 3] as one array; of no frames if there are no parts."""
    if not parts:
        return np.empty((0, height, width, 3), dtype=np.uint8)
    return np.ascontiguousarray(torch.cat(parts).cpu().numpy())
