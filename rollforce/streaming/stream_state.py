"""Stand: where the ticking of a stream stands, and its going on to the next chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rollforce.engine.rollout import Rollout
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.interface import Autoencoder, Decoder
from rollforce.streaming.prefetch import ChunkResult, Stepper
from rollforce.streaming.snapshot import fork
from rollforce.streaming.steering import Steering


@dataclass
class StreamState:
    """Where the ticking of a stream stands: what `step_to_commit` changes.

    `given`: latents of a past that it began with."""

    rollout: Rollout
    steering: Steering
    given: int = 0
    latents: int = 0  # committed since the start
    commits: int = 0

    @property
    def frame(self) -> int:
        """The frame with which the next latent begins, counted from the start of the stream."""
        model = self.steering.model
        first, rest = model.autoencoder.first_frames, model.frames_per_latent
        return self.latents * rest if self.given or not self.latents else first + (self.latents - 1) * rest

    def state_dict(self) -> dict[str, Any]:
        """All but settings."""
        return {"rollout": self.rollout.state_dict(), "steering": self.steering.state_dict(),
                "given": self.given, "latents": self.latents, "commits": self.commits}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a stream of the same model and settings."""
        self.rollout.load_state_dict(state["rollout"])
        self.steering.load_state_dict(state["steering"])
        self.steering.resume(self.rollout)
        self.given = int(state.get("given", 0))
        self.latents, self.commits = int(state["latents"]), int(state["commits"])


@dataclass(frozen=True)
class RewindPoint:
    """A place that a stream can go back to: the frame that comes next there."""

    frame: int
    stand: StreamState
    decoder: Decoder


def step_to_commit(stand: StreamState, remember: bool = False) -> Stepper:
    """Apply the cues that are due, and tick on to the next commit: who drives it answers each call it asks for.

    `remember`: keep what it began from. It holds the stand, not the session: a session that is dropped is gone."""
    rollout, steering, commit = stand.rollout, stand.steering, None
    before = fork(stand) if remember else None
    events = steering.step(rollout, stand.commits, stand.frame)
    while commit is None and rollout.admit():
        rollout.apply((yield rollout.next_call()))
        commit = rollout.commit()
    if commit is not None:
        stand.latents, stand.commits = stand.latents + commit.latents_BTCHW.shape[1], stand.commits + 1
        if stand.commits == 1 and not torch.isfinite(commit.latents_BTCHW).all():
            model = steering.model
            raise ConfigError(f"The first chunk is not a number: {model.dtype} is not for these weights or this "
                              "device. Use --dtype float32, or bfloat16 where there is some.")  # fmt: skip
    return ChunkResult(commit, 0.0, steering.prompt, events, before)


def decode_result(done: ChunkResult, decoder: Decoder, autoencoder: Autoencoder) -> np.ndarray:
    """The frames of what was advanced to, uint8 [F, H, W, 3]; what was held back, if the stream is over.

    With a new shot the decoder forgets, too, where its first latent is one like any other (in Wan it is a single
    frame)."""
    if done.commit is None:
        return decoder.flush()
    if autoencoder.first_frames == autoencoder.frames and any(event.cuts for event in done.events):
        decoder.reset()
    return decoder.decode(done.commit.latents_BTCHW)
