"""Surprising (Context Forcing): the exact laws of slow memory, against a list of latents."""

from __future__ import annotations

from functools import cache as remembered

import laws
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import LAYOUTS, latents, same, start
from torch import Tensor

from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import Sink, Surprising, Window
from rollforce.cache.token_pool import TokenPool
from rollforce.cache.visibility import Anchored, Visibility
from rollforce.engine.rollout import Stepping
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape

ROWS, COLUMNS, WIDTH = 1, 2, 16
SHAPE = KVShape(layers=2, batch=2, heads=2, tokens=ROWS * COLUMNS, width=WIDTH)
ALL, NONE = 1.1, -1.1  # thresholds that every cosine is below, or above


@remembered
def unturned(latent: int, layer: int) -> Tensor:
    """Keys that wander: each resembles the one before."""
    generator = torch.Generator().manual_seed(1000 * latent + layer)
    fresh = torch.randn(2, 2, SHAPE.tokens, WIDTH, generator=generator)
    return fresh if latent == 0 else 0.9 * unturned(latent - 1, layer) + 0.45 * fresh


@remembered
def at(latent: int, layer: int, place: int) -> Tensor:
    return rope.rotate(unturned(latent, layer), rope.angles(torch.tensor([place]), ROWS, COLUMNS, WIDTH))


def committed(cache: KVCache, first: int, count: int, origin: int = 0, sight: Visibility | None = None) -> None:
    """Commit latents of wandering keys; their values are the unturned keys. `origin`: where the stream begins."""
    memory = CallMemory(cache, [LatentGroup(origin + first, count, sight or Visibility(), commit=True)])
    for layer in range(SHAPE.layers):
        indices = range(first, first + count)
        key = torch.cat([at(i, layer, origin + i) for i in indices], dim=2)
        value = torch.cat([unturned(i, layer) for i in indices], dim=2)
        memory.attend(layer, key, KVBlock(key, value), lambda q, k, v, mask: q)


def slow(cache: KVCache, layer: int = 0, row: int = 0) -> list[int]:
    """The latents in slow memory, and that each is whole, in its order, and the empty places last."""
    pool = cache.region
    assert isinstance(pool, TokenPool)
    held = pool.held[layer]
    index, full = held.index[row].view(-1, SHAPE.tokens), held.mass[row].view(-1, SHAPE.tokens) > 0
    assert (index[:, :1] == index).all() and (full[:, :1] == full).all()
    count = int(full[:, 0].sum())
    assert full[:count].all()
    return index[:count, 0].tolist()


def by_list(layer: int, row: int, tier: Surprising, fallen: range) -> list[int]:
    """What one row of one layer holds: latent by latent."""
    kept: list[int] = []
    for latent in fallen:
        cosine = -1.0
        if kept:
            mean, last = (mean_key(i, layer)[row] for i in (latent, kept[-1]))
            cosine = float(F.cosine_similarity(mean, last, dim=0))
        if cosine < tier.tau and (not kept or latent - kept[-1] >= tier.interval):
            kept.append(latent)
    return kept[-tier.latents :]


@remembered
def mean_key(latent: int, layer: int) -> Tensor:
    """Without rotation in time, that is as made at 0: [B, N * K]."""
    return at(latent, layer, 0).mean(dim=2).flatten(1)


@settings(max_examples=8, deadline=None)
@given(
    latents=st.integers(1, 4), window=st.integers(0, 4), sink=st.integers(0, 2), chunk=st.integers(1, 3),
    tau=st.sampled_from([NONE, 0.3, 0.6, 0.8, 0.95, ALL]), interval=st.integers(1, 5), chunks=st.integers(1, 10),
)  # fmt: skip
def test_what_is_held_is_what_a_list_holds(latents, window, sink, chunk, tau, interval, chunks):
    tier = Surprising(latents, tau, interval)
    cache = KVCache([Sink(sink), Window(window), tier], SHAPE, flight=chunk)
    for number in range(chunks):
        committed(cache, number * chunk, chunk)
    fallen = range(sink, max(sink, chunks * chunk - window))
    for layer in range(SHAPE.layers):
        held = cache.region.held[layer]
        for row in range(SHAPE.batch):
            found = slow(cache, layer, row)
            assert found == by_list(layer, row, tier, fallen)
            for place, latent in enumerate(found):
                part = slice(place * SHAPE.tokens, (place + 1) * SHAPE.tokens)
                assert torch.equal(held.value[row, :, part], unturned(latent, layer)[row])
                torch.testing.assert_close(held.key[row, :, part], at(latent, layer, latent)[row])


def test_rows_and_layers_decide_for_themselves():
    cache = KVCache([Surprising(8, tau=0.8, interval=1)], SHAPE, flight=2)
    for number in range(12):
        committed(cache, 2 * number, 2)
    found = {tuple(slow(cache, layer, row)) for layer in range(2) for row in range(2)}
    assert len(found) > 2


@pytest.mark.parametrize("interval", [1, 3, 4, 6])
def test_above_every_cosine_it_samples_evenly_and_the_oldest_goes_first(interval):
    cache = KVCache([Sink(3), Window(3), Surprising(4, ALL, interval)], SHAPE, flight=3)
    for number in range(15):
        committed(cache, 3 * number, 3)
        assert slow(cache) == list(range(3, max(3, 3 * number), interval))[-4:]


