"""TempCache: its lemma, its cap, and what it holds against lists of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import LAYOUTS, latents, same, start
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention

from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import TempCache, Window
from rollforce.cache.region import BiasedKV
from rollforce.cache.token_pool import TokenPool
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import Stepping
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape

TOKENS, HEADS, WIDTH = 4, 2, 12
SHAPE = KVShape(layers=2, batch=2, heads=HEADS, tokens=TOKENS, width=WIDTH)
TIME = rope.split(WIDTH)[0]


def latent(seed: int, kinds: int, spread: float) -> KVBlock:
    """Keys (not rotated in time) of a few kinds, and values that are all different."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randn(kinds, HEADS, WIDTH, generator=torch.Generator().manual_seed(77))
    which = torch.randint(kinds, (SHAPE.batch, TOKENS), generator=generator)
    key = kind[which].transpose(1, 2)
    key = key + spread * torch.randn(key.shape, generator=generator)
    return KVBlock(key, torch.randn(key.shape, generator=generator))


def committed(cache: KVCache, blocks: list[KVBlock], chunk: int) -> None:
    for first in range(0, len(blocks), chunk):
        part = blocks[first : first + chunk]
        memory = CallMemory(cache, [LatentGroup(first, len(part), Visibility(), commit=True)])
        key = torch.cat([rope.turn(block.key, first + i) for i, block in enumerate(part)], dim=2)
        own = KVBlock(key, torch.cat([block.value for block in part], dim=2))
        for layer in range(SHAPE.layers):
            memory.attend(layer, own.key, own, lambda q, k, v, mask: q)


def seen(cache: KVCache, at: int, positions: str = "absolute") -> BiasedKV:
    """What a call of one latent sees, itself left out."""
    nothing = torch.zeros(SHAPE.batch, HEADS, TOKENS, WIDTH)
    group = LatentGroup(at, 1, Visibility(positions=positions))
    with torch.no_grad():
        found = cache.read(1, cache.view(group), KVBlock(nothing, nothing))
    bias = None if found.bias is None else found.bias[..., :-TOKENS]
    return BiasedKV(found.key[:, :, :-TOKENS], found.value[:, :, :-TOKENS], bias)


def pool(cache: KVCache) -> TokenPool:
    region = cache.region
    assert isinstance(region, TokenPool)
    return region


# -- the lemma --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_where_keys_are_the_same_attention_is_that_of_all(chunk: int) -> None:
    """Lemma 5.1: four keys a latent, again and again, with ever new values. Their time channels are 0, so that they
    stay the same wherever they stand."""
    kinds = torch.randn(SHAPE.batch, HEADS, TOKENS, WIDTH)
    kinds[..., :TIME] = 0
    blocks = [KVBlock(kinds[:, :, torch.randperm(TOKENS)], torch.randn_like(kinds)) for _ in range(12)]
    merged, whole = KVCache([TempCache(1)], SHAPE, chunk), KVCache([Window(12)], SHAPE, chunk)
    for cache in (merged, whole):
        committed(cache, blocks, chunk)
    query, found, wanted = torch.randn_like(kinds), seen(merged, 12), seen(whole, 12)
    assert found.key.shape[2] == TOKENS and wanted.key.shape[2] == 12 * TOKENS
    expected = attention(query, wanted.key, wanted.value)
    torch.testing.assert_close(attention(query, found.key, found.value, found.bias), expected, atol=1e-5, rtol=0)
    assert torch.equal(pool(merged).held[1].mass, torch.full((2, TOKENS), 12.0))


