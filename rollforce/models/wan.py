"""The Wan 2.1 autoencoder as a stream: diffusers' AutoencoderKLWan, one latent at a time, its causal past kept.

Each causal convolution remembers its last two inputs. diffusers keeps these features on the module and clears them
around every call; here every stream has its own, so that streams share weights without disturbing each other, and a
whole clip is nothing but a stream that begins and ends in one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rollforce.errors import CheckpointError
from rollforce.models.features import Features, Stream
from rollforce.models.keys import recognise, to_ours
from rollforce.models.pixels import as_bytes, check_count, check_latents, check_stream, on_host, planes
from rollforce.models.shapes import autoencoder_config_of, same_shape
from rollforce.models.tiling import Tiling
from rollforce.models.weights import expect, read_checkpoint


class WanAutoencoder(nn.Module):
    """Latents as Wan's transformer sees them (normalised) <-> frames.

    The first latent of a stream stands for one frame, every other for four. `vae` is diffusers' AutoencoderKLWan;
    `tiling` draws and reads large pictures in tiles. On the device, beside the weights (254 MB in bfloat16), a stream
    keeps its features: see `Tiling` for what a small card can save."""

    def __init__(self, vae: Any, tiling: Tiling | None = None) -> None:
        super().__init__()
        self.vae: Any = vae.eval()
        self.tiling = tiling
        if tiling is not None:
            tiling.check(self.stride)
        self._mean = _moment(vae.config, "latents_mean")  # no buffers: .to(bfloat16) would round them
        self._std = _moment(vae.config, "latents_std")

    # ---- files

    @classmethod
    def load(cls, path: str | Path, dtype: torch.dtype | None = None, tiling: Tiling | None = None) -> WanAutoencoder:
        """Read a `vae/` folder of diffusers, the model folder around it, or Wan2.1_VAE.pth; in `dtype` or the file's.

        CheckpointError if there is none, it is of another kind, or it does not fit its config."""
        found = expect(read_checkpoint(path, "autoencoder"), "autoencoder")
        state = found.state if dtype is None else {name: tensor.to(dtype) for name, tensor in found.state.items()}
        return cls.from_state(state, found.config, tiling)

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, tiling: Tiling | None = None
    ) -> WanAutoencoder:
        """An autoencoder of these weights, which are used as they are. Names may be the original ones or diffusers'.

        `config`: settings of AutoencoderKLWan; what it lacks is measured or as in Wan 2.1. CheckpointError if the
        weights do not fit it."""
        from diffusers import AutoencoderKLWan

        found = recognise(state)
        if found is not None and found[1]:
            state = to_ours("autoencoder", state)
        given = {name: value for name, value in (config or {}).items() if not name.startswith("_")}
        _refuse_other(given)
        try:
            with torch.device("meta"):
                vae = AutoencoderKLWan(**(autoencoder_config_of(state) | given))
        except TypeError as error:
            raise CheckpointError(f"config.json does not describe a Wan autoencoder: {error}.") from error
        same_shape(state, vae, "vae")
        vae.load_state_dict(dict(state), assign=True)
        return cls(vae.requires_grad_(False), tiling)

    def save(self, folder: str | Path) -> None:
        """Write a `vae/` folder of diffusers: config.json and diffusion_pytorch_model.safetensors."""
        self.vae.save_pretrained(str(folder))

    # ---- geometry

    @property
    def channels(self) -> int:
        return int(self.vae.config.z_dim)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.vae.config.dim_mult) - 1)

    @property
    def frames(self) -> int:
        return 2 ** sum(self.vae.config.temperal_downsample)

    @property
    def first_frames(self) -> int:
        return 1

    # ---- streams

    def decoder(self) -> WanDecoder:
        """A new stream of pictures."""
        return WanDecoder(self)

    def encoder(self) -> WanEncoder:
        """A new stream of latents."""
        return WanEncoder(self)

    def drawing(self) -> Stream:
        """A new past for `draw`: latents [1, 1, C, h, w] in, frames [1, F, 3, H, W] in -1..1 out."""
        return Stream(self.draw, _slots(self.vae.decoder), 1, self.stride, self.tiling, self.stride)

    def reading(self) -> Stream:
        """A new past for `read`: frames [1, F, 3, H, W] in, a latent [1, 1, C, h, w] out."""
        return Stream(self.read, _slots(self.vae.encoder), self.stride, 1, self.tiling, self.stride)

    def draw(self, latent_BTCHW: Tensor, past: Features) -> Tensor:
        """One latent -> its frames [B, F, 3, H, W] in -1..1, not clamped. `past` goes on in place."""
        mean, std = self._scale(latent_BTCHW.device)
        z = (latent_BTCHW.float() * std + mean).to(self.weight.dtype).transpose(1, 2)
        return self.vae.decoder(self.vae.post_quant_conv(z), feat_cache=past, feat_idx=[0]).transpose(1, 2)

    def read(self, frames_BFCHW: Tensor, past: Features) -> Tensor:
        """The frames of one latent, in -1..1 -> that latent [B, 1, C, h, w], float32. `past` goes on in place."""
        mean, std = self._scale(frames_BFCHW.device)
        seen = self.vae.encoder(frames_BFCHW.transpose(1, 2).to(self.weight.dtype), feat_cache=past, feat_idx=[0])
        mode = self.vae.quant_conv(seen)[:, : self.channels]  # the rest is the logarithm of the variance
        return (mode.transpose(1, 2).float() - mean) / std

    @property
    def weight(self) -> Tensor:
        """Any weight: it has the dtype and the device of all."""
        return self.vae.post_quant_conv.weight

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._mean.device != device:
            self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self._mean, self._std

    # ---- whole clips

    def encode(self, frames_BFHWC: Tensor) -> Tensor:
        """frames [B, F, H, W, 3], uint8 or float in 0..1, F = 1 + 4 k -> latents [B, 1 + k, C, H/8, W/8], float32.

        Raises ShapeError when a size does not fit."""
        frames = planes(frames_BFHWC, self.stride, self.weight.device) * 2 - 1
        check_count(frames.shape[1], self.first_frames, self.frames)
        return torch.cat([self._encode_one(video) for video in frames.split(1)])

    def _encode_one(self, frames_BFCHW: Tensor) -> Tensor:
        reading = self.reading()
        first = frames_BFCHW[:, : self.first_frames]
        rest = frames_BFCHW[:, self.first_frames :].split(self.frames, dim=1) if frames_BFCHW.shape[1] > 1 else ()
        return torch.cat([reading(part) for part in (first, *rest)], dim=1)

    def decode(self, latents_BTCHW: Tensor) -> Tensor:
        """latents [B, T, C, h, w] -> frames [B, 1 + 4 (T - 1), 8 h, 8 w, 3], float32 in 0..1.

        Raises ShapeError when a size does not fit."""
        check_latents(latents_BTCHW, self.channels)
        videos = latents_BTCHW.to(self.weight.device).split(1)
        return torch.cat([torch.cat(list(self.frames_of(video, self.drawing())), dim=1) for video in videos])

    def frames_of(self, latents_BTCHW: Tensor, drawing: Stream) -> Iterator[Tensor]:
        """The frames [1, F, H, W, 3] in 0..1 of one latent after the other."""
        for t in range(latents_BTCHW.shape[1]):
            yield ((drawing(latents_BTCHW[:, t : t + 1]) + 1) / 2).clamp(0, 1).movedim(2, -1)

    @torch.no_grad()
    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        """The last frame that these latents show, encoded as the first latent of a video: [B, 1, C, h, w]."""
        return self.encode(self.decode(latents_BTCHW)[:, -1:])


class WanDecoder:
    """Decoder of one stream: the first latent gives one frame, every other four; none are held back."""

    def __init__(self, autoencoder: WanAutoencoder) -> None:
        self.autoencoder = autoencoder
        self._drawing = autoencoder.drawing()

    @torch.no_grad()
    def decode(self, latents_BTCHW: Tensor) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] of latents [1, T, C, h, w]. ShapeError if they are not of this stream."""
        check_latents(latents_BTCHW, self.autoencoder.channels)
        check_stream(latents_BTCHW)
        latents = latents_BTCHW.to(self.autoencoder.weight.device)
        parts = [as_bytes(frames[0]) for frames in self.autoencoder.frames_of(latents, self._drawing)]
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


