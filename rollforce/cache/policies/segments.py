"""Segments: of the past, the pieces of the picture that change (Forcing-KV, dynamic heads' memory)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from rollforce.cache.commit_plan import Candidates, Role, check_lowest
from rollforce.cache.region import LayerCommit
from rollforce.cache.token_pool import TokenPool, Tokens, pick_best
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import KVShape

NOTE = "segments"  # of a commit, for the later layers
CHANGES = -2.0  # of what nothing follows yet: below every cosine, so that it stays


@dataclass(frozen=True)
class Segments:
    """Keeps, of the latents that fall with a commit, cut into `segments` runs of tokens each, those least alike (cosine
    of keys, averaged over tokens) to the same run of the next latent: `latents` x `segments` runs.

    What was kept before is forgotten: memory reaches back one commit. The choice made in `layer` (or the first later
    one that has heads here) serves all later layers, which need not compare; earlier layers choose for themselves.

    Deviations from the release: each row of a batch chooses for itself (there, row 0 for all); tokens stand where
    `positions` says (there, at their own index without bound); where less falls than there is room for, the newest of
    what was kept before fills it, so that the number of tokens seen never changes."""

    latents: int
    segments: int = 6
    layer: int = 1
    kind: Literal["segments"] = "segments"
    role: ClassVar[Role] = "past"

    def __post_init__(self) -> None:
        check_lowest(self, latents=1, segments=1, layer=0)

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Keep none as they are."""
        return ()

    def region(self, shape: KVShape, dtype: torch.dtype, device: torch.device | str) -> TokenPool:
        """Return an empty pool. ConfigError if a latent's tokens cannot be cut evenly."""
        if shape.tokens % self.segments:
            fits = [n for n in range(1, shape.tokens + 1) if not shape.tokens % n]
            near = min(fits, key=lambda n: abs(n - self.segments))
            raise ConfigError(f"segments {self.segments}: a latent of {shape.tokens} tokens cannot be cut evenly. "
                              f"Nearest: {near}.")  # fmt: skip
        return TokenPool(self, self.latents, shape, dtype, device, holes=False)

    def choose(self, held: Tokens, evicted: Tokens, commit: LayerCommit) -> Tokens:
        """Choose the least alike of `evicted` in the order of time, and after them what is left of `held`."""
        places, tokens = held.index.shape[1], held.index.shape[1] // self.latents
        room = min(places, evicted.index.shape[1])
        run = tokens // self.segments
        if commit.layer <= self.layer or (chosen := commit.notes.get(NOTE)) is None:
            after = None if commit.after is None else commit.after.key
            chosen = least_alike(evicted.key, after, tokens, self.segments, room // run)
            if commit.layer >= self.layer:
                commit.notes[NOTE] = chosen
        within = torch.arange(run, device=chosen.device)
        new = evicted.pick((chosen[:, :, None] * run + within).flatten(1))
        return new.append(held.pick(pick_best(held.index, held.mass > 0, places - room)))


def least_alike(key_BNLK: Tensor, after_BNLK: Tensor | None, tokens: int, segments: int, count: int) -> Tensor:
    """Return, for each row, the `count` runs of tokens that are least like the same run of the next latent. `after`:
    the latent that follows; where there is none, the newest is like nothing. Returns [B, count], rising."""
    frames = _latents(key_BNLK, tokens)
    later = frames[:, 1:] if after_BNLK is None else torch.cat([frames[:, 1:], _latents(after_BNLK, tokens)], dim=1)
    alike = F.cosine_similarity(frames[:, : later.shape[1]].float(), later.float(), dim=-1)
    score, alone = reduce(alike, "b t (s l) -> b t s", "mean", s=segments), frames.shape[1] - later.shape[1]
    order = F.pad(score, (0, 0, 0, alone), value=CHANGES).flatten(1).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values


def _latents(key_BNLK: Tensor, tokens: int) -> Tensor:
    """Return the keys of each latent and token, those of all heads side by side: [B, T, tokens, N x K]."""
    return rearrange(key_BNLK, "b n (t l) k -> b t l (n k)", l=tokens)