def test_mass_is_what_makes_it_exact() -> None:
    """One key that came often and one that came once."""
    often, once = torch.randn(2, SHAPE.batch, HEADS, 1, WIDTH)
    often[..., :TIME], once[..., :TIME] = 0, 0
    first = torch.cat([often, once, -once, -often], dim=2)
    blocks = [KVBlock(first if i == 0 else often.expand_as(first), torch.randn_like(first)) for i in range(6)]
    merged, whole = KVCache([TempCache(2)], SHAPE, 1), KVCache([Window(6)], SHAPE, 1)
    for cache in (merged, whole):
        committed(cache, blocks, 1)
    query, found, wanted = torch.randn_like(first), seen(merged, 6), seen(whole, 6)
    expected = attention(query, wanted.key, wanted.value)
    torch.testing.assert_close(attention(query, found.key, found.value, found.bias), expected, atol=1e-5, rtol=0)
    flat = torch.zeros_like(found.bias).masked_fill(found.bias == -torch.inf, -torch.inf)
    assert (attention(query, found.key, found.value, flat) - expected).abs().max() > 0.1


@pytest.mark.parametrize("positions", ["absolute", "realigned"])
def test_nothing_is_more_similar_than_one(positions: str) -> None:
    """Above 1 nothing merges: a window, until the room is used up and after that."""
    dense, plain = KVCache([Window(2), TempCache(3, tau=1.01)], SHAPE, 1), KVCache([Window(5)], SHAPE, 1)
    blocks = [latent(seed, 2, 0.0) for seed in range(9)]
    for cache in (dense, plain):
        committed(cache, blocks, 1)
    query, found, wanted = torch.randn(2, HEADS, 3, WIDTH), seen(dense, 9, positions), seen(plain, 9, positions)
    torch.testing.assert_close(
        attention(query, found.key, found.value, found.bias), attention(query, wanted.key, wanted.value),
        atol=1e-5, rtol=0,
    )  # fmt: skip


# -- what is held -----------------------------------------------------------------------------------------------------


@dataclass
class Item:
    key: Tensor  # [N, K], not rotated in time
    value: Tensor
    index: int
    mass: int


def cosine(one: Tensor, two: Tensor) -> float:
    heads = [float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for a, b in zip(one, two, strict=True)]
    return sum(heads) / len(heads)


def by_hand(tier: TempCache, blocks: list[KVBlock], row: int) -> list[Item]:
    """The same on a list of tokens."""
    held: list[Item] = []
    for index, block in enumerate(blocks):
        old, fresh = [replace(item) for item in held], []
        for token in range(TOKENS):
            key, value = block.key[row, :, token], block.value[row, :, token]
            scores = [cosine(key, item.key) for item in old]
            if scores and max(scores) > tier.tau:
                item = held[scores.index(max(scores))]
                item.value = (item.value * item.mass + value) / (item.mass + 1)
                item.key, item.index, item.mass = key, index, item.mass + 1
            else:
                fresh.append(Item(key, value, index, 1))
        held.sort(key=lambda item: (-item.mass, -item.index))
        held = [*fresh, *held][: tier.latents * TOKENS]
    return held


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999), kinds=st.integers(1, 9), room=st.integers(1, 4), count=st.integers(1, 9),
    chunk=st.integers(1, 3), spread=st.sampled_from([0.05, 0.6, 2.0]), tau=st.sampled_from([0.3, 0.7, 0.95]),
)  # fmt: skip
def test_it_holds_what_the_list_holds(
    seed: int, kinds: int, room: int, count: int, chunk: int, spread: float, tau: float
) -> None:
    tier, blocks = TempCache(room, tau), [latent(1000 * seed + i, kinds, spread) for i in range(count)]
    cache = KVCache([tier], SHAPE, chunk)
    committed(cache, blocks, chunk)
    for held in pool(cache).held:
        for row in range(SHAPE.batch):
            wanted = by_hand(tier, blocks, row)
            filled = int((held.mass[row] > 0).sum())
            assert filled == len(wanted) <= room * TOKENS and (held.mass[row, :filled] > 0).all()
            timeless = rope.turn_each(held.key, -held.index)[row]
            found = sorted((int(held.index[row, i]), int(held.mass[row, i]), held.value[row, :, i].sum().item(),
                            timeless[:, i].sum().item()) for i in range(filled))  # fmt: skip
            expected = sorted((item.index, item.mass, item.value.sum().item(), item.key.sum().item())
                              for item in wanted)  # fmt: skip
            for one, two in zip(found, expected, strict=True):
                assert one == pytest.approx(two, abs=2e-4)
            if len(wanted) < room * TOKENS:
                assert held.mass[row].sum() == count * TOKENS  # every token is in there


