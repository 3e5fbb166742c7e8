"""Layout: which slot of the moving buffer has which noise at each tick. A table, not a loop.

`sigma[r][s]` is the noise of slot s before tick r; the last row is the state after the last tick. Then the first
`shift` slots are clean: they are committed, the buffer moves on by `shift`, fresh noise enters at the right, and the
table starts again. Every published streaming sampler is such a table:

    chunkwise    Self Forcing, CausVid, LongLive: one chunk, all steps, next chunk
    rolling      Rolling Forcing, StreamDiT with one micro step: as many chunks in flight as there are steps
    partitioned  StreamDiT: chunks in flight, several micro steps between two commits
    bidirectional  the teacher: everything at one level, everything committed at the end

Filling and draining need no code: slots whose stream index is below 0 or past the end are cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from rollforce.engine.flow import Ladder
from rollforce.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """The table `sigma[row][slot]`, and by how many slots the buffer moves per commit (`shift`). What follows from the
    two: `slots` latents have room in the buffer, `ticks` model calls lead from one commit to the next, and
    `draws[row][slot]` counts how often a latent was noised that stands there (0 is the pure noise at entry).
    ConfigError for a table that cannot stream."""

    sigma: tuple[tuple[float, ...], ...]
    shift: int
    slots: int = field(init=False, compare=False, repr=False)
    ticks: int = field(init=False, compare=False, repr=False)
    draws: tuple[tuple[int, ...], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        slots, last = len(self.sigma[0]), self.sigma[-1]
        if len(self.sigma) < 2 or any(len(row) != slots for row in self.sigma):
            raise ConfigError("a layout needs at least one tick (two rows), and rows of equal length.")
        if not 0 < self.shift <= slots or slots % self.shift:
            raise ConfigError(f"shift {self.shift} must divide the number of slots, {slots}.")
        if any(level != 0 for level in last[: self.shift]):
            raise ConfigError(f"the first {self.shift} slots end at {list(last[: self.shift])}: they must end clean "
                              "(0).")  # fmt: skip
        if last[self.shift :] != self.sigma[0][: slots - self.shift]:
            raise ConfigError("after a commit the buffer does not look as it did before: the table must repeat.")
        if any(after > before for row, later in pairwise(self.sigma) for before, after in zip(row, later, strict=True)):
            raise ConfigError("noise rises in a slot; it may only fall.")
        ticks = len(self.sigma) - 1
        draws = (tuple((slots - 1 - slot) // self.shift * ticks + row for slot in range(slots)) for row in range(ticks))
        for name, value in {"slots": slots, "ticks": ticks, "draws": tuple(draws)}.items():
            object.__setattr__(self, name, value)

    @property
    def first(self) -> int:
        """Stream index of slot 0 at the start: only the entering slots hold latents, the others lie before 0."""
        return self.shift - self.slots


def chunkwise(ladder: Ladder, chunk: int) -> Layout:
    """Return the layout of Self Forcing (Huang et al. 2025): one chunk goes down the whole ladder, then the next."""
    return Layout(tuple((level,) * _check_positive("chunk", chunk) for level in (*ladder, 0.0)), chunk)


def rolling(ladder: Ladder, chunk: int) -> Layout:
    """Return the layout of Rolling Forcing (Liu et al. 2025, section 3.2): a chunk a level, a tick a commit."""
    return partitioned(ladder, chunk, micro=1)


def partitioned(ladder: Ladder, chunk: int, micro: int) -> Layout:
    """Return the layout of StreamDiT (Kodaira et al. 2025, section 3.2): `micro` ticks between two commits, and
    len(ladder) / micro chunks in flight. ConfigError if `micro` does not divide the ladder."""
    _check_positive("chunk", chunk)
    if micro < 1 or len(ladder) % micro:
        raise ConfigError(f"micro {micro} must divide the number of steps, {len(ladder)}.")
    levels, chunks = (*ladder, 0.0), len(ladder) // micro
    rows = (tuple(levels[(chunks - 1 - place) * micro + row] for place in range(chunks) for _ in range(chunk))
            for row in range(micro + 1))  # fmt: skip
    return Layout(tuple(rows), chunk)


def bidirectional(ladder: Ladder, latents: int) -> Layout:
    """Return the layout of a bidirectional teacher: a whole clip of `latents` at one noise level."""
    return chunkwise(ladder, latents)


def _check_positive(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{name} {value}: at least 1 latent.")
    return value
