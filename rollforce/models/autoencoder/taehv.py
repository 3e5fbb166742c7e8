"""Tiny autoencoders in the format of TAEHV, such as TAEW 2.1 (`taew2_1.pth`): a fraction of the work, less detail.

They speak the latents of the full autoencoder as its transformer sees them. Two sequences of layers, numbered in the
names of the weights; in time they know three things: a block that sees one frame back, a pooling of neighbouring
frames and a growing of one frame into several. A stream remembers one frame for each such block: for 832 x 480 in 16
bits 67 MB, beside 23 MB of weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from rollforce.checkpoints.containers import unpack
from rollforce.checkpoints.lazy_tensor import read_all
from rollforce.checkpoints.shapes import same_shape
from rollforce.checkpoints.weight_file import read_file
from rollforce.errors import CheckpointError
from rollforce.models.autoencoder.interface import ClipAutoencoder, Features, FeatureStream, Moments

DEPTH = 3  # blocks with memory at each resolution
POOLS = (2, 7, 12)  # places of the layers that change time, in the encoder
GROWS = (7, 13, 19)  # and in the decoder


@dataclass(frozen=True)
class TaehvConfig:
    """Sizes. `pool` and `grow`: frames that become one, and that one becomes, at each stage; `patch`: side of the
    squares of pixels that are folded into channels."""

    channels: int = 16
    encoder_width: int = 64
    decoder_widths: tuple[int, ...] = (256, 128, 64, 64)
    pool: tuple[int, ...] = (2, 2, 1)
    grow: tuple[int, ...] = (1, 2, 2)
    patch: int = 1


class Recall(nn.Module):
    """Residual block of three convolutions that sees a frame and the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((2 * width, width, width, width)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, x_FCHW: Tensor, before_FCHW: Tensor) -> Tensor:
        return F.relu(x_FCHW + self.conv(torch.cat([x_FCHW, before_FCHW], dim=1)))


class TimePool(nn.Module):
    """`count` neighbouring frames become one."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.conv = nn.Conv2d(width * count, width, 1, bias=False)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return self.conv(rearrange(x_FCHW, "(f n) c h w -> f (n c) h w", n=self.count))


class Grow(nn.Module):
    """One frame becomes `count`."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.conv = nn.Conv2d(width, width * count, 1, bias=False)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return rearrange(self.conv(x_FCHW), "f (n c) h w -> (f n) c h w", n=self.count)


