"""Arena: preallocated slots of all tiers that keep latents as they are, and behind them room for the call in flight.

Keys are rotated once, at their own stream index. A region that a policy moves in time (a sink) is turned from an
unturned master copy whenever its move changes, which is once per commit: turning in place would drift in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from rollforce.cache.commit_plan import LatentMerge, MergingTier, Place, Tier
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape


class Arena:
    """Per layer, keys and values [B, N, (capacity + flight) * tokens, K]."""

    def __init__(self, tiers: Sequence[Tier], shape: KVShape, flight: int, dtype: torch.dtype,
                 device: str | torch.device) -> None:  # fmt: skip
        self.shape, self.flight = shape, flight
        self.offset = {tier.kind: sum(t.latents for t in tiers[:i]) for i, tier in enumerate(tiers)}
        self.size = {tier.kind: tier.latents for tier in tiers}
        self.capacity = sum(self.size.values())
        length = (self.capacity + flight) * shape.tokens
        self.keys, self.values = ([torch.zeros(shape.of(layer, length), dtype=dtype, device=device)
                                   for layer in range(shape.layers)] for _ in range(2))  # fmt: skip
        # Unturned keys of regions that move; of merging ones also the values: in bfloat16 an average stands still.
        self.masters: dict[str, list[Tensor]] = {}
        self.exact: dict[str, list[Tensor]] = {}
        self.moves: dict[str, list[int]] = {tier.kind: [0] * shape.layers for tier in tiers}
        for tier in tiers:
            if isinstance(tier, MergingTier):
                part = self._span(tier.kind)
                for copies in (self.masters, self.exact):
                    copies[tier.kind] = [torch.zeros_like(keys[:, :, part], dtype=torch.float32) for keys in self.keys]

    @property
    def bytes(self) -> int:
        layers = (self.keys, self.values, *self.masters.values(), *self.exact.values())
        return sum(tensor.nbytes for tensor in chain(*layers))

    def slots(self, layer: int, first: int, stop: int) -> KVBlock:
        """Return slots `first` to `stop`, not copied."""
        part = slice(first * self.shape.tokens, stop * self.shape.tokens)
        return KVBlock(self.keys[layer][:, :, part], self.values[layer][:, :, part])

    def append(self, layer: int, used: int, own: KVBlock) -> int:
        """Write a call's own keys and values behind the used slots; return the slot after them."""
        start, count = used * self.shape.tokens, own.key.shape[2]
        self.keys[layer][:, :, start : start + count] = own.key
        self.values[layer][:, :, start : start + count] = own.value
        return used + count // self.shape.tokens

    def turn(self, layer: int, region: str, move: int) -> None:
        """Turn the keys of a region so that they stand `move` latents later than where they were made."""
        if self.moves[region][layer] == move:
            return
        part = self._span(region)
        if region not in self.masters:
            self.masters[region] = [keys[:, :, part].clone() for keys in self.keys]
        self.keys[layer][:, :, part] = rope.turn(self.masters[region][layer], move).to(self.keys[layer])
        self.moves[region][layer] = move

    def copy(self, layer: int, region: str, slot: int) -> KVBlock:
        """Return a copy of one latent's unturned keys and its values."""
        part, inside = self._slices((region, slot))
        key, value = (copies[region][layer][:, :, inside] if region in copies else shown[layer][:, :, part]
                      for copies, shown in ((self.masters, self.keys), (self.exact, self.values)))
        return KVBlock(key.clone(), value.clone())

    def write(self, layer: int, place: Place, latent: KVBlock) -> None:
        """Write one latent."""
        region, (part, inside) = place[0], self._slices(place)
        key, value, move = latent.key.detach(), latent.value.detach(), self.moves[region][layer]
        if region in self.masters:
            self.masters[region][layer][:, :, inside] = key
        if region in self.exact:
            self.exact[region][layer][:, :, inside] = value
        self.keys[layer][:, :, part] = rope.turn(key, move) if move else key
        self.values[layer][:, :, part] = value

    def merge(self, layer: int, merge: LatentMerge, left: KVBlock) -> None:
        """Average a latent into a kept one, its keys turned to where that one stands."""
        region, (part, inside) = merge.place[0], self._slices(merge.place)
        share, move = merge.tier.share(), self.moves[region][layer]
        moved = rope.turn(left.key.detach().float(), merge.kept - merge.index)
        key = self.masters[region][layer][:, :, inside].lerp_(moved, share)
        value = self.exact[region][layer][:, :, inside].lerp_(left.value.detach().float(), share)
        self.keys[layer][:, :, part] = (rope.turn(key, move) if move else key).to(self.keys[layer])
        self.values[layer][:, :, part] = value.to(self.values[layer])

    def _span(self, region: str) -> slice:
        low, tokens = self.offset[region], self.shape.tokens
        return slice(low * tokens, (low + self.size[region]) * tokens)

    def _slices(self, place: Place) -> tuple[slice, slice]:
        """A slot's tokens in the arena, and in its region."""
        (region, slot), tokens = place, self.shape.tokens
        low = self.offset[region]
        return (slice(slot * tokens, (slot + 1) * tokens), slice((slot - low) * tokens, (slot - low + 1) * tokens))

    def state_dict(self) -> dict[str, Any]:
        end = self.capacity * self.shape.tokens
        return {"keys": [keys[:, :, :end].clone() for keys in self.keys],
                "values": [values[:, :, :end].clone() for values in self.values],
                "masters": {name: [layer.clone() for layer in layers] for name, layers in self.masters.items()},
                "exact": {name: [layer.clone() for layer in layers] for name, layers in self.exact.items()},
                "shown": {name: list(moves) for name, moves in self.moves.items()}}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        end = self.capacity * self.shape.tokens
        for name, mine in (("keys", self.keys), ("values", self.values)):
            for layer, saved in zip(mine, state[name], strict=True):
                layer[:, :, :end] = saved
        device = self.keys[0].device
        self.masters, self.exact = ({name: [layer.to(device, copy=True) for layer in layers]
                                     for name, layers in state[part].items()} for part in ("masters", "exact"))
        self.moves = {name: [int(move) for move in moves] for name, moves in state["shown"].items()}
