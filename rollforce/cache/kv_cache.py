"""KVCache: what one batch of streams remembers, in all layers; written at commit and only then.

Tiers that keep latents share an arena: slots per tier, and behind them room for the call in flight. Attention does not
care for the order of keys, so a slot is used again as soon as its latent falls (a ring), and when a call sees all that
is held, it reads one contiguous slice [sink | window | own] and nothing is ever moved or concatenated. The last tier
may keep something else (chosen tokens, sums, codes): then it has a Region, which is read beside the arena.

A call of the model looks at the cache through a CallMemory, which plans once what each layer then carries out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rollforce.cache.arena import Arena
from rollforce.cache.commit_plan import CommitPlan, Contents, Eviction, Place, Tier, plan_commit
from rollforce.cache.region import (
    AdditiveRegion,
    BiasedKV,
    Evicted,
    LayerCommit,
    Placement,
    Query,
    Region,
    RegionTier,
    Weights,
)
from rollforce.cache.visibility import Visibility, positions
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import Kernel, KVBlock, KVShape


@dataclass(frozen=True)
class LatentGroup:
    """Consecutive latents of one call that see the same: `start` is the stream index of the first."""

    start: int
    latents: int
    visibility: Visibility
    commit: bool = False


@dataclass(frozen=True)
class CacheView:
    """What a group, the first of whose latents is `start`, sees of the past. `slots`: of the arena, and `latents` the
    region and stream index of each; `moves`: by how many latents each visible region is moved in time; `region`: where
    the tokens of the last tier's region stand, if any. `dense`: one slice, of all used slots from the first visible."""

    start: int
    slots: tuple[int, ...]
    latents: tuple[tuple[str, int], ...]
    moves: tuple[tuple[str, int], ...]
    dense: bool
    region: Placement | None = None


