"""Causal initialisation: how a network learns to go on from the past before it lives on its own rollouts.

Who sees what is a closure, as scores are; the losses know nothing of masks:

    own_past    diffusion forcing (Chen et al. 2024; CausVid): a chunk sees itself and the earlier, noisy ones
    true_past   teacher forcing (Causal Forcing, Self Forcing): the sequence twice, [clean ; noisy], at the same
                positions; a noisy chunk sees itself and the clean chunks before it

    flow_matching(own_past(...), ...)                               velocity loss with noise drawn for each chunk
    ode.regression(score_of_velocity(own_past(...)), pairs, ...)             on the teacher's ODE, see ode.py
    ode.consistency(score_of_velocity(true_past(...)), ...)                  without stored pairs

Masks are dense, [L, L] for own_past and [2L, 2L] for true_past: right for the tiny model; at Wan's 1,560 tokens per
latent keep windows short (6 latents: 0.35 and 1.4 GB in float32).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import repeat
from torch import Tensor

from rollforce.engine import flow
from rollforce.errors import ConfigError, ShapeError
from rollforce.models.transformer.transformer import Condition, VideoTransformer
from rollforce.training import losses
from rollforce.training.losses import Score

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(noisy, sigma_BT) -> velocity"""


def own_past(model: VideoTransformer, condition: Condition, chunk: int, tokens: int) -> Velocity:
    """Return the velocity of a model whose chunks of `chunk` latents see themselves and those before them in the video.

    `tokens`: per latent (Grid.tokens_per_latent)."""

    def velocity(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        mask = additive(block_causal(noisy_BTCHW.shape[1], chunk, tokens)).to(noisy_BTCHW.device)
        return model(noisy_BTCHW, sigma_BT, _index(noisy_BTCHW), condition, mask=mask)

    return velocity


def true_past(model: VideoTransformer, condition: Condition, past_BTCHW: Tensor, chunk: int, tokens: int,
              past_sigma_BT: Tensor | None = None) -> Velocity:  # fmt: skip
    """Return the velocity of a model whose noisy chunks see themselves and those before them in a true video, `past`.

    `tokens`: per latent; `past_sigma_BT`: the noise that `past` carries (see `add_past_noise`); None: it is clean."""
    past_sigma = past_BTCHW.new_zeros(past_BTCHW.shape[:2]) if past_sigma_BT is None else past_sigma_BT

    def velocity(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        latents, index = noisy_BTCHW.shape[1], _index(noisy_BTCHW)
        if past_BTCHW.shape != noisy_BTCHW.shape:
            raise ShapeError(f"the true video {list(past_BTCHW.shape)} and the noisy one {list(noisy_BTCHW.shape)} "
                             "must have one shape: give the whole video, the mask hides its future.")
        mask = additive(teacher_forcing(latents, chunk, tokens)).to(noisy_BTCHW.device)
        both = torch.cat([past_BTCHW.to(noisy_BTCHW), noisy_BTCHW], dim=1)
        sigma = torch.cat([past_sigma.to(sigma_BT), sigma_BT], dim=1)
        return model(both, sigma, torch.cat([index, index]), condition, mask=mask)[:, latents:]

    return velocity


def score_of_velocity(velocity: Velocity) -> Score:
    """Return the score that a velocity makes. At sigma 0 it is the input, exactly: what consistency models need."""

    def clean(noisy_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
        return flow.clean_of(noisy_BTCHW, velocity(noisy_BTCHW, sigma_BT), sigma_BT)

    return clean


def flow_matching(velocity: Velocity, clean_BTCHW: Tensor, chunk: int, generator: torch.Generator, shift: float = 1.0,
                  weighted: bool = False) -> Tensor:  # fmt: skip
    """Return the loss of flow matching with a noise level for each chunk, warp(U(0, 1), shift), drawn on the CPU.

    `weighted`: by flow.training_weight, as Wan's scheduler does."""
    sigma = draw_chunk_levels(clean_BTCHW, chunk, generator, shift)
    noise = noise_like(clean_BTCHW, generator)
    predicted = velocity(flow.noised(clean_BTCHW, noise, sigma), sigma)
    if not weighted:
        return losses.velocity(predicted, clean_BTCHW, noise)
    weight = flow.training_weight(sigma, shift)
    return losses.velocity(predicted, clean_BTCHW, noise, weight) * weight.mean()  # a weighted sum, not a weighted mean


def add_past_noise(clean_BTCHW: Tensor, limit: float, chunk: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (past, sigma_BT) for `true_past`, with a little noise, so that a student trusts its own past less.

    Each chunk has sigma ~ U(0, limit) and noise of its own. The reference (Self Forcing, Causal Forcing) means this,
    but counts its levels from the noisy end of the table, so that a small limit gives almost pure noise, and uses the
    very noise that the noisy half is asked to predict, which lets the answer be copied."""
    if not 0 <= limit <= 1:
        raise ConfigError(f"noise of the past {limit} must lie in [0, 1]; 0.1 is much already.")
    sigma = draw_chunk_levels(clean_BTCHW, chunk, generator) * limit
    return flow.noised(clean_BTCHW, noise_like(clean_BTCHW, generator), sigma), sigma


def draw_chunk_levels(like_BTCHW: Tensor, chunk: int, generator: torch.Generator, shift: float = 1.0) -> Tensor:
    """Draw sigma [B, T] in (0, 1]: one level for each chunk, the same for its latents."""
    batch, latents = like_BTCHW.shape[:2]
    even = 1 - torch.rand(batch, count_chunks(latents, chunk), generator=generator)
    return repeat_per_chunk(flow.shift_level(even, shift), latents, chunk).to(like_BTCHW.device)


def count_chunks(latents: int, chunk: int) -> int:
    """Return how many chunks a video has; the last one may be shorter."""
    return -(-latents // chunk)


def repeat_per_chunk(values_BN: Tensor, latents: int, chunk: int) -> Tensor:
    """Return something for each chunk, [B, N], as it is for each of `latents` latents, [B, T]."""
    return repeat(values_BN, "b n -> b (n chunk)", chunk=chunk)[:, :latents]


def noise_like(x_BTCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise of x's shape, on the CPU in float32: the same numbers on every device."""
    return torch.randn(x_BTCHW.shape, generator=generator).to(x_BTCHW)


def _index(x_BTCHW: Tensor) -> Tensor:
    return torch.arange(x_BTCHW.shape[1], device=x_BTCHW.device)


# -- masks: which token of a training window may attend to which -------------------------------------------------------


def additive(allowed: Tensor) -> Tensor:
    """Return a boolean mask (True = may attend) as float32 to add to the logits: 0 and minus infinity."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def block_causal(latents: int, chunk: int, tokens: int, window: int | None = None, first: int | None = None) -> Tensor:
    """Return the mask of diffusion forcing (Chen et al. 2024; CausVid): a latent sees its own chunk and earlier ones.

    Args: `window` in latents limits the look back, counted from the end of the own chunk; `first` is the length of the
    first chunk where it differs (image to video). Returns bool [L, L], L = latents * tokens."""
    index, lead = torch.arange(latents), chunk if first is None else first
    end_of = torch.where(index < lead, lead, lead + ((index - lead) // chunk + 1) * chunk)
    allowed = index[None] < end_of[:, None]
    if window is not None:
        allowed &= index[None] >= end_of[:, None] - window
        allowed |= index[None] == index[:, None]
    return per_token(allowed, tokens)


def teacher_forcing(latents: int, chunk: int, tokens: int) -> Tensor:
    """Return the mask of teacher forcing (Causal Forcing, Self Forcing), bool [2L, 2L], of [clean half ; noisy half].

    Clean chunks see clean chunks up to their own; a noisy chunk sees itself and the clean chunks before it."""
    chunk_of = torch.arange(latents) // chunk
    before, same = chunk_of[None] < chunk_of[:, None], chunk_of[None] == chunk_of[:, None]
    clean, noisy = torch.cat([before | same, torch.zeros_like(same)], dim=1), torch.cat([before, same], dim=1)
    return per_token(torch.cat([clean, noisy]), tokens)


def per_token(allowed: Tensor, tokens: int) -> Tensor:
    """Return a mask between latents, [T, T], as one between the `tokens` tokens of each, [T * tokens, T * tokens]."""
    return repeat(allowed, "query key -> (query q) (key k)", q=tokens, k=tokens)
