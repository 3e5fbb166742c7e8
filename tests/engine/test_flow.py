"""Flow matching: its algebra, noise that nothing but its key can change, ladders against published levels."""

import pytest
import torch

from rollforce.engine import flow
from rollforce.engine.flow import Noise, explicit, linear, shift_level, training_weight, warped
from rollforce.errors import ConfigError


def test_conversions_undo_each_other():
    x0, eps = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6)
    sigma = torch.rand(2, 3) * 0.9 + 0.05
    x = flow.noised(x0, eps, sigma)
    velocity = flow.velocity_of(x, x0, sigma)
    torch.testing.assert_close(velocity, eps - x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(flow.clean_of(x, eps - x0, sigma), x0, atol=1e-5, rtol=1e-5)


def test_euler_to_zero_is_the_clean_estimate_and_steps_compose():
    x, velocity, sigma = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3, 4, 4), torch.tensor([[0.7, 0.4]])
    torch.testing.assert_close(flow.euler(x, velocity, sigma, sigma * 0), flow.clean_of(x, velocity, sigma))
    half = flow.euler(x, velocity, sigma, sigma / 2)
    torch.testing.assert_close(flow.euler(half, velocity, sigma / 2, sigma * 0), flow.clean_of(x, velocity, sigma))


def test_noise_level_zero_is_exactly_clean_and_dtype_is_kept():
    x0, eps = torch.randn(1, 2, 3, 4, 4).bfloat16(), torch.randn(1, 2, 3, 4, 4).bfloat16()
    clean = flow.renoise(x0, eps, torch.zeros(1, 2))
    assert clean.dtype == torch.bfloat16 and torch.equal(clean, x0)
    assert torch.equal(flow.noised(x0, eps, torch.ones(1, 2)), eps)


def test_pure_function_of_seed_latent_and_draw():
    one, two = Noise.of([3, 4], (2, 4, 4)), Noise.of(4, (2, 4, 4))
    assert torch.equal(one(7, 1)[1], two(7, 1)[0])  # whatever else is in the batch
    assert torch.equal(two(7, 1), two(7, 1))  # and however often it is asked


def test_everything_else_is_independent():
    noise = Noise.of([0, 1], (8, 8, 8))
    draws = torch.stack([noise(i, d)[s].flatten() for s in (0, 1) for i in (0, 1, 10**7) for d in (0, 1)])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.2  # 512 values each: 4.5 sigma
    assert abs(draws.mean()) < 0.05 and abs(draws.std() - 1) < 0.05


def test_published_ladders():
    rolling_forcing = warped([1, 0.8, 0.6, 0.4, 0.2], 5)
    assert [round(1000 * s, 3) for s in rolling_forcing] == [1000, 952.381, 882.353, 769.231, 555.556]
    assert [round(1000 * s, 3) for s in warped([1, 0.75, 0.5, 0.25], 8)] == [1000, 960, 888.889, 727.273]


def test_shift_fixes_the_ends_and_is_the_identity_at_one():
    assert shift_level(0, 5) == 0 and shift_level(1, 5) == 1 and shift_level(0.3, 1) == 0.3
    assert linear(4) == (1.0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize("levels", [[], [0.5, 0.75], [1, 1], [1, 0], [1.5, 1], [-0.1]])
def test_a_ladder_that_is_none(levels):
    with pytest.raises(ConfigError):
        explicit(levels)


def test_weights_average_one():
    table = torch.tensor([shift_level(1 - i / 1000, 5) for i in range(1000)], dtype=torch.float64)
    weight = training_weight(table, 5)
    assert weight.mean().item() == pytest.approx(1) and weight.min() == 0
