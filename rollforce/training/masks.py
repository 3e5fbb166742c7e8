"""Attention masks: which token of a training window may attend to which."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor


def additive(allowed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a boolean mask (True = may attend) as numbers to add to the logits: 0 and minus infinity."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def block_causal(latents: int, chunk: int, tokens: int, window: int | None = None, first: int | None = None) -> Tensor:
    """Return the mask of diffusion forcing (Chen et al. 2024; CausVid): a latent sees its own chunk and earlier ones.

    Args: `window` in latents limits the look back, counted from the end of the own chunk; `first` is the length of the
    first chunk where it differs (image to video). Returns bool [L, L], L = latents * tokens.
    """
    _, end_of = _chunks(latents, chunk, first)
    index = torch.arange(latents)
    allowed = index[None] < end_of[:, None]
    if window is not None:
        allowed &= index[None] >= end_of[:, None] - window
        allowed |= index[None] == index[:, None]
    return per_token(allowed, tokens)


def teacher_forcing(latents: int, chunk: int, tokens: int, first: int | None = None) -> Tensor:
    """Return the mask of teacher forcing (Causal Forcing, Self Forcing) for an input [clean half ; noisy half], whose
    halves have the same positions.

    Clean chunks see clean chunks up to their own; a noisy chunk sees itself and the clean chunks before it.
    Returns bool [2L, 2L].
    """
    chunk_of, _ = _chunks(latents, chunk, first)
    before, same = chunk_of[None] < chunk_of[:, None], chunk_of[None] == chunk_of[:, None]
    nothing = torch.zeros_like(same)
    clean, noisy = torch.cat([before | same, nothing], dim=1), torch.cat([before, same], dim=1)
    return per_token(torch.cat([clean, noisy]), tokens)


def _chunks(latents: int, chunk: int, first: int | None) -> tuple[Tensor, Tensor]:
    """For each latent: the number of its chunk, and the index just past that chunk."""
    lead = chunk if first is None else first
    index = torch.arange(latents)
    number = torch.where(index < lead, 0, (index - lead) // chunk + 1)
    end = torch.where(index < lead, lead, lead + number * chunk)
    return number, end


def per_token(allowed: Tensor, tokens: int) -> Tensor:
    """Return a mask between latents, [T, T], as one between the `tokens` tokens of each, [T * tokens, T * tokens]."""
    return repeat(allowed, "query key -> (query q) (key k)", q=tokens, k=tokens)
