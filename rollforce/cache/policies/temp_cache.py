"""TempCache: what corresponds over time becomes one token (FAST-AR, arXiv 2602.01801; no code was released)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from rollforce.cache.commit_plan import Candidates, Role, check_lowest
from rollforce.cache.region import LayerCommit
from rollforce.cache.token_pool import TokenPool, Tokens
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVShape


@dataclass(frozen=True)
class TempCache:
    """Tokens in room for `latents`; one that falls and is more similar than `tau` to a held one is merged into it.

    Of those merged, the key and index of the newest, the mean of the values, and the count as mass: its logarithm is
    added to the logits, so that where keys are the same attention is that of all of them (the paper's lemma 5.1).
    A token that is similar to none is appended; where there is no room, the held token of the lowest mass goes, the
    oldest of those first.

    Chosen by us, since the paper leaves it open: similarity is the cosine of keys without their rotation in time, as a
    mean over heads, so that all heads merge alike; it is looked for exactly (the paper: by hashing or 8-bit codes, of
    which this is recall 1), latent by latent, so that tokens of one latent never merge with each other, and of several
    that meet the same held one all values count and the last one's key stays. The paper's cache has no cap. The latent
    that falls is never evicted for itself, else tokens of low mass could not enter. `heaviest`: a token stands for at
    most so many, whatever was merged into it, so that a long past cannot outweigh the present, and its value goes on
    moving (None, the paper: no limit; in bfloat16 the mean then stands still after some hundreds)."""

    latents: int
    tau: float = 0.9
    heaviest: int | None = None
    kind: Literal["tempcache"] = "tempcache"
    role: ClassVar[Role] = "past"

    def __post_init__(self) -> None:
        check_lowest(self, latents=1)
        if self.heaviest is not None and self.heaviest < 1:
            raise ConfigError(f"tempcache.heaviest {self.heaviest} must be at least 1, or null for no limit.")

    def keep(self, held: Candidates) -> tuple[int, ...]:
        return held.indices[-self.latents :]

    def region(self, shape: KVShape, dtype: torch.dtype, device: torch.device | str) -> TokenPool:
        return TokenPool(self, self.latents, shape, dtype, device, holes=True)

    def choose(self, held: Tokens, evicted: Tokens, commit: LayerCommit) -> Tokens:
        count = len(held.key[0, 0]) // self.latents  # tokens of a latent
        for at in range(0, evicted.index.shape[1], count):
            part = slice(at, at + count)
            held = self._merge(held, Tokens(evicted.key[:, :, part], evicted.value[:, :, part], evicted.index[:, part],
                                            evicted.mass[:, part]))  # fmt: skip
        return held

    def _merge(self, held: Tokens, latent: Tokens) -> Tokens:
        """Take in one latent."""
        similar = _timeless(latent) @ _timeless(held).transpose(1, 2) / held.key.shape[1]  # [B, new, held]
        best, place = similar.masked_fill(held.mass[:, None] == 0, -torch.inf).max(dim=2)
        hit = best > self.tau
        meets = (place[..., None] == torch.arange(held.mass.shape[1], device=place.device)) & hit[..., None]
        merged = _merged(held, latent, meets)
        if self.heaviest is not None:
            merged = replace(merged, mass=merged.mass.clamp(max=self.heaviest))
        return _capped(merged, replace(latent, mass=latent.mass * ~hit))


def _timeless(tokens: Tokens) -> Tensor:
    """Keys of length 1 without their rotation in time, heads side by side: [B, L, N * K], float32."""
    key = rope.turn_each(tokens.key.float(), -tokens.index)
    return rearrange(normalize(key, dim=-1), "b n l k -> b l (n k)")


def _merged(held: Tokens, latent: Tokens, meets: Tensor) -> Tokens:
    """`meets` [B, new, held]: whether a new token is merged into a held one. Matrix products add in a fixed order."""
    share = (meets * latent.mass[..., None]).transpose(1, 2)  # [B, held, new]
    mass = held.mass + share.sum(dim=2)
    met = meets.any(dim=1)
    order = torch.arange(meets.shape[1], device=meets.device)[:, None]
    last = latent.pick((meets * order).amax(dim=1))
    sums = held.value.float() * held.mass[:, None, :, None] + share[:, None] @ latent.value.float()
    mean = (sums / mass.clamp(min=1)[:, None, :, None]).to(held.value)
    wide = met[:, None, :, None]
    return Tokens(torch.where(wide, last.key, held.key), torch.where(wide, mean, held.value),
                  torch.where(met, last.index, held.index), mass)  # fmt: skip


def _capped(held: Tokens, latent: Tokens) -> Tokens:
    """Held tokens and the new ones with mass, as many as were held: of the held, the heaviest, the newest of them."""
    both = held.append(latent)
    worth = torch.cat([held.mass, torch.where(latent.mass > 0, torch.inf, 0.0)], dim=1)
    newest = both.index.argsort(dim=1, descending=True, stable=True)
    order = worth.gather(1, newest).argsort(dim=1, descending=True, stable=True)
    return both.pick(newest.gather(1, order)[:, : held.mass.shape[1]])
