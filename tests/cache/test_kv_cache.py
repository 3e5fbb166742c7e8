"""What is held and seen, against a plain-Python list; and that only commits write."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import LAYOUTS, TIERS, latents, same, start

from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import Stepping
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import KVBlock, KVShape

SHAPE = KVShape(layers=2, batch=1, heads=2, tokens=3, width=16)


def marked(start: int, count: int) -> KVBlock:
    """Keys and values that say which latent they belong to."""
    mark = torch.arange(start, start + count).repeat_interleave(SHAPE.tokens).float()
    return KVBlock(
        mark[None, None, :, None].expand(1, 2, -1, 16).clone(), mark[None, None, :, None].expand(1, 2, -1, 16).clone()
    )


def attended(cache: KVCache, group: LatentGroup) -> list[int]:
    """Stream indices in the values that a group's attention gets, in every layer."""
    seen: list[list[int]] = []
    memory = CallMemory(cache, [group])

    def spy(q, k, v, mask):
        assert k.shape == v.shape
        seen.append(v[0, 0, :: SHAPE.tokens, 0].int().tolist())
        return q

    for layer in range(SHAPE.layers):
        memory.attend(layer, marked(group.start, group.latents).key, marked(group.start, group.latents), spy)
    assert all(sorted(layer) == sorted(seen[0]) for layer in seen)
    return sorted(seen[0])


def brute_force(past: list[int], sink: int, window: int, sight: Visibility, own: list[int]) -> list[int]:
    """The same policy on a list: what stays is the first `sink` and the newest `window` of the rest."""
    first, rest = past[:sink], past[sink:]
    rest = rest[max(0, len(rest) - window) :]
    if sight.budget is None:
        return [*first, *rest, *own]
    if "sink" in sight.pinned:
        room = max(0, sight.budget - len(own) - len(first))
        return [*first, *rest[max(0, len(rest) - room) :], *own]
    both = [*first, *rest]
    return [*both[max(0, len(both) - max(0, sight.budget - len(own))) :], *own]


@settings(max_examples=60, deadline=None)
@given(
    sink=st.integers(0, 4), window=st.integers(0, 7), chunk=st.integers(1, 4), live=st.integers(1, 6),
    grad=st.booleans(),
    budget=st.one_of(st.none(), st.integers(11, 16)), pinned=st.booleans(), chunks=st.integers(0, 9),
)  # fmt: skip
def test_attended_latents_are_those_of_the_list(sink, window, chunk, live, grad, budget, pinned, chunks):
    sight = Visibility(budget, pinned=("sink",) if pinned else ())
    cache = KVCache([Sink(sink), Window(window)], SHAPE, flight=6)
    past: list[int] = []
    with torch.set_grad_enabled(grad):
        for number in range(chunks + 1):
            own = list(range(number * chunk, (number + 1) * chunk))
            alive = list(range(number * chunk, number * chunk + live))
            assert attended(cache, LatentGroup(alive[0], live, sight)) == brute_force(past, sink, window, sight, alive)
            assert attended(cache, LatentGroup(own[0], chunk, sight, commit=True)) == brute_force(
                past, sink, window, sight, own
            )
            past += own
    assert cache.used <= sink + window


def test_two_groups_in_one_call_see_what_two_calls_see():
    one, two = (KVCache([Sink(2), Window(3)], SHAPE, flight=4) for _ in range(2))
    for number in range(5):
        commit, live = (
            LatentGroup(2 * number, 2, Visibility(), commit=True),
            LatentGroup(2 * number + 2, 4, Visibility()),
        )
        both: list[list[int]] = []
        memory = CallMemory(one, [commit, live])
        own = marked(commit.start, 6)

        def spy(q, k, v, mask, both=both):
            both.append(sorted(v[0, 0, :: SHAPE.tokens, 0].int().tolist()))
            return q

        for layer in range(SHAPE.layers):
            memory.attend(layer, own.key, own, spy)
        assert both == [attended(two, commit), attended(two, live)] * SHAPE.layers


@pytest.mark.parametrize("tiers", TIERS.values(), ids=TIERS)
def test_memory_does_not_grow(model, tiers):
    rollout = start(model, LAYOUTS["chunkwise"], tiers, Stepping())
    sizes = []
    for _ in range(30):
        latents(rollout, 1)
        sizes.append((rollout.cache.bytes, rollout.cache.used))
    settled = set(sizes[10:])
    assert len({held for held, _ in settled}) == 1
    assert max(used for _, used in settled) <= rollout.cache.arena.capacity
    assert sizes[-1][1] <= sum(tier.latents for tier in tiers)


@pytest.mark.parametrize("tiers", TIERS.values(), ids=TIERS)
def test_a_denoising_tick_leaves_memory_bit_identical(model, tiers):
    rollout = start(model, LAYOUTS["chunkwise"], tiers, Stepping())
    latents(rollout, 10)
    with torch.no_grad():
        rollout.tick()  # the clean pass of the last chunk rides here
        before = rollout.cache.state_dict()
        rollout.tick()
        after = rollout.cache.state_dict()
    assert same(before, after)


def test_turning_the_sink_for_ever_does_not_wear_it_out():
    """The sink's keys at the end are one turn away from the first ones, even in bfloat16."""
    cache = KVCache([Sink(1), Window(1)], SHAPE, flight=1, dtype=torch.bfloat16)
    first = KVBlock(torch.randn(1, 2, 3, 16).bfloat16(), torch.randn(1, 2, 3, 16).bfloat16())
    for index in range(500):
        memory = CallMemory(cache, [LatentGroup(index, 1, Visibility(), commit=True)])
        for layer in range(SHAPE.layers):
            memory.attend(layer, first.key, first, lambda q, k, v, mask: q)
    assert torch.equal(cache.arena.masters["sink"][0], first.key)


def test_two_tiers_of_a_kind_are_refused():
    with pytest.raises(ConfigError, match="may appear once"):
        KVCache([Window(1), Window(2)], SHAPE, 1)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        Visibility(0)
