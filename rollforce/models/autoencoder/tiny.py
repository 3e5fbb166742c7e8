"""A small causal video autoencoder: a fitted linear encoder and a trained decoder that also steadies what it draws.

The encoder is a principal component transform of patches of 4 frames x 8 x 8 pixels: nothing to train, nothing to
drift, and the space in which the transformer works is fixed within a minute. The decoder undoes it exactly as a skip
and adds what a small convolutional net has learned. It looks only back, so it draws one latent at a time and goes on
from what it drew before. Because it was trained on latents with independent noise, it averages what stands still over
the past latents and draws whole shapes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from rollforce.checkpoints.model_folder import load_module, save_module
from rollforce.errors import ConfigError, ShapeError
from rollforce.models.autoencoder.interface import CausalAutoencoder, Features, FeatureStream

State = tuple[Tensor, ...]
"""What the network remembers of the past: the last inputs of its blocks."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes. One latent stands for `frames` frames, one latent pixel for `patch` x `patch` pixels."""

    channels: int = 32
    frames: int = 4
    patch: int = 8
    width: int = 128
    width_mid: int = 64
    width_high: int = 48
    blocks: int = 4
    memory: int = 2

    def __post_init__(self) -> None:
        if self.patch != 8:
            raise ConfigError(f"autoencoder patch = {self.patch}: the decoder doubles three times; set patch = 8")
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"autoencoder {name} = {value}: must be at least 1")

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: frames x patch x patch x 3."""
        return self.frames * self.patch * self.patch * 3


def silence(*layers: nn.Module) -> None:
    """Let layers start with nothing to say."""
    for parameter in nn.ModuleList(layers).parameters():
        nn.init.zeros_(parameter)


def per_latent(layer: nn.Conv2d, x_BTDHW: Tensor) -> Tensor:
    """Apply a layer for pictures to every latent of a video: [B, T, D, H, W] -> [B, T, D', H, W]."""
    return layer(x_BTDHW.flatten(0, 1)).unflatten(0, x_BTDHW.shape[:2])


class TemporalBlock(nn.Module):
    """Residual block at latent resolution: mixes each place with its `memory` past latents, then 3x3 in space."""

    def __init__(self, width: int, memory: int) -> None:
        super().__init__()
        self.memory = memory
        self.mix = nn.Conv2d(width * (memory + 1), width, 1)
        self.space = nn.Conv2d(width, width, 3, padding=1)
        silence(self.space)

    def forward(self, x_BTDHW: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the block's output and the last `memory` inputs, oldest first: the past of the next call."""
        B, T, D, H, W = x_BTDHW.shape
        if past is None:
            past = x_BTDHW.new_zeros(B, self.memory, D, H, W)
        line = torch.cat([past, x_BTDHW], dim=1)
        views = torch.cat([line[:, i : i + T] for i in range(self.memory + 1)], dim=2).flatten(0, 1)
        change = self.space(F.silu(self.mix(F.silu(views))))
        return x_BTDHW + change.unflatten(0, (B, T)), line[:, T:]


class DrawingBlock(nn.Module):
    """Residual block above latent resolution: two 3x3 convolutions that also see what the latent before had drawn here.

    So an outline can go on where the last picture left it, more finely than the latents say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.before = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        silence(self.before, self.second)

    def forward(self, x_BTDHW: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the block's output and its last input: the past of the next call."""
        if past is None:
            past = torch.zeros_like(x_BTDHW[:, :1])
        previous = torch.cat([past, x_BTDHW[:, :-1]], dim=1).flatten(0, 1)
        change = self.first(F.silu(x_BTDHW.flatten(0, 1))) + self.before(F.silu(previous))
        return x_BTDHW + self.second(F.silu(change)).view_as(x_BTDHW), x_BTDHW[:, -1:]


class TinyAutoencoder(CausalAutoencoder):
    """frames [B, F, H, W, 3] <-> latents [B, F/4, C, H/8, W/8]."""

    basis: Tensor  # [C, patch values] orthonormal rows
    mean: Tensor  # [patch values]
    scale: Tensor  # [C] latent = scale * coordinate
    spread: Tensor  # [C] standard deviation of each latent channel on training video

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or AutoencoderConfig()
        self.channels, self.stride, self.frames, self.first_frames = c.channels, c.patch, c.frames, c.frames
        self.register_buffer("basis", torch.eye(c.channels, c.patch_values))
        self.register_buffer("mean", torch.full((c.patch_values,), 0.5))
        self.register_buffer("scale", torch.ones(c.channels))
        self.register_buffer("spread", torch.ones(c.channels))
        self.stem = nn.Conv2d(c.channels, c.width, 3, padding=1)
        self.blocks = nn.ModuleList(TemporalBlock(c.width, c.memory) for _ in range(c.blocks))
        self.steady = nn.Conv2d(c.width, c.channels, 1)
        self.up_mid = nn.Conv2d(c.width, 4 * c.width_mid, 3, padding=1)
        self.mid = DrawingBlock(c.width_mid)
        self.up_high = nn.Conv2d(c.width_mid, 4 * c.width_high, 3, padding=1)
        self.high = DrawingBlock(c.width_high)
        self.out = nn.Conv2d(c.width_high, 4 * c.frames * 3, 3, padding=1)
        silence(self.steady, self.out)

    @property
    def weight(self) -> Tensor:
        return self.basis

    def drawing(self) -> FeatureStream:
        return FeatureStream(self._draw_next, len(self.blocks) + 2, 1, self.stride, None, self.stride)

    def reading(self) -> FeatureStream:
        return FeatureStream(self._read_next, 0, self.stride, 1, None, self.stride)

    def _draw_next(self, latent_BTCHW: Tensor, past: Features) -> Tensor:
        frames, after = self.draw(latent_BTCHW.to(self.basis.dtype), None if past[0] is None else tuple(past))
        past[:] = after
        return rearrange(frames, "b f h w c -> b f c h w")

    def _read_next(self, frames_BFCHW: Tensor, past: Features) -> Tensor:
        return self.encode(rearrange(frames_BFCHW, "b f c h w -> b f h w c"))

    def patches(self, frames_BFHWC: Tensor) -> Tensor:
        """Cut video [B, F, H, W, 3] into patches [B, T, h, w, patch values], float in 0..1; uint8 is divided by 255."""
        c = self.config
        if frames_BFHWC.ndim != 5 or frames_BFHWC.shape[-1] != 3:
            raise ShapeError(f"video of shape {tuple(frames_BFHWC.shape)}: expected [B, F, H, W, 3]")
        _, F_, H, W, _ = frames_BFHWC.shape
        if F_ % c.frames or F_ == 0:
            raise ShapeError(f"{F_} frames: one latent holds {c.frames} frames, so pass a multiple of {c.frames}")
        if H % c.patch or W % c.patch or not H or not W:
            raise ShapeError(f"video of {H} x {W} pixels: height and width must be multiples of {c.patch}")
        video = frames_BFHWC.to(self.basis.dtype)
        if frames_BFHWC.dtype == torch.uint8:
            video = video / 255
        return rearrange(video, "b (t f) (h p) (w q) c -> b t h w (f p q c)", f=c.frames, p=c.patch, q=c.patch)

    def encode(self, frames_BFHWC: Tensor) -> Tensor:
        """Return latents [B, F/4, C, H/8, W/8] of frames [B, F, H, W, 3], uint8 or float in 0..1, F a multiple of 4.
        Raises ShapeError when a size does not fit."""
        code = (self.patches(frames_BFHWC) - self.mean) @ self.basis.T * self.scale
        return rearrange(code, "b t h w c -> b t c h w")

    def decode(self, latents_BTCHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return frames [B, 4T, 8h, 8w, 3] in 0..1 of latents [B, T, C, h, w], and the state that continues the stream.

        Draws one latent of one video at a time, so neither the cutting into chunks nor what else is in the batch
        changes a bit of the result. `state` is what the previous call returned; None begins a new video."""
        self._check(latents_BTCHW)
        videos, states = [], []
        for b in range(latents_BTCHW.shape[0]):
            past = None if state is None else tuple(s[b : b + 1] for s in state)
            parts = []
            for t in range(latents_BTCHW.shape[1]):
                frames, past = self.draw(latents_BTCHW[b : b + 1, t : t + 1].contiguous(), past)
                parts.append(frames)
            videos.append(torch.cat(parts, dim=1))
            states.append(past)
        return torch.cat(videos).clamp(0, 1), tuple(torch.cat(layer) for layer in zip(*states, strict=True))

    @torch.no_grad()
    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        """Encode the last frame that these latents show as a still picture: [B, 1, C, h, w]."""
        frames, _ = self.decode(latents_BTCHW)
        return self.encode(frames[:, -1:].expand(-1, self.config.frames, -1, -1, -1))

    def forward(self, latents_BTCHW: Tensor, keep: slice = slice(None)) -> Tensor:
        """Draw all latents at once from an empty past, but only the pixels of the latents `keep`: the training path.
        Frames are not clamped, so that gradients pass."""
        return self.draw(latents_BTCHW, None, keep)[0]

    def draw(self, latents_BTCHW: Tensor, state: State | None, keep: slice = slice(None)) -> tuple[Tensor, State]:
        """Decode any number of latents together; see `decode` and `forward`."""
        B, T = latents_BTCHW.shape[:2]
        pasts = iter(state or [None] * (len(self.blocks) + 2))
        x = self.stem(latents_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
        after = []
        for block in self.blocks:
            x, past = block(x, next(pasts))
            after.append(past)
        start, stop, _ = keep.indices(T)
        first = max(0, start - 2)  # two drawing blocks, each of which sees one latent back
        x, lead = x[:, first:stop], start - first
        steadied = latents_BTCHW[:, start:stop] + per_latent(self.steady, x[:, lead:])
        for up, block in ((self.up_mid, self.mid), (self.up_high, self.high)):
            x, past = block(F.pixel_shuffle(per_latent(up, x), 2), next(pasts))
            after.append(past)
        detail = F.pixel_shuffle(per_latent(self.out, F.silu(x[:, lead:])), 2)  # [B, T, frames*3, 8h, 8w]
        detail = rearrange(detail, "b t (f c) h w -> b (t f) h w c", f=self.config.frames)
        return self.linear(steadied) + detail, tuple(after)

    def linear(self, latents_BTCHW: Tensor) -> Tensor:
        """Return frames [B, 4T, 8h, 8w, 3], not clamped: the exact inverse on the fitted subspace."""
        c = self.config
        flat = (rearrange(latents_BTCHW, "b t c h w -> b t h w c") / self.scale) @ self.basis + self.mean
        return rearrange(flat, "b t h w (f p q c) -> b (t f) (h p) (w q) c", f=c.frames, p=c.patch, q=c.patch)

    def _check(self, latents_BTCHW: Tensor) -> None:
        shape = tuple(latents_BTCHW.shape)
        if len(shape) != 5 or shape[2] != self.config.channels or 0 in shape:
            raise ShapeError(f"latents of shape {shape}: expected [B, T, {self.config.channels}, h, w], nothing empty")

    @torch.no_grad()
    def fit(self, patches_NP: Tensor, weight_N: Tensor) -> float:
        """Fit mean, basis and channel scale to patches [N, patch values] in 0..1. Returns the variance kept, 0..1.

        A channel is scaled by its standard deviation ** -0.5, then all by one factor so that the mean variance is 1:
        the large channels stay larger, but not so much that the fine ones drown in the loss of the transformer.
        What is fitted is rounded to float16 at once: the encoder saved is the encoder that was trained with."""
        x, w = patches_NP.double(), (weight_N / weight_N.sum()).double()
        mean = w @ x
        x = x - mean
        values, vectors = torch.linalg.eigh(x.T @ (x * w[:, None]))
        K = self.config.channels
        basis = vectors[:, -K:].flip(1).T
        deviation = (x @ basis.T).pow(2).mean(0).sqrt()
        scale = deviation**-0.5
        scale = scale / (scale * deviation).pow(2).mean().sqrt()
        for name, value in (("mean", mean), ("basis", basis), ("scale", scale), ("spread", scale * deviation)):
            getattr(self, name).copy_(value.half())
        return float(values[-K:].sum() / values.sum())

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float16) into `folder`, which is made if it is missing."""
        save_module(self, self.config, folder)

    @classmethod
    def load(cls, folder: str | Path) -> TinyAutoencoder:
        """Read what `save` wrote, as float32, in eval mode. CheckpointError if it is missing or does not fit."""
        return load_module(cls, AutoencoderConfig, folder, "autoencoder")
