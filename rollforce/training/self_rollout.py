"""Self-rollouts: the student makes a video the way it will at inference, and some of its calls carry gradient.

One walk serves every layout. The ticks of a stream are numbered by how far the first live latent is down the ladder;
those with number `exit` show their clean estimates, and together they cover each latent once:

    chunkwise    Self Forcing (Huang et al. 2025, 3.2): each chunk stops at step `exit` and that estimate is committed
    rolling      Rolling Forcing (Liu et al. 2025, 3.3): every S-th window; a patchwork of all noise levels
    partitioned  StreamDiT (Kodaira et al. 2025): the same with several ticks between two commits
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rollforce.engine.rollout import Rollout
from rollforce.errors import ConfigError
from rollforce.models.transformer.transformer import Condition


def count_exits(rollout: Rollout) -> int:
    """Return how many choices there are for `exit`: the number of steps a latent goes down."""
    layout = rollout.layout
    return layout.slots // layout.shift * layout.ticks


def roll_out(rollout: Rollout, condition: Callable[[], Condition], exit: int, last: int | None = None) -> Tensor:
    """Walk a rollout of known length to its end; return the video [B, T, C, h, w] that the shown ticks estimate.

    `condition` makes the condition anew for each call with gradient, so that the text path learns too. `last`: only
    calls that reach into the last so many latents carry gradient (None: all).

    Deviations from the reference of Rolling Forcing: estimates are written also by calls without gradient (there they
    stay zero in videos longer than `last`), and `exit` is the caller's: draw it once for all processes.
    """
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
