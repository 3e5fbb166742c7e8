"""Pool: a region of single tokens that were chosen or merged on the device, each with its own time.

A tier says what becomes of them (`TokenTier.choose`, a pure function of tensors); the pool keeps them, and turns them
to where a call wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rollforce.cache.commit_plan import Tier
from rollforce.cache.region import BiasedKV, Evicted, LayerCommit, Placement
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVShape


@dataclass(frozen=True)
class Tokens:
    """Keys (turned at their own index) and values [B, N, L, K]; stream index [B, L]; mass [B, L]: how many tokens each
    stands for, 0 for an empty place. A pool without holes only asks whether it is 0: its tier may count in it."""

    key: Tensor
    value: Tensor
    index: Tensor
    mass: Tensor

    def pick(self, which_BL: Tensor) -> Tokens:
        """Return these tokens of each row, in this order."""
        spread = which_BL[:, None, :, None].expand(-1, self.key.shape[1], -1, self.key.shape[3])
        return Tokens(self.key.gather(2, spread), self.value.gather(2, spread),
                      self.index.gather(1, which_BL), self.mass.gather(1, which_BL))  # fmt: skip

    def append(self, other: Tokens) -> Tokens:
        """Return these tokens, then the other ones."""
        return Tokens(torch.cat([self.key, other.key], 2), torch.cat([self.value, other.value], 2),
                      torch.cat([self.index, other.index], 1), torch.cat([self.mass, other.mass], 1))  # fmt: skip


def pick_best(score_BL: Tensor, filled_BL: Tensor, count: int) -> Tensor:
    """Return the `count` filled places of the highest score of each row, in their order, empty ones last: indices
    [B, count]. Of equal ones the first is taken."""
    ranked = score_BL.double().masked_fill(~filled_BL, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = ranked[:, :count]
    order = chosen.where(filled_BL.gather(1, chosen), filled_BL.shape[1]).argsort(dim=1, stable=True)
    return chosen.gather(1, order)


class TokenTier(Tier, Protocol):
    """A tier of chosen tokens."""

    def choose(self, held: Tokens, evicted: Tokens, commit: LayerCommit) -> Tokens:
        """Return what is held after a commit: as many tokens as before, empty places last."""


class TokenPool:
    """The Region of a TokenTier: `latents` x tokens places. `holes`: whether places may stay empty, or tokens stand for
    several, once so many latents fell; then each call needs a bias, which not every attention kernel takes. `packed`:
    whole latents that stand side by side, whatever time passed between them, the last one where the region ends; else
    each token stands at its own time."""

    def __init__(self, tier: TokenTier, latents: int, shape: KVShape, dtype: torch.dtype, device: torch.device | str,
                 holes: bool, packed: bool = False) -> None:  # fmt: skip
        self.tier, self.shape, self.holes, self.packed = tier, shape, holes, packed
        length = latents * shape.tokens
        places = (shape.batch, length)
        self.held = []
        for layer in range(shape.layers):
            key, value = (torch.zeros(shape.of(layer, length), dtype=dtype, device=device) for _ in range(2))
            index, mass = torch.zeros(places, dtype=torch.int64, device=device), torch.zeros(places, device=device)
            self.held.append(Tokens(key, value, index, mass))
        self._turned: list[tuple[Placement, Tensor] | None] = [None] * shape.layers

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for held in self.held  # keys twice: as made, as shown
                   for x in (held.key, held.key, held.value, held.index, held.mass))

    def absorb(self, evicted: Evicted, commit: LayerCommit) -> None:
        held, tokens = self.held[commit.layer], self.shape.tokens
        index = torch.tensor(evicted.indices, device=held.index.device).repeat_interleave(tokens)
        block = Tokens(evicted.block.key.to(held.key), evicted.block.value.to(held.value),
                       index.expand(self.shape.batch, -1), torch.ones_like(index, dtype=torch.float32)
                       .expand(self.shape.batch, -1))  # fmt: skip
        self.held[commit.layer] = self.tier.choose(held, block, commit)
        self._turned[commit.layer] = None

    def read(self, layer: int, placement: Placement) -> BiasedKV | None:
        held, count = self.held[layer], min(placement.filled * self.shape.tokens, self.held[layer].index.shape[1])
        turned = self._turned[layer]
        if turned is None or turned[0] != placement:
            turned = self._turned[layer] = (placement, rope.turn_each(held.key, self._turns(held, placement)))
        if self.holes:
            return BiasedKV(turned[1], held.value, held.mass.log()[:, None, None])
        return BiasedKV(turned[1][:, :, :count], held.value[:, :, :count])

    def _turns(self, held: Tokens, placement: Placement) -> Tensor:
        if not self.packed or placement.lowest is None:
            return placement.turns(held.index)
        place = torch.arange(held.index.shape[1], device=held.index.device) // self.shape.tokens
        latents = (held.mass > 0).sum(dim=1, keepdim=True) // self.shape.tokens
        return placement.lowest + placement.filled - latents + place - held.index

    def state_dict(self) -> dict[str, Any]:
        return {name: [getattr(held, name).clone() for held in self.held] for name in ("key", "value", "index", "mass")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.held[0].key.device
        parts = zip(state["key"], state["value"], state["index"], state["mass"], strict=True)
        self.held = [Tokens(*(tensor.to(device, copy=True) for tensor in part)) for part in parts]
        self._turned = [None] * self.shape.layers
