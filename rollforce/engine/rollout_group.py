"""The student's own streams: whole rollouts with gradient (`roll_out`), or groups kept running while it learns.

A rollout from the start for every update would spend eight calls on one gradient. Instead several groups of streams of
different age stay alive: an update makes one tick of one group with gradient, and that tick also moves the group on. So
the student always learns on what it really meets, at every noise level, and no call is wasted. Memory is kept across
updates, as in LongLive's streaming long tuning (Yang et al. 2025, 3.3), and a stream may get a new prompt on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Rollout
from rollforce.engine.settings import StreamSettings
from rollforce.engine.transitions import Recache
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import KVShape
from rollforce.models.transformer.transformer import Condition, Grid, VideoTransformer


def count_exits(rollout: Rollout) -> int:
    """Return how many choices there are for `exit`: the number of steps a latent goes down."""
    layout = rollout.layout
    return layout.slots // layout.shift * layout.ticks


def roll_out(rollout: Rollout, condition: Callable[[], Condition], exit: int, last: int | None = None) -> Tensor:
    """Walk a rollout of known length to its end; return the video [B, T, C, h, w] that the shown ticks estimate.

    `condition` makes the condition anew for each call with gradient, so that the text path learns too. `last`: only
    calls that reach into the last so many latents carry gradient (None: all).

    Deviations from the reference of Rolling Forcing: estimates are written also by calls without gradient (there they
    stay zero in videos longer than `last`), and `exit` is the caller's: draw it once for all processes."""
    if rollout.end is None:
        raise ConfigError("a self-rollout is walked to its end: give the Rollout a length.")
    layout, parts, window = rollout.layout, [], 0
    place, row = divmod(exit, layout.ticks)
    chunks = layout.slots // layout.shift
    while not rollout.done:
        shown = window % chunks == place and rollout.row == row
        learns = shown and (last is None or rollout.live[1] > rollout.end - last)
        if learns:
            with torch.enable_grad():
                rollout.condition = condition()
        clean = rollout.tick(with_grad=learns).clean_BTCHW
        if shown:
            parts.append(clean)
        stops = shown and chunks == 1
        window += rollout.row == layout.ticks or stops
        if stops:
            rollout.finish(clean)
        else:
            rollout.commit()
    return torch.cat(parts, dim=1)


class RolloutGroup:
    """A batch of streams with their own prompts, walked by the same Rollout that inference walks."""

    def __init__(self, student: VideoTransformer, settings: StreamSettings, text_BLD: Tensor, seeds: tuple[int, ...],
                 latent: tuple[int, int, int], prompts: tuple[str, ...] = (), behind: int | None = None) -> None:
        """Begin streams from encoded prompts `text_BLD`, with one of `seeds` each and latents of shape `latent`, (C, h,
        w). `prompts` are for rewards; `behind` (None: a chunk) finished latents come first in a tick's video."""
        layout = settings.layout.build()
        cache = settings.memory(cache_shape(student, len(seeds), latent), text_BLD.dtype, text_BLD.device)
        with torch.no_grad():
            condition = student.condition(text_BLD)
        self.text_BLD, self.prompts, self.seeds = text_BLD, prompts, seeds
        self.rollout = Rollout(student, condition, cache, layout, Noise.of(seeds, latent), settings.stepping)
        self.ticks, self.behind = 0, layout.shift if behind is None else behind
        self._behind: Tensor | None = None  # the latents just before the live slots, clean

    def tick(self) -> Tensor:
        """Make one tick with gradient. Return the video that it believes in, [B, T, C, h, w]: the latents behind (no
        gradient), then the clean estimates of all live slots."""
        rollout = self.rollout
        rollout.condition = rollout.model.condition(self.text_BLD)  # afresh: the weights have changed, and may learn
        clean = rollout.tick(with_grad=True).clean_BTCHW
        video = clean if self._behind is None else torch.cat([self._behind, clean], dim=1)
        if (finished := rollout.commit()) is not None and self.behind:
            past = [finished.latents_BTCHW] if self._behind is None else [self._behind, finished.latents_BTCHW]
            self._behind = torch.cat(past, dim=1)[:, -self.behind :]
        self.ticks += 1
        return video

    def switch(self, text_BLD: Tensor, prompts: tuple[str, ...] = ()) -> None:
        """Go on with new prompts as a session does: memory is made anew under them (LongLive), and what is in flight
        begins again. What lies behind is not judged any more: it is of the old prompts."""
        self.text_BLD, self.prompts, self._behind = text_BLD, prompts, None
        with torch.no_grad():
            Recache().begin(self.rollout, self.rollout.model.condition(text_BLD))

    def state_dict(self) -> dict[str, Any]:
        """Return all that `resume` needs besides the student."""
        return {"rollout": self.rollout.state_dict(), "ticks": self.ticks, "behind": self._behind,
                "length_behind": self.behind, "text": self.text_BLD, "seeds": list(self.seeds),
                "prompts": list(self.prompts)}

    @classmethod
    def resume(cls, student: VideoTransformer, settings: StreamSettings, latent: tuple[int, int, int],
               state: Mapping[str, Any]) -> RolloutGroup:  # fmt: skip
        """Return the group that a `state_dict` describes, going on."""
        seeds, prompts = tuple(state["seeds"]), tuple(state["prompts"])
        group = cls(student, settings, state["text"], seeds, latent, prompts, int(state["length_behind"]))
        group.rollout.load_state_dict(state["rollout"])
        group.ticks, group._behind = int(state["ticks"]), state["behind"]
        return group


def cache_shape(student: VideoTransformer, batch: int, latent: tuple[int, int, int]) -> KVShape:
    """Return the sizes of a memory for `batch` videos of latents of shape (C, h, w)."""
    channels, height, width = latent
    return student.config.shape(Grid(channels, height, width, student.config.patch), batch)
