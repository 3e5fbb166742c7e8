"""KVCache: one preallocated arena per layer, written at commit and only then.

The arena holds latents in slots, one range of slots per tier, and behind them room for the call in flight. Attention
does not care for the order of keys, so a slot is used again as soon as its latent falls (a ring), and when a call
sees all that is held, it reads one contiguous slice [sink | window | own] and nothing is ever moved or concatenated.

Keys are rotated once, at their own stream index. A region that a policy moves in time (a sink) is turned from an
unturned master copy whenever its move changes, which is once per commit: turning in place would drift in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rollforce import rope
from rollforce.cache.ema import EmaSink
from rollforce.cache.plan import Fold, Folding, Place, Plan, Slots, Tier, planned
from rollforce.cache.sight import Sight
from rollforce.cache.sink import Sink
from rollforce.cache.window import Window
from rollforce.errors import ConfigError
from rollforce.positions import positions
from rollforce.types import KVBlock

AnyTier = Sink | EmaSink | Window  # the union is the registry: a new tier is a file and a name here


@dataclass(frozen=True)
class Shape:
    """Sizes of the arena: one slot is one latent of `tokens` keys for `heads` heads of `width` channels."""

    layers: int
    batch: int
    heads: int
    tokens: int
    width: int


@dataclass(frozen=True)
class Group:
    """Consecutive latents of one call that see the same: `start` is the stream index of the first."""

    start: int
    latents: int
    sight: Sight
    commit: bool = False


@dataclass(frozen=True)
class View:
    """What a group sees, as slots and moves. `dense`: all used slots from the first visible one: one slice."""

    slots: tuple[int, ...]
    moves: tuple[tuple[str, int], ...]
    dense: bool


class KVCache:
    """Keys and values of the past, for all layers of one batch of streams."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        shape: Shape,
        flight: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """`flight`: the largest number of latents in one group of a call."""
        names = [tier.kind for tier in tiers]
        if len(set(names)) != len(names):
            raise ConfigError(f"cache {names}: each kind of tier may appear once.")
        self.tiers, self.shape, self.flight = tuple(tiers), shape, flight
        self.offset = {tier.kind: sum(t.latents for t in tiers[:i]) for i, tier in enumerate(tiers)}
        self.capacity = sum(tier.latents for tier in tiers)
        size = (shape.layers, shape.batch, shape.heads, (self.capacity + flight) * shape.tokens, shape.width)
        self.keys, self.values = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
        # Unturned keys of regions that move; of folding ones also the values: in bfloat16 an average stands still.
        self.masters: dict[str, Tensor] = {}
        self.exact: dict[str, Tensor] = {}
        self.slot_of: Slots = {name: {} for name in names}
        self.shown: dict[str, list[int]] = {name: [0] * shape.layers for name in names}
        for tier in tiers:
            if isinstance(tier, Folding):
                part = self._region(tier.kind)
                self.masters[tier.kind] = torch.zeros_like(self.keys[:, :, :, part], dtype=torch.float32)
                self.exact[tier.kind] = torch.zeros_like(self.masters[tier.kind])

    # -- what is held -------------------------------------------------------------------------------------------

    def held(self) -> dict[str, tuple[int, ...]]:
        """Of each region, the stream indices held, rising."""
        return {name: tuple(sorted(slots)) for name, slots in self.slot_of.items()}

    @property
    def used(self) -> int:
        """Slots in use; they always form a prefix of the arena unless a tier before a fuller one has room."""
        return sum(len(slots) for slots in self.slot_of.values())

    @property
    def bytes(self) -> int:
        tensors = (self.keys, self.values, *self.masters.values(), *self.exact.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def view(self, group: Group) -> View:
        """What `group` sees now."""
        visible = group.sight.visible(self.held(), group.latents)
        slots = tuple(sorted(self.slot_of[name][index] for name, held in visible.items() for index in held))
        moves = positions(group.sight.positions)(visible, group.start)
        first = slots[0] if slots else self.used
        dense = slots == tuple(range(first, self.used)) and self._prefix()
        return View(slots, tuple((name, moves.get(name, 0)) for name, held in visible.items() if held), dense)

    def _prefix(self) -> bool:
        taken = sorted(slot for slots in self.slot_of.values() for slot in slots.values())
        return taken == list(range(self.used))

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, layer: int, view: View, own: KVBlock) -> KVBlock:
        """The visible past followed by the call's own keys and values.

        Without gradient and with a dense view this is a slice of the arena: own keys are laid behind the used slots.
        With gradient, or where a call is larger than the room for it, it is a copy; the past carries no gradient.
        """
        for region, move in view.moves:
            self._show(layer, region, move)
        tokens, start = self.shape.tokens, self.used * self.shape.tokens
        fits = own.key.shape[2] <= self.flight * tokens
        if view.dense and fits and not torch.is_grad_enabled():
            stop = start + own.key.shape[2]
            first = (view.slots[0] if view.slots else self.used) * tokens
            self.keys[layer, :, :, start:stop], self.values[layer, :, :, start:stop] = own.key, own.value
            return KVBlock(self.keys[layer, :, :, first:stop], self.values[layer, :, :, first:stop])
        past = [slice(low * tokens, high * tokens) for low, high in _runs(view.slots)]
        return KVBlock(
            torch.cat([*(self.keys[layer, :, :, part] for part in past), own.key], dim=2),
            torch.cat([*(self.values[layer, :, :, part] for part in past), own.value], dim=2),
        )

    def _show(self, layer: int, region: str, move: int) -> None:
        """Turn the keys of a region so that they stand `move` latents later than where they were made."""
        if self.shown[region][layer] == move:
            return
        part = self._region(region)
        if region not in self.masters:
            self.masters[region] = self.keys[:, :, :, part].clone()
        self.keys[layer, :, :, part] = rope.turn(self.masters[region][layer], move).to(self.keys)
        self.shown[region][layer] = move

    def _region(self, region: str) -> slice:
        low = self.offset[region]
        size = next(tier.latents for tier in self.tiers if tier.kind == region)
        return slice(low * self.shape.tokens, (low + size) * self.shape.tokens)

    # -- writing ------------------------------------------------------------------------------------------------

    def plan(self, start: int, latents: int) -> Plan:
        """What will happen, and where everything will be, when `latents` from `start` on are committed."""
        return planned(self.tiers, self.offset, self.slot_of, start, latents)

    def write(self, layer: int, own: KVBlock, start: int, plan: Plan) -> None:
        """Carry out a plan in one layer: lay down what comes, with the commit or from the tier above, and average what
        leaves a folding tier. `own`: keys and values of the committed latents, from `start` on."""

        def latent(index: int, source: Place | None) -> KVBlock:
            if source is not None:
                return self._taken(layer, *source)
            return own.latents(index - start, index - start + 1, self.shape.tokens)

        laid = [(lay, latent(lay.index, lay.source)) for lay in plan.lays]  # all is read before anything is written
        folded = [(fold, latent(fold.index, fold.source)) for fold in plan.folds]
        for lay, block in laid:
            self._lay(layer, lay.place, block)
        for fold, block in folded:
            self._mix(layer, fold, block)

    def _where(self, place: Place) -> tuple[slice, slice]:
        """A slot's tokens in the arena, and in its region."""
        region, slot = place
        tokens, low = self.shape.tokens, self.offset[region]
        return (slice(slot * tokens, (slot + 1) * tokens), slice((slot - low) * tokens, (slot - low + 1) * tokens))

    def _taken(self, layer: int, region: str, slot: int) -> KVBlock:
        """A copy of one latent's unturned keys and its values."""
        place, inside = self._where((region, slot))
        keys = self.masters[region][:, :, :, inside] if region in self.masters else self.keys[:, :, :, place]
        values = self.exact[region][:, :, :, inside] if region in self.exact else self.values[:, :, :, place]
        return KVBlock(keys[layer].clone(), values[layer].clone())

    def _lay(self, layer: int, target: Place, latent: KVBlock) -> None:
        region, (place, inside) = target[0], self._where(target)
        key, value, shown = latent.key.detach(), latent.value.detach(), self.shown[region][layer]
        if region in self.masters:
            self.masters[region][layer, :, :, inside] = key
        if region in self.exact:
            self.exact[region][layer, :, :, inside] = value
        self.keys[layer, :, :, place] = rope.turn(key, shown) if shown else key
        self.values[layer, :, :, place] = value

    def _mix(self, layer: int, fold: Fold, left: KVBlock) -> None:
        """Average a latent into a kept one, its keys turned to where that one stands."""
        region, (place, inside) = fold.place[0], self._where(fold.place)
        share, shown = fold.tier.share(), self.shown[region][layer]
        moved = rope.turn(left.key.detach().float(), fold.kept - fold.index)
        key = self.masters[region][layer, :, :, inside].lerp_(moved, share)
        value = self.exact[region][layer, :, :, inside].lerp_(left.value.detach().float(), share)
        self.keys[layer, :, :, place] = (rope.turn(key, shown) if shown else key).to(self.keys)
        self.values[layer, :, :, place] = value.to(self.values)

    def adopt(self, plan: Plan) -> None:
        """Make a plan the truth. Plans are never changed in place."""
        self.slot_of = plan.slots

    # -- saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a stream needs to go on: tensors and plain numbers."""
        return {
            "keys": self.keys[:, :, :, : self.capacity * self.shape.tokens].clone(),
            "values": self.values[:, :, :, : self.capacity * self.shape.tokens].clone(),
            "masters": {name: master.clone() for name, master in self.masters.items()},
            "exact": {name: values.clone() for name, values in self.exact.items()},
            "slots": {name: sorted(slots.items()) for name, slots in self.slot_of.items()},
            "shown": {name: list(moves) for name, moves in self.shown.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a cache of the same tiers and shape."""
        end = self.capacity * self.shape.tokens
        self.keys[:, :, :, :end], self.values[:, :, :, :end] = state["keys"], state["values"]
        device = self.keys.device
        self.masters = {name: master.to(device, copy=True) for name, master in state["masters"].items()}
        self.exact = {name: values.to(device, copy=True) for name, values in state["exact"].items()}
        self.slot_of = {name: {int(i): int(s) for i, s in slots} for name, slots in state["slots"].items()}
        self.shown = {name: [int(move) for move in moves] for name, moves in state["shown"].items()}


def _runs(slots: Sequence[int]) -> list[tuple[int, int]]:
    """Rising integers as half-open runs: (3, 4, 5, 9) -> [(3, 6), (9, 10)]."""
    runs: list[tuple[int, int]] = []
    for slot in slots:
        if runs and runs[-1][1] == slot:
            runs[-1] = (runs[-1][0], slot + 1)
        else:
            runs.append((slot, slot + 1))
    return runs