class WanEncoder:
    """Encoder of one stream: one frame is the first latent, every four more another; those not yet four wait."""

    def __init__(self, autoencoder: WanAutoencoder) -> None:
        self.autoencoder = autoencoder
        self._reading = autoencoder.reading()
        self._waiting: np.ndarray | None = None

    @torch.no_grad()
    def encode(self, frames_FHWC: np.ndarray) -> Tensor:
        """Latents float32 [1, T, C, h, w] that uint8 frames [F, H, W, 3] complete. ShapeError if a size is wrong."""
        model = self.autoencoder
        frames = frames_FHWC if self._waiting is None else np.concatenate([self._waiting, frames_FHWC])
        pixels = planes(torch.from_numpy(frames[None]), model.stride, model.weight.device) * 2 - 1
        latents, at = [], 0
        while at + (needed := model.frames if self._reading.begun else model.first_frames) <= len(frames):
            latents.append(self._reading(pixels[:, at : at + needed]))
            at += needed
        self._waiting = frames[at:].copy()
        if latents:
            return torch.cat(latents, dim=1)
        height, width = (size // model.stride for size in frames.shape[1:3])
        return torch.empty(1, 0, model.channels, height, width, device=pixels.device)

    def reset(self) -> None:
        self._reading.reset()
        self._waiting = None


def _slots(half: nn.Module) -> int:
    """Places for features that diffusers' encoder or decoder counts through: one per convolution in time."""
    return sum(isinstance(layer, nn.Conv3d) for layer in half.modules())


def _refuse_other(config: Mapping[str, Any]) -> None:
    """CheckpointError for settings of an autoencoder that is not of the Wan 2.1 family."""
    if config.get("is_residual") or config.get("patch_size") not in (None, 1):
        raise CheckpointError(
            "this is the autoencoder of Wan 2.2 5B, which works in patches; no streaming student here uses it. "
            "Take the `vae` folder of a Wan 2.1 or a Wan 2.2 14B model."
        )


def _moment(config: Any, name: str) -> Tensor:
    """One number per latent channel, float32 [C, 1, 1]. CheckpointError if there are more or fewer."""
    values = getattr(config, name)
    if len(values) != config.z_dim:
        raise CheckpointError(
            f"vae/config.json: {name} has {len(values)} numbers, but latents have {config.z_dim} channels (z_dim)."
        )
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
