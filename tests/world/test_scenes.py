"""The tiny world: scenes, captions and pixels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollforce.errors import ConfigError
from rollforce.models.text.encoder import tokenize
from rollforce.video.contact_sheet import contact_sheet
from rollforce.world import (
    COLOURS,
    FPS,
    MOTIONS,
    PLACES,
    SHAPES,
    TIMES,
    WORDS,
    Wish,
    WishedThing,
    caption,
    parse,
    render,
    sample_scene,
    sprite_mask,
    wish_of,
)
from rollforce.world.caption import KINDS

SEEDS = st.integers(0, 2**40)


def test_scenes_are_deterministic_and_varied() -> None:
    scenes = [sample_scene(seed) for seed in range(600)]
    assert scenes == [sample_scene(seed) for seed in range(600)]
    assert {s.place for s in scenes} == set(PLACES) and {s.time for s in scenes} == set(TIMES)
    first = [s.things[0] for s in scenes]
    assert {t.colour for t in first} == set(COLOURS) and {t.shape for t in first} == set(SHAPES)
    assert min(Counter(t.motion for t in first).values()) > 50 and len({t.motion for t in first}) == len(MOTIONS)
    assert 0.1 < np.mean([len(s.things) == 2 for s in scenes]) < 0.2


def test_held_out_combinations_are_kept_apart() -> None:
    assert all(sample_scene(seed, held_out=True).held_out for seed in range(60))
    assert not any(sample_scene(seed, held_out=False).held_out for seed in range(60))
    assert 0.08 < np.mean([sample_scene(seed).held_out for seed in range(1500)]) < 0.17


def test_known_scene_stays_the_same() -> None:
    scene = sample_scene(7)
    thing = scene.things[0]
    assert (scene.place, scene.time, thing.colour, thing.shape, thing.motion) == (
        "city", "night", "green", "heart", "rolls right")


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_two_things_differ_and_keep_apart(seed: int) -> None:
    one, other = sample_scene(seed, count=2).things
    assert one.colour != other.colour and one.shape != other.shape
    t = np.arange(0, 120, 0.25)
    (x, y), (u, v) = one.track(t), other.track(t)
    apart = np.hypot(x - u, y - v) / one.radius
    assert (apart < 1.2).mean() < 0.2


def test_wrong_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="not 3"):
        sample_scene(0, count=3)


# ----------------------------------------------------------------------------------------------------------- captions


@given(SEEDS, SEEDS)
@settings(max_examples=300, deadline=None)
def test_full_captions_say_everything(seed: int, wording: int) -> None:
    scene = sample_scene(seed)
    assert parse(caption(scene, wording, full=True)) == wish_of(scene)


@given(SEEDS, SEEDS)
@settings(max_examples=200, deadline=None)
def test_captions_never_say_something_else(seed: int, wording: int) -> None:
    scene = sample_scene(seed)
    said, true = parse(caption(scene, wording)), wish_of(scene)
    assert said.place in (None, true.place) and said.time in (None, true.time)
    assert all(s.colour == t.colour and s.shape == t.shape and s.motion in (None, t.motion)
               for s, t in zip(said.things, true.things, strict=True))


def test_captions_use_every_word_and_sometimes_leave_things_out() -> None:
    captions = [caption(sample_scene(seed), seed) for seed in range(4000)]
    assert {word for text in captions for word in tokenize(text, KINDS)} == set(WORDS)
    wishes = [parse(text) for text in captions]
    assert 0.04 < np.mean([w.place is None for w in wishes]) < 0.12
    assert 0.04 < np.mean([w.things[0].motion is None for w in wishes]) < 0.12


@pytest.mark.parametrize(("text", "wish"), [
    ("a red ball bounces over green hills", Wish("hills", None, (WishedThing("red", "ball", "bounces"),))),
    ("a blue star drifts right over the sea at night",
     Wish("sea", "night", (WishedThing("blue", "star", "drifts right"),))),
    ("a red ball rolls left", Wish(None, None, (WishedThing("red", "ball", "rolls left"),))),
    ("A green ball, bouncing above the hills!", Wish("hills", None, (WishedThing("green", "ball", "bounces"),))),
    ("a green box circles over green hills", Wish("hills", None, (WishedThing("green", "box", "circles"),))),
    ("a red circle circles by day", Wish(None, "day", (WishedThing("red", "ball", "circles"),))),
    ("a yellow heart circles over the city at sunset and a green square rolling to the left",
     Wish("city", "sunset", (WishedThing("yellow", "heart", "circles"), WishedThing("green", "box", "rolls left")))),
    ("green hills at night", Wish("hills", "night")),
    ("a star drifting", Wish(None, None, (WishedThing(None, "star", "drifts"),))),
])
def test_parse(text: str, wish: Wish) -> None:
    assert parse(text) == wish


def test_unknown_word_gets_help() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("a red bal bounces")
    message = str(caught.value)
    assert '"bal"' in message and '"ball"' in message and "colours: red, orange" in message
    assert all(word in message for word in WORDS)


@pytest.mark.parametrize("text", ["", "  ", "!?"])
def test_empty_prompt_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        parse(text)


def test_contradiction_is_refused() -> None:
    with pytest.raises(ConfigError, match='"red" and "blue"'):
        parse("a red blue ball bounces")


# ------------------------------------------------------------------------------------------------------------- pixels


@given(SEEDS, st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_frames_depend_only_on_scene_and_number(seed: int, start: int, skip: int) -> None:
    scene = sample_scene(seed)
    clip = render(scene, start, skip + 3)
    assert clip.shape == (skip + 3, 64, 64, 3) and clip.dtype == np.uint8
    assert (render(scene, start + skip, 3) == clip[skip:]).all()


@pytest.mark.parametrize("seed", range(6))
def test_another_size_shows_the_same_picture(seed: int) -> None:
    scene = sample_scene(seed)
    small, large = render(scene, 40, 2, 64), render(scene, 40, 2, 192).astype(float)
    shrunk = large.reshape(2, 64, 3, 64, 3, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 2.0


@pytest.mark.parametrize("seed", range(8))
def test_only_things_and_sea_move(seed: int) -> None:
    scene = sample_scene(seed, count=1)
    frames, mask = render(scene, 0, 60).astype(int), sprite_mask(scene, 0, 60)
    still = (mask == 0).all(0)
    still[int(0.58 * 64):] = False  # sea and shadows
    assert still.sum() > 200 and np.ptp(frames[:, still], axis=0).max() == 0


@pytest.mark.parametrize("motion", MOTIONS)
def test_tracks_move_as_named(motion: str) -> None:
    scene = next(s for s in map(sample_scene, range(500)) if s.things[0].motion == motion and len(s.things) == 1)
    t = np.arange(0, 60, 1 / FPS)
    x, y = scene.things[0].track(t)
    step = np.diff(x)[np.abs(np.diff(x)) < 0.5]
    if motion.endswith(("left", "right")):
        assert np.allclose(step * FPS, 0.2 if motion.endswith("right") else -0.2) and np.ptp(y) == 0
        assert (np.median(y) > 0.6) == motion.startswith("rolls")
        gone = sprite_mask(scene, 0, 720).max((1, 2)) == 0
        assert 0 < gone.mean() < 0.12
    elif motion == "circles":
        assert np.ptp(x) == pytest.approx(0.42, abs=0.01) and np.ptp(y) == pytest.approx(0.42, abs=0.01)
    else:
        assert np.ptp(y) == pytest.approx(0.34, abs=0.01) and x.min() > 0.2 and x.max() < 0.8


def test_sheet_and_labels() -> None:
    videos = [render(sample_scene(seed), 0, 10) for seed in range(3)]
    assert contact_sheet(videos, 4).shape == (3 * 66, 4 * 66, 3)
    assert contact_sheet(videos, [0, 9], labels=["a", "b", "c"]).shape == (3 * 80, 2 * 66, 3)
