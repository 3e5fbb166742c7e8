"""Cues are what a stream is told while it runs, events what became of them, chunks what it hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rollforce.engine.quality import QualityLevel
from rollforce.engine.transitions import AnyTransition, Recache
from rollforce.engine.transitions import transition as find_transition
from rollforce.errors import ConfigError
from rollforce.video.values import check_kind, check_prompt, check_seconds, check_seed

if TYPE_CHECKING:
    import numpy as np


RECACHE = Recache()


@dataclass(frozen=True)
class Cue:
    """A change from `at` seconds of video on: another prompt, by a transition, another seed, or another quality level.
    It takes effect with the first chunk that begins at or after that. A stream is its prompt, its seed and its cues:
    the same ones, the same bytes. `transition` may be given by its name. ConfigError for what cannot be, or if it
    changes nothing."""

    at: float
    prompt: str | None = None
    transition: AnyTransition = RECACHE
    seed: int | None = None
    quality: QualityLevel | None = None

    def __post_init__(self) -> None:
        checked: dict[str, object] = {"at": check_seconds(self.at, "at", zero=True),
                                      "transition": find_transition(self.transition)}  # fmt: skip
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.seed is not None:
            checked["seed"] = check_seed(self.seed)
        if self.quality is not None:
            check_kind(self.quality, QualityLevel, "quality", "a QualityLevel, such as QualityLevel(steps=2)")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.prompt is None and self.seed is None and self.quality is None:
            raise ConfigError(f"the cue at {self.at:g} s changes nothing: give it a prompt, a seed or a quality level.")


@dataclass(frozen=True)
class Event:
    """What became of a cue.

    accepted   it is good, and waits
    applied    `chunk` is the first that is computed with it
    visible    `chunk` is the first that no step of another prompt went into; its first frame is `frame`
    replaced   another came for the same chunk
    pace       from `chunk` on it is made at the cue's quality level

    `chunk` counts commits, `frame` frames, from the start of the stream, not those of a given past. `frame` is known
    once the chunk is decoded; until then, and for what is only accepted, both may be None."""

    kind: Literal["accepted", "applied", "visible", "replaced", "pace"]
    cue: Cue
    chunk: int | None = None
    frame: int | None = None

    @property
    def cuts(self) -> bool:
        """Whether a new shot begins with it."""
        return self.kind == "applied" and self.cue.prompt is not None and self.cue.transition.kind in ("cut", "shot")


@dataclass(frozen=True)
class Timings:
    """Seconds that one chunk took, to denoise and to decode."""

    denoise_s: float
    decode_s: float


NO_TIMINGS = Timings(0.0, 0.0)


@dataclass(frozen=True)
class Chunk:
    """Decoded pictures: `frames` uint8 [F, H, W, 3], `pts` seconds from the start of the stream to the first of them.
    `prompt` was in force when the chunk was finished; `events` say what became of cues with it."""

    frames: np.ndarray
    index: int
    pts: float
    prompt: str
    timings: Timings = NO_TIMINGS
    events: tuple[Event, ...] = ()
