"""Laws that every memory policy keeps, on every layout: `policies.py` says which there are, the tests apply them."""

from __future__ import annotations

import torch
from policies import HEIGHT, WIDTH, latents, start

from rollforce.engine.noise import Noise
from rollforce.engine.rollout import Stepping
from rollforce.streaming.snapshot import fork


def resumes_bit_equal(model, layout, tiers, stepping):
    """Law 3: a state between any two ticks resumes bit-equal."""
    resumes_and_forks(model, layout, tiers, stepping, {1, layout.ticks, 2 * layout.ticks + 1, 3 * layout.ticks + 2})


@torch.no_grad()
def resumes_and_forks(model, layout, tiers, stepping, ticks: set[int]) -> None:
    """Go on from a tick thrice: the stream itself, a fork of it and one that resumes its state, each knowing nothing of
    what the others do meanwhile."""
    rollout, twins = start(model, layout, tiers, stepping), []
    for tick in range(max(ticks) + 1):
        if tick in ticks:
            low = rollout.live[0] if rollout.pending is None else rollout.pending.stop
            twins.append((low, fork(rollout), rollout.state_dict()))
        rollout.tick()
        rollout.commit()
    rollout = start(model, layout, tiers, stepping)
    last = max(low for low, _, _ in twins) + 2 * layout.shift
    whole = latents(rollout, last)
    for low, twin, state in twins:
        again = start(model, layout, tiers, stepping)
        again.load_state_dict(state)
        for other in (again, twin):
            assert torch.equal(latents(other, 2 * layout.shift), whole[:, low : low + 2 * layout.shift])


def only_relative_time_matters(model, layout, tiers, stepping):
    """Law 4: a stream that begins at latent 100,000 is the one that begins at 0."""
    class Moved:
        def __init__(self, shift: int) -> None:
            self.noise, self.shift = Noise.of(0, (4, HEIGHT, WIDTH)), shift

        def __call__(self, index: int, draw: int) -> torch.Tensor:
            return self.noise(index - self.shift, draw)

    near, far = (latents(start(model, layout, tiers, stepping, noise=Moved(at), start=at), 14) for at in (0, 100_000))
    torch.testing.assert_close(near, far, atol=2e-4, rtol=0)


def depends_on_no_noise_beyond_the_slots(model, layout, tiers, stepping):
    """Law 9: a commit depends on no noise of latents that have not yet entered."""
    class Other:
        def __init__(self, beyond: int) -> None:
            self.one, self.two, self.beyond = Noise.of(0, (4, HEIGHT, WIDTH)), Noise.of(9, (4, HEIGHT, WIDTH)), beyond

        def __call__(self, index: int, draw: int) -> torch.Tensor:
            return (self.one if index < self.beyond else self.two)(index, draw)

    commits = 6
    safe = layout.shift * (commits - 1) + layout.slots  # latents that have entered when commit 6 is handed out
    same = latents(start(model, layout, tiers, stepping, noise=Other(10**9)), commits * layout.shift)
    other = latents(start(model, layout, tiers, stepping, noise=Other(safe)), commits * layout.shift)
    assert torch.equal(same, other)


def rows_are_the_streams_alone(model, layout, tiers, stepping):
    """Law 13: rows of a batch are the streams alone."""
    together = latents(start(model, layout, tiers, stepping, seeds=(5, 6)), 10)
    for row, seed in enumerate((5, 6)):
        torch.testing.assert_close(
            together[row : row + 1], latents(start(model, layout, tiers, stepping, seeds=seed), 10), atol=1e-5, rtol=0
        )


def riding_gives_the_numbers_of_two_calls(model, layout, tiers, stepping):
    """The clean pass that rides along gives the numbers of two calls."""
    apart = Stepping(stepping.denoise, stepping.commit, stepping.sampler, stepping.context_sigma, ride=False)
    one, two = (latents(start(model, layout, tiers, how), 14) for how in (stepping, apart))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
