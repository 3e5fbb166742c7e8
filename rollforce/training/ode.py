"""The teacher's path from noise to video, and two ways to teach a student to jump to its end.

    solve, regression   ODE pairs (CausVid, Yin et al. 2025; Self Forcing): walk the whole path once and store where it
                        stands at the student's levels; the student learns to name the end from there
    consistency         causal consistency distillation (Causal Forcing 2026): take one step of the path from a noised
                        true video; the student must name the same end from before and after it

The teacher is any Score, guidance (`losses.guide`) included. Bidirectional (score_of) it gives the pairs of CausVid and
Self Forcing; causal (score_of_velocity(true_past(...))) those of Causal Forcing, for a student with the same past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rollforce.engine import flow
from rollforce.engine.flow import Ladder, explicit, linear, warped
from rollforce.errors import ConfigError
from rollforce.training import losses
from rollforce.training.causal_masking import count_chunks, noise_like, repeat_per_chunk
from rollforce.training.losses import Score

SAME = 1e-6  # levels nearer than this are one


@dataclass(frozen=True)
class OdePairs:
    """States [B, S + 1, T, C, h, w] of paths at the S `levels` of the student, highest first, and at the end."""

    levels: Ladder
    states: Tensor

    def __post_init__(self) -> None:
        if self.states.shape[1] != len(self.levels) + 1:
            raise ConfigError(f"{self.states.shape[1]} states for {len(self.levels)} levels: store each and the end.")

    @property
    def end_BTCHW(self) -> Tensor:
        """The clean ends of the paths."""
        return self.states[:, -1]


def solver_grid(ladder: Sequence[float], steps: int, shift: float) -> Ladder:
    """Return the solver's levels: `steps` even steps under `shift`, with each level of the student's ladder among them.

    A student's level between two of the solver's is inserted, so that the state is stored at precisely the level the
    student will be told. (Self Forcing's pairs were solved under shift 8 and trained under shift 5: states of sigma
    .960 labelled .9375.) Nothing is inserted if ladder and grid have one shift and the ladder's steps divide the
    solver's: [1, .75, .5, .25] with 48. ConfigError if the ladder does not begin at 1: a path begins at pure noise."""
    ladder = explicit(ladder)
    if ladder[0] != 1:
        raise ConfigError(f"the ladder begins at {ladder[0]}: an ODE path begins at pure noise, so make it 1.")
    even = warped(linear(steps), shift)
    apart = [level for level in even if all(abs(level - own) > SAME for own in ladder)]
    return tuple(sorted([*apart, *ladder], reverse=True))


def euler_step(score: Score, x_BTCHW: Tensor, sigma_BT: Tensor, next_sigma_BT: Tensor) -> Tensor:
    """Take one Euler step of the path, from sigma > 0 down to next_sigma, each latent at its own level."""
    velocity = flow.velocity_of(x_BTCHW, score(x_BTCHW, sigma_BT), sigma_BT)
    return flow.euler(x_BTCHW, velocity, sigma_BT, next_sigma_BT)


@torch.no_grad()
def solve(teacher: Score, noise_BTCHW: Tensor, ladder: Sequence[float], steps: int = 48,
          shift: float = 1.0) -> OdePairs:  # fmt: skip
    """Walk the probability-flow ODE from pure noise to the end, all latents at one level; keep what the student needs.

    `shift`: of the student's ladder. The cost is `steps` calls of the teacher, and those of inserted levels."""
    levels, wanted = (*solver_grid(ladder, steps, shift), 0.0), set(explicit(ladder))
    x, kept = noise_BTCHW, []
    for level, lower in pairwise(levels):
        if level in wanted:
            kept.append(x)
        sigma = torch.full(x.shape[:2], level, device=x.device)
        x = euler_step(teacher, x, sigma, torch.full_like(sigma, lower))
    return OdePairs(explicit(ladder), torch.stack([*kept, x], dim=1))


def regression(student: Score, pairs: OdePairs, chunk: int, generator: torch.Generator, clean: bool = True) -> Tensor:
    """Return the mean squared error of the path's end, named by the student from a level drawn for each chunk.

    `clean`: the end itself (sigma 0) is drawn too, so that a student under own_past also meets a clean past, as CausVid
    has it; such chunks are left out of the loss, and the last chunk is always noisy since nobody would look at it.
    Under true_past set it False: there the past is clean anyway."""
    batch, _, latents = pairs.states.shape[:3]
    chunks, noisy_levels = count_chunks(latents, chunk), len(pairs.levels)
    number = torch.randint(noisy_levels + clean, (batch, chunks), generator=generator)
    number[:, -1] = torch.randint(noisy_levels, (batch,), generator=generator)
    number = repeat_per_chunk(number, latents, chunk)
    noisy = pairs.states[torch.arange(batch)[:, None], number, torch.arange(latents)]
    sigma = torch.tensor((*pairs.levels, 0.0))[number].to(noisy.device)
    return losses.regression(student(noisy, sigma), pairs.end_BTCHW, sigma > 0)


def consistency(student: Score, average: Score, teacher: Score, clean_BTCHW: Tensor, grid: Sequence[float], chunk: int,
                generator: torch.Generator) -> Tensor:  # fmt: skip
    """Return the loss of consistency distillation (Song et al. 2023) on true videos: from a random level of `grid` for
    each chunk the student must name what its moving `average` names one teacher step further down (squared error).

    All three scores, of student, average and (guided) teacher, see the same past: score_of_velocity(true_past(...)).
    `grid`: Causal Forcing takes 48 even steps under the student's shift, warped(linear(48), shift), and guidance 3. At
    the last step down the target is the end of that step itself (the reference never draws that step)."""
    levels = torch.tensor((*explicit(grid), 0.0))
    batch, latents = clean_BTCHW.shape[:2]
    number = torch.randint(len(levels) - 1, (batch, count_chunks(latents, chunk)), generator=generator)
    number = repeat_per_chunk(number, latents, chunk)
    above, below = levels[number].to(clean_BTCHW.device), levels[number + 1].to(clean_BTCHW.device)
    noisy = flow.noised(clean_BTCHW, noise_like(clean_BTCHW, generator), above)
    with torch.no_grad():
        nearer = euler_step(teacher, noisy, above, below)
        target = torch.where((below == 0)[..., None, None, None], nearer, average(nearer, below))
    return losses.regression(student(noisy, above), target)
