"""Steering: the prompt of a stream, and what waits to change it. Told by anybody, asked between two chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from rollforce.config import build, to_dict
from rollforce.engine.noise import Noise
from rollforce.engine.quality import QualityLevel
from rollforce.engine.rollout import Rollout
from rollforce.engine.transitions import Blend, Keep, check, shares
from rollforce.errors import ConfigError
from rollforce.models.transformer.transformer import Condition
from rollforce.streaming.bundle import ModelBundle
from rollforce.streaming.events import Cue, Event


@dataclass(frozen=True, eq=False)
class PendingCue:
    """A cue that is not yet applied; `frame`: the first of a chunk that may be its own. None: of the next chunk."""

    cue: Cue
    text_BLD: Tensor | None  # the encoded prompt
    frame: int | None


@dataclass(frozen=True)
class PromptPath:
    """From one text to another: of the next chunk, and of those after it, which share of the way it has come."""

    start_BLD: Tensor
    goal_BLD: Tensor
    shares: tuple[float, ...]

    def text(self) -> Tensor:
        """Of the next chunk."""
        share = self.shares[0]
        return self.goal_BLD if share == 1 else self.start_BLD.lerp(self.goal_BLD, share)

    def rest(self) -> PromptPath | None:
        """After it."""
        return replace(self, shares=self.shares[1:]) if len(self.shares) > 1 else None


class Steering:
    """Cues of one stream. `add` may come from any thread; `step` comes between two chunks."""

    def __init__(
        self, model: ModelBundle, prompt: str, seed: int, cues: Sequence[Cue] = (), follows: bool = False
    ) -> None:
        """`follows`: the stream follows a video, which comes but once."""
        model.check_prompt(prompt)
        self.model, self.prompt, self.seed, self.follows = model, prompt, seed, follows
        self.text_BLD = self._encoded(prompt)
        self.rung: QualityLevel | None = None  # None: the stream as it is
        self.log: list[Cue] = []  # what was applied
        self._waiting: list[PendingCue] = []
        self._coming: list[Event] = []  # visible with a chunk that is still to come
        self._path: PromptPath | None = None
        self._lock = Lock()
        for cue in cues:
            self.add(cue)

    @torch.no_grad()
    def resume(self, rollout: Rollout) -> None:
        """Tell a rollout that was just restored what this holds."""
        assert isinstance(rollout.noise, Noise)
        rollout.condition, rollout.noise = self.condition(), replace(rollout.noise, seeds=(self.seed,))
        if self.rung is not None:
            self._stand_on(rollout, self.rung)

    def condition(self) -> Condition:
        """The prompt as the transformer needs it."""
        return self.model.transformer.condition(self.text_BLD)

    @property
    def cues(self) -> tuple[Cue, ...]:
        """Applied and waiting ones, by time: a stream that is given them renders to the same bytes."""
        return (*self.log, *(waiting.cue for waiting in self._waiting if waiting.frame is not None))

    # -- telling ------------------------------------------------------------------------------------------------

    def add(self, cue: Cue, now: bool = False) -> Event:
        """Take a cue: for its time, or (`now`) for the next chunk that is not begun. ConfigError if it cannot be."""
        self._check(cue)
        text = None if cue.prompt is None else self._encoded(cue.prompt)
        waiting = PendingCue(cue, text, None if now else round(cue.at * self.model.fps))
        with self._lock:
            self._waiting = sorted([*self._waiting, waiting], key=lambda each: -1 if each.frame is None else each.frame)
        return Event("accepted", cue)

    def _check(self, cue: Cue) -> None:
        if cue.prompt is not None:
            self.model.check_prompt(cue.prompt)
        check(cue.transition, self.model.stream_settings.tiers, self.follows)
        if self.follows and (cue.seed is not None or cue.rung is not None):
            raise ConfigError("a stream that follows a video cannot begin anew, with another seed or on another rung.")
        if cue.rung is not None:
            cue.rung.on(self.model.stream_settings)

    def _encoded(self, prompt: str) -> Tensor:
        with torch.no_grad():
            return self.model.text.encode([prompt]).to(self.model.device, self.model.dtype)

    # -- between two chunks -------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, rollout: Rollout, chunk: int, frame: int) -> tuple[Event, ...]:
        """Apply what is due before the chunk whose first frame is `frame`; what became of it."""
        due, events = self._due(frame), []
        prompts = [waiting for waiting in due if waiting.cue.prompt is not None]
        if self._path is not None and not prompts:
            self._walk(self._path)
            rollout.condition = self.condition()
        for waiting in due:
            cue = replace(waiting.cue, at=frame / self.model.fps)
            if waiting in prompts[:-1]:
                events.append(Event("replaced", cue, chunk))
                continue
            if cue.rung is not None:
                self._change_pace(rollout, cue.rung)
                events.append(Event("pace", cue, chunk))
            if cue.seed is not None:
                self._reseed(rollout, cue.seed)
            if waiting in prompts:  # the one before, if it is still to be seen, will not be
                self._coming = [event for event in self._coming if event.cue.prompt is None]
            visible = chunk + (self._turn(rollout, waiting) if waiting in prompts else 0)
            self.log.append(cue)
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

    def _change_pace(self, rollout: Rollout, rung: QualityLevel) -> None:
        """Where latents are in flight that another layout has no place for, what is in flight begins anew."""
        before, self.rung = rollout.layout, rung
        self._stand_on(rollout, rung)
        if rollout.layout != before and before.slots > before.shift:
            rollout.restart()

    def _stand_on(self, rollout: Rollout, rung: QualityLevel) -> None:
        settings = rung.on(self.model.stream_settings)
        rollout.layout, rollout.stepping = settings.layout.build(), settings.stepping

    def _due(self, frame: int) -> list[PendingCue]:
        with self._lock:
            due = [each for each in self._waiting if each.frame is None or each.frame <= frame]
            self._waiting = [each for each in self._waiting if each not in due]
        return due

    def _turn(self, rollout: Rollout, waiting: PendingCue) -> int:
        """Go over to a new prompt; after how many chunks it will be visible."""
        cue = waiting.cue
        assert cue.prompt is not None and waiting.text_BLD is not None
        path = PromptPath(self.text_BLD, waiting.text_BLD, shares(cue.transition))
        self._walk(path)
        self.prompt = cue.prompt
        cue.transition.begin(rollout, self.condition())
        flying = rollout.layout.slots // rollout.layout.shift - 1
        return len(path.shares) - 1 + (flying if isinstance(cue.transition, Keep | Blend) else 0)

    def _walk(self, path: PromptPath) -> None:
        self.text_BLD, self._path = path.text(), path.rest()

    # -- saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model."""
        path = self._path
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "rung": to_dict(self.rung),
            "text": self.text_BLD.clone(),
            "log": [to_dict(cue) for cue in self.log],
            "waiting": [{"cue": to_dict(each.cue), "frame": each.frame} for each in self._waiting],
            "coming": [{"cue": to_dict(event.cue), "chunk": event.chunk} for event in self._coming],
            "path": None if path is None else {**vars(path)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a stream of the same model."""
        self.prompt, self.seed, self.text_BLD = state["prompt"], int(state["seed"]), state["text"]
        self.rung = None if state["rung"] is None else build(QualityLevel, state["rung"])
        self.log = [build(Cue, cue) for cue in state["log"]]
        waiting = [(build(Cue, each["cue"]), each["frame"]) for each in state["waiting"]]
        self._waiting = [PendingCue(cue, None if cue.prompt is None else self._encoded(cue.prompt), frame)
                         for cue, frame in waiting]  # fmt: skip
        self._coming = [Event("visible", build(Cue, event["cue"]), event["chunk"]) for event in state["coming"]]
        path = state["path"]
        self._path = None if path is None else PromptPath(path["start_BLD"], path["goal_BLD"], tuple(path["shares"]))
