"""Between pixels and what autoencoders read: shapes checked with a remedy, bytes to numbers and back."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from rollforce.errors import ShapeError
from rollforce.video.size import check_size

PATCH = 2  # of the transformers that read such latents: sizes that suit both are named in messages


def check_latents(latents_BTCHW: Tensor, channels: int) -> None:
    """Raise ShapeError unless these are latents [B, T, channels, h, w] of at least one pixel."""
    shape = tuple(latents_BTCHW.shape)
    if len(shape) != 5 or shape[2] != channels or not shape[3] or not shape[4]:
        raise ShapeError(
            f"latents of shape {shape}: this autoencoder reads [B, T, {channels}, h, w], with {channels} channels."
        )


def check_stream(latents_BTCHW: Tensor) -> None:
    """Raise ShapeError unless these latents are of one stream."""
    if latents_BTCHW.shape[0] != 1:
        raise ShapeError(
            f"latents of {latents_BTCHW.shape[0]} videos: a decoder draws one stream; "
            "give every video a decoder of its own, or use the autoencoder's decode() for whole clips."
        )


def check_count(frames: int, first: int, each: int) -> None:
    """Raise ShapeError unless `frames` frames fill whole latents: `first` of them the first one, `each` every other."""
    if frames < first or (frames - first) % each:
        lower = first + max(0, (frames - first) // each) * each
        upper = first if frames < first else lower + each
        nearest = f"{upper}" if frames < first else f"{lower} or {upper}"
        raise ShapeError(
            f"{frames} frames do not fill whole latents: the first holds {first} frame(s), every other {each}. "
            f"Nearest: {nearest}."
        )


def planes(frames_BFHWC: Tensor, stride: int, device: torch.device) -> Tensor:
    """Return frames [B, F, H, W, 3], uint8 or float in 0..1, as float32 [B, F, 3, H, W] in 0..1.

    Raises ShapeError if they are none, or no multiple of `stride`."""
    shape = tuple(frames_BFHWC.shape)
    if len(shape) != 5 or shape[-1] != 3:
        raise ShapeError(f"video of shape {shape}: expected [B, F, H, W, 3]")
    why = f", the autoencoder's stride ({stride * PATCH} with the transformer's patches)"
    check_size((shape[2], shape[3]), stride, why, near=stride * PATCH)
    frames = frames_BFHWC.to(device)
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
    return rearrange(frames, "b f h w c -> b f c h w")


def as_bytes(frames_FHWC: Tensor) -> Tensor:
    """Return frames in 0..1 as uint8 on the same device, rounded to the nearest."""
    return frames_FHWC.mul(255).round_().to(torch.uint8)


def on_host(parts: list[Tensor], height: int, width: int) -> np.ndarray:
    """Return parts of uint8 frames [F, H, W, 3] as one array; of no frames if there are no parts."""
    if not parts:
        return np.empty((0, height, width, 3), dtype=np.uint8)
    return np.ascontiguousarray(torch.cat(parts).cpu().numpy())
