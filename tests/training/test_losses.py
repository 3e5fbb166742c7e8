"""Losses against closed forms: what they pull towards, and where."""

from __future__ import annotations

import pytest
import torch
from started_transformer import started_transformer

from rollforce.engine import flow
from rollforce.training import losses
from rollforce.training.losses import guide, score_of

SHAPE = (3, 5, 4, 2, 2)  # B, T, C, h, w


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def test_dmd_gradient_is_critic_minus_teacher_over_its_normaliser(noise: torch.Tensor) -> None:
    torch.manual_seed(2)
    x = torch.randn(SHAPE, requires_grad=True)
    sigma = torch.rand(3, 5)
    weight = torch.tensor([1.0, 0.5, 2.0])[:, None, None, None, None]

    def teacher(noisy: torch.Tensor, sigma_BT: torch.Tensor) -> torch.Tensor:
        assert torch.equal(sigma_BT, sigma)
        return 0.3 * noisy

    def critic(noisy: torch.Tensor, sigma_BT: torch.Tensor) -> torch.Tensor:
        return noisy.tanh()

    losses.dmd(x, teacher, critic, sigma, noise, weight).backward()
    noisy = flow.noised(x.detach(), noise, sigma)
    wanted = teacher(noisy, sigma)
    scale = (x.detach() - wanted).abs().mean((1, 2, 3, 4), keepdim=True)
    expected = (critic(noisy, sigma) - wanted) / scale * weight / x.numel()
    assert x.grad is not None and torch.allclose(x.grad, expected, atol=1e-7)


def test_dmd_learns_only_where_it_is_told(noise: torch.Tensor) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    learns = torch.tensor([False, False, True, True, True]).expand(3, 5)
    losses.dmd(x, lambda n, s: 0.3 * n, lambda n, s: n.tanh(), torch.rand(3, 5), noise, learns_BT=learns).backward()
    assert x.grad is not None and not x.grad[:, :2].any() and bool(x.grad[:, 2:].any())


def test_sid_gradient_for_linear_scores_is_its_closed_form(noise: torch.Tensor) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    sigma, a, b, alpha = torch.rand(3, 5), 0.7, 0.4, 0.8
    losses.sid(x, lambda n, s: a * n, lambda n, s: b * n, sigma, noise, alpha=alpha).backward()
    y = x.detach()
    noisy = flow.noised(y, noise, sigma)
    scale = (y - a * noisy).abs().mean((1, 2, 3, 4), keepdim=True)
    keep = (1 - sigma)[..., None, None, None]  # d noisy / d x
    gap, rest = (a - b) * noisy, a * noisy - y - alpha * (a - b) * noisy
    expected = ((a - b) * keep * rest + gap * (a * keep - 1 - alpha * (a - b) * keep)) / scale / x.numel()
    assert x.grad is not None and torch.allclose(x.grad, expected, atol=1e-7)


def test_dmd_gradient_is_zero_when_scores_agree(noise: torch.Tensor) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    losses.dmd(x, lambda n, s: n, lambda n, s: n, torch.rand(3, 5), noise).backward()
    assert x.grad is not None and not x.grad.any()


def test_velocity_loss_counts_only_weighted_latents(noise: torch.Tensor) -> None:
    clean = torch.randn(SHAPE)
    right = noise - clean
    wrong_past = right.clone()
    wrong_past[:, 0] += 1
    weight = torch.tensor([0.0, 1, 1, 1, 1]).expand(3, 5)
    assert float(losses.velocity(right, clean, noise)) == 0
    assert float(losses.velocity(wrong_past, clean, noise)) == pytest.approx(0.2, rel=1e-5)
    assert float(losses.velocity(wrong_past, clean, noise, weight)) == 0


def test_guidance_is_linear(noise: torch.Tensor) -> None:
    sigma = torch.rand(3, 5)
    for scale, expected in ((0.0, 2.0), (1.0, 3.0), (2.5, 4.5)):
        score = guide(lambda n, s: n * 3, lambda n, s: n * 2, scale)
        assert torch.allclose(score(noise, sigma), noise * expected, atol=1e-5)


def test_score_of_an_untrained_model_is_a_clean_estimate(noise: torch.Tensor) -> None:
    model = started_transformer()
    sigma = torch.zeros(3, 5)
    condition = model.condition(torch.zeros(3, 2, 8))
    assert torch.equal(score_of(model, condition)(noise, sigma), noise)  # without noise there is nothing to remove
