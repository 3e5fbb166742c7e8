"""What one call may see of the past, and where it stands. Denoising and committing calls may differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rollforce.cache.positions import AnyPositions, positions
from rollforce.cache.region import Query
from rollforce.errors import ConfigError
from rollforce.models.geometry import KVShape
from rollforce.models.transformer.attention import Kernel
from rollforce.models.transformer.block_sparse import BlockSparse
from rollforce.models.transformer.hash_attention import HashAttention, HashTextAttention

AnySparse = BlockSparse | HashAttention


@dataclass(frozen=True)
class Visibility:
    """`budget`: latents one call attends to, its own included (None: all that is held).

    `pinned` regions are always in view; the others fill the rest of the budget, newest first.
    `positions` says where the visible regions stand in time. `sparse`: of what it could see, it attends to a part;
    `text`: the same for the prompt.
    """

    budget: int | None = None
    pinned: tuple[str, ...] = ("sink",)
    positions: AnyPositions = "realigned"
    sparse: AnySparse | None = None
    text: HashTextAttention | None = None

    def __post_init__(self) -> None:
        positions(self.positions)
        if self.budget is not None and self.budget < 1:
            raise ConfigError(f"budget {self.budget}: a call needs at least 1 latent, its own; null means no limit.")

    def visible(
        self, held: Mapping[str, tuple[int, ...]], own: int, whole: tuple[str, ...] = ()
    ) -> dict[str, tuple[int, ...]]:
        """Return the stream indices of each region that a call of `own` latents sees.

        `whole`: regions that are seen whole or not at all, hence always."""
        if self.budget is None:
            return dict(held)
        pinned = {*self.pinned, *whole}
        always = sum(len(held.get(region, ())) for region in pinned)
        rest = sorted(i for region, indices in held.items() if region not in pinned for i in indices)
        newest = set(rest[max(0, len(rest) - max(0, self.budget - own - always)) :])
        return {
            region: indices if region in pinned else tuple(i for i in indices if i in newest)
            for region, indices in held.items()
        }

    @property
    def masked(self) -> bool:
        """Whether the attention kernel must know masks, whatever tiers there are."""
        return any(each is not None and each.masked for each in (self.sparse, self.text))

    def at(self, sigma: float) -> Visibility:
        """Return what a call sees whose noisiest latent has this much noise."""
        return replace(self, sparse=None) if self.sparse is not None and sigma > self.sparse.below else self

    def kernel(self, attend: Kernel, shape: KVShape, query: Query) -> Kernel:
        """Return how a call attends, in a layer, to what it sees."""
        if self.sparse is None or query.layer < round(shape.layers * (1 - self.sparse.layers)):
            return attend
        return self.sparse.kernel(attend, shape.tokens, query.start)

    def text_kernel(self, attend: Kernel, shape: KVShape) -> Kernel:
        """Return how it attends to the prompt."""
        return attend if self.text is None else self.text.kernel(attend, shape.tokens)