def test_below_every_cosine_it_stays_empty(model):
    cache = KVCache([Window(2), Surprising(4, NONE, 1)], SHAPE, flight=3)
    for number in range(6):
        committed(cache, 3 * number, 3)
        assert slow(cache) == []
    stepping = Stepping(*(Visibility(positions=Anchored(14)),) * 2)
    plain, surprised = (latents(start(model, LAYOUTS["chunkwise"], tiers, stepping), 16) for tiers in (
        (Sink(2), Window(4)), (Sink(2), Window(4), Surprising(3, NONE, 1))))  # fmt: skip
    torch.testing.assert_close(plain, surprised, atol=1e-5, rtol=0)  # empty places weigh nothing


def test_the_same_picture_later_is_no_surprise():
    cache = KVCache([Surprising(4, tau=0.999, interval=1)], SHAPE, flight=1)
    pictures = [0, 0, 0, 30, 30, 0, 30]
    for index, picture in enumerate(pictures):
        memory = CallMemory(cache, [LatentGroup(100 * index, 1, Visibility(), commit=True)])
        for layer in range(SHAPE.layers):
            own = KVBlock(at(picture, layer, 100 * index), unturned(picture, layer))
            memory.attend(layer, own.key, own, lambda q, k, v, mask: q)
    assert slow(cache) == [0, 300, 500, 600]


def test_the_decision_does_not_depend_on_the_number_of_denoising_steps():
    """The release tests keys of noisy steps and of its last call."""
    states = []
    for steps in (0, 1, 4):
        cache = KVCache([Window(2), Surprising(3, tau=0.7, interval=2)], SHAPE, flight=2)
        for number in range(10):
            for step in range(steps):
                memory = CallMemory(cache, [LatentGroup(2 * number, 2, Visibility())])
                for layer in range(SHAPE.layers):
                    noise = torch.randn(2, 2, 2 * SHAPE.tokens, WIDTH) * (step + 1)
                    memory.attend(layer, noise, KVBlock(noise, noise), lambda q, k, v, mask: q)
            committed(cache, 2 * number, 2)
        states.append(cache.region.state_dict())
    assert same(states[1], states[0]) and same(states[2], states[0])


@pytest.mark.parametrize("tau", [0.75, ALL])
@pytest.mark.parametrize("origin", [0, 1_000_000])
def test_no_place_lies_outside_of_the_trained_range(tau, origin):
    """Sink at 0..1, slow and fast memory side by side, the call's newest latent at 20, as soon as all are full."""
    sight = Visibility(positions=Anchored(reach=12, at={"sink": 0}))
    cache, taken = KVCache([Sink(2), Window(3), Surprising(4, tau, 2)], SHAPE, flight=3), []
    for first in range(0, 48, 3):
        own = range(origin + first, origin + first + 3)
        view, held = cache.view(LatentGroup(own[0], 3, sight)), cache.held()
        places = [i + move for region, move in view.moves for i in held[region]]
        placed = view.region
        seen = cache.region.read(0, placed)
        for row in range(SHAPE.batch if placed.filled else 0):
            kept = slow(cache, 0, row)
            end = own[0] - len(held["window"])
            mine = range(end - len(kept), end)
            wanted = torch.cat([at(i - origin, 0, place) for i, place in zip(kept, mine, strict=True)], dim=2)[row]
            torch.testing.assert_close(seen.key[row, :, : wanted.shape[1]], wanted, atol=2e-4, rtol=0)
            taken = [*places, *mine]
            assert len(set(taken)) == len(taken) and all(max(0, own[-1] - 11) <= place < own[0] for place in taken)
        committed(cache, first, 3, origin, sight)
    assert sorted(taken)[:2] == [own[-1] - 11, own[-1] - 10] and (tau != ALL or len(taken) == 9)


LAWS = [
    laws.resumes_bit_equal,
    laws.only_relative_time_matters,
    laws.depends_on_no_noise_beyond_the_slots,
    laws.rows_are_the_streams_alone,
    laws.riding_gives_the_numbers_of_two_calls,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_laws_hold_when_only_some_surprise(model, law):
    """In policies.py all do: a slow memory that forgets from the first latent on equals no full cache (law 1)."""
    law(model, LAYOUTS["rolling"], (Sink(1), Window(2), Surprising(3, tau=0.9, interval=1)), Stepping())


def test_some_surprise_there(model):
    rollout = start(model, LAYOUTS["rolling"], (Sink(1), Window(2), Surprising(9, tau=0.9, interval=1)), Stepping())
    latents(rollout, 14)
    counts = [int((held.mass > 0).sum()) / held.mass.shape[1] for held in rollout.cache.region.held]
    assert all(0 < count < 1 for count in counts), counts


@pytest.mark.parametrize(("latents", "interval"), [(0, 6), (3, 0)])
def test_settings_that_are_none(latents, interval):
    with pytest.raises(ConfigError):
        Surprising(latents, interval=interval)