class Soften(nn.Module):
    """Far latents are drawn in: nothing gets beyond 3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Layers(nn.Module):
    """All weights, under the names of the format: `encoder.N...` and `decoder.N...`."""

    def __init__(self, c: TaehvConfig) -> None:
        super().__init__()
        width, widths = c.encoder_width, c.decoder_widths
        reading: list[nn.Module] = [nn.Conv2d(3 * c.patch**2, width, 3, padding=1), nn.ReLU()]
        for count in c.pool:
            reading += [TimePool(width, count), nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)]
            reading += [Recall(width) for _ in range(DEPTH)]
        self.encoder = nn.Sequential(*reading, nn.Conv2d(width, c.channels, 3, padding=1))
        drawing: list[nn.Module] = [Soften(), nn.Conv2d(c.channels, widths[0], 3, padding=1), nn.ReLU()]
        for count, (here, after) in zip(c.grow, pairwise(widths), strict=True):
            drawing += [Recall(here) for _ in range(DEPTH)]
            drawing += [nn.Upsample(scale_factor=2), Grow(here, count)]
            drawing += [nn.Conv2d(here, after, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*drawing, nn.ReLU(), nn.Conv2d(widths[-1], 3 * c.patch**2, 3, padding=1))


class TaehvAutoencoder(ClipAutoencoder):
    """Frames <-> latents, one frame for the first latent and four for every other, as in Wan.

    The encoder was made to see, with a latent, the three frames that follow it. A stream does not have them yet: as at
    the end of a clip, the newest frame stands in for them, and the real ones are what the next latent remembers. So
    a latent depends on no frame after its own; the price is that every frame is read twice."""

    again = 1

    def __init__(self, config: TaehvConfig, moments: Moments | None = None) -> None:
        super().__init__()
        self.config, self.moments = config, moments
        self.channels, self.frames = config.channels, math.prod(config.pool)
        self.stride = 2 ** len(config.pool) * config.patch
        self.layers = Layers(config)

    @classmethod
    def load(cls, path: str | Path, dtype: torch.dtype | None = None,
             moments: Moments | None = None) -> TaehvAutoencoder:  # fmt: skip
        """Read a .pth or .safetensors file, in `dtype` or the file's. CheckpointError if it is not of this format."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}.")
        state = read_all(unpack(read_file(path).content, path.name)[1])
        if dtype is not None:
            state = {name: tensor.to(dtype) for name, tensor in state.items()}
        return cls.from_state(state, path.name, moments)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], name: str = "taehv",
                   moments: Moments | None = None) -> TaehvAutoencoder:  # fmt: skip
        """Build an autoencoder of these weights, whose shapes tell its sizes; `name` of the file, for messages.
        CheckpointError if they are of another kind."""
        with torch.device("meta"):
            model = cls(_config_of(state, name), moments)
        same_shape(state, model.layers, name)
        model.layers.load_state_dict(dict(state), assign=True)
        return model.requires_grad_(False).eval()

    @property
    def weight(self) -> Tensor:
        return next(self.parameters())

    def drawing(self) -> FeatureStream:
        return FeatureStream(self.draw, len(self.layers.decoder), 1, self.stride, None, self.stride)

    def reading(self) -> FeatureStream:
        return FeatureStream(self.read, len(self.layers.encoder), self.stride, 1, None, self.stride)

    def draw(self, latent_BTCHW: Tensor, past: Features) -> Tensor:
        """Draw one latent [1, 1, C, h, w]: its frames [1, F, 3, H, W] near 0..1. `past` goes on in place."""
        begins = all(before is None for before in past)
        if self.moments is not None:
            mean, deviation = self.moments.on(latent_BTCHW.device)
            latent_BTCHW = latent_BTCHW.float() * deviation + mean
        drawn = _through(self.layers.decoder, latent_BTCHW[0].to(self.weight.dtype), past)
        frames = F.pixel_shuffle(drawn, self.config.patch)
        return frames[None, -self.first_frames if begins else 0 :].float()

    def read(self, frames_BFCHW: Tensor, past: Features) -> Tensor:
        """Read a frame [1, 1, 3, H, W] after what went before: its latent [1, 1, C, h, w], float32. With the frames of
        the latent before it in front of it, if there are any: they are what `past` remembers."""
        pixels = F.pixel_unshuffle(frames_BFCHW[0].to(self.weight.dtype), self.config.patch)
        if len(pixels) > 1:
            _through(self.layers.encoder, pixels[:-1], past)
        newest = pixels[-1:].expand(self.frames, -1, -1, -1)
        latent = _through(self.layers.encoder, newest, list(past))[None].float()
        if self.moments is None:
            return latent
        mean, deviation = self.moments.on(latent.device)
        return (latent - mean) / deviation


def _through(layers: nn.Sequential, x_FCHW: Tensor, past: Features) -> Tensor:
    """The next frames of one stream through all layers. past[i]: the last frame that layer i saw, if it remembers."""
    for i, layer in enumerate(layers):
        if isinstance(layer, Recall):
            before = torch.zeros_like(x_FCHW[:1]) if past[i] is None else past[i]
            past[i] = x_FCHW[-1:].clone()
            x_FCHW = layer(x_FCHW, torch.cat([before, x_FCHW[:-1]]))
        else:
            x_FCHW = layer(x_FCHW)
    return x_FCHW


def _config_of(state: Mapping[str, Tensor], name: str) -> TaehvConfig:
    """Sizes from the shapes of weights. CheckpointError if they cannot be those of a Wan-like tiny autoencoder."""
    stem = "conv.weight"
    try:
        width, pixels = state["encoder.0.weight"].shape[:2]
        ends = [state[f"decoder.{i}.weight"].shape for i in (1, *(grow + 1 for grow in GROWS))]
        pool = tuple(state[f"encoder.{i}.{stem}"].shape[1] // width for i in POOLS)
        grow = tuple(shape[0] // shape[1] for shape in (state[f"decoder.{i}.{stem}"].shape for i in GROWS))
    except KeyError as error:
        first = ", ".join(list(state)[:3])
        raise CheckpointError(f"{name} is not a tiny autoencoder in the format of TAEHV: there is no {error.args[0]} "
                              f"(it begins with {first}). For Wan 2.1 give taew2_1.pth or "
                              "taew2_1.safetensors.") from error  # fmt: skip
    if math.prod(pool) != math.prod(grow):
        raise CheckpointError(f"{name} makes one latent of {math.prod(pool)} frames, but {math.prod(grow)} frames of "
                              "one latent: a stream needs an autoencoder that gives back as many frames as it takes.")
    return TaehvConfig(ends[0][1], width, tuple(shape[0] for shape in ends), pool, grow, math.isqrt(pixels // 3))
