"""Rotary positions in three axes (time, row, column), as in Wan 2.1: interleaved pairs, base 10000 per axis.

Angles come from float64 products of an integer index and a frequency: no table, so no last position, and index 10^7
is as exact as index 0. Rotation itself runs in float32. Rotations compose: turn(rotate(k, p), d) == rotate(k, p + d),
which is all that re-alignment of an attention sink needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def split(head_dim: int) -> tuple[int, int, int]:
    """Return the channels of a head that time, row and column get: 128 -> 44, 42, 42."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def _axis(position_L: Tensor, channels: int) -> Tensor:
    """Angles of one axis: [L, channels / 2], float64."""
    frequency = BASE ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=position_L.device) / channels)
    return torch.outer(position_L.double(), frequency)


def angles(index_T: Tensor, rows: int, columns: int, head_dim: int, phase_T: Tensor | None = None) -> Tensor:
    """Return cos and sin for the tokens of latents at positions `index_T`: float32 [2, T * rows * columns, pairs].

    Token order is latent, row, column (column fastest). `phase_T` is added to every angle of time (ShotStream's RoPE
    discontinuity): no place in time, only a sign that two latents are not of one shot."""
    time, height, width = split(head_dim)
    device = index_T.device
    moment = _axis(index_T, time) + (0.0 if phase_T is None else phase_T.to(device).double()[:, None])
    t = moment[:, None, None].expand(-1, rows, columns, -1)
    y = _axis(torch.arange(rows, device=device), height)[None, :, None].expand(len(index_T), -1, columns, -1)
    x = _axis(torch.arange(columns, device=device), width)[None, None].expand(len(index_T), rows, -1, -1)
    angle = torch.cat([t, y, x], dim=-1).flatten(0, 2)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x_BNLK: Tensor, angle_2LK: Tensor) -> Tensor:
    """Rotate queries or keys [B, N, L, K] by cos and sin from `angles`."""
    cos, sin = angle_2LK
    even, odd = x_BNLK[..., 0::2].float(), x_BNLK[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x_BNLK.dtype)


def turn(key_BNLK: Tensor, move: int) -> Tensor:
    """Move rotated keys by `move` latents in time. Row and column stay. Only the time channels are touched."""
    time = split(key_BNLK.shape[-1])[0]
    angle = _axis(torch.tensor([move], device=key_BNLK.device), time)
    turned = rotate(key_BNLK[..., :time], torch.stack([angle.cos(), angle.sin()]).float())
    return torch.cat([turned, key_BNLK[..., time:]], dim=-1)


def turn_each(key_BNLK: Tensor, move_BL: Tensor) -> Tensor:
    """Move rotated keys as `turn` does, each token by a move of its own."""
    time = split(key_BNLK.shape[-1])[0]
    angle = _axis(move_BL.flatten(), time).unflatten(0, move_BL.shape)[:, None]
    turned = rotate(key_BNLK[..., :time], torch.stack([angle.cos(), angle.sin()]).float())
    return torch.cat([turned, key_BNLK[..., time:]], dim=-1)
