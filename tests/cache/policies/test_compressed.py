"""Compressed (Deep Forcing): the exact laws of participative compression, against lists of single tokens."""

from __future__ import annotations

from functools import cache as remembered

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import LAYOUTS, latents, start
from torch import Tensor

from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import Compressed, Sink, Window
from rollforce.cache.policies.compressed import participation
from rollforce.cache.token_pool import TokenPool
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import Stepping
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape

ROWS, COLUMNS, WIDTH = 1, 2, 16
SHAPE = KVShape(layers=2, batch=2, heads=2, tokens=ROWS * COLUMNS, width=WIDTH)


@remembered
def unturned(kind: str, latent: int, layer: int) -> Tensor:
    """Keys, values or queries of a latent before rotation."""
    generator = torch.Generator().manual_seed(1000 * latent + 10 * layer + "kvq".index(kind))
    return torch.randn(2, 2, SHAPE.tokens, WIDTH, generator=generator)


@remembered
def at(kind: str, latent: int, layer: int, place: int) -> Tensor:
    angle = rope.angles(torch.tensor([place]), ROWS, COLUMNS, WIDTH)
    return rope.rotate(unturned(kind, latent, layer), angle)


def committed(cache: KVCache, first: int, count: int) -> None:
    """Commit latents of random keys, values and queries."""
    memory, indices = (
        CallMemory(cache, [LatentGroup(first, count, Visibility(), commit=True)]),
        range(first, first + count),
    )
    for layer in range(SHAPE.layers):
        key, query = (torch.cat([at(kind, i, layer, i) for i in indices], dim=2) for kind in "kq")
        value = torch.cat([unturned("v", i, layer) for i in indices], dim=2)
        memory.attend(layer, query, KVBlock(key, value), lambda q, k, v, mask: q)


Token = tuple[int, int]  # its latent, its place in it


def by_list(
    row: int, layer: int, latents: int, window: int, chunk: int, chunks: int, reuse: int | None
) -> tuple[list[Token], dict[Token, int]]:
    """What one row of one layer holds, and how often each was chosen: token by token, product by product."""
    held: list[Token] = []
    times: dict[Token, int] = {}
    fallen = 0
    for number in range(chunks):
        new = range(number * chunk, (number + 1) * chunk)
        falling = [(i, j) for i in range(fallen, max(fallen, new.stop - window)) for j in range(SHAPE.tokens)]
        if not falling:
            continue
        fallen = falling[-1][0] + 1
        lowest = fallen - latents
        score = {}
        for i, j in (*held, *falling):
            key = at("k", i, layer, max(i, lowest))[row, :, j].double()
            asked = [at("q", q, layer, q)[row].double() for q in new]
            score[i, j] = sum(float((query * key[:, None]).sum()) for query in asked)
        fresh = [token for token in score if reuse is None or times.get(token, 0) < reuse]
        spent = [token for token in score if token not in fresh]
        ranked = sorted(fresh, key=lambda token: -score[token]) + spent
        held = sorted(ranked[: latents * SHAPE.tokens])
        times |= {token: times.get(token, 0) + 1 for token in held}
    return held, times


@settings(max_examples=10, deadline=None)
@given(
    latents=st.integers(1, 4), window=st.integers(0, 4), chunk=st.integers(1, 3), chunks=st.integers(1, 6),
    reuse=st.sampled_from([None, None, 1, 2, 3]),
)  # fmt: skip
def test_what_is_held_is_what_a_list_holds(latents, window, chunk, chunks, reuse):
    tier = Compressed(latents, reuse)
    cache = KVCache([Window(window), tier], SHAPE, flight=chunk)
    for number in range(chunks):
        committed(cache, number * chunk, chunk)
    pool = cache.region
    assert isinstance(pool, TokenPool)
    for layer in range(SHAPE.layers):
        for row in range(SHAPE.batch):
            wanted, times = by_list(row, layer, latents, window, chunk, chunks, reuse)
            tokens = pool.held[layer]
            count = int((tokens.mass[row] > 0).sum())
            assert count == len(wanted) and (tokens.mass[row, :count] > 0).all()  # empty ones come last
            assert tokens.index[row, :count].tolist() == [i for i, _ in wanted]  # in the order of time
            for place, (i, j) in enumerate(wanted):
                assert torch.equal(tokens.value[row, :, place], unturned("v", i, layer)[row, :, j])
                torch.testing.assert_close(tokens.key[row, :, place], at("k", i, layer, i)[row, :, j])
                assert tokens.mass[row, place] == times[i, j] + 1


