"""StreamDiT partitions: levels in their segments, buffers as the layout has them, segment targets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rollforce.engine import flow
from rollforce.engine.layout import partitioned
from rollforce.errors import ConfigError
from rollforce.training import losses
from rollforce.training.streamdit import (
    Partition,
    buffer_at_tops,
    draw_noise_pattern,
    draw_partition,
    ladder,
    segment_levels,
    solve_segment,
    top_levels,
)

CASES = [Partition(3, 1, 4), Partition(2, 4, 2), Partition(1, 2, 6), Partition(6, 8, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("partition", CASES, ids=str)
def test_levels_lie_in_their_segments_and_rise(partition: Partition, shift: float) -> None:
    sigma = segment_levels(partition, 200, generator(), shift)
    assert sigma.shape == (200, partition.latents)
    assert bool((sigma.diff(dim=1) >= 0).all())
    even = sigma / (shift - (shift - 1) * sigma)  # noise time
    for place in range(partition.chunks):
        mine = even[:, place * partition.chunk : (place + 1) * partition.chunk]
        assert torch.equal(mine, mine[:, :1].expand_as(mine))
        low, high = place / partition.chunks, (place + 1) / partition.chunks
        assert float(mine.min()) > low - 1e-6 and float(mine.max()) <= high + 1e-6
        assert float(mine.std()) == pytest.approx((high - low) * 12**-0.5, rel=0.15)  # all over the segment


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("partition", CASES, ids=str)
def test_segments_are_those_of_the_layout(partition: Partition, shift: float) -> None:
    """The stream that is walked at inference stands at `tops` after each commit and ends a segment lower."""
    layout = partitioned(ladder(partition, shift), partition.chunk, partition.micro)
    assert torch.allclose(top_levels(partition, shift)[0], torch.tensor(layout.sigma[0]))
    step = solve_segment(lambda n, s: n, torch.zeros(1, partition.latents, 1, 1, 1), partition, shift)
    assert torch.allclose(step.above_BT[0], torch.tensor(layout.sigma[0]))
    assert torch.allclose(step.below_BT[0], torch.tensor(layout.sigma[-1]))


def test_noising_is_joint_behind_a_causal_past() -> None:
    partition, tokens = Partition(2, 1, 2), 1
    alone = draw_noise_pattern(partition, 3, tokens, generator())
    assert alone.mask is None and bool((alone.weight_T == 1).all()) and bool((alone.sigma_BT > 0).all())
    after = draw_noise_pattern(partition, 3, tokens, generator(), past=4)
    assert after.sigma_BT.shape == (3, 8) and not after.sigma_BT[:, :4].any()
    assert after.weight_T.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert after.mask is not None
    seen = (after.mask == 0).int()
    assert seen[:2].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]] * 2
    assert seen[2:4].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 2
    assert seen[4:].tolist() == [[1] * 8] * 4
    with pytest.raises(ConfigError, match="multiple of the chunk"):
        draw_noise_pattern(partition, 3, tokens, generator(), past=3)


def test_noising_trains() -> None:
    """Mixed training's loss is zero for the velocity of a known video and ignores the past."""
    partition = CASES[0]
    noised_as = draw_noise_pattern(partition, 2, 1, generator(), 3.0, past=3)
    clean, noise = (torch.randn(2, 15, 1, 2, 2, generator=generator(seed)) for seed in (1, 2))
    right = noise - clean
    right[:, :3] = 9
    assert float(losses.velocity(right, clean, noise, noised_as.weight_T[None])) == 0


def test_draw_takes_all_of_the_mix() -> None:
    draws = generator()
    counts = [sum(draw_partition(CASES, draws) == case for _ in range(100)) for case in CASES]
    assert min(counts) > 10
    assert draw_partition(CASES, generator(7)) == draw_partition(CASES, generator(7))
    with pytest.raises(ConfigError, match="no partition"):
        draw_partition([], draws)
    with pytest.raises(ConfigError, match="each at least 1"):
        Partition(3, 0, 4)


@pytest.mark.parametrize("partition", CASES, ids=str)
def test_a_straight_teacher_is_one_step(partition: Partition) -> None:
    """Where the field is straight, many steps are one: the student is asked for what the teacher says at once."""
    shape = (2, partition.latents, 1, 2, 2)
    truth, noise = (torch.randn(shape, generator=generator(seed)) for seed in (1, 2))
    noisy = buffer_at_tops(truth, noise, partition, 3.0)
    step = solve_segment(lambda n, s: truth, noisy, partition, 3.0)
    assert torch.allclose(step.clean, truth, atol=1e-4)
    assert torch.allclose(step.reached, flow.noised(truth, noise, step.below_BT), atol=1e-5)


def test_a_bent_teacher_is_not_one_step_but_the_target_lands_there() -> None:
    partition, calls = Partition(2, 4, 3), []

    def bent(noisy: Tensor, sigma_BT: Tensor) -> Tensor:
        calls.append(sigma_BT)
        return noisy.tanh()

    noisy = torch.randn(2, 6, 1, 2, 2, generator=generator(3))
    step = solve_segment(bent, noisy, partition, 3.0)
    assert len(calls) == 4 and torch.equal(calls[0], step.above_BT)
    velocity = flow.velocity_of(step.noisy, step.clean, step.above_BT)
    assert torch.allclose(flow.euler(step.noisy, velocity, step.above_BT, step.below_BT), step.reached, atol=1e-5)
    assert (step.clean - noisy.tanh()).abs().max() > 0.01
    assert torch.allclose(step.reached[:, :2], step.clean[:, :2], atol=1e-5)  # the oldest chunk ends clean


def test_segment_wants_the_whole_buffer() -> None:
    with pytest.raises(ConfigError, match="5 latents in the buffer"):
        solve_segment(lambda n, s: n, torch.zeros(1, 5, 1, 1, 1), Partition(2, 1, 3))
