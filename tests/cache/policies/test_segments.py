"""Segments (Forcing-KV): what is kept, against loops over plain numbers."""

from __future__ import annotations

import pytest
import torch
from policies import HEIGHT, LAYOUTS, WIDTH, latents, start
from tiny_transformer import TINY

from rollforce.cache.commit_plan import Tier
from rollforce.cache.kv_cache import KVCache, LatentGroup
from rollforce.cache.policies import Segments, Sink, Window
from rollforce.cache.policies.segments import least_alike
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import Stepping
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import KVBlock, KVShape

BATCH, HEADS, TOKENS, WIDE, CUTS = 2, 2, 6, 8, 3
SHAPE = KVShape(layers=3, batch=BATCH, heads=HEADS, tokens=TOKENS, width=WIDE)


def expected(keys: list[torch.Tensor], follows: torch.Tensor | None, row: int, count: int) -> list[int]:
    """`keys`: of each latent that falls, [B, N, tokens, K]. Tokens one by one."""
    chain, run = [*keys, follows], TOKENS // CUTS
    scored = []
    for t in range(len(keys)):
        for cut in range(CUTS):
            total = 0.0
            for token in range(cut * run, (cut + 1) * run):
                later = chain[t + 1]
                if later is None:
                    total -= 2.0
                    continue
                one, two = keys[t][row, :, token].flatten().double(), later[row, :, token].flatten().double()
                total += float(one @ two / (one.norm() * two.norm()))
            scored.append((total / run, t * CUTS + cut))
    return sorted(number for _, number in sorted(scored)[:count])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_the_least_alike_are_those_of_the_loops(known, count):
    keys = [torch.randn(BATCH, HEADS, TOKENS, WIDE) for _ in range(3)]
    follows = torch.randn(BATCH, HEADS, TOKENS, WIDE) if known else None
    found = least_alike(torch.cat(keys, dim=2), follows, TOKENS, CUTS, count)
    assert found.tolist() == [expected(keys, follows, row, count) for row in range(BATCH)]


def walked(tiers: tuple[Tier, ...], keys: torch.Tensor, chunk: int) -> KVCache:
    """A cache to which latents [layers, B, N, T, tokens, K] were committed."""
    cache = KVCache(tiers, SHAPE, chunk)
    for at in range(0, keys.shape[3], chunk):
        memory = cache.memory([LatentGroup(at, chunk, Visibility(), commit=True)])
        for layer in range(SHAPE.layers):
            own = keys[layer, :, :, at : at + chunk].flatten(2, 3)
            memory.attend(layer, own, KVBlock(own, own + 1), lambda q, k, v, mask: q)
    return cache


def test_what_falls_is_chosen_from_in_one_layer_for_all_later_ones():
    """Chunks of 3, a sink and a window of 1: from {old window, first two of the chunk}; the third follows them."""
    keys = torch.randn(3, BATCH, HEADS, 9, TOKENS, WIDE)
    cache = walked((Sink(1), Window(1), Segments(1, CUTS, layer=1)), keys, chunk=3)
    pool, run = cache.region, TOKENS // CUTS
    for layer, chooser in ((0, 0), (1, 1), (2, 1)):
        for row in range(BATCH):
            candidates = [keys[chooser, :, :, t] for t in (5, 6, 7)]
            chosen = expected(candidates, keys[chooser, :, :, 8], row, CUTS)
            assert pool.held[layer].index[row].tolist() == [5 + n // CUTS for n in chosen for _ in range(run)]
            parts = [keys[layer, row, :, 5 + n // CUTS, n % CUTS * run : (n % CUTS + 1) * run] for n in chosen]
            torch.testing.assert_close(pool.held[layer].key[row], torch.cat(parts, dim=1))
            torch.testing.assert_close(pool.held[layer].value[row], torch.cat(parts, dim=1) + 1)
    assert pool.held[2].index.tolist() != pool.held[0].index.tolist()


def test_the_latent_that_follows_may_be_old_itself():
    """A window longer than a chunk: what follows the newest that falls is in memory, not in the commit."""
    keys = torch.randn(3, BATCH, HEADS, 8, TOKENS, WIDE)
    pool = walked((Window(4), Segments(1, CUTS, layer=0)), keys, chunk=2).region
    for row in range(BATCH):
        chosen = expected([keys[0, :, :, 2], keys[0, :, :, 3]], keys[0, :, :, 4], row, CUTS)
        assert pool.held[0].index[row, :: TOKENS // CUTS].tolist() == [2 + n // CUTS for n in chosen]


def test_a_piece_that_changes_is_kept_and_one_that_stands_still_goes():
    keys = torch.randn(3, 1, HEADS, 1, TOKENS, WIDE).expand(3, BATCH, HEADS, 9, TOKENS, WIDE).clone()
    keys[:, 0, :, 7, 2:4] *= -1  # row 0: the second third of latent 7 turns round
    keys[:, 1, :, 6, 4:6] *= -1  # row 1: the last third of latent 6
    pool = walked((Sink(1), Window(1), Segments(1, CUTS)), keys, chunk=3).region
    for layer in range(SHAPE.layers):
        for row, latent in ((0, 7), (1, 6)):
            changed = keys[layer, row, :, latent, 2:4] if row == 0 else keys[layer, row, :, latent, 4:6]
            kept = pool.held[layer].key[row].unflatten(1, (CUTS, -1))
            assert any(torch.equal(kept[:, n], changed) for n in range(CUTS))


def test_with_room_for_all_that_falls_all_of_it_is_kept():
    """Ratio 1.0."""
    keys = torch.randn(3, BATCH, HEADS, 9, TOKENS, WIDE)
    pool = walked((Sink(1), Window(1), Segments(3, CUTS)), keys, chunk=3).region
    for held in pool.held:
        assert held.index[:, ::TOKENS].tolist() == [[5, 6, 7]] * BATCH


def test_where_less_falls_the_newest_of_before_fills_the_room():
    keys = torch.randn(3, BATCH, HEADS, 12, TOKENS, WIDE)
    pool = walked((Window(1), Segments(5, CUTS)), keys, chunk=3).region
    for held in pool.held:
        assert sorted(held.index[0, ::TOKENS].tolist()) == [6, 7, 8, 9, 10] and (held.mass == 1).all()


@pytest.mark.parametrize("layout", ["chunkwise", "rolling"])
def test_with_room_for_a_chunk_it_is_the_plain_window(model, layout):
    """Chunks of 2: a window of 2 and the 2 that fell from it are a window of 4."""
    one, two = (latents(start(model, LAYOUTS[layout], tiers, Stepping()), 20)
                for tiers in ((Sink(1), Window(4)), (Sink(1), Window(2), Segments(2, segments=3))))  # fmt: skip
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)


def test_what_cannot_be_cut_is_refused():
    shape = KVShape(1, 1, 1, HEIGHT * WIDTH // TINY.patch**2, 8)
    with pytest.raises(ConfigError, match="segments 4: a latent of 6 tokens cannot be cut evenly. Nearest: 3"):
        KVCache((Segments(1, segments=4),), shape, 1)
    with pytest.raises(ConfigError):
        Segments(0)
