"""The Wan 2.1 autoencoder as a stream: diffusers' AutoencoderKLWan, one latent at a time, its causal past kept.

Each causal convolution remembers its last two inputs. diffusers keeps these features on the module and clears them
around every call; here every stream has its own, so that streams share weights without disturbing each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from rollforce.checkpoints.lazy_tensor import read_all
from rollforce.checkpoints.names import recognise, to_ours
from rollforce.checkpoints.read import expect, read_checkpoint
from rollforce.checkpoints.shapes import autoencoder_config_of, same_shape
from rollforce.errors import CheckpointError
from rollforce.models.autoencoder.interface import ClipAutoencoder, Features, FeatureStream, Moments
from rollforce.models.autoencoder.tiling import Tiling


class WanAutoencoder(ClipAutoencoder):
    """Latents as Wan's transformer sees them (normalised) <-> frames.

    The first latent of a stream stands for one frame, every other for four. `vae` is diffusers' AutoencoderKLWan;
    `tiling` draws and reads large pictures in tiles. In bfloat16 the weights take 0.25 GB; a decoder's features at
    832 x 480 take 1.9 GB for as long as its stream lives, and drawing a latent as much again. See `Tiling`."""

    def __init__(self, vae: Any, tiling: Tiling | None = None) -> None:
        super().__init__()
        self.vae: Any = vae.eval()
        self.channels, self.stride = int(vae.config.z_dim), 2 ** (len(vae.config.dim_mult) - 1)
        self.frames = 2 ** sum(vae.config.temperal_downsample)
        self.tiling = tiling
        if tiling is not None:
            tiling.check(self.stride)
        self.moments = Moments(_moment(vae.config, "latents_mean"), _moment(vae.config, "latents_std"))

    @classmethod
    def load(cls, path: str | Path, dtype: torch.dtype | None = None, tiling: Tiling | None = None) -> WanAutoencoder:
        """Read a `vae/` folder of diffusers, the model folder around it, or Wan2.1_VAE.pth; in `dtype` or the file's.
        CheckpointError if there is none, it is of another kind, or it does not fit its config."""
        found = expect(read_checkpoint(path, "autoencoder"), "autoencoder")
        state = found.state if dtype is None else {name: tensor.to(dtype) for name, tensor in found.state.items()}
        return cls.from_state(state, found.config, tiling)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None,
                   tiling: Tiling | None = None) -> WanAutoencoder:  # fmt: skip
        """Build an autoencoder of these weights, used as they are. Names may be the original ones or diffusers'.

        `config`: settings of AutoencoderKLWan; what it lacks is measured or as in Wan 2.1. CheckpointError if the
        weights do not fit it."""
        from diffusers import AutoencoderKLWan

        if (found := recognise(state)) and found[1]:
            state = to_ours("autoencoder", state)
        state = read_all(state)
        given = {name: value for name, value in (config or {}).items() if not name.startswith("_")}
        _refuse_other(given)
        try:
            with torch.device("meta"):
                vae = AutoencoderKLWan(**(autoencoder_config_of(state) | given))
        except TypeError as error:
            raise CheckpointError(f"config.json does not describe a Wan autoencoder: {error}.") from error
        same_shape(state, vae, "vae")
        vae.load_state_dict(state, assign=True)
        return cls(vae.requires_grad_(False), tiling)

    def save(self, folder: str | Path) -> None:
        """Write a `vae/` folder of diffusers: config.json and diffusion_pytorch_model.safetensors."""
        self.vae.save_pretrained(str(folder))

    def drawing(self) -> FeatureStream:
        return FeatureStream(self.draw, _slots(self.vae.decoder), 1, self.stride, self.tiling, self.stride)

    def reading(self) -> FeatureStream:
        return FeatureStream(self.read, _slots(self.vae.encoder), self.stride, 1, self.tiling, self.stride)

    def draw(self, latent_BTCHW: Tensor, past: Features) -> Tensor:
        """Draw one latent: its frames [B, F, 3, H, W], 0 black and 1 white, not clamped. `past` goes on in place."""
        mean, std = self.moments.on(latent_BTCHW.device)
        z = rearrange((latent_BTCHW.float() * std + mean).to(self.weight.dtype), "b t c h w -> b c t h w")
        drawn = self.vae.decoder(self.vae.post_quant_conv(z), feat_cache=past, feat_idx=[0])
        return (rearrange(drawn.float(), "b c f h w -> b f c h w") + 1) / 2

    def read(self, frames_BFCHW: Tensor, past: Features) -> Tensor:
        """Read the frames of one latent, in 0..1: that latent [B, 1, C, h, w], float32. `past` goes on in place."""
        mean, std = self.moments.on(frames_BFCHW.device)
        pixels = rearrange((frames_BFCHW * 2 - 1).to(self.weight.dtype), "b f c h w -> b c f h w")
        seen = self.vae.encoder(pixels, feat_cache=past, feat_idx=[0])
        mode = self.vae.quant_conv(seen)[:, : self.channels]  # the rest is the logarithm of the variance
        return (rearrange(mode, "b c t h w -> b t c h w").float() - mean) / std

    @property
    def weight(self) -> Tensor:
        return self.vae.post_quant_conv.weight


def _slots(half: nn.Module) -> int:
    """Places for features that diffusers' encoder or decoder counts through: one per convolution in time."""
    return sum(isinstance(layer, nn.Conv3d) for layer in half.modules())


def _refuse_other(config: Mapping[str, Any]) -> None:
    """CheckpointError for settings of an autoencoder that is not of the Wan 2.1 family."""
    if config.get("is_residual") or config.get("patch_size") not in (None, 1):
        raise CheckpointError("this is the autoencoder of Wan 2.2 5B, which works in patches; no streaming student "
                              "here uses it. Take the `vae` folder of a Wan 2.1 or a Wan 2.2 14B model.")  # fmt: skip


def _moment(config: Any, name: str) -> Tensor:
    """One number per latent channel, float32 [C, 1, 1]. CheckpointError if there are more or fewer."""
    values = getattr(config, name)
    if len(values) != config.z_dim:
        raise CheckpointError(f"vae/config.json: {name} has {len(values)} numbers, but latents have {config.z_dim} "
                              "channels (z_dim).")  # fmt: skip
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
