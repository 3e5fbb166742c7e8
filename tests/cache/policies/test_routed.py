"""Routed memory (Stream-T1): what stays, and what it is averaged with, against lists; and the laws, with marks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import LAYOUTS, latents, start
from traces import OneStream, StandIn, noise, settings_of, spans

from rollforce.cache.commit_plan import MARKS
from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import Routed, Window
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape

SHAPE = KVShape(layers=1, batch=1, heads=1, tokens=2, width=16)
DECAY = 0.75
ROUTES = {"append": "append", "average": "average", "drop": None}


def unrotated(latent: int) -> KVBlock:
    generator = torch.Generator().manual_seed(latent)
    return KVBlock(*(torch.randn(1, 1, 2, 16, generator=generator) for _ in range(2)))


def stream(window: int, tier: Routed, routes: list[str], late: bool = False) -> KVCache:
    """Commit a chunk for each route and mark it: before it is written, or (`late`) after."""
    cache = KVCache([Window(window), tier], SHAPE, flight=tier.chunk)
    for number, route in enumerate(routes):
        begun, mark = number * tier.chunk, ROUTES[route]
        if mark and not late:
            cache.mark(mark, begun)
        blocks = [unrotated(index) for index in range(begun, begun + tier.chunk)]
        key = rope.rotate(torch.cat([block.key for block in blocks], dim=2),
                          rope.angles(torch.arange(begun, begun + tier.chunk), 1, 2, 16))  # fmt: skip
        own = KVBlock(key, torch.cat([block.value for block in blocks], dim=2))
        CallMemory(cache, [LatentGroup(begun, tier.chunk, Visibility(), commit=True)]).attend(
            0, key, own, lambda q, k, v, mask: q
        )
        if mark and late:
            cache.mark(mark, begun)
    return cache


def reference(window: int, tier: Routed, routes: list[str]) -> dict[int, KVBlock]:
    """The same on lists: latent by latent, as it falls, appended, averaged into the last chunk kept, or dropped."""
    total = len(routes) * tier.chunk
    kept: dict[int, KVBlock] = {}
    for index in range(total - window):
        route, place = routes[index // tier.chunk], index % tier.chunk
        if (route == "append" or len(kept) < tier.first) and len(kept) < tier.latents:
            kept[index] = unrotated(index)
        elif route != "drop" and kept:
            last = sorted(kept)[-tier.chunk :]
            into, left = last[place % len(last)], unrotated(index)
            kept[into] = KVBlock(DECAY * kept[into].key + (1 - DECAY) * left.key,
                                 DECAY * kept[into].value + (1 - DECAY) * left.value)  # fmt: skip
    return kept


@settings(max_examples=60, deadline=None)
@given(
    routes=st.lists(st.sampled_from(sorted(ROUTES)), min_size=3, max_size=9), chunk=st.integers(1, 3),
    chunks=st.integers(1, 3), latents=st.integers(0, 7), first=st.integers(0, 3), late=st.booleans(),
)  # fmt: skip
def test_what_is_kept_and_averaged_is_that_of_the_list(routes, chunk, chunks, latents, first, late):
    tier = Routed(latents, min(first, latents), chunk, DECAY)
    cache, expected = stream(chunks * chunk, tier, routes, late), reference(chunks * chunk, tier, routes)
    assert cache.held()["routed"] == tuple(sorted(expected))
    for index, block in expected.items():
        slot = cache.contents.slots["routed"][index] - cache.arena.offset["routed"]
        place = slice(slot * SHAPE.tokens, (slot + 1) * SHAPE.tokens)
        key = rope.rotate(block.key, rope.angles(torch.tensor([index]), 1, 2, 16))
        torch.testing.assert_close(cache.arena.masters["routed"][0][:, :, place], key, atol=2e-5, rtol=0)
        torch.testing.assert_close(cache.arena.exact["routed"][0][:, :, place], block.value, atol=1e-5, rtol=0)


def test_marks_are_needed_only_while_a_chunk_waits():
    """What was appended stays, long after its mark is forgotten."""
    routes = ["append"] * 3 + ["average"] * (3 * MARKS) + ["append"] * (2 * MARKS)
    cache = stream(2, Routed(8, chunk=2), routes)
    assert cache.held()["routed"] == (0, 1, 2, 3, 4, 5, 54, 55)
    assert all(len(starts) <= MARKS for starts in cache.contents.marks.values())


def test_without_marks_only_the_first_stay():
    assert stream(3, Routed(6, chunk=3), ["drop"] * 5).held()["routed"] == ()
    assert stream(3, Routed(6, first=3, chunk=3), ["drop"] * 5).held()["routed"] == (0, 1, 2)


@pytest.mark.parametrize("layout", ["chunkwise", "rolling"])
def test_a_marked_stream_resumes_bit_equal(model, layout):
    tiers, marks = (Window(2), Routed(4, chunk=2, decay=0.5)), {0: "append", 2: "average", 6: "append", 8: "average"}

    def run(rollout, ticks: int):
        done = []
        with torch.no_grad():
            for _ in range(ticks):
                rollout.tick()
                if (commit := rollout.commit()) is not None:
                    done.append(commit.latents_BTCHW)
                    if commit.start in marks:
                        rollout.cache.mark(marks[commit.start], commit.start)
        return done

    one, two = (start(model, LAYOUTS[layout], tiers, Stepping()) for _ in range(2))
    half = 4 * LAYOUTS[layout].ticks + 1
    begun = run(one, half)
    state = one.state_dict()
    expected = torch.cat([*begun, *run(one, 2 * half)], dim=1)
    two.load_state_dict(state)
    assert torch.equal(torch.cat([*begun, *run(two, 2 * half)], dim=1), expected)
    assert two.cache.held()["routed"] == (0, 1, 6, 7)
    plain = latents(start(model, LAYOUTS[layout], tiers, Stepping()), expected.shape[1])
    assert not torch.allclose(plain, expected, atol=1e-4)  # marks make a difference


def test_the_preset_sees_what_the_release_sees():
    """Sink 0-2, what was appended, 6 latents and the chunk itself, all at their own places. Chunk 1 is to be appended,
    2 averaged into it, 4 appended, the others dropped: by hand from the release."""
    by_hand = ["0-2", "0-5", "0-8", "0-11", "0-14", "0-5 9-17", "0-5 12-20", "0-5 12-23", "0-5 12-14 18-26"]
    marks, settings, model = {3: "append", 6: "average", 12: "append"}, settings_of("stream_t1"), StandIn()
    layout = settings.layout.build()
    cache = KVCache(settings.cache, KVShape(1, 1, 1, 1, 16), layout.slots)
    rollout = Rollout(model, OneStream(), cache, layout, noise, settings.stepping, length=27)
    with torch.no_grad():
        for commit in rollout.commits():
            if commit.start in marks:
                cache.mark(marks[commit.start], commit.start)
    assert [call.start for call in model.denoised] == [3 * number for number in range(9) for _ in range(4)]
    for call in model.denoised:
        assert call.seen == spans(by_hand[call.start // 3]), call.start


@pytest.mark.parametrize("wrong", [{"first": 5}, {"first": -1}, {"chunk": 0}, {"decay": 1.1}])
def test_what_it_refuses(wrong):
    with pytest.raises(ConfigError):
        Routed(4, **wrong)
