"""Routed: of what leaves the window, what a search found good (Stream-T1, arXiv 2605.04461, memory sinking)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rollforce.cache.commit_plan import Candidates, Marks, Role, check_lowest
from rollforce.errors import ConfigError

APPEND, AVERAGE = "append", "average"  # the marks of chunks, at their first latent


@dataclass(frozen=True)
class Routed:
    """Each chunk that falls goes where its mark says (search.py sets them):

    append    it is kept as it is, while there is room; then as `average`
    average   it is averaged into the last chunk that is kept, place by place, as EmaSink does it, with `decay`
    no mark   it is dropped, but for the `first` latents that ever fall, which are the sink of the release

    A chunk is `chunk` latents from its mark on. Only chunks that are still to fall are asked for their marks, so a
    window before this one of up to plan.MARKS chunks is served.

    Deviations from the release (wan/modules/causal_model_stream_t1.py): the average is kept in float32; a chunk to be
    appended to a full memory is averaged in for good (there for the calls of one chunk: the sum is not written back);
    what is to be averaged where nothing is kept is dropped (there a sink always is)."""

    latents: int
    first: int = 0
    chunk: int = 3
    decay: float = 0.999
    kind: Literal["routed"] = "routed"
    role: ClassVar[Role] = "anchor"

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.latents:
            raise ConfigError(f"routed.first {self.first} must lie in 0..{self.latents}, the room there is.")
        check_lowest(self, chunk=1)
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"routed.decay {self.decay:g} must lie in [0, 1]: 1 changes nothing, 0 forgets at once.")

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Return the latents that stay: all that did, and of those that arrive the first ever and the marked ones."""
        kept = [index for index in held.indices if index not in held.arriving]
        for index in held.arriving:
            wanted = len(kept) < self.first or self._begun(index, held.marks, APPEND) is not None
            if wanted and len(kept) < self.latents:
                kept.append(index)
        return tuple(kept)

    def share(self) -> float:
        """Return the weight of a latent that leaves in the average."""
        return 1 - self.decay

    def pair(self, kept: tuple[int, ...], left: tuple[int, ...], marks: Marks) -> tuple[tuple[int, int], ...]:
        """Pair each latent that is averaged with a kept one: (kept, left), oldest first."""
        pairs = []
        for index in left:
            begun = self._begun(index, marks, APPEND, AVERAGE)
            last = [each for each in kept if each < index][-self.chunk :]
            if begun is not None and last:
                pairs.append((last[(index - begun) % len(last)], index))
        return tuple(pairs)

    def _begun(self, index: int, marks: Marks, *names: str) -> int | None:
        """Where the chunk of a latent begins, if it has one of these marks."""
        starts = (start for name in names for start in marks.get(name, ()))
        return next((start for start in starts if start <= index < start + self.chunk), None)
