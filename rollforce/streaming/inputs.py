"""What a stream is given besides its prompt: a past to go on from, or a video to follow.

A past (`image=`, `video=`) is encoded and written into memory before the first tick: image to video and endless
continuation are the same thing. A video to follow (`follow=`) enters chunk by chunk instead of pure noise, noised to a
level that says how much of it may change (SDEdit, Meng et al. 2021); where it moves fast the level falls, so that what
moves is not lost (StreamDiffusionV2, arXiv 2511.07399, section 3.2).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rollforce.engine.settings import LayoutSettings
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.interface import Autoencoder
from rollforce.streaming.batch import Batch
from rollforce.streaming.events import Cue
from rollforce.streaming.pace import Pace
from rollforce.video.images import (
    Clip,
    Fit,
    Picture,
    check_clip,
    fit_clip,
    fit_picture,
    log_fit,
    read_clip,
    read_picture,
)
from rollforce.video.values import check_kind, check_number, check_seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FollowSettings:
    """How a stream follows a video. `strength`: noise level at which a chunk enters; 0.3 changes little, 0.9 keeps
    hardly more than where things are. `yielding`: how much lower it is where the video moves as fast as `full` (root
    mean square difference of two frames, pixels in 0..1). `inertia`: share of the chunk before in the level."""

    strength: float = 0.7  # the other defaults are as released
    yielding: float = 0.1
    full: float = 0.1
    inertia: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.strength, "strength", 0, 1, above=True, remedy="Near 0 nothing changes, at 1 all does.")
        check_number(self.yielding, "yielding", 0, self.strength, below=True, remedy="It is a part of strength.")
        check_number(self.full, "full", 0, above=True)
        check_number(self.inertia, "inertia", 0, 1, below=True)

    @classmethod
    def of_strength(cls, strength: float) -> FollowSettings:
        """Return the settings of a strength: `yielding` is never more than half of it. ConfigError."""
        strength = check_number(strength, "strength", 0, 1, above=True, remedy="Near 0 nothing changes, at 1 all does.")
        return cls(strength, yielding=min(cls.yielding, strength / 2))

    def layout(self, settings: LayoutSettings) -> LayoutSettings:
        """Return the layout of a stream that enters at `strength`: that level, then those of the ladder below it."""
        below = [level for level in settings.ladder if level < self.strength - self.yielding - 1e-6]
        levels = (self.strength, *below)
        if settings.kind == "partitioned":  # whole groups of `micro` steps only
            levels = levels[: max(1, len(levels) // settings.micro) * settings.micro]
        return dataclasses.replace(settings, levels=levels, shift=1.0)


@dataclass(frozen=True)
class StreamInputs:
    """What a stream goes on from (`image` or `video`) or follows (`follow`), as the user gave it: at most one. `loop`:
    what is followed begins again where it ends."""

    image: Picture | None = None
    video: Clip | None = None
    follow: Clip | None = None
    following: FollowSettings = field(default_factory=FollowSettings)
    fit: Fit = "crop"
    loop: bool = False

    def __post_init__(self) -> None:
        names = [name for name in ("image", "video", "follow") if getattr(self, name) is not None]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(f'{name}=' for name in names)} cannot be used together.")
        if self.fit not in ("crop", "pad", "stretch"):
            raise ConfigError(f"fit {self.fit!r} is not one of crop, pad, stretch.")
        if self.loop and self.follow is None:
            raise ConfigError("loop repeats what is followed: give the clip with follow (--follow FILE). An image or a "
                              "video to go on from is shown once.")  # fmt: skip
        if self.loop and isinstance(self.follow, Iterator):
            raise ConfigError("loop cannot repeat an iterator, whose pictures come but once: give a file or an array.")
        for name in ("video", "follow"):
            if isinstance(path := getattr(self, name), str | Path):
                check_clip(Path(path), name)


@dataclass(frozen=True)
class Past:
    """What a stream goes on from: latents [1, T, C, h, w], and how many pictures of its clip come before them."""

    latents: Tensor
    skipped: int = 0


def encode_past(inputs: StreamInputs, autoencoder: Autoencoder, size: tuple[int, int], fps: float) -> Past | None:
    """Return the image or clip to go on from, encoded, or None if there is none. A clip gives its newest whole latents:
    its first frames are left out where they do not fill one. ConfigError if it is too short."""
    first, each = autoencoder.first_frames, autoencoder.frames
    if inputs.image is not None:
        picture = read_picture(inputs.image)
        log_fit(picture.shape, size, inputs.fit, "Image")
        frames = [fit_picture(picture, size, inputs.fit)] * first
    elif inputs.video is not None:
        frames = list(fit_clip(read_clip(inputs.video, fps), size, inputs.fit, "Video"))
    else:
        return None
    if len(frames) < first:
        raise ConfigError(f"video= has {len(frames)} frames; this model needs {first} to go on from.")
    skipped, encoder = (len(frames) - first) % each, autoencoder.encoder()
    given = len(frames) - skipped
    log.info("%s: %d frames (%g s) come first", "Video" if inputs.image is None else "Image", given, given / fps)
    cuts = [skipped, *range(skipped + first, len(frames) + 1, each)]
    return Past(torch.cat([encoder.encode(np.stack(frames[a:b])) for a, b in pairwise(cuts)], dim=1), skipped)


def _repeat(inputs: StreamInputs, fps: float) -> Iterator[np.ndarray]:
    """Yield the pictures of what is followed, again and again; none if it has none."""
    shown = True
    while shown:
        shown = False
        for picture in read_clip(inputs.follow, fps, "follow"):
            shown = True
            yield picture


class Follower:
    """A video that a stream follows: its latents as it comes, and the noise level of each chunk (rollout.Source)."""

    def __init__(self, inputs: StreamInputs, autoencoder: Autoencoder, size: tuple[int, int], fps: float,
                 chunk: int) -> None:  # fmt: skip
        self.settings, self.chunk = inputs.following, chunk
        pictures = _repeat(inputs, fps) if inputs.loop else read_clip(inputs.follow, fps, "follow")
        self._pictures = fit_clip(pictures, size, inputs.fit, "Video")
        self._autoencoder, self._encoder = autoencoder, autoencoder.encoder()
        self._level = inputs.following.strength
        self._last: np.ndarray | None = None
        self._waiting: list[Tensor] = []

    def __call__(self, index: int) -> tuple[Tensor, float] | None:
        """See rollout.Source."""
        if not self._waiting and not self._pull(first=index == 0):
            return None
        return self._waiting.pop(0), self._level

    def _pull(self, first: bool) -> bool:
        """Encode the frames of one more chunk: fewer latents at the video's end, whose last picture stands until its
        latent is whole. Return False if there are none. ConfigError for a video without a picture."""
        per = self._autoencoder.frames
        before = per - self._autoencoder.first_frames if first else 0  # that the first latent has fewer
        frames = list(islice(self._pictures, per * self.chunk - before))
        if not frames and first:
            raise ConfigError("follow= has no pictures: there is nothing to follow.")
        if not frames:
            return False
        frames += [frames[-1]] * (-(len(frames) + before) % per)
        self._level = self._noise_level(frames)
        self._waiting = list(self._encoder.encode(np.stack(frames)).unbind(1))
        return bool(self._waiting)

    def _noise_level(self, frames: list[np.ndarray]) -> float:
        s, line = self.settings, frames if self._last is None else [self._last, *frames]
        self._last = frames[-1]
        steps = [np.square(a / 255.0 - b / 255.0).mean() ** 0.5 for a, b in pairwise(line)]
        motion = min(1.0, max(steps, default=0.0) / s.full)
        return float((1 - s.inertia) * (s.strength - s.yielding * motion) + s.inertia * self._level)


@dataclass(frozen=True)
class SessionOptions:
    """How a stream is begun, beside its prompt, seed and size. `inputs` are pictures to go on from, or a video to
    follow; `ahead` computes the next chunk while this one is used; `cues` are what changes later; `remember` seconds
    can be rewound, each chunk of them with a memory of its own; `pace` says how the stream does less when it is late;
    the streams of `batch` share their model calls."""

    inputs: StreamInputs = field(default_factory=StreamInputs)
    ahead: bool = False
    cues: tuple[Cue, ...] = ()
    remember: float = 0.0
    pace: Pace | None = None
    batch: Batch | None = None

    def __post_init__(self) -> None:
        check_kind(self.ahead, bool, "ahead", "true or false")
        check_seconds(self.remember, "remember", zero=True, remedy="Seconds of video that can be rewound.")
        for cue in check_kind(self.cues, tuple, "cues", "a tuple of cues"):
            check_kind(cue, Cue, "cues", 'cues, such as [Cue(10, "a blue star")]')
        check_kind(self.pace, Pace | None, "pace", "a Pace, such as Pace(fps=24)")
        check_kind(self.batch, Batch | None, "batch", "what model.batch() returns")
