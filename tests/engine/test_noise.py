import torch

from rollforce.engine.noise import Noise


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
