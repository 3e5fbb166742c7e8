"""KVCache: what one batch of streams remembers, in all layers; written at commit and only then.

Tiers that keep latents share an arena: slots per tier, and behind them room for the call in flight. Attention does not
care for the order of keys, so a slot is used again as soon as its latent falls (a ring), and when a call sees all that
is held, it reads one contiguous slice [sink | window | own] and nothing is ever moved or concatenated. A tier that
keeps something else (chosen tokens, sums, codes) has a Region of its own, which is read beside the arena.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rollforce.cache.arena import Arena
from rollforce.cache.commit_plan import CommitPlan, Contents, Place, Tier, plan_commit
from rollforce.cache.positions import positions
from rollforce.cache.region import AdditiveRegion, BiasedKV, Evicted, LayerCommit, Placement, Query, RegionTier, Weights
from rollforce.cache.visibility import Visibility
from rollforce.errors import ConfigError
from rollforce.models.geometry import KVBlock, KVShape
from rollforce.models.transformer.attention import Kernel


@dataclass(frozen=True)
class LatentGroup:
    """Consecutive latents of one call that see the same: `start` is the stream index of the first."""

    start: int
    latents: int
    sight: Visibility
    commit: bool = False


@dataclass(frozen=True)
class CacheView:
    """What a group sees: slots of the arena and moves of its regions, and where other regions stand.

    `dense`: all used slots from the first visible one, and nothing else: one slice."""

    slots: tuple[int, ...]
    moves: tuple[tuple[str, int], ...]
    dense: bool
    apart: tuple[tuple[str, Placement], ...] = ()


class KVCache:
    """Keys and values of the past, for all layers of one batch of streams."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        shape: KVShape,
        flight: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """`flight`: the largest number of latents in one group of a call."""
        names = [tier.kind for tier in tiers]
        if len(set(names)) != len(names):
            raise ConfigError(f"cache {names}: each kind of tier may appear once.")
        for tier in tiers[:-1]:
            if isinstance(tier, RegionTier):
                raise ConfigError(f"cache {names}: {tier.kind} takes all that falls to it; it must be the last.")
        self.tiers, self.shape, self.dtype, self.device = tuple(tiers), shape, dtype, torch.device(device)
        self.regions = {t.kind: t.region(shape, dtype, device) for t in tiers if isinstance(t, RegionTier)}
        self.arena = Arena([tier for tier in tiers if tier.kind not in self.regions], shape, flight, dtype, device)
        self.capacity = sum(tier.latents for tier in tiers)
        self.contents = Contents({name: {} for name in names}, dict.fromkeys(self.regions, ()))
        self.learned: Weights = {}  # weights of tiers: the model's, not of the state

    # -- what is held -------------------------------------------------------------------------------------------

    def held(self) -> dict[str, tuple[int, ...]]:
        """Of each region, the stream indices that it holds or stands for, rising."""
        return self.contents.held()

    @property
    def used(self) -> int:
        """Slots in use; they always form a prefix of the arena unless a tier before a fuller one has room."""
        return sum(len(slots) for slots in self.contents.slots.values())

    @property
    def bytes(self) -> int:
        return self.arena.bytes + sum(region.bytes for region in self.regions.values())

    def mark(self, name: str, index: int) -> None:
        """Tell the tiers that something (`switch`, `shot`) happens with the latent at `index`, not yet committed."""
        self.contents = self.contents.marked(name, index)

    def memory(self, groups: Sequence[LatentGroup]) -> CallMemory:
        """One call's window on this."""
        return CallMemory(self, groups)

    def view(self, group: LatentGroup) -> CacheView:
        """What `group` sees now."""
        slot_of = self.contents.slots
        visible = group.sight.visible(self.held(), group.latents, whole=tuple(self.regions))
        slots = tuple(sorted(slot_of[name][i] for name, held in visible.items() if name in self.arena.size
                             for i in held))  # fmt: skip
        moves = positions(group.sight.positions)(visible, range(group.start, group.start + group.latents))
        apart = tuple((name, _placed(visible[name], moves.get(name))) for name in self.regions)
        first = slots[0] if slots else self.used
        dense = not any(visible[name] for name in self.regions)
        dense = dense and slots == tuple(range(first, self.used)) and self._prefix()
        inside = tuple((name, moves.get(name, 0)) for name, held in visible.items() if held and name in self.arena.size)
        return CacheView(slots, inside, dense, apart)

    def _prefix(self) -> bool:
        taken = sorted(slot for slots in self.contents.slots.values() for slot in slots.values())
        return taken == list(range(self.used))

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, layer: int, view: CacheView, own: KVBlock) -> BiasedKV:
        """The visible past followed by the call's own keys and values.

        Without gradient and with a dense view this is a slice of the arena: own keys are laid behind the used slots.
        With gradient, or where a call is larger than the room for it, it is a copy; the past carries no gradient.
        """
        for region, move in view.moves:
            self.arena.show(layer, region, move)
        fits = own.key.shape[2] <= self.arena.flight * self.shape.tokens
        if view.dense and fits and not torch.is_grad_enabled():
            stop = self.arena.behind(layer, self.used, own)
            block = self.arena.slots(layer, view.slots[0] if view.slots else self.used, stop)
            return BiasedKV(block.key, block.value)
        parts = [self.regions[name].seen(layer, placed) for name, placed in view.apart if placed.filled]
        past = [self.arena.slots(layer, low, high) for low, high in _runs(view.slots)]
        seen = [*(part for part in parts if part), *(BiasedKV(block.key, block.value) for block in (*past, own))]
        key, value = torch.cat([part.key for part in seen], dim=2), torch.cat([part.value for part in seen], dim=2)
        return BiasedKV(key, value, _bias(seen))

    def added(self, asking: Query) -> Tensor | None:
        """What a region adds to the output of attention."""
        for region in self.regions.values():
            if isinstance(region, AdditiveRegion):
                return region.adds(asking)
        return None

    # -- writing ------------------------------------------------------------------------------------------------

    def plan(self, start: int, latents: int) -> CommitPlan:
        """What will happen, and where everything will be, when `latents` from `start` on are committed."""
        return plan_commit(self.tiers, self.arena.offset, self.contents, start, latents)

    def write(self, commit: LayerCommit, plan: CommitPlan) -> None:
        """Carry out a plan in one layer: lay down what comes, with the commit or from the tier above, average what
        leaves a folding tier, and give regions what falls to them."""
        layer = commit.layer

        def latent(index: int, source: Place | None) -> KVBlock:
            if source is not None:
                return self.arena.taken(layer, *source)
            return commit.own.latents(index - commit.start, index - commit.start + 1, self.shape.tokens)

        laid = [(lay, latent(lay.index, lay.source)) for lay in plan.lays]  # all is read before anything is written
        folded = [(fold, latent(fold.index, fold.source)) for fold in plan.folds]
        absorbed = [(absorb, [latent(*place) for place in absorb.latents], absorb.after and latent(*absorb.after))
                    for absorb in plan.absorbs]  # fmt: skip
        for lay, block in laid:
            self.arena.lay(layer, lay.place, block)
        for fold, block in folded:
            self.arena.mix(layer, fold, block)
        for absorb, blocks, after in absorbed:
            key, value = (torch.cat([getattr(b, part).detach() for b in blocks], dim=2) for part in ("key", "value"))
            fallen = Evicted(tuple(index for index, _ in absorb.latents), KVBlock(key, value))
            with torch.no_grad():
                self.regions[absorb.region].absorb(fallen, replace(commit, after=after))

    def adopt(self, contents: Contents) -> None:
        """Make it the truth."""
        self.contents = contents

    def retain(self, stays: Callable[[str, int], bool]) -> None:
        """Let go of the latents, (region, index), that do not stay. What was absorbed is not touched."""
        self.contents = self.contents.filtered(stays)

    def forget(self) -> None:
        """Empty the regions that keep no latents as they are: they cannot tell what is of which prompt."""
        for tier in self.tiers:
            if isinstance(tier, RegionTier):
                self.regions[tier.kind] = tier.region(self.shape, self.dtype, self.device)
        self.contents = replace(self.contents, absorbed=dict.fromkeys(self.regions, ()))

    # -- saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a stream needs to go on: tensors and plain numbers."""
        return {
            "arena": self.arena.state_dict(),
            "regions": {name: region.state_dict() for name, region in self.regions.items()},
            "slots": {name: sorted(slots.items()) for name, slots in self.contents.slots.items()},
            "absorbed": {name: list(span) for name, span in self.contents.absorbed.items()},
            "marks": {name: list(indices) for name, indices in self.contents.marks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a cache of the same tiers and shape."""
        self.arena.load_state_dict(state["arena"])
        for name, region in self.regions.items():
            region.load_state_dict(state["regions"][name])
        self.contents = Contents(
            {name: {int(i): int(s) for i, s in slots} for name, slots in state["slots"].items()},
            {name: tuple(int(i) for i in span) for name, span in state["absorbed"].items()},
            {name: tuple(int(i) for i in indices) for name, indices in state["marks"].items()},
        )


def _placed(span: tuple[int, ...], move: int | None) -> Placement:
    """A region that a policy moves stands no further back than its span; one that is left alone, where it was."""
    return Placement(move or 0, None if move is None or not span else span[0] + move, len(span))


def _bias(seen: Sequence[BiasedKV]) -> Tensor | None:
    if all(part.bias is None for part in seen):
        return None
    zero = next(part.bias for part in seen if part.bias is not None).new_zeros(1)
    heads = max(part.bias.shape[1] for part in seen if part.bias is not None)
    parts = [zero.expand(len(part.key), heads, 1, part.key.shape[2]) if part.bias is None
             else part.bias.expand(-1, heads, -1, -1) for part in seen]  # fmt: skip
    return torch.cat(parts, dim=3)


def _runs(slots: Sequence[int]) -> list[tuple[int, int]]:
    """Rising integers as half-open runs: (3, 4, 5, 9) -> [(3, 6), (9, 10)]."""
    runs: list[tuple[int, int]] = []
    for slot in slots:
        if runs and runs[-1][1] == slot:
            runs[-1] = (runs[-1][0], slot + 1)
        else:
            runs.append((slot, slot + 1))
    return runs


class CallMemory:
    """One model call's window on a KVCache. A call is one or two groups of latents, in order: [committing | denoising].

    In each layer the committing group attends and is written first, so the denoising group already sees it: the clean
    pass of one chunk and the next tick are one call, with the numbers of two.
    """

    def __init__(self, cache: KVCache, groups: Sequence[LatentGroup]) -> None:
        self.cache, self.groups = cache, tuple(groups)
        self._before = cache.contents
        self._views: list[CacheView] = []
        self._plans: list[CommitPlan] = []
        self._notes: dict[str, object] = {}
        for group in self.groups:
            self._views.append(cache.view(group))
            self._plans.append(cache.plan(group.start, group.latents) if group.commit else CommitPlan(cache.contents))
            cache.adopt(self._plans[-1].after)
        cache.adopt(self._before)

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Attention output of all groups, [B, N, L, K]."""
        tokens, at, outputs = self.cache.shape.tokens, 0, []
        self.cache.adopt(self._before)
        for group, view, plan in zip(self.groups, self._views, self._plans, strict=True):
            stop = at + group.latents
            asking, mine = query[:, :, at * tokens : stop * tokens], own.latents(at, stop, tokens)
            seen = self.cache.read(layer, view, mine)
            asked = Query(layer, group.start, asking, self.cache.learned)
            kernel = group.sight.kernel(attend, self.cache.shape, asked)
            output, added = kernel(asking, seen.key, seen.value, seen.bias), self.cache.added(asked)
            outputs.append(output if added is None else output + added.to(output))
            if group.commit:
                self.cache.write(LayerCommit(layer, group.start, mine, asking, self._notes), plan)
                self.cache.adopt(plan.after)
            at = stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def across(self, attend: Kernel) -> Kernel:
        """The kernel for cross-attention of this call: queries of all groups, each as its sight says."""
        shape = self.cache.shape
        if all(group.sight.text is None for group in self.groups):
            return attend

        def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            parts = query.split([group.latents * shape.tokens for group in self.groups], dim=2)
            kernels = [group.sight.text_kernel(attend, shape) for group in self.groups]
            return torch.cat([kernel(part, key, value, mask) for kernel, part in zip(kernels, parts, strict=True)], 2)

        return grouped