def test_the_score_is_the_explicit_sum_of_products():
    query, key = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 7, 16)
    explicit = torch.zeros(2, 7, dtype=torch.float64)
    for row in range(2):
        explicit[row] = sum((query[row, head].double() @ key[row, head].double().T).sum(dim=0) for head in range(3))
    torch.testing.assert_close(participation(query, key), explicit.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["chunkwise", "rolling"])
def test_with_room_for_all_it_is_the_uncompressed_window(model, layout):
    whole, chosen = ((Sink(1), Window(30)), (Sink(1), Window(3), Compressed(27)))
    one, two = (latents(start(model, LAYOUTS[layout], tiers, Stepping()), 16) for tiers in (whole, chosen))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_a_needle_that_is_asked_for_is_always_kept():
    """A key in the direction of every query, in a haystack of random ones."""
    cache = KVCache([Window(2), Compressed(1)], SHAPE, flight=2)
    wish = unturned("q", 0, 0)[:, :, :1]
    for number in range(40):
        indices = range(2 * number, 2 * number + 2)
        angle = rope.angles(torch.tensor(list(indices)), ROWS, COLUMNS, WIDTH)
        for_all = wish.expand(-1, -1, 2 * SHAPE.tokens, -1)
        memory = CallMemory(cache, [LatentGroup(indices[0], 2, Visibility(), commit=True)])
        for layer in range(SHAPE.layers):
            key = torch.cat([unturned("k", i, layer) for i in indices], dim=2)
            if number == 1:
                key[:, :, 3] = 4 * wish[:, :, 0]  # the second token of latent 3
            block = KVBlock(rope.rotate(key, angle), key)
            memory.attend(layer, rope.rotate(for_all, angle), block, lambda q, k, v, mask: q)
    for layer in range(SHAPE.layers):
        held = cache.region.held[layer]
        for row in range(SHAPE.batch):
            found = [bool(torch.equal(held.value[row, :, i], 4 * wish[row, :, 0])) for i in range(SHAPE.tokens)]
            assert sum(found) == 1 and held.index[row, found.index(True)] == 3


@pytest.mark.parametrize(("latents", "chunk", "reuse"), [(1, 1, 1), (3, 1, 3), (6, 2, 3), (4, 2, 7)])
def test_none_is_chosen_more_often_than_it_may(latents, chunk, reuse):
    cache = KVCache([Window(3), Compressed(latents, reuse)], SHAPE, flight=chunk)
    seen: dict[tuple[int, int, tuple[float, ...]], int] = {}
    for number in range(16):
        committed(cache, number * chunk, chunk)
        for layer, held in enumerate(cache.region.held):
            for row, place in (held.mass > 0).nonzero().tolist():
                name = (layer, row, tuple(held.value[row, 0, place].tolist()))
                seen[name] = seen.get(name, 0) + 1
    assert max(seen.values()) <= reuse
    held = cache.region.held[0]
    assert (held.mass > 0).all()  # and no place is empty for it


def test_max_reuse_matters(model):
    free, bound = (latents(start(model, LAYOUTS["chunkwise"], (Window(2), Compressed(1, reuse)), Stepping()), 24)
                   for reuse in (None, 1))  # fmt: skip
    assert not torch.allclose(free, bound, atol=1e-4)


def test_places_follow_each_other_and_their_number_is_constant():
    """Sink, chosen tokens, window, the call: without a gap and without an overlap, however long the stream."""
    cache, seen = KVCache([Sink(5), Window(2), Compressed(1)], SHAPE, flight=3), []
    for number in range(12):
        group = LatentGroup(3 * number, 3, Visibility())
        view, held = cache.view(group), cache.held()
        if number > 2:
            placed, moves = view.region, dict(view.moves)
            assert held["sink"][-1] + moves["sink"] + 1 == placed.lowest
            assert placed.lowest + placed.filled == held["window"][0] + moves["window"]
            assert held["window"][-1] + moves["window"] + 1 == group.start
            index = cache.region.held[0].index
            assert ((index + placed.turns(index)) == placed.lowest).all()  # one latent's length is one place
            own = KVBlock(*(torch.zeros(2, 2, 3 * SHAPE.tokens, WIDTH) for _ in range(2)))
            seen.append(cache.read(0, view, own).key.shape[2])
        committed(cache, 3 * number, 3)
    assert set(seen) == {(5 + 2 + 1 + 3) * SHAPE.tokens}


@pytest.mark.parametrize(("latents", "reuse"), [(0, None), (2, 0)])
def test_settings_that_are_none(latents, reuse):
    with pytest.raises(ConfigError, match="at least 1"):
        Compressed(latents, reuse)
