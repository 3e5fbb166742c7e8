"""The only diffusion algebra: flow matching on a straight line from data to noise.

    x_sigma = (1 - sigma) x_0 + sigma eps        velocity = eps - x_0

sigma lies in [0, 1] and is broadcast over [B, T, C, H, W]. float32 inside, the dtype of `x` outside. Rectified flow
(Liu et al. 2022), as Wan and every student of Self Forcing use it; sigma is used as it is, not looked up in a table
of 1,000 entries (the reference does that and so never reaches 0 exactly).
"""

from __future__ import annotations

from torch import Tensor


def _wide(sigma_BT: Tensor) -> Tensor:
    return sigma_BT[..., None, None, None].float()


def noised(clean_BTCHW: Tensor, noise_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
    """Bring clean latents to noise level sigma."""
    sigma = _wide(sigma_BT)
    return ((1 - sigma) * clean_BTCHW.float() + sigma * noise_BTCHW.float()).to(clean_BTCHW.dtype)


def clean_of(x_BTCHW: Tensor, velocity_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
    """Return the clean latents that a velocity at x points away from."""
    return (x_BTCHW.float() - _wide(sigma_BT) * velocity_BTCHW.float()).to(x_BTCHW.dtype)


def velocity_of(x_BTCHW: Tensor, clean_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
    """Return the velocity that leads from `clean` to `x`; sigma must be positive."""
    return ((x_BTCHW.float() - clean_BTCHW.float()) / _wide(sigma_BT)).to(x_BTCHW.dtype)


def euler(x_BTCHW: Tensor, velocity_BTCHW: Tensor, sigma_BT: Tensor, next_sigma_BT: Tensor) -> Tensor:
    """Take one deterministic step of the probability-flow ODE from sigma to next_sigma."""
    step = _wide(next_sigma_BT) - _wide(sigma_BT)
    return (x_BTCHW.float() + step * velocity_BTCHW.float()).to(x_BTCHW.dtype)


def renoise(clean_BTCHW: Tensor, noise_BTCHW: Tensor, next_sigma_BT: Tensor) -> Tensor:
    """Take one step of the few-step consistency sampler: forget the old noise, draw the next level afresh."""
    return noised(clean_BTCHW, noise_BTCHW, next_sigma_BT)
