"""Free wording: what becomes of prompts that people write who know only "coloured shapes on landscapes"."""

from __future__ import annotations

import random

import numpy as np
import pytest

import rollforce
from rollforce.errors import ConfigError
from rollforce.streaming.model import Model
from rollforce.world import WORDS, caption, parse, sample_scene
from rollforce.world.eyes import Eyes
from rollforce.world.oracle import score
from rollforce.world.phrasing import complete, is_complete
from rollforce.world.synonyms import ABSENT, FILLERS, NEAREST, NUMBERS, SYNONYMS

# Written before the tables were, and answered by them; "" is a prompt that is refused, with a sentence that works.
NATURAL = {
    "a ball": "a red ball bounces over green hills by day",
    "a star": "an orange star circles over green hills by day",
    "bouncing heart": "a red heart bounces over green hills by day",
    "a red circle jumping up and down": "a red ball bounces over green hills by day",
    "two stars": "an orange star rolls left and a yellow star circles over green hills by day",
    "blue square on the beach": "",
    "green triangles spinning in the desert at night": "",
    "a crimson sphere rolling across the meadow": "",
    "the yellow star flies over mountains": "a yellow star drifts left over snowy mountains by day",
    "a heart floating over the ocean": "a red heart drifts left over the sea by day",
    "show me a purple diamond on snow": "",
    "red ball and blue cube": "a red ball rolls left and a blue box circles over green hills by day",
    "a cat": "",
    "sunset with an orange ball": "an orange ball bounces over green hills at sunset",
    "night sky with a white star": "",
    "a ball that changes from red to blue": "",
    "A big red ball bounces through a forest.": "",
    "pink hearts falling": "",
    "in the city, a green box slides slowly to the right": "",
    "a spinning star": "",
    "desert": "",
    "something bouncing by the lake": "",
    "a dog running on the grass": "",
    "three yellow balls at the beach in the morning": "",
    "turquoise ring moving left over hills at dusk": "",
}


def answer(text: str) -> tuple[str, str]:
    """What a prompt is shown as, or the sentence that its refusal offers; and the refusal."""
    try:
        return complete(text), ""
    except ConfigError as error:
        return str(error).split('try "')[1].split('"')[0], str(error)


@pytest.mark.parametrize("prompt", NATURAL)
def test_a_natural_prompt_is_shown_or_answered_with_one_that_works(prompt: str) -> None:
    shown, refusal = answer(prompt)
    assert complete(shown) == shown and is_complete(parse(shown)) and set(shown.split()) <= set(WORDS)
    assert bool(refusal) == (NATURAL[prompt] == "") and shown == (NATURAL[prompt] or shown)


@pytest.mark.parametrize(("prompt", "parts"), [
    ("a cat in the forest", ["words that this model never learnt", '"cat" (there are no animals here)', '"hills"']),
    ("a red bal", ['has the word "bal" (did you mean "ball"?), which this model never learnt']),
    ("a qwxyz", ['"qwxyz" (nothing here is like it)']),
    ("a red blue ball", ['gives one colour twice ("red" and "blue"']),
    ("one red ball and two blue stars", ["wants more than 2 things"]),
    ("two balls and two stars", ["wants more than 2 things"]),
    ("two red balls", ["two things that are red, which would melt into one"]),
    ("a red ball, a blue star, a green box", ["more than 2 things"]),
    ("!!!", ["has no words"]),
])  # fmt: skip
def test_what_cannot_be_is_said(prompt: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        complete(prompt)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(("one", "other"), [
    ("a yellow star flew over the mountains", "over mountains a star, yellow, flies"),
    ("scarlet orbs leaping", "a red ball leaps"),
    ("a red ball with a blue star", "a red ball a blue star"),
    ("red and blue balls", "a red ball and a blue ball"),
    ("circles", "two spheres"),
    ("by the sea at dusk", "twilight, the ocean"),
    ("left a box", "a box drifting left"),
])  # fmt: skip
def test_forms_and_order_say_the_same(one: str, other: str) -> None:
    assert complete(one) == complete(other)


def test_captions_stay_as_they_are() -> None:
    for seed in range(300):
        text = caption(sample_scene(seed), seed)
        assert complete(text) == text or not is_complete(parse(text)), text
    for text in ("a red ball bounces over green hills", "a red ball rolls left", "A violet cube, drifting  right!"):
        assert complete(text) == text


def test_any_words_in_any_order_come_to_a_sentence_that_works() -> None:
    tables = [*SYNONYMS.values(), *NEAREST.values(), *ABSENT.values(), FILLERS, " ".join(NUMBERS), " ".join(WORDS)]
    words, rng = " ".join(tables).split(), random.Random(5)
    for _ in range(2000):
        shown, _ = answer(" ".join(rng.choices(words, k=rng.randrange(1, 9))))
        assert complete(shown) == shown


def test_a_session_shows_the_completed_prompt_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = rollforce.load("tiny")
    model.warmup()
    assert not caplog.messages
    with model.session("a star") as session, model.session(NATURAL["a star"]) as plain:
        assert caplog.messages == [f'"a star" is shown as "{NATURAL["a star"]}"']
        assert session.shown == NATURAL["a star"] == model.complete_prompt("a star")
        assert np.array_equal(next(session.stream()).frames, next(plain.stream()).frames)


@pytest.fixture(scope="module")
def model() -> Model:
    return rollforce.load("tiny")


@pytest.mark.slow
@pytest.mark.parametrize("prompt", NATURAL)
def test_the_bundled_model_draws_it(prompt: str, model: Model) -> None:
    shown = answer(prompt)[0]
    with model.session(shown) as session:
        report = score(np.concatenate([chunk.frames for chunk in session.stream(5)]), shown, eyes=Eyes.load())
    assert report.present > 0.5 and report.scene == 1 and report.colour == 1, report.seen
