"""What a stream is between two chunks: where its ticking stands, the frames that wait, the places it can go back to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rollforce.config import build, to_dict
from rollforce.engine.rollout import Commit, ModelCall, Rollout
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.interface import Decoder
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.streaming.bundle import ModelBundle
from rollforce.streaming.events import NO_TIMINGS, Chunk, Event, Timings
from rollforce.streaming.snapshot import fork
from rollforce.streaming.steering import Steering


@dataclass(frozen=True)
class ChunkResult:
    """What stepping to the next commit gave (`commit` None: the stream is over), and the seconds it took. `prompt` is
    the one in force at the commit, `events` are of the cues before it, `before` is a copy of the state it began from,
    for streams that can go back, and `ready` a CUDA event after which the latents are there."""

    commit: Commit | None
    seconds: float
    prompt: str = ""
    events: tuple[Event, ...] = ()
    before: Any = None
    ready: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a snapshot keeps of a result that was not yet decoded."""
        commit = None if self.commit is None else {"start": self.commit.start, "latents": self.commit.latents_BTCHW}
        return {"commit": commit, "prompt": self.prompt, "events": to_dict(self.events)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChunkResult:
        """Build the result that a `state_dict` describes."""
        kept, events = state["commit"], tuple(build(Event, event) for event in state["events"])
        commit = None if kept is None else Commit(int(kept["start"]), kept["latents"])
        return cls(commit, 0.0, state["prompt"], events)


Stepper = Generator[ModelCall, Tensor, ChunkResult]


def run_stepper(stepper: Stepper, model: VideoTransformer) -> ChunkResult:
    """Walk a stepper to its end, each of its calls by itself."""
    velocity: Any = None  # as a generator wants to be begun
    while True:
        try:
            velocity = stepper.send(velocity).run(model)
        except StopIteration as end:
            return cast(ChunkResult, end.value)


class Driver:
    """Steps one stream to its next commit. This one computes what is asked for in the thread that asks."""

    def __init__(self, step: Callable[[], ChunkResult]) -> None:
        self.step = step

    def expect(self) -> None:
        """Take note that the stream will be pulled: its next commit may be computed along with others."""

    def take(self, go_on: bool) -> ChunkResult:
        """Return the next commit; with `go_on` the one after it may be begun."""
        return self.step()

    def hand_over(self) -> ChunkResult | None:
        """Finish what is under way and return it. None if nothing is."""
        return None

    def beside(self, result: ChunkResult) -> AbstractContextManager[None]:
        """Let the block's work on the latents of a result run beside the ticks."""
        return nullcontext()

    def close(self) -> None:
        """End, wherever it stands."""


@dataclass
class StreamState:
    """Where the ticking of a stream stands: all that `step_to_commit` changes. `past_latents` counts the latents of a
    past that the stream began with, `latents` and `commits` what was committed since the start."""

    rollout: Rollout
    steering: Steering
    past_latents: int = 0
    latents: int = 0
    commits: int = 0

    @property
    def frame(self) -> int:
        """The number of the frame with which the next latent begins, counted from the start of the stream."""
        first, rest = self.steering.model.autoencoder.first_frames, self.steering.model.frames_per_latent
        return self.latents * rest if self.past_latents or not self.latents else first + (self.latents - 1) * rest

    def become(self, other: StreamState) -> None:
        """Go on from where another state of the same stream stands, which goes its own way."""
        vars(self).update(vars(fork(other)))

    def state_dict(self) -> dict[str, Any]:
        """Return all but settings, as tensors and plain values."""
        return {"rollout": self.rollout.state_dict(), "steering": self.steering.state_dict(),
                "past_latents": self.past_latents, "latents": self.latents, "commits": self.commits}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a stream of the same model and settings."""
        self.rollout.load_state_dict(state["rollout"])
        self.steering.load_state_dict(state["steering"])
        self.steering.apply_to(self.rollout)
        self.past_latents = int(state["past_latents"])
        self.latents, self.commits = int(state["latents"]), int(state["commits"])


def step_to_commit(state: StreamState, remember: bool = False) -> Stepper:
    """Apply the cues that are due, and tick on to the next commit; who drives it runs each model call it yields. With
    `remember` the result keeps a copy of the state that it began from. ConfigError if the first chunk is no number."""
    rollout, steering, commit = state.rollout, state.steering, None
    before = fork(state) if remember else None
    events = steering.step(rollout, state.commits, state.frame)
    while commit is None and rollout.admit():
        rollout.apply((yield rollout.next_call()))
        commit = rollout.commit()
    if commit is not None:
        state.latents, state.commits = state.latents + commit.latents_BTCHW.shape[1], state.commits + 1
        if state.commits == 1 and not torch.isfinite(commit.latents_BTCHW).all():
            raise ConfigError(_explain_nan(steering.model))
    return ChunkResult(commit, 0.0, steering.prompt, events, before)


def _explain_nan(model: ModelBundle) -> str:
    """Why a first chunk is not a number: its weights, or a number format that does not hold what they make."""
    broken = [name for name, weight in model.transformer.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        return (f"The first chunk is not a number, for {len(broken)} of the weights of {model.name} are not, the first "
                f"{broken[0]}: they are damaged, or training went wrong. Take another file, or an earlier checkpoint.")
    if model.dtype == torch.float32:
        return (f"The first chunk is not a number, in float32 and from weights that are: {model.name} does not go with "
                "these settings of the stream, or its text vectors are broken. Try --stream, or --dtype bfloat16.")
    return (f"The first chunk is not a number: {model.dtype} does not hold what these weights make. Use --dtype "
            "float32, or bfloat16 where there is some.")  # fmt: skip


@dataclass
class FrameQueue:
    """The decoder of a stream, and the frames that it drew and nobody has asked for yet. `frames` are those, uint8 [F,
    H, W, 3]; `index` counts chunks and `count` frames handed out so far; `prompt` is of the frames that were decoded
    last; `timings` and `events` go out with the next chunk."""

    decoder: Decoder
    frames: np.ndarray
    prompt: str
    index: int = 0
    count: int = 0
    timings: Timings = NO_TIMINGS
    events: tuple[Event, ...] = ()

    def put(self, result: ChunkResult, model: ModelBundle) -> None:
        """Decode what was stepped to; at the end of the stream, what the decoder held back. With a new shot the decoder
        forgets, too, where its first latent is one like any other (in Wan it is a single frame)."""
        autoencoder = model.autoencoder
        whole, commit = autoencoder.first_frames == autoencoder.frames, result.commit
        if whole and commit is not None and any(event.cuts for event in result.events):
            self.decoder.reset()
        self.frames = self.decoder.flush() if commit is None else self.decoder.decode(commit.latents_BTCHW)
        self.prompt = result.prompt
        self.events = tuple(replace(event, frame=self.count) for event in result.events)

    def take(self, limit: float, fps: float) -> Chunk | None:
        """Hand out frames, at most `limit`; what is beyond them waits for the next call. None if there are none."""
        if not (count := int(min(limit, len(self.frames)))):
            return None
        chunk = Chunk(self.frames[:count], self.index, self.count / fps, self.prompt, self.timings, self.events)
        self.frames, self.timings, self.events = self.frames[count:], NO_TIMINGS, ()
        self.index, self.count = self.index + 1, self.count + count
        return chunk

    def go_back(self, point: RewindPoint) -> None:
        """Forget the frames that wait, and go on from a place further back."""
        self.decoder, self.frames, self.count = fork(point.decoder), self.frames[:0], point.frame
        self.timings, self.events = NO_TIMINGS, ()

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, as tensors and plain values."""
        return {"decoder": self.decoder.state_dict(), "frames": torch.from_numpy(self.frames.copy()),
                "prompt": self.prompt, "index": self.index, "count": self.count, "timings": to_dict(self.timings),
                "events": to_dict(self.events)}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a stream of the same model."""
        self.decoder.load_state_dict(state["decoder"])
        self.frames, self.prompt = state["frames"].cpu().numpy(), state["prompt"]
        self.index, self.count = int(state["index"]), int(state["count"])
        self.timings = build(Timings, state["timings"])
        self.events = tuple(build(Event, event) for event in state["events"])


@dataclass(frozen=True)
class RewindPoint:
    """A place that a stream can go back to; `frame` is the one that comes next there."""

    frame: int
    state: StreamState
    decoder: Decoder


@dataclass
class RewindHistory:
    """The places of the last `reach` frames that a stream can go back to, oldest first: each has its own memory."""

    reach: int
    points: deque[RewindPoint] = field(default_factory=deque)

    def keep(self, point: RewindPoint) -> None:
        """Add the newest place, and forget those that are too far back."""
        self.points.append(point)
        while len(self.points) > 1 and self.points[1].frame <= point.frame - self.reach:
            self.points.popleft()

    def go_back(self, frame: int) -> RewindPoint | None:
        """Return the last place at `frame` or before, and forget it and all after it. None if there is none."""
        kept = deque(point for point in self.points if point.frame <= frame)
        if not kept:
            return None
        self.points = kept
        return kept.pop()

    def copy(self) -> RewindHistory:
        """Return a history of its own; the places are shared."""
        return replace(self, points=self.points.copy())
