"""The walk without a model is the walk with one; and what every preset promises: bounded memory, bounded positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import LAYOUTS, TIERS, latents, policies, start
from tiny_transformer import TINY

from rollforce.cache.head_groups import HeadGroups
from rollforce.cache.kv_cache import KVCache
from rollforce.cache.policies import Spaced
from rollforce.cache.visibility import Anchored, RunningAhead
from rollforce.config import build, resource
from rollforce.engine.dry_run import CallTrace, GroupTrace, trace
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.engine.settings import LayoutSettings, StreamSettings
from rollforce.models.transformer.attention import KVShape

SHAPE = KVShape(6, 1, 4, 16, 48, 4)  # the bundled model's
presets = pytest.mark.parametrize("name", sorted(path.stem for path in resource("configs/stream").glob("*.yaml")))
FAR = 10**6


def preset(name: str) -> StreamSettings:
    return build(StreamSettings, resource(f"configs/stream/{name}.yaml"))


def walked(stream: StreamSettings, chunks: int, events: dict[int, Callable[[Rollout], object]] | None = None
           ) -> list[CallTrace]:  # fmt: skip
    """Calls of so many chunks. Steps of a chunk see the same: one is enough."""
    if stream.layout.kind == "chunkwise":
        stream = replace(stream, layout=replace(stream.layout, levels=stream.layout.levels[:1]))
    return list(islice(trace(stream, SHAPE, events=events), chunks * stream.layout.build().ticks))


# -- the walk is that of the engine ----------------------------------------------------------------------------------


@policies("layout", "tiers")
def test_every_call_is_that_of_a_real_stream(model, layout, tiers, monkeypatch) -> None:
    compare(model, layout, tiers, Stepping(), monkeypatch)


@policies("stepping")
def test_every_call_is_that_of_a_real_stream_however_it_looks(model, stepping, monkeypatch) -> None:
    compare(model, LAYOUTS["chunkwise"], TIERS["sink+window"], stepping, monkeypatch)


def compare(model, layout, tiers, stepping, monkeypatch) -> None:
    """Of six chunks: how many keys each call's attention gets; and what is held and allocated in the end."""
    real, lengths = start(model, layout, tiers, stepping), []
    attend = KVCache.read

    def spy(cache, layer, view, own):
        found = attend(cache, layer, view, own)
        if layer == 0:
            lengths.append(found.key.shape[2])
        return found

    monkeypatch.setattr(KVCache, "read", spy)
    latents(real, 6 * layout.shift)
    monkeypatch.setattr(LayoutSettings, "build", lambda self: layout)
    stream = StreamSettings(cache=tiers, stepping=real.stepping)
    calls, count = [], 0
    for call in trace(stream, real.cache.shape):
        calls.append(call)
        count += len(call.groups)
        if count >= len(lengths):
            break
    one = 2 * TINY.num_layers * TINY.width * 4  # bytes of a token's keys and values
    own = real.cache.shape.tokens
    assert [group.read // one + len(group.sigma) * own for call in calls for group in call.groups] == lengths
    assert calls[-1].bytes == real.cache.bytes
    assert calls[-1].held == real.cache.held()


# -- what presets promise ----------------------------------------------------------------------------------------


@presets
@pytest.mark.parametrize("chunks", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_is_flat(name, chunks) -> None:
    calls = walked(preset(name), chunks)
    cold, warm = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    assert len({call.bytes for call in warm}) == 1
    assert most(warm, lambda group: group.attended) == most(cold, lambda group: group.attended)
    assert most(warm, lambda group: group.read) == most(cold, lambda group: group.read)
    for region, held in warm[-1].held.items():
        assert len(held) <= max(len(call.held[region]) for call in cold)


def most(calls: list[CallTrace], value: Callable[[GroupTrace], int]) -> int:
    return max(value(group) for call in calls for group in call.groups)


def farthest(stream: StreamSettings, group: GroupTrace) -> tuple[int, int]:
    """The places, relative to the newest latent, between which a call may see anything: what was seen in training."""
    positions = (stream.stepping.commit if group.commit else stream.stepping.denoise).positions
    if isinstance(positions, Anchored):
        return min(1 - positions.reach, 1 - group.attended), 0
    ahead = max(positions.first, positions.step + positions.knot) if isinstance(positions, RunningAhead) else 0
    gaps = sum((tier.latents - 1) * (tier.every - 1) for tier in stream.tiers if isinstance(tier, Spaced))
    return 1 - group.attended - gaps, ahead


def promised(stream: StreamSettings, group: GroupTrace) -> bool:
    return (stream.stepping.commit if group.commit else stream.stepping.denoise).positions != "absolute"


def outside(stream: StreamSettings, calls: list[CallTrace]) -> list[GroupTrace]:
    """What calls saw where nothing was in training."""
    wrong = []
    for group in (group for call in calls for group in call.groups):
        low, high = farthest(stream, group)
        places = [place - group.own[-1] for span in group.spans for place in span.positions]
        if places and not (low <= min(places) and max(places) <= high):
            wrong.append(group)
    return wrong


def aged(calls: list[CallTrace], by: int) -> Callable[[Rollout], None]:
    """Let a stream be `by` latents older: what never leaves stays where it is, all else and the clock move on."""
    stays = {name for name, held in calls[-1].held.items() if held and held == calls[len(calls) // 2].held[name]}

    def event(rollout: Rollout) -> None:
        rollout.settle()
        parts = rollout.cache.parts if isinstance(rollout.cache, HeadGroups) else {"": rollout.cache}
        for group, cache in parts.items():
            contents = cache.contents
            slots = {name: held if f"{group} {name}".strip() in stays else
                     {index + by: slot for index, slot in held.items()}
                     for name, held in contents.slots.items()}  # fmt: skip
            absorbed = tuple(index + by for index in contents.absorbed)
            cache.adopt(replace(contents, slots=slots, absorbed=absorbed))
        rollout.first += by

    return event


@presets
@settings(max_examples=3, deadline=None)
@given(by=st.integers(0, FAR // 3))
def test_positions_stay_in_the_trained_range_up_to_a_million(name, by) -> None:
    by, stream = 3 * by, preset(name)
    shift = stream.layout.build().shift
    young = walked(stream, 40)
    old = walked(stream, 60, {40 * shift: aged(young, by)})
    assert by < 1000 or max(group.start for call in old for group in call.groups) > by
    kept = [group for group in outside(stream, old) if promised(stream, group)]
    assert not kept, (kept[0], farthest(stream, kept[0]))


def test_absolute_positions_leave_it() -> None:
    """The property can fail: LongLive's sink stays where it was."""
    stream = preset("longlive")
    calls = walked(stream, 60)
    assert outside(stream, calls)
    assert not any(promised(stream, group) for group in outside(stream, calls))
    far = walked(stream, 90, {180: aged(calls, FAR)})
    assert min(place - group.own[-1] for group in far[-1].groups for span in group.spans
               for place in span.positions) < -FAR  # fmt: skip
