"""Causal initialisation: who sees whom, losses at their optimum, ODE paths against closed forms, who learns."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tiny_transformer import tiny_transformer
from torch import Tensor

from rollforce.engine import flow
from rollforce.engine.flow import linear, training_weight, warped
from rollforce.errors import ConfigError, ShapeError
from rollforce.models.transformer.transformer import Condition, VideoTransformer
from rollforce.training import ode
from rollforce.training.causal_masking import (
    add_past_noise,
    additive,
    block_causal,
    draw_chunk_levels,
    flow_matching,
    own_past,
    score_of_velocity,
    true_past,
)
from rollforce.training.losses import guide, score_of
from rollforce.training.ode import OdePairs, consistency, euler_step, regression, solve, solver_grid

SHAPE = (2, 6, 4, 4, 4)  # B, T, C, h, w: three chunks of 2, 4 tokens per latent
CHUNK, TOKENS = 2, 4
LADDER = warped([1.0, 0.75, 0.5, 0.25], 5.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=generator(seed))


def condition(model: VideoTransformer) -> Condition:
    return model.condition(torch.randn(2, 3, 8, generator=generator(9)))


def moved_latents(before: Tensor, after: Tensor) -> list[int]:
    """Which latents of an output changed."""
    return [t for t in range(before.shape[1]) if not torch.equal(before[:, t], after[:, t])]


# ---- who sees whom


def with_changed(x: Tensor, latent: int) -> Tensor:
    changed = x.clone()
    changed[:, latent] += 1
    return changed


def test_own_past_sees_its_chunk_and_earlier_ones(model: VideoTransformer) -> None:
    see = own_past(model, condition(model), CHUNK, TOKENS)
    x, sigma = random(0), torch.rand(2, 6)
    before = see(x, sigma)
    assert moved_latents(before, see(with_changed(x, 0), sigma)) == [0, 1, 2, 3, 4, 5]
    assert moved_latents(before, see(with_changed(x, 2), sigma)) == [2, 3, 4, 5]
    assert moved_latents(before, see(with_changed(x, 5), sigma)) == [4, 5]


def test_true_past_sees_its_noisy_chunk_and_earlier_clean_ones(model: VideoTransformer) -> None:
    text, x, past, sigma = condition(model), random(0), random(1), torch.rand(2, 6)

    def see(noisy: Tensor, clean: Tensor) -> Tensor:
        return true_past(model, text, clean, CHUNK, TOKENS)(noisy, sigma)

    before = see(x, past)
    assert before.shape == x.shape
    assert moved_latents(before, see(with_changed(x, 3), past)) == [2, 3]  # noisy: only its own chunk
    assert moved_latents(before, see(x, with_changed(past, 0))) == [2, 3, 4, 5]  # clean: all later chunks
    assert moved_latents(before, see(x, with_changed(past, 3))) == [4, 5]
    assert moved_latents(before, see(x, with_changed(past, 5))) == []  # nobody comes after the last one


def test_true_past_is_diffusion_forcing_with_a_clean_past(model: VideoTransformer) -> None:
    """Chunk by chunk: the noisy chunk behind its clean past in one causal sequence gives the same velocity."""
    text, x, past, sigma = condition(model), random(0), random(1), torch.rand(2, 6)
    doubled = true_past(model, text, past, CHUNK, TOKENS)(x, sigma)
    for first in (0, 2, 4):
        line = torch.cat([past[:, :first], x[:, first : first + CHUNK]], dim=1)
        levels = torch.cat([torch.zeros(2, first), sigma[:, first : first + CHUNK]], dim=1)
        single = own_past(model, text, CHUNK, TOKENS)(line, levels)[:, first:]
        assert torch.allclose(doubled[:, first : first + CHUNK], single, atol=1e-5)


def test_noise_of_the_past_is_told_to_the_model(model: VideoTransformer) -> None:
    text, x, past, sigma = condition(model), random(0), random(1), torch.rand(2, 6)
    clean = true_past(model, text, past, CHUNK, TOKENS)(x, sigma)
    told = true_past(model, text, past, CHUNK, TOKENS, torch.full((2, 6), 0.3))(x, sigma)
    assert moved_latents(clean, told) == [2, 3, 4, 5]


def test_the_past_must_be_the_whole_video(model: VideoTransformer) -> None:
    with pytest.raises(ShapeError, match="one shape"):
        true_past(model, condition(model), random(1)[:, :4], CHUNK, TOKENS)(random(0), torch.rand(2, 6))


def test_masked_calls_equal_the_plain_masks(model: VideoTransformer) -> None:
    x, sigma, text = random(0), torch.rand(2, 6), condition(model)
    plain = model(x, sigma, torch.arange(6), text, mask=additive(block_causal(6, CHUNK, TOKENS)))
    assert torch.equal(own_past(model, text, CHUNK, TOKENS)(x, sigma), plain)
    assert torch.equal(score_of_velocity(lambda n, s: plain)(x, sigma), flow.clean_of(x, plain, sigma))


# ---- draws


def test_levels_are_equal_inside_chunks_and_follow_the_shift() -> None:
    like = torch.zeros(500, 7, 1, 1, 1)
    sigma = draw_chunk_levels(like, 3, generator(), shift=5.0)
    assert sigma.shape == (500, 7) and float(sigma.min()) > 0 and float(sigma.max()) <= 1
    for at in (0, 3):
        assert torch.equal(sigma[:, at], sigma[:, at + 1]) and torch.equal(sigma[:, at], sigma[:, at + 2])
    assert not torch.equal(sigma[:, 2], sigma[:, 3]) and not torch.equal(sigma[:, 5], sigma[:, 6])
    even = sigma / (5 - 4 * sigma)  # the shift undone: uniform
    assert abs(float(even.mean()) - 0.5) < 0.02 and abs(float(even.std()) - 12**-0.5) < 0.02


def test_augmented_past_has_little_fresh_noise() -> None:
    clean = torch.randn(64, 6, 4, 4, 4, generator=generator(1))
    past, sigma = add_past_noise(clean, 0.1, CHUNK, generator(3))
    assert float(sigma.max()) <= 0.1 and float(sigma.min()) > 0 and torch.equal(sigma[:, 0], sigma[:, 1])
    noise = (past - (1 - sigma)[..., None, None, None] * clean) / sigma[..., None, None, None]
    assert abs(float(noise.std()) - 1) < 0.02
    again, _ = add_past_noise(clean, 0.1, CHUNK, generator(3))
    assert torch.equal(past, again)  # a function of the generator
    with pytest.raises(ConfigError, match="must lie in"):
        add_past_noise(clean, 1.5, CHUNK, generator())


# ---- flow matching


def test_flow_matching_is_zero_for_the_velocity_of_a_known_video() -> None:
    clean = random(1)

    def knows(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        return flow.velocity_of(noisy, clean, sigma_BT)

    for weighted in (False, True):
        assert float(flow_matching(knows, clean, CHUNK, generator(), 3.0, weighted)) < 1e-6
        assert float(flow_matching(lambda n, s: knows(n, s) + 1, clean, CHUNK, generator(), 3.0, weighted)) > 0.5


def test_weighted_flow_matching_is_the_weighted_sum() -> None:
    clean, seen = random(1), []

    def off_by_sigma(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        seen.append(sigma_BT)
        return flow.velocity_of(noisy, clean, sigma_BT) + sigma_BT[..., None, None, None]

    loss = flow_matching(off_by_sigma, clean, CHUNK, generator(), 3.0, weighted=True)
    expected = (training_weight(seen[0], 3.0) * seen[0].square()).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)


def test_augmentation_is_not_the_noise_to_predict(model: VideoTransformer) -> None:
    """With one generator for both, the two halves still get different noise."""
    clean, shared = torch.zeros(SHAPE), generator(4)
    past, past_sigma = add_past_noise(clean, 0.5, CHUNK, shared)
    halves = []

    def record(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        halves.append(noisy / sigma_BT[..., None, None, None])
        return noisy

    flow_matching(record, clean, CHUNK, shared)
    own = past / past_sigma[..., None, None, None]
    assert abs(float((own * halves[0]).mean())) < 0.1


# ---- ODE paths


def test_grid_contains_the_ladder_exactly() -> None:
    grid = solver_grid(LADDER, 48, 5.0)
    assert len(grid) == 48 and set(LADDER) <= set(grid)  # 4 divides 48: nothing to insert
    five = warped([1.0, 0.8, 0.6, 0.4, 0.2], 5.0)
    grid = solver_grid(five, 48, 5.0)
    assert len(grid) == 52 and set(five) <= set(grid) and list(grid) == sorted(grid, reverse=True)
    with pytest.raises(ConfigError, match="begins at 0.9"):
        solver_grid([0.9, 0.5], 8, 1.0)


def gaussian(spread: float) -> ode.Score:
    """The exact score of N(0, spread^2): E[x0 | x] is linear in x."""

    def clean(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        s = sigma_BT[..., None, None, None].double()
        return ((1 - s) * spread**2 / ((1 - s) ** 2 * spread**2 + s**2) * noisy.double()).to(noisy.dtype)

    return clean


def test_path_of_a_gaussian_lands_on_its_closed_form() -> None:
    """On the path the standard deviation goes from 1 to `spread`, so every state is the noise, scaled."""
    noise, spread = random(0), 0.5

    def errors(steps: int) -> list[float]:
        pairs = solve(gaussian(spread), noise, LADDER, steps, shift=5.0)
        assert pairs.levels == LADDER and pairs.states.shape == (2, 5, *SHAPE[1:])
        widths = [((1 - s) ** 2 * spread**2 + s**2) ** 0.5 for s in (*LADDER, 0.0)]
        return [float((pairs.states[:, n] / noise - w).abs().max()) for n, w in enumerate(widths)]

    coarse, fine = errors(96), errors(192)
    assert max(fine) < 0.012 and fine[0] == 0
    assert all(c / f == pytest.approx(2, rel=0.1) for c, f in zip(coarse[1:], fine[1:], strict=True))  # Euler's order


def test_pairs_hold_the_state_at_exactly_the_students_levels() -> None:
    told: list[float] = []
    noise, target = random(0), random(1)

    def straight(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        assert torch.equal(sigma_BT, sigma_BT[:1, :1].expand(2, 6))
        told.append(float(sigma_BT[0, 0]))
        return target

    ladder = warped([1.0, 0.8, 0.6, 0.4, 0.2], 5.0)
    pairs = solve(straight, noise, ladder, steps=48, shift=5.0)
    assert len(told) == 52 and all(any(abs(level - t) < 1e-7 for t in told) for level in ladder)
    for number, level in enumerate(ladder):
        expected = flow.noised(target, noise, torch.full((2, 6), level))
        assert torch.allclose(pairs.states[:, number], expected, atol=1e-5)
    assert torch.allclose(pairs.end_BTCHW, target, atol=1e-5)


def test_guided_path_and_causal_path(model: VideoTransformer) -> None:
    """Both teachers solve; the causal path of a chunk depends on its own noise and its true past only."""
    text, empty, noise, truth = condition(model), model.condition(torch.zeros(2, 3, 8)), random(0), random(1)
    both = guide(score_of(model, text), score_of(model, empty), 2.0)
    assert moved_latents(
        solve(both, noise, [1.0, 0.5], 4).end_BTCHW, solve(both, with_changed(noise, 5), [1.0, 0.5], 4).end_BTCHW
    ) == [0, 1, 2, 3, 4, 5]

    def end(own: Tensor, past: Tensor) -> Tensor:
        wished, free = (score_of_velocity(true_past(model, t, past, CHUNK, TOKENS)) for t in (text, empty))
        return solve(guide(wished, free, 2.0), own, [1.0, 0.5], 4).end_BTCHW

    before = end(noise, truth)
    assert moved_latents(before, end(with_changed(noise, 2), truth)) == [2, 3]
    assert moved_latents(before, end(noise, with_changed(truth, 2))) == [4, 5]


# ---- regression


def pairs_of(noise: Tensor, target: Tensor) -> OdePairs:
    return solve(lambda n, s: target, noise, LADDER, 8, 5.0)


def test_regression_is_zero_for_a_student_that_knows_the_end() -> None:
    target = random(1)
    pairs = pairs_of(random(0), target)
    assert float(regression(lambda n, s: target, pairs, CHUNK, generator())) < 1e-9
    assert float(regression(lambda n, s: target + 1, pairs, CHUNK, generator())) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("clean", [False, True])
def test_regression_shows_the_state_that_belongs_to_the_level(clean: bool) -> None:
    noise, target, seen = random(0), random(1), []
    pairs = pairs_of(noise, target)

    def check(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        seen.append(sigma_BT)
        assert torch.allclose(noisy, flow.noised(target, noise, sigma_BT), atol=1e-5)
        return target + 7 * (sigma_BT == 0)[..., None, None, None]  # wrong where it must not count

    draws = generator(1)
    for _ in range(30):
        assert float(regression(check, pairs, CHUNK, draws, clean)) < 1e-9
    sigma = torch.cat(seen)
    assert torch.equal(sigma[:, 0::2], sigma[:, 1::2])  # one level per chunk
    levels = {round(float(s), 4) for s in sigma.unique()}
    assert levels == {round(level, 4) for level in (*LADDER, *([0.0] if clean else []))}
    assert bool((sigma[:, -1] > 0).all())  # something is always learnt
    assert bool((sigma[:, 0] != sigma[:, 2]).any())  # chunks differ


def test_pairs_must_have_a_state_for_each_level() -> None:
    with pytest.raises(ConfigError, match="4 states for 4 levels"):
        OdePairs(LADDER, torch.zeros(1, 4, 2, 1, 1, 1))


# ---- consistency


def test_consistency_is_zero_where_student_and_average_name_the_end() -> None:
    clean = random(1)
    assert float(consistency(lambda n, s: clean, lambda n, s: clean, lambda n, s: clean, clean,
                             warped(linear(8), 5.0), CHUNK, generator())) < 1e-9


def test_consistency_compares_with_the_average_one_teacher_step_further() -> None:
    clean, grid, seen = random(1), warped(linear(4), 3.0), {}

    def student(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        seen["student"] = (noisy, sigma_BT)
        return torch.zeros_like(noisy)

    def average(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        seen["average"] = (noisy, sigma_BT)
        return torch.full_like(noisy, 5.0)

    def teacher(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        return 0.5 * noisy

    draws, pairs_seen = generator(2), set()
    for _ in range(20):
        loss = consistency(student, average, teacher, clean, grid, CHUNK, draws)
        (noisy, above), (nearer, below) = seen["student"], seen["average"]
        assert torch.equal(above[:, 0::2], above[:, 1::2])
        assert torch.allclose(nearer, euler_step(teacher, noisy, above, below))
        pairs_seen |= {(round(float(a), 4), round(float(b), 4)) for a, b in zip(above.flatten(), below.flatten(),
                                                                                strict=True)}
        ended = (below == 0)[..., None, None, None]
        expected = torch.where(ended, nearer, torch.full_like(noisy, 5.0)).square().mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    levels = [round(level, 4) for level in (*grid, 0.0)]
    assert pairs_seen == set(pairwise(levels))  # adjacent pairs, all of them


# ---- who learns


@pytest.mark.parametrize("kind", ["flow matching", "regression", "consistency"])
def test_only_the_student_learns(kind: str) -> None:
    student, average, teacher = (tiny_transformer(seed).requires_grad_() for seed in range(3))
    clean, noise = random(1), random(0)

    def score(model: VideoTransformer) -> ode.Score:
        return score_of_velocity(true_past(model, condition(model), clean, CHUNK, TOKENS))

    if kind == "flow matching":
        see = true_past(student, condition(student), clean, CHUNK, TOKENS)
        loss = flow_matching(see, clean, CHUNK, generator())
    elif kind == "regression":
        pairs = solve(score(teacher), noise, LADDER, 4, 5.0)
        loss = regression(score(student), pairs, CHUNK, generator(), clean=False)
    else:
        loss = consistency(score(student), score(average), score(teacher), clean, warped(linear(8), 5.0), CHUNK,
                           generator())
    loss.backward()
    grads = [p.grad for p in student.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    assert sum(float(g.abs().sum()) for g in grads if g is not None) > 0
    assert all(p.grad is None for other in (average, teacher) for p in other.parameters())
