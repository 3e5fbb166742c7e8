import torch

from rollforce.engine import flow


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
