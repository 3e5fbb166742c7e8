"""Opening: how a stream is begun, beside its prompt, seed and size."""

from __future__ import annotations

from dataclasses import dataclass, field

from rollforce.batch import Batch
from rollforce.cues import Cue
from rollforce.given import Given
from rollforce.live import Pace


@dataclass(frozen=True)
class Opening:
    """`given` pictures to go on from, or a video to follow; `ahead` compute the next chunk while this one is used;
    `cues` what changes later; `remember` seconds that it can be rewound, each chunk of them with a memory of its own;
    `pace` the ladder it goes down when it is late; `batch` the streams whose model calls it shares."""

    given: Given = field(default_factory=Given)
    ahead: bool = False
    cues: tuple[Cue, ...] = ()
    remember: float = 0.0
    pace: Pace | None = None
    batch: Batch | None = None
