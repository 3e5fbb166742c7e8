"""Judging a change of prompt: on rendered scenes that change where we say."""

from dataclasses import replace

import numpy as np
import pytest

from rollforce.world import render, sample_scene, wish_of
from rollforce.world.eyes import Eyes
from rollforce.world.scenes import Scene, Thing
from rollforce.world.switching import SwitchResult, judge_switch

CIRCLING = Scene("hills", "day", (Thing("red", "ball", "circles", y=0.45, reach=0.2),))
BLUE = replace(CIRCLING, things=(replace(CIRCLING.things[0], colour="blue"),))
AT = 72


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return Eyes.load()


def found(eyes: Eyes, after: Scene, goal: Scene, late: int = 0, skipped: int = 0) -> SwitchResult:
    """A clip of CIRCLING that goes on as `after`, `late` frames after frame 72, having missed out on some frames."""
    first = render(CIRCLING, 0, AT + late, 64)
    rest = render(after, AT + late + skipped, 72, 64)
    frames = np.concatenate([first, rest])
    return judge_switch(frames, eyes.look(frames), wish_of(CIRCLING), wish_of(goal), AT)


def test_a_change_is_timed(eyes):
    assert found(eyes, BLUE, BLUE).delay == 0
    assert found(eyes, BLUE, BLUE, late=18).delay == pytest.approx(1.5, abs=0.17)
    assert found(eyes, CIRCLING, BLUE).delay is None and found(eyes, CIRCLING, BLUE).first is None
    other = sample_scene(5, count=1)
    assert found(eyes, other, other).delay == pytest.approx(0, abs=0.25)


def test_some_of_it_and_all_of_it(eyes):
    moved = replace(BLUE, place="city")
    half = found(eyes, BLUE, moved)  # the colour came, the city never did
    assert half.first == 0 and half.delay is None


def test_what_is_out_of_sight_is_not_late(eyes):
    gone = found(eyes, replace(BLUE, things=(replace(BLUE.things[0], motion="rolls left", phase=0.0),)), BLUE)
    assert gone.delay == pytest.approx(0, abs=0.3)


def test_what_goes_on_as_before_has_not_jumped(eyes):
    calm = found(eyes, BLUE, BLUE)
    assert calm.jump is not None and abs(calm.jump) < 0.02
    assert calm.background is not None and calm.background < 1.3


def test_a_jump_is_seen(eyes):
    jumped = found(eyes, BLUE, BLUE, skipped=20)
    assert jumped.jump is not None and jumped.jump > 0.1
    moved = replace(BLUE, place="city")
    elsewhere = found(eyes, moved, moved)
    assert elsewhere.background is not None and elsewhere.background > 3
