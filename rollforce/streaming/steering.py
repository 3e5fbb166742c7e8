"""Steering: the prompt of a stream, and the cues that wait to change it. Anybody adds; they apply between chunks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from rollforce.config import build, to_dict
from rollforce.engine.flow import Noise
from rollforce.engine.quality import QualityLevel
from rollforce.engine.rollout import Rollout
from rollforce.engine.transitions import Blend, Keep, check, shares
from rollforce.errors import ConfigError
from rollforce.models.transformer.transformer import Condition
from rollforce.streaming.bundle import ModelBundle
from rollforce.streaming.events import Cue, Event

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PendingCue:
    """A cue that is not yet applied, and its encoded prompt [1, L, D] if it has one. `frame` is the first frame of a
    chunk that it may begin with; None means the next chunk, wherever that begins."""

    cue: Cue
    text_BLD: Tensor | None
    frame: int | None


@dataclass(frozen=True)
class PromptPath:
    """The way from one text to another: `shares` of it that the next chunk, and those after it, have come."""

    start_BLD: Tensor
    goal_BLD: Tensor
    shares: tuple[float, ...]


class Steering:
    """The prompt, seed and cues of one stream. `add` may come from any thread; `step` comes between two chunks."""

    def __init__(self, model: ModelBundle, prompt: str, seed: int, cues: Sequence[Cue] = (),
                 follows: bool = False) -> None:  # fmt: skip
        """Begin with a prompt and a seed. `follows`: the stream follows a video, which comes but once."""
        self.model, self.prompt, self.seed, self.follows = model, prompt, seed, follows
        self.text_BLD = self._encode(prompt)
        self.quality: QualityLevel | None = None  # None: the stream as it is
        self.applied: list[Cue] = []
        self._waiting: list[PendingCue] = []
        self._coming: list[Event] = []  # visible with a chunk that is still to come
        self._path: PromptPath | None = None
        self._lock = Lock()
        for cue in cues:
            self.add(cue)

    @torch.no_grad()
    def apply_to(self, rollout: Rollout) -> None:
        """Give a rollout that was just restored the prompt, seed and quality level in force."""
        assert isinstance(rollout.noise, Noise)
        rollout.condition, rollout.noise = self.condition(), replace(rollout.noise, seeds=(self.seed,))
        if self.quality is not None:
            self._set_quality(rollout, self.quality)

    def condition(self) -> Condition:
        """Return the prompt in force as the transformer needs it."""
        return self.model.transformer.condition(self.text_BLD)

    @property
    def cues(self) -> tuple[Cue, ...]:
        """The cues that were applied and that wait, by time: a stream that begins with them makes the same bytes."""
        return (*self.applied, *(waiting.cue for waiting in self._waiting if waiting.frame is not None))

    # -- adding -------------------------------------------------------------------------------------------------

    def add(self, cue: Cue, now: bool = False) -> Event:
        """Take a cue, for its time or (`now`) for the next chunk that is not begun. ConfigError if it cannot be."""
        self._check(cue)
        text = None if cue.prompt is None else self._encode(cue.prompt)
        waiting = PendingCue(cue, text, None if now else round(cue.at * self.model.fps))
        with self._lock:
            self._waiting = sorted([*self._waiting, waiting], key=lambda each: -1 if each.frame is None else each.frame)
        return Event("accepted", cue)

    def _check(self, cue: Cue) -> None:
        check(cue.transition, self.model.stream_settings.tiers, self.follows)
        if self.follows and (cue.seed is not None or cue.quality is not None):
            raise ConfigError("a stream that follows a video cannot begin anew, with another seed or quality level.")
        if cue.quality is not None:
            cue.quality.apply(self.model.stream_settings)

    @property
    def shown(self) -> str:
        """The prompt in force as it is shown: what it left out is filled in."""
        return self.model.complete_prompt(self.prompt)

    def _encode(self, prompt: str) -> Tensor:
        shown = self.model.complete_prompt(prompt)
        if shown != prompt:
            log.warning('"%s" is shown as "%s"', prompt, shown)
        with torch.no_grad():
            return self.model.text.encode([shown]).to(self.model.device, self.model.dtype)

    # -- between two chunks -------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, rollout: Rollout, chunk: int, frame: int) -> tuple[Event, ...]:
        """Apply the cues that are due before the chunk whose first frame is `frame`; return what became of them."""
        due, events = self._pop_due(frame), []
        prompts = [waiting for waiting in due if waiting.cue.prompt is not None]
        if self._path is not None and not prompts:
            self._follow(self._path)
            rollout.condition = self.condition()
        for waiting in due:
            cue = replace(waiting.cue, at=frame / self.model.fps)
            if waiting in prompts[:-1]:
                events.append(Event("replaced", cue, chunk))
                continue
            if cue.quality is not None:
                self._change_quality(rollout, cue.quality)
                events.append(Event("pace", cue, chunk))
            if cue.seed is not None:
                self._reseed(rollout, cue.seed)
            if waiting in prompts:  # the one before, if it is still to be seen, will not be
                self._coming = [event for event in self._coming if event.cue.prompt is None]
            visible = chunk + (self._change_prompt(rollout, waiting) if waiting in prompts else 0)
            self.applied.append(cue)
            if cue.prompt is not None or cue.seed is not None:
                events.append(Event("applied", cue, chunk))
                self._coming.append(Event("visible", cue, visible))
        if rollout.x is None and self._path is None:  # what was in flight, and had to land first, is gone
            self._coming = [replace(event, chunk=chunk) for event in self._coming]
        seen = [event for event in self._coming if event.chunk == chunk]
        self._coming = [event for event in self._coming if event.chunk != chunk]
        return (*events, *seen)

    def _reseed(self, rollout: Rollout, seed: int) -> None:
        assert isinstance(rollout.noise, Noise)
        self.seed, rollout.noise = seed, replace(rollout.noise, seeds=(seed,))
        rollout.restart()

    def _change_quality(self, rollout: Rollout, quality: QualityLevel) -> None:
        """Go over to another quality level. If its layout has no place for the latents in flight, they begin anew."""
        before, self.quality = rollout.layout, quality
        self._set_quality(rollout, quality)
        if rollout.layout != before and before.slots > before.shift:
            rollout.restart()

    def _set_quality(self, rollout: Rollout, quality: QualityLevel) -> None:
        settings = quality.apply(self.model.stream_settings)
        rollout.layout, rollout.stepping = settings.layout.build(), settings.stepping

    def _pop_due(self, frame: int) -> list[PendingCue]:
        with self._lock:
            due = [each for each in self._waiting if each.frame is None or each.frame <= frame]
            self._waiting = [each for each in self._waiting if each not in due]
        return due

    def _change_prompt(self, rollout: Rollout, waiting: PendingCue) -> int:
        """Go over to a new prompt; return after how many chunks it will be visible."""
        cue = waiting.cue
        assert cue.prompt is not None and waiting.text_BLD is not None
        path = PromptPath(self.text_BLD, waiting.text_BLD, shares(cue.transition))
        self._follow(path)
        self.prompt = cue.prompt
        cue.transition.begin(rollout, self.condition())
        flying = rollout.layout.slots // rollout.layout.shift - 1
        return len(path.shares) - 1 + (flying if isinstance(cue.transition, Keep | Blend) else 0)

    def _follow(self, path: PromptPath) -> None:
        """Take the text of the next chunk from a path; what is left of it is for the chunks after."""
        share, rest = path.shares[0], path.shares[1:]
        self.text_BLD = path.goal_BLD if share == 1 else path.start_BLD.lerp(path.goal_BLD, share)
        self._path = replace(path, shares=rest) if rest else None

    # -- saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the model, as tensors and plain values."""
        path = self._path
        return {"prompt": self.prompt, "seed": self.seed, "quality": to_dict(self.quality),
                "text": self.text_BLD.clone(), "applied": to_dict(self.applied),
                "waiting": [{"cue": to_dict(each.cue), "frame": each.frame} for each in self._waiting],
                "coming": [{"cue": to_dict(event.cue), "chunk": event.chunk} for event in self._coming],
                "path": None if path is None else {**vars(path)}}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a stream of the same model."""
        self.prompt, self.seed, self.text_BLD = state["prompt"], int(state["seed"]), state["text"]
        self.quality = None if state["quality"] is None else build(QualityLevel, state["quality"])
        self.applied = [build(Cue, cue) for cue in state["applied"]]
        waiting = [(build(Cue, each["cue"]), each["frame"]) for each in state["waiting"]]
        self._waiting = [PendingCue(cue, None if cue.prompt is None else self._encode(cue.prompt), frame)
                         for cue, frame in waiting]  # fmt: skip
        self._coming = [Event("visible", build(Cue, event["cue"]), event["chunk"]) for event in state["coming"]]
        path = state["path"]
        self._path = None if path is None else PromptPath(path["start_BLD"], path["goal_BLD"], tuple(path["shares"]))