class KVCache:
    """Keys and values of the past, for all layers of one batch of streams. `region`: the memory of the last tier, if
    that keeps no latents as they are (`region_tier`)."""

    def __init__(self, tiers: Sequence[Tier], shape: KVShape, flight: int, dtype: torch.dtype = torch.float32,
                 device: str | torch.device = "cpu") -> None:  # fmt: skip
        """`flight`: the largest number of latents in one group of a call."""
        kinds = [tier.kind for tier in tiers]
        if len(set(kinds)) != len(kinds):
            raise ConfigError(f"cache {kinds}: each kind of tier may appear once.")
        for tier in tiers[:-1]:
            if isinstance(tier, RegionTier):
                raise ConfigError(f"cache {kinds}: {tier.kind} takes all that falls to it; it must be the last.")
        self.tiers, self.shape, self.dtype, self.device = tuple(tiers), shape, dtype, torch.device(device)
        self.region_tier = tiers[-1] if tiers and isinstance(tiers[-1], RegionTier) else None
        self.region = self._empty_region()
        self.latent_tiers = self.tiers if self.region_tier is None else self.tiers[:-1]
        self.arena = Arena(self.latent_tiers, shape, flight, dtype, device)
        self.capacity = sum(tier.latents for tier in tiers)
        self.contents = Contents({tier.kind: {} for tier in self.latent_tiers})

    def _empty_region(self) -> Region | None:
        tier = self.region_tier
        return None if tier is None else tier.region(self.shape, self.dtype, self.device)

    # -- what is held -------------------------------------------------------------------------------------------

    def held(self) -> dict[str, tuple[int, ...]]:
        """Return the stream indices, rising, that each tier holds or stands for."""
        held = self.contents.held()
        return held if self.region_tier is None else {**held, self.region_tier.kind: self.contents.absorbed}

    @property
    def used(self) -> int:
        """Slots in use; they always form a prefix of the arena unless a tier before a fuller one has room."""
        return sum(len(slots) for slots in self.contents.slots.values())

    @property
    def bytes(self) -> int:
        return self.arena.bytes + (0 if self.region is None else self.region.bytes)

    def mark(self, name: str, index: int) -> None:
        """Tell the tiers that something (`switch`, `shot`) happens with the latent at `index`, not yet committed."""
        self.contents = self.contents.mark(name, index)

    def memory(self, groups: Sequence[LatentGroup], weights: Weights | None = None) -> CallMemory:
        """Open one call's window on this. `weights`: what the model has learned for tiers."""
        return CallMemory(self, groups, weights)

    def view(self, group: LatentGroup) -> CacheView:
        """Return what `group` sees now."""
        kind = None if self.region_tier is None else self.region_tier.kind
        visible = group.visibility.visible(self.held(), group.latents, whole=() if kind is None else (kind,))
        moves = positions(group.visibility.positions)(visible, range(group.start, group.start + group.latents))
        region = None
        if kind is not None:  # one that a policy moves stands no further back than its span; else, where it was
            span, move = visible.pop(kind), moves.get(kind)
            region = Placement(move or 0, None if move is None or not span else span[0] + move, len(span))
        at = {self.contents.slots[name][i]: (name, i) for name, held in visible.items() for i in held}
        slots = tuple(sorted(at))
        used = sorted(slot for slots in self.contents.slots.values() for slot in slots.values())
        prefix, first = used == list(range(self.used)), slots[0] if slots else self.used
        dense = prefix and not (region and region.filled) and slots == tuple(range(first, self.used))
        inside = tuple((name, moves.get(name, 0)) for name, held in visible.items() if held)
        return CacheView(group.start, slots, tuple(at[slot] for slot in slots), inside, dense, region)

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, layer: int, view: CacheView, own: KVBlock) -> BiasedKV:
        """Return the visible past followed by the call's own keys and values. Without gradient and with a dense view
        this is a slice of the arena: own keys are laid behind the used slots. With gradient, or where a call is larger
        than the room for it, it is a copy; the past carries no gradient."""
        for region, move in view.moves:
            self.arena.turn(layer, region, move)
        fits = own.key.shape[2] <= self.arena.flight * self.shape.tokens
        if view.dense and fits and not torch.is_grad_enabled():
            stop = self.arena.append(layer, self.used, own)
            block = self.arena.slots(layer, view.slots[0] if view.slots else self.used, stop)
            return BiasedKV(block.key, block.value)
        past = [self.arena.slots(layer, low, high) for low, high in _runs(view.slots)]
        parts = [BiasedKV(block.key, block.value) for block in (*past, own)]
        if self.region is not None and view.region is not None and view.region.filled:
            tokens = self.region.read(layer, view.region)
            parts = parts if tokens is None else [tokens, *parts]
        key, value = torch.cat([part.key for part in parts], dim=2), torch.cat([part.value for part in parts], dim=2)
        return BiasedKV(key, value, _bias(parts))

    def addition(self, query: Query) -> Tensor | None:
        """Return what the region adds to the output of attention, [B, N, L, K]; None for nothing."""
        if self.region is None or not isinstance(self.region, AdditiveRegion):  # most have none: ask no Protocol then
            return None
        return self.region.addition(query)

    # -- writing ------------------------------------------------------------------------------------------------

    def plan(self, start: int, latents: int) -> CommitPlan:
        """Plan what will happen, and where everything will be, when `latents` from `start` on are committed."""
        return plan_commit(self.latent_tiers, self.region_tier, self.arena.offset, self.contents, start, latents)

    def write(self, commit: LayerCommit, plan: CommitPlan) -> None:
        """Carry out a plan in one layer: write what comes, with the commit or from the tier above, average what leaves
        a merging tier, and give the region what falls to it."""
        layer = commit.layer

        def latent(index: int, source: Place | None) -> KVBlock:
            if source is not None:
                return self.arena.copy(layer, *source)
            return commit.own.latents(index - commit.start, index - commit.start + 1, self.shape.tokens)

        writes = [(write.place, latent(write.index, write.source)) for write in plan.writes]  # read all, then write
        merges = [(merge, latent(merge.index, merge.source)) for merge in plan.merges]
        evicted = None if plan.eviction is None else _evicted(plan.eviction, latent)
        for place, block in writes:
            self.arena.write(layer, place, block)
        for merge, block in merges:
            self.arena.merge(layer, merge, block)
        if self.region is not None and evicted is not None:
            with torch.no_grad():
                self.region.absorb(evicted[0], replace(commit, after=evicted[1]))

    def adopt(self, contents: Contents) -> None:
        """Make it the truth."""
        self.contents = contents

    def retain(self, stays: Callable[[str, int], bool]) -> None:
        """Let go of the latents, (region, index), that do not stay. What was absorbed is not touched."""
        self.contents = self.contents.filter(stays)

    def forget(self) -> None:
        """Empty the region that keeps no latents as they are: it cannot tell what is of which prompt."""
        self.region = self._empty_region()
        self.contents = replace(self.contents, absorbed=())

    # -- saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything a stream needs to go on: tensors and plain numbers."""
        slots = {name: sorted(slots.items()) for name, slots in self.contents.slots.items()}
        state: dict[str, Any] = {"arena": self.arena.state_dict(), "regions": {}, "slots": slots, "absorbed": {}}
        if self.region is not None and self.region_tier is not None:
            kind = self.region_tier.kind
            state["regions"][kind], state["absorbed"][kind] = self.region.state_dict(), list(self.contents.absorbed)
            slots[kind] = []
        return state | {"marks": {name: list(indices) for name, indices in self.contents.marks.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a cache of the same tiers and shape."""
        self.arena.load_state_dict(state["arena"])
        absorbed: Sequence[int] = ()
        if self.region is not None and self.region_tier is not None:
            self.region.load_state_dict(state["regions"][self.region_tier.kind])
            absorbed = state["absorbed"][self.region_tier.kind]
        slots = {tier.kind: {int(i): int(s) for i, s in state["slots"][tier.kind]} for tier in self.latent_tiers}
        marks = {name: tuple(int(i) for i in indices) for name, indices in state["marks"].items()}
        self.contents = Contents(slots, tuple(int(i) for i in absorbed), marks)


class CallMemory:
    """One model call's window on a KVCache. A call is one or two groups of latents, in order: [committing | denoising].
    In each layer the committing group attends and is written first, so the denoising group already sees it: the clean
    pass of one chunk and the next tick are one call, with the numbers of two."""

    def __init__(self, cache: KVCache, groups: Sequence[LatentGroup], weights: Weights | None = None) -> None:
        self.cache, self.groups, self.weights = cache, tuple(groups), {} if weights is None else weights
        self._before = cache.contents
        self._steps: list[tuple[LatentGroup, CacheView, CommitPlan]] = []
        self._notes: dict[str, object] = {}
        for group in self.groups:
            plan = cache.plan(group.start, group.latents) if group.commit else CommitPlan(cache.contents)
            self._steps.append((group, cache.view(group), plan))
            cache.adopt(plan.after)
        cache.adopt(self._before)

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Return the attention output of all groups, [B, N, L, K]."""
        tokens, at, outputs = self.cache.shape.tokens, 0, []
        self.cache.adopt(self._before)
        for group, view, plan in self._steps:
            stop = at + group.latents
            mine, keys = query[:, :, at * tokens : stop * tokens], own.latents(at, stop, tokens)
            outputs.append(self.attend_group(layer, group, view, mine, keys, attend))
            if group.commit:
                self.cache.write(LayerCommit(layer, group.start, keys, mine, self._notes), plan)
                self.cache.adopt(plan.after)
            at = stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def attend_group(self, layer: int, group: LatentGroup, view: CacheView, query: Tensor, own: KVBlock,
                     attend: Kernel) -> Tensor:  # fmt: skip
        """Return the attention output of one group, [B, N, L, K], over what it sees and its own keys."""
        seen = self.cache.read(layer, view, own)
        asked = Query(layer, group.start, query, self.weights)
        kernel = group.visibility.kernel(attend, self.cache.shape, asked)
        output, addition = kernel(query, seen.key, seen.value, seen.bias), self.cache.addition(asked)
        return output if addition is None else output + addition.to(output)

    def across(self, attend: Kernel) -> Kernel:
        """Return the kernel for cross-attention of this call: queries of each group attend as its visibility says."""
        shape = self.cache.shape
        if all(group.visibility.text is None for group in self.groups):
            return attend

        def attend_groups(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            parts = query.split([group.latents * shape.tokens for group in self.groups], dim=2)
            kernels = [group.visibility.text_kernel(attend, shape) for group in self.groups]
            return torch.cat([kernel(part, key, value, mask) for kernel, part in zip(kernels, parts, strict=True)], 2)

        return attend_groups


def _evicted(eviction: Eviction, latent: Callable[[int, Place | None], KVBlock]) -> tuple[Evicted, KVBlock | None]:
    """What a region gets to see of an eviction, and the latent that follows."""
    blocks = [latent(*place) for place in eviction.latents]
    key, value = (torch.cat([getattr(b, part).detach() for b in blocks], dim=2) for part in ("key", "value"))
    evicted = Evicted(tuple(index for index, _ in eviction.latents), KVBlock(key, value))
    return evicted, eviction.after and latent(*eviction.after)


def _bias(parts: Sequence[BiasedKV]) -> Tensor | None:
    biases = [part.bias for part in parts if part.bias is not None]
    if not biases:
        return None
    zero, heads = biases[0].new_zeros(1), max(bias.shape[1] for bias in biases)
    wide = [zero.expand(len(part.key), heads, 1, part.key.shape[2]) if part.bias is None
            else part.bias.expand(-1, heads, -1, -1) for part in parts]  # fmt: skip
    return torch.cat(wide, dim=3)


def _runs(slots: Sequence[int]) -> list[tuple[int, int]]:
    """Rising integers as half-open runs: (3, 4, 5, 9) -> [(3, 6), (9, 10)]."""
    runs: list[tuple[int, int]] = []
    for slot in slots:
        low = runs.pop()[0] if runs and runs[-1][1] == slot else slot
        runs.append((low, slot + 1))
    return runs
