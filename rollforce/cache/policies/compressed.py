"""Compressed: of what falls out of the window, the tokens that are asked for most (Deep Forcing, arXiv 2512.05081,
participative compression). No training is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rollforce.cache.commit_plan import Candidates, Role
from rollforce.cache.region import LayerCommit
from rollforce.cache.token_pool import TokenPool, Tokens, pick_best
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVShape


@dataclass(frozen=True)
class Compressed:
    """Keeps as many tokens as `latents` have, in the order of their time; at each commit those that fall compete with
    those that are held for their places. Every layer and every row of the batch chooses for itself.

    A token's score is the sum of its products with all queries of the committing chunk, over queries and heads (paper,
    participative compression); the queries are summed first, so it costs one product per token.

    `max_reuse`: compat switch. How often a token may be chosen; null as in the paper, 7 in the release. One that is
    spent stays only where no other would fill its place: then more than `max_reuse` chunks fit into `latents`.

    Deviations. The paper also asks the queries of the chunk that is being denoised; memory is written by clean passes
    only, so those are not there yet. The paper compresses when its cache of 21 latents is full, to 16; here every
    commit does, so the length never changes. The release never moves the chosen keys; here they stand and are scored
    where a call with `positions: realigned` sees them: at their own time, but none before the stretch of the last
    `latents` that fell. (The paper moves the block as a whole, so that old tokens would stand further back than any
    that the model was trained with.)"""

    latents: int
    max_reuse: int | None = None
    kind: Literal["compressed"] = "compressed"
    role: ClassVar[Role] = "past"

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise ConfigError(f"latents {self.latents} must be at least 1; without this tier nothing is compressed.")
        if self.max_reuse is not None and self.max_reuse < 1:
            raise ConfigError(f"max_reuse {self.max_reuse} must be at least 1, or null for no limit.")

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Keep all of them: `choose` decides by tokens."""
        return held.indices

    def region(self, shape: KVShape, dtype: torch.dtype, device: torch.device | str) -> TokenPool:
        return TokenPool(self, self.latents, shape, dtype, device, holes=False)

    def choose(self, held: Tokens, evicted: Tokens, commit: LayerCommit) -> Tokens:
        """Choose the tokens that are asked for most; `Tokens.mass` is 1 more than the times that a token was chosen."""
        both = held.append(evicted)
        lowest = evicted.index.amax(dim=1, keepdim=True) - (self.latents - 1)
        turned = rope.turn_each(both.key, both.index.clamp(min=lowest) - both.index)
        score = participation(commit.query, turned)
        if self.max_reuse is not None:
            score = score.masked_fill(both.mass > self.max_reuse, torch.finfo(score.dtype).min)
        kept = both.pick(pick_best(score, both.mass > 0, held.index.shape[1]))
        return replace(kept, mass=kept.mass + (kept.mass > 0))


def participation(query_BNLK: Tensor, key_BNLK: Tensor) -> Tensor:
    """Return how much these queries ask for each key, float32 [B, L]: the sum of products over queries and heads."""
    return torch.einsum("bnk,bnlk->bl", query_BNLK.float().sum(dim=2), key_BNLK.float())
