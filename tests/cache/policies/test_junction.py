"""Junction, and Anchor Forcing's tri-region positions, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollforce.cache.commit_plan import Candidates
from rollforce.cache.kv_cache import KVCache, LatentGroup
from rollforce.cache.policies import Junction, Sink, Window
from rollforce.cache.visibility import Anchored, RunningAhead, Visibility
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import KVShape

SHAPE = KVShape(layers=1, batch=1, heads=1, tokens=1, width=8)


def walked(cache: KVCache, start: int, stop: int, chunk: int = 3) -> None:
    for low in range(start, stop, chunk):
        cache.adopt(cache.plan(low, chunk).after)


def test_nothing_is_kept_before_a_prompt_changes():
    cache = KVCache([Sink(3), Window(6), Junction(3)], SHAPE, 3)
    walked(cache, 0, 60)
    assert cache.held() == {"sink": (0, 1, 2), "window": tuple(range(54, 60)), "junction": ()}


def test_the_first_chunk_of_a_prompt_is_kept_from_when_it_leaves_the_window():
    cache = KVCache([Sink(3), Window(6), Junction(3)], SHAPE, 3)
    walked(cache, 0, 30)
    cache.mark("switch", 30)
    walked(cache, 30, 36)
    assert cache.held()["junction"] == ()  # still in the window: 30 to 35
    walked(cache, 36, 39)
    assert cache.held()["junction"] == (30, 31, 32)
    walked(cache, 39, 60)
    cache.mark("switch", 60)
    walked(cache, 60, 66)
    assert cache.held()["junction"] == (30, 31, 32)  # the prior one serves until the new one is there
    walked(cache, 66, 69)
    assert cache.held()["junction"] == (60, 61, 62)


def test_without_marks_it_can_begin_anew_by_itself():
    held = Candidates(tuple(range(4, 30)))
    assert Junction(3, every=18).keep(held) == (18, 19, 20)
    assert Junction(3).keep(held) == ()
    with pytest.raises(ConfigError, match="every 2"):
        Junction(3, every=2)


def test_shots_are_other_marks():
    held = Candidates(tuple(range(4, 30)), {"switch": (9,), "shot": (15,)})
    assert Junction(3, of="shot").keep(held) == (15, 16, 17)


def test_anchor_forcing_stands_in_three_places_of_the_trained_range():
    sight = Visibility(positions=Anchored(21, {"sink": 0, "junction": 6}))
    cache = KVCache([Sink(3), Window(6), Junction(3)], SHAPE, 3)
    walked(cache, 0, 90)
    cache.mark("switch", 90)
    walked(cache, 90, 120)
    moves = dict(cache.view(LatentGroup(120, 3, sight)).moves)
    zero = 122 - 20  # the trained range ends with the newest latent
    placed = {name: [i + moves[name] - zero for i in held] for name, held in cache.held().items()}
    assert placed == {"sink": [0, 1, 2], "junction": [6, 7, 8], "window": [12, 13, 14, 15, 16, 17]}


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(3, 9))
def test_anchored_never_leaves_the_trained_range(start, own, window):
    visible = {"sink": range(min(3, start)), "window": range(max(3, start - window), max(3, start))}
    moves, last = Anchored(24)(visible, range(start, start + own)), start + own - 1
    for region, held in visible.items():
        for index in held:
            assert max(0, last - 23) <= index + moves[region] < start


@given(st.integers(1, 10**6), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3))
def test_the_goal_is_always_ahead_and_jumps_by_whole_steps(start, own, step, knot):
    goal = RunningAhead(8, step, knot)
    stands = goal({"sink": (0,)}, range(start, start + own))["sink"]
    assert stands >= start + own + knot and (stands - 8) % step == 0
    assert stands == 8 or stands - step < start + own + knot
    assert goal({"sink": (start,)}, range(2 * start, 2 * start + own))["sink"] == stands  # wherever the stream began


def test_places_outside_the_range_are_refused():
    with pytest.raises(ConfigError, match="at.sink 21"):
        Anchored(21, {"sink": 21})
    with pytest.raises(ConfigError, match="step 0"):
        RunningAhead(step=0)
