"""Junction: the beginning of what is now going on: of the prompt (Anchor Forcing) or of the shot (LongLive 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rollforce.cache.commit_plan import Candidates, Role
from rollforce.errors import ConfigError


@dataclass(frozen=True)
class Junction:
    """Keeps the first `latents` after the newest mark (`of`: a `switch` of the prompt, a `shot`) whose latents fell to
    it, and until then those after the mark before. Without a mark it stays empty.

    Anchor Forcing's junction cache: put after a window, it is attended once its latents have left that, as in the
    paper. `every`: without marks, begin anew each so many latents (its single-prompt mode). Deviation from the release:
    there the prior anchor is lost with the second forward of a chunk; here a commit is the only thing that writes.
    LongLive 2's pinned shot sink is the same `of` shots."""

    latents: int
    of: Literal["switch", "shot"] = "switch"
    every: int | None = None
    kind: Literal["junction"] = "junction"
    role: ClassVar[Role] = "junction"

    def __post_init__(self) -> None:
        if self.every is not None and self.every < max(1, self.latents):
            raise ConfigError(f"every {self.every} must be at least the junction's latents, {self.latents}.")

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Return the latents that stay."""
        starts = list(held.marks.get(self.of, ()))
        if self.every is not None:
            starts += [index - index % self.every for index in held.indices]
        for start in sorted(starts, reverse=True):
            if begun := tuple(index for index in held.indices if start <= index < start + self.latents):
                return begun
        return ()