def test_the_room_is_never_exceeded_and_what_is_new_always_comes_in() -> None:
    cache = KVCache([TempCache(2, tau=0.9)], SHAPE, 1)
    blocks = [latent(seed, 200, 0.0) for seed in range(30)]
    for count in range(1, 31):
        committed_one(cache, blocks[count - 1], count - 1)
        held = pool(cache).held[0]
        assert held.mass.shape == (2, 2 * TOKENS)
        assert ((held.index == count - 1) & (held.mass > 0)).any(dim=1).all()


def committed_one(cache: KVCache, block: KVBlock, at: int) -> None:
    memory = CallMemory(cache, [LatentGroup(at, 1, Visibility(), commit=True)])
    own = KVBlock(rope.turn(block.key, at), block.value)
    for layer in range(SHAPE.layers):
        memory.attend(layer, own.key, own, lambda q, k, v, mask: q)


def test_a_heaviest_mass_keeps_the_value_moving() -> None:
    """As an average in which each new one has a share of 1 / (heaviest + 1)."""
    key = torch.randn(2, HEADS, TOKENS, WIDTH)
    blocks = [KVBlock(key, torch.full_like(key, float(i >= 20))) for i in range(40)]
    cache = KVCache([TempCache(1, tau=0.9, heaviest=4)], SHAPE, 1)
    committed(cache, blocks, 1)
    held = pool(cache).held[0]
    assert (held.mass == 4).all()
    torch.testing.assert_close(held.value, torch.full_like(key, 1 - 0.8**20))


def test_bytes_are_those_of_keys_twice_values_indices_and_masses() -> None:
    cache = KVCache([TempCache(3)], SHAPE, 1)
    tokens = SHAPE.layers * SHAPE.batch * 3 * TOKENS
    assert cache.region.bytes == tokens * (3 * HEADS * WIDTH * 4 + 8 + 4)


@pytest.mark.parametrize("wrong", [{"latents": 0}, {"latents": 2, "heaviest": 0}])
def test_sizes_of_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        TempCache(**wrong)


# -- streams: test_rollout.py runs all laws where nothing merges; where it does, all but the first can hold -----------

MERGING = (Window(2), TempCache(2, tau=0.2))


def test_streams_do_merge(model) -> None:
    rollout = start(model, LAYOUTS["chunkwise"], MERGING, Stepping())
    latents(rollout, 14)
    assert all((held.mass > 2).any() for held in pool(rollout.cache).held)


def test_a_saved_stream_goes_on_to_the_same_bytes(model) -> None:
    rollout = start(model, LAYOUTS["rolling"], MERGING, Stepping(), seeds=(1, 2))
    latents(rollout, 12)
    state = rollout.state_dict()
    rest = latents(rollout, 6)
    again = start(model, LAYOUTS["rolling"], MERGING, Stepping(), seeds=(1, 2))
    again.load_state_dict(state)
    assert torch.equal(latents(again, 6), rest)


def test_a_denoising_tick_writes_nothing(model) -> None:
    rollout = start(model, LAYOUTS["chunkwise"], MERGING, Stepping())
    latents(rollout, 12)
    with torch.no_grad():
        rollout.tick()
        before = rollout.cache.state_dict()
        rollout.tick()
    assert same(before, rollout.cache.state_dict())


def test_rows_are_the_streams_alone_whenever_they_begin_and_however_they_commit(model) -> None:
    layout = LAYOUTS["rolling"]
    together = latents(start(model, layout, MERGING, Stepping(), seeds=(5, 6)), 12)
    apart = latents(start(model, layout, MERGING, Stepping(ride=False), seeds=(5, 6)), 12)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    for row, seed in enumerate((5, 6)):
        alone = latents(start(model, layout, MERGING, Stepping(), seeds=seed), 12)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)
