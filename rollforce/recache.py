"""Recache: memory made anew when the prompt changes, so that the past speaks for the new one (LongLive, 2509.22622).

Keys and values were computed under the old prompt and pull the stream back to it. The newest clean latents are run
through the network again, under the new condition, and take the place of what memory held of them. What is older (a
sink) stays as it is.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from rollforce.cache.cache import Group
from rollforce.models.transformer import Condition
from rollforce.rollout import Rollout
from rollforce.types import index_range

PROTECTED = ("sink", "ema_sink", "junction", "routed")  # regions that stay as they are


@torch.no_grad()
def recache(rollout: Rollout, condition: Condition, together: bool = False) -> None:
    """Give a rollout, between two chunks, a new condition and a memory that was made under it.

    `together`: all latents in one call that see each other, as LongLive's release does it; else chunk by chunk, each
    seeing those before it, as the stream itself would have made them. Noise in flight stays as it is.
    """
    rollout.condition = condition
    recent, cache = rollout.recent, rollout.cache
    if recent is None:
        return
    kept = [*PROTECTED, *cache.regions]
    replayed = sorted(index for region, held in cache.held().items() if region not in kept for index in held)
    replayed = [index for index in replayed if index >= recent.start]  # what is older cannot be made again
    if not replayed:
        return
    cache.retain(lambda region, index: region in kept or index < recent.start)
    chunk, first = rollout.layout.shift, replayed[0]
    lead = len(replayed) if together else len(replayed) % chunk or chunk
    cuts = [first, *range(first + lead, recent.stop + 1, chunk)]
    for low, high in pairwise(cuts):
        x = recent.latents_BTCHW[:, low - recent.start : high - recent.start]
        sigma = torch.full(x.shape[:2], rollout.stepping.context_sigma, device=x.device)
        rollout.call(x, sigma, index_range(low, high - low), [Group(low, high - low, rollout.stepping.commit, True)])

