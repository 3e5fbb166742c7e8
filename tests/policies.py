"""Every layout, tier combination and sight there is, at small sizes: the table that the laws run over."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from tiny_transformer import TINY
from torch import Tensor, nn

from rollforce.cache.commit_plan import Tier
from rollforce.cache.kv_cache import KVCache
from rollforce.cache.policies import (
    Compressed,
    EmaSink,
    Junction,
    LinearMemory,
    Quantized,
    Routed,
    Segments,
    Sink,
    Spaced,
    Surprising,
    TempCache,
    Window,
)
from rollforce.cache.visibility import Anchored, RunningAhead, Visibility
from rollforce.engine.flow import Noise
from rollforce.engine.layout import Layout, bidirectional, chunkwise, partitioned, rolling
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.models.transformer.attention import KVShape
from rollforce.models.transformer.block_sparse import BlockSparse
from rollforce.models.transformer.hash_attention import HashAttention, HashTextAttention
from rollforce.models.transformer.transformer import Condition, LearnedTier, VideoTransformer

LADDER = (1.0, 0.8, 0.6, 0.35)
HEIGHT, WIDTH = 4, 6

LAYOUTS: dict[str, Layout] = {
    "chunkwise": chunkwise(LADDER, 2),
    "rolling": rolling(LADDER, 2),
    "rolling-1": rolling(LADDER[:3], 1),
    "partitioned": partitioned(LADDER, 2, 2),
    "bidirectional": bidirectional(LADDER, 4),
}
TIERS: dict[str, tuple[Tier, ...]] = {
    "none": (),
    "window": (Window(5),),
    "sink": (Sink(3),),
    "sink+window": (Sink(2), Window(4)),
    "short window": (Window(1),),
    "sink+window+linear": (Sink(1), Window(2), LinearMemory()),
    "window+compressed": (Window(3), Compressed(2)),
    # As long as it is surprised by all (law 1); by some in test_surprising.py.
    "window+surprising": (Window(3), Surprising(2, tau=2.0, interval=1)),
    "window+coded": (Window(3), Quantized(2, "none")),  # in codes: test_quantized.py
    "window+segments": (Sink(1), Window(2), Segments(2, segments=3, layer=0)),
    "window+tempcache": (Window(3), TempCache(2, tau=1.01)),  # as long as nothing merges (law 1); test_temp_cache.py
    "window+ema": (Window(4), EmaSink(2, decay=0.5)),
    "window+spaced": (Window(3), Spaced(2, every=3)),
    "junction": (Sink(1), Window(3), Junction(2, every=4)),
    "window+routed": (Window(3), Routed(2, first=2, chunk=2)),  # with marks: test_routed.py
}
SIGHTS: dict[str, Stepping] = {
    "all realigned": Stepping(),
    "all absolute": Stepping(Visibility(positions="absolute"), Visibility(positions="absolute")),
    "two sights": Stepping(Visibility(12), Visibility(6, pinned=(), positions="absolute")),
    "anchored": Stepping(Visibility(positions=Anchored(24)), Visibility(positions=Anchored(24))),
    "ahead": Stepping(Visibility(positions=RunningAhead()), Visibility(positions=RunningAhead())),
    "euler": Stepping(sampler="euler"),
    "blocks": Stepping(*2 * (Visibility(sparse=BlockSparse(0.3, 2)),)),
    "buckets": Stepping(
        *2 * (Visibility(sparse=HashAttention(bits=2, chunk=4), text=HashTextAttention(bits=2, share=0.6)),)
    ),
}


def policies(*names: str) -> Any:
    """Parametrise over layout x tiers x stepping, or over those of them that are named.

    The first few of each table meet all others of their kind; what came later meets the plainest of the other tables,
    and everything else only where slow tests run (pytest -m slow)."""
    tables = {"layout": LAYOUTS, "tiers": TIERS, "stepping": SIGHTS}
    chosen = [tables[name] for name in names]
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(
                *(table[key] for table, key in zip(chosen, keys, strict=True)),
                id="-".join(keys),
                marks=() if _everyday(dict(zip(names, keys, strict=True))) else pytest.mark.slow,
            )
            for keys in product(*chosen)
        ],
    )


FIRST = {"layout": 2, "tiers": 4, "stepping": 2}
PLAIN = {"layout": ("rolling",), "tiers": ("sink+window",), "stepping": ("all realigned",)}


def _everyday(keys: dict[str, str]) -> bool:
    tables = {"layout": LAYOUTS, "tiers": TIERS, "stepping": SIGHTS}
    later = [name for name, key in keys.items() if key not in list(tables[name])[: FIRST[name]]]
    return not later or (len(later) == 1 and all(key in PLAIN[name] for name, key in keys.items() if name not in later))


@torch.no_grad()
def condition(model: VideoTransformer, batch: int = 1) -> Condition:
    text = torch.randn(1, 5, TINY.text_dim, generator=torch.Generator().manual_seed(1))
    return model.condition(text.expand(batch, -1, -1))


def start(
    model: VideoTransformer,
    layout: Layout,
    tiers: tuple[Tier, ...],
    stepping: Stepping,
    *,
    seeds: int | tuple[int, ...] = 0,
    **where: Any,
) -> Rollout:
    """A fresh stream."""
    noise = where.pop("noise", None) or Noise.of(seeds, (TINY.in_channels, HEIGHT, WIDTH))
    batch = 1 if isinstance(seeds, int) else len(seeds)
    shape = KVShape(
        TINY.num_layers, batch, TINY.num_attention_heads, HEIGHT * WIDTH // TINY.patch**2, TINY.attention_head_dim,
        WIDTH // TINY.patch,
    )  # fmt: skip
    model.policy.update(learned(tiers))
    return Rollout(
        model, condition(model, batch), KVCache(tiers, shape, layout.slots), layout, noise, stepping, **where
    )


def learned(tiers: tuple[Tier, ...]) -> dict[str, nn.Parameter]:
    """Weights of tiers that make a difference, as if they had been trained."""
    generator = torch.Generator().manual_seed(2)
    shapes = {tier.kind: tier.weights(TINY.num_layers, TINY.attention_head_dim)
              for tier in tiers if isinstance(tier, LearnedTier)}  # fmt: skip
    return {
        kind: nn.Parameter(torch.randn(shape, generator=generator), requires_grad=False)
        for kind, shape in shapes.items()
    }


@torch.no_grad()
def latents(rollout: Rollout, count: int) -> Tensor:
    """The first `count` latents of a stream (all, if it ends before)."""
    done: list[Tensor] = []
    for commit in rollout.commits():
        done.append(commit.latents_BTCHW)
        if sum(part.shape[1] for part in done) >= count:
            break
    return torch.cat(done, dim=1)[:, :count]


def room(tiers: tuple[Tier, ...], chunk: int) -> int:
    """Latents that can be committed, chunk by chunk, before the first of them is let go."""
    tokens = HEIGHT * WIDTH // TINY.patch**2
    columns = WIDTH // TINY.patch
    shape = KVShape(TINY.num_layers, 1, TINY.num_attention_heads, tokens, TINY.attention_head_dim, columns)
    cache, start = KVCache(tiers, shape, chunk, device="meta"), 0
    while sum(map(len, cache.held().values())) == start:
        cache.adopt(cache.plan(start, chunk).after)
        start += chunk
    return start - chunk


def same(one: Any, other: Any) -> bool:
    """Whether two states hold the same, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
