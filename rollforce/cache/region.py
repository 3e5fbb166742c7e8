"""Region: memory that does not keep latents as they are.

A tier whose tokens are chosen, merged, summed or stored in few bits makes a Region, which holds the tensors: the tier
itself stays settings. It stands last in the waterfall, takes all that falls to it, and a call sees all of it or, for
what is not tokens, has something added to its attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rollforce.cache.commit_plan import Tier
from rollforce.models.transformer.attention import KVBlock, KVShape


@dataclass(frozen=True)
class Evicted:
    """Latents that fall to a region: their stream indices and their keys (turned at their own index) and values."""

    indices: tuple[int, ...]
    block: KVBlock


@dataclass(frozen=True)
class LayerCommit:
    """The commit during which that happens, in one layer: the new latents' keys and values, and their queries. `notes`:
    of this commit, what one layer leaves for the next ones. `after`: of a region to which something falls, the latent
    that follows the newest of it; None if that is still to come."""

    layer: int
    start: int
    own: KVBlock
    query: Tensor
    notes: dict[str, Any] = field(default_factory=dict)
    after: KVBlock | None = None


@dataclass(frozen=True)
class Placement:
    """Where a region's tokens stand for a call: each `move` latents later than its own index, but none before
    `lowest` (None: no bound). `filled`: latents of the region's span that came to it so far."""

    move: int
    lowest: int | None
    filled: int

    def turns(self, index: Tensor) -> Tensor:
        """Return by how many latents each token, made at `index`, is turned."""
        target = index + self.move
        return (target if self.lowest is None else target.clamp(min=self.lowest)) - index


Weights = Mapping[str, Tensor] | nn.ParameterDict
"""What a model has learned for tiers, by their kind."""


@dataclass(frozen=True)
class Query:
    """A call's queries in one layer, [B, N, L, K], turned at their own index, the first latent's being `start`;
    `weights` as the model has learned them for tiers."""

    layer: int
    start: int
    vectors: Tensor
    weights: Weights


@dataclass(frozen=True)
class BiasedKV:
    """Keys and values that a call attends to; `bias` is added to the logits, [B, 1 or N, 1, L], None for nothing."""

    key: Tensor
    value: Tensor
    bias: Tensor | None = None


class Region(Protocol):
    """The tensors of a tier that keeps no latents as they are."""

    @property
    def bytes(self) -> int: ...
    def absorb(self, evicted: Evicted, commit: LayerCommit) -> None:
        """Take what falls, in one layer."""

    def read(self, layer: int, placement: Placement) -> BiasedKV | None:
        """Return what a call attends to of it; None for nothing."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class AdditiveRegion(Protocol):
    """A region that adds something to the output of attention."""

    def addition(self, query: Query) -> Tensor | None:
        """Return what is added for these queries, [B, N, L, K]; None for nothing."""


@runtime_checkable
class RegionTier(Tier, Protocol):
    """A tier whose memory is a Region."""

    def region(self, shape: KVShape, dtype: torch.dtype, device: torch.device | str) -> Region:
        """Return an empty memory of this shape."""
