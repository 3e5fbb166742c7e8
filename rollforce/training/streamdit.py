"""StreamDiT (Kodaira et al. 2025): one network for many ways to cut a moving buffer into chunks.

A partition has `chunks` chunks of `chunk` latents in flight and makes `micro` steps between two commits: chunks * micro
steps in all. Noise time 0..1 is cut into as many segments as there are chunks; the oldest chunk lives in the cleanest
one. In steps it is layout.partitioned(ladder(partition, shift), chunk, micro): a network trained here streams there.

    mixed training         a partition from the mix, a level anywhere in each segment: flow matching
    segment distillation   one step of the student for the `micro` guided steps of the teacher through a segment
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import repeat
from torch import Tensor

from rollforce.engine import flow
from rollforce.engine.flow import Ladder, linear, warped
from rollforce.errors import ConfigError
from rollforce.training.causal_masking import additive, repeat_per_chunk
from rollforce.training.losses import Score
from rollforce.training.noise_patterns import ChunkGroup, NoisePattern, visibility_mask
from rollforce.training.ode import euler_step


@dataclass(frozen=True)
class Partition:
    """`chunk`: latents per chunk; `micro`: steps between commits; `chunks`: in flight. ConfigError below 1."""

    chunk: int
    micro: int
    chunks: int

    def __post_init__(self) -> None:
        if min(self.chunk, self.micro, self.chunks) < 1:
            raise ConfigError(f"chunk {self.chunk}, micro {self.micro}, chunks {self.chunks}: each at least 1.")

    @property
    def latents(self) -> int:
        """How many latents the buffer holds."""
        return self.chunk * self.chunks

    @property
    def steps(self) -> int:
        """How many steps a latent goes down."""
        return self.micro * self.chunks


def ladder(partition: Partition, shift: float = 1.0) -> Ladder:
    """Return the levels a latent steps down: even in noise time, then shifted."""
    return warped(linear(partition.steps), shift)


def draw_partition(mix: Sequence[Partition], generator: torch.Generator) -> Partition:
    """Draw one of the mix, all equally likely. Processes draw from equally seeded generators: shapes must agree."""
    if not mix:
        raise ConfigError("the mix has no partition: give at least one, e.g. chunk 3, micro 1, chunks 4.")
    return mix[int(torch.randint(len(mix), (), generator=generator))]


def segment_levels(partition: Partition, batch: int, generator: torch.Generator, shift: float = 1.0) -> Tensor:
    """Draw sigma [B, T]: for each chunk a level evenly from its segment, so that noise rises along the buffer.

    A buffer that fills has only the last latents of this, one that drains only the first: cut them off."""
    place = torch.arange(partition.chunks)
    even = (place + 1 - torch.rand(batch, partition.chunks, generator=generator)) / partition.chunks
    return repeat_per_chunk(flow.shift_level(even, shift), partition.latents, partition.chunk)


def draw_noise_pattern(partition: Partition, batch: int, tokens: int, generator: torch.Generator, shift: float = 1.0,
                       past: int = 0) -> NoisePattern:  # fmt: skip
    """Draw a buffer for mixed training: all chunks in flight see each other and `past` clean latents before them.

    StreamDiT has no past; here it is cut into chunks as the buffer is, each seeing those before it, as the memory of a
    stream does. `tokens`: per latent. The loss is losses.velocity(..., weight_BT=pattern.weight_T[None])."""
    if past % partition.chunk:
        raise ConfigError(f"past {past} must be a multiple of the chunk, {partition.chunk}.")
    noisy = segment_levels(partition, batch, generator, shift)
    sigma = torch.cat([torch.zeros(batch, past), noisy], dim=1)
    group = ChunkGroup(past // partition.chunk, partition.chunks)
    mask = additive(visibility_mask((group,), partition.chunk * tokens)) if past else None
    return NoisePattern(sigma, mask, (sigma[0] > 0).float())


@dataclass(frozen=True)
class Segment:
    """A step for the student, from `noisy` at the top of each segment to the teacher's `reached` at its bottom. With
    the clean estimate `clean` one Euler step from `above` to `below` lands on `reached`: regress it."""

    noisy: Tensor
    above_BT: Tensor
    below_BT: Tensor
    reached: Tensor
    clean: Tensor


@torch.no_grad()
def solve_segment(teacher: Score, noisy_BTCHW: Tensor, partition: Partition, shift: float = 1.0) -> Segment:
    """Return, for segment distillation, where `micro` Euler steps of the (guided) teacher lead the whole buffer, each
    chunk through its own segment, from `noisy` at `top_levels(partition, shift)`: true videos, or those of a stream."""
    if noisy_BTCHW.shape[1] != partition.latents:
        raise ConfigError(f"{noisy_BTCHW.shape[1]} latents in the buffer, but the partition has {partition.latents}.")
    levels = torch.tensor((*ladder(partition, shift), 0.0), device=noisy_BTCHW.device)
    chunk = repeat(torch.arange(partition.chunks), "n -> (n chunk)", chunk=partition.chunk)
    first = (partition.chunks - 1 - chunk) * partition.micro
    rows = [levels[first + step].expand(noisy_BTCHW.shape[:2]) for step in range(partition.micro + 1)]
    x = noisy_BTCHW
    for sigma, lower in pairwise(rows):
        x = euler_step(teacher, x, sigma, lower)
    above, below = rows[0], rows[-1]
    wide = (above / (above - below))[..., None, None, None].to(x)
    return Segment(noisy_BTCHW, above, below, x, noisy_BTCHW + wide * (x - noisy_BTCHW))


def top_levels(partition: Partition, shift: float = 1.0) -> Tensor:
    """Return sigma [1, T] at the noisy end of each chunk's segment, oldest chunk first."""
    levels = ladder(partition, shift)[:: partition.micro]
    return repeat(torch.tensor(levels[::-1]), "n -> 1 (n chunk)", chunk=partition.chunk)


def buffer_at_tops(clean_BTCHW: Tensor, noise_BTCHW: Tensor, partition: Partition, shift: float = 1.0) -> Tensor:
    """Return true videos brought to the levels at which a segment begins."""
    sigma = top_levels(partition, shift).expand(clean_BTCHW.shape[:2]).to(clean_BTCHW.device)
    return flow.noised(clean_BTCHW, noise_BTCHW, sigma)
