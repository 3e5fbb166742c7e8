"""Surprising: of what falls out of the window, the latents that brought something new (Context Forcing, arXiv
2602.06028, slow-fast memory)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rollforce.cache.commit_plan import Candidates, Role, check_lowest
from rollforce.cache.region import LayerCommit
from rollforce.cache.token_pool import TokenPool, Tokens, pick_best
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVShape


@dataclass(frozen=True)
class Surprising:
    """Keeps the newest `latents` of those that surprised; a full memory lets its oldest go. The window is the fast
    memory, this is the slow one. Every layer and every row of the batch decides for itself.

    A latent surprises if the mean of its keys has a cosine below `tau` to that of the last one kept, and at least
    `interval` latents lie between them; where nothing is kept yet, the cosine counts as -1. Keys are compared without
    their rotation in time: the same picture, later, is no surprise. Their rotation in space stays, since it is the same
    for all latents.

    Latents stand side by side and end where the window begins, whatever time passed between them, so with
    `positions: {kind: anchored, ...}` no place lies outside of the trained range.

    Deviations. It is decided when a latent leaves the window, by its clean keys: no latent is in both memories, and the
    number of denoising steps does not matter. The release decides in each call, so that its slow memory may hold keys
    of a noisy step, and overwrites what it compares with in each call, so that it compares steps of one chunk. Its
    threshold is met by the mean over the batch and by chunks, of which it keeps the first latent; here by latents. The
    paper looks at every `interval`-th latent of the stream, here the interval starts at the last one kept; with it at
    a multiple of the chunk and tau > 1 that is one place in the chunk as well."""

    latents: int
    tau: float = 0.95
    interval: int = 6
    kind: Literal["surprising"] = "surprising"
    role: ClassVar[Role] = "past"

    def __post_init__(self) -> None:
        check_lowest(self, latents=1, interval=1)

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Keep all of them: `choose` decides by keys."""
        return held.indices

    def region(self, shape: KVShape, dtype: torch.dtype, device: torch.device | str) -> TokenPool:
        return TokenPool(self, self.latents, shape, dtype, device, holes=True, packed=True)

    def choose(self, held: Tokens, evicted: Tokens, commit: LayerCommit) -> Tokens:
        tokens = held.index.shape[1] // self.latents
        news = self.surprises(held, evicted, tokens).repeat_interleave(tokens, dim=1)
        both = held.append(replace(evicted, mass=evicted.mass * news))
        index, mass = both.index[:, ::tokens], both.mass[:, ::tokens]
        return both.pick(_tokens(pick_best(index, mass > 0, self.latents), tokens))

    def surprises(self, held: Tokens, evicted: Tokens, tokens: int) -> Tensor:
        """Return which of the evicted latents, oldest first, surprised: bool [B, T]."""
        count = (held.mass[:, ::tokens] > 0).sum(dim=1, keepdim=True)
        newest = held.pick(_tokens((count - 1).clamp(min=0), tokens))
        known, last, reference = count[:, 0] > 0, newest.index[:, 0], summary(newest.key, newest.index)
        found = []
        for at in range(0, evicted.index.shape[1], tokens):
            part = slice(at, at + tokens)
            index, mean = evicted.index[:, at], summary(evicted.key[:, :, part], evicted.index[:, part])
            cosine = F.cosine_similarity(mean, reference, dim=1).where(known, -1.0)
            new = (~known | (index - last >= self.interval)) & (cosine < self.tau)
            known, last, reference = known | new, index.where(new, last), mean.where(new[:, None], reference)
            found.append(new)
        return torch.stack(found, dim=1)


def summary(key_BNLK: Tensor, index_BL: Tensor) -> Tensor:
    """Return the mean key of each row without its rotation in time, all heads in one: float32 [B, N * K]."""
    return rope.turn_each(key_BNLK.float(), -index_BL).mean(dim=2).flatten(1)


def _tokens(latents_BT: Tensor, tokens: int) -> Tensor:
    """The places of the tokens of some latents: [B, T * tokens]."""
    inside = torch.arange(tokens, device=latents_BT.device)
    return (latents_BT[:, :, None] * tokens + inside).flatten(1)
