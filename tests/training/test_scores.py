"""Scores: guidance, and what an untrained network believes."""

from __future__ import annotations

import pytest
import torch
from started_transformer import started_transformer

from rollforce.training.losses import guide, score_of

SHAPE = (3, 5, 4, 2, 2)  # B, T, C, h, w


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


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
