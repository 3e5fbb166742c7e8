"""A search is the plain stream where there is nothing to choose, finds what its reward wants, frees what it prunes."""

from __future__ import annotations

import argparse
import gc
import math
import runpy
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from repository import ROOT

from rollforce.cache.kv_cache import KVCache
from rollforce.engine.flow import Branched, Noise
from rollforce.errors import ConfigError, SessionClosed
from rollforce.streaming.events import Cue
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.streaming.pace import Pace
from rollforce.streaming.search import Search, SearchSettings, candidate_seed
from rollforce.streaming.session import Session
from rollforce.training.rewards import frame_reward, stillness

PROMPT = "a red ball bounces over green hills"
ALONE = SearchSettings(beams=1, candidates=1, lean=0)


@pytest.fixture(scope="module")
def chunkwise(folder: Path) -> Model:
    return load(folder, stream="chunkwise")


@pytest.fixture(scope="module")
def rolling(folder: Path) -> Model:
    return load(folder, stream="rolling")


def frames(chunks) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def plain(model: Model, seconds: float, *cues: Cue, seed: int = 3) -> np.ndarray:
    with model.session(PROMPT, seed=seed, cues=cues) as session:
        return frames(session.stream(seconds))


def searched(model: Model, seconds: float, reward, settings: SearchSettings) -> np.ndarray:
    with model.session(PROMPT, seed=3) as session, Search(session, reward, settings) as search:
        return frames(search.stream(seconds))


def brightness(pictures: np.ndarray, prompt: str) -> float:
    return float(pictures.mean())


class Wanting:
    """A reward that knows what it wants: one of these chunks."""

    def __init__(self, wanted: np.ndarray) -> None:
        self.chunks = wanted.reshape(-1, 12, *wanted.shape[1:]).astype(float)

    def __call__(self, pictures: np.ndarray, prompt: str) -> float:
        return -min(float(np.abs(chunk - pictures).mean()) for chunk in self.chunks)


# -- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["chunkwise", "rolling"])
def test_one_candidate_is_the_plain_stream(request, layout):
    model = request.getfixturevalue(layout)
    assert np.array_equal(searched(model, 2.5, brightness, ALONE), plain(model, 2.5))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("branch", ["entering", "anew"])
def test_the_candidate_that_the_reward_wants_wins(chunkwise, beams, branch):
    """Every chunk is from another seed, as if a plain stream had been told so."""
    candidates = SearchSettings(beams=beams, candidates=3, lean=0, window=1, branch=branch)
    first, second = candidate_seed(3, 0, 0, 1), candidate_seed(3, 2, 0, 2)
    expected = plain(chunkwise, 4, Cue(0, seed=first), Cue(2, seed=second))
    assert np.array_equal(searched(chunkwise, 4, Wanting(expected), candidates), expected)
    assert not np.array_equal(expected, plain(chunkwise, 4))


def test_where_chunks_are_in_flight_a_round_sees_what_entered(rolling):
    settings = SearchSettings(beams=1, candidates=2, span=4, lean=0, window=1)
    seed = candidate_seed(3, 0, 0, 1)
    with rolling.session(PROMPT, seed=3) as session:
        session.state.rollout.noise = Branched((3,), (8, 4, 6), ((0, seed),))
        expected = frames(session.stream(4))
    assert np.array_equal(searched(rolling, 4, Wanting(expected), settings), expected)


def test_anew_is_a_seed_cue_where_chunks_are_in_flight(rolling):
    settings = SearchSettings(beams=1, candidates=2, lean=0, window=1, branch="anew")
    expected = plain(rolling, 3, Cue(1, seed=candidate_seed(3, 1, 0, 1)))
    assert np.array_equal(searched(rolling, 3, Wanting(expected), settings), expected)


@pytest.mark.parametrize("lookahead", [0, 2])
def test_the_length_asked_for_and_the_pieces_change_nothing(chunkwise, lookahead):
    settings = SearchSettings(lookahead=lookahead)
    whole = searched(chunkwise, 3, brightness, settings)
    assert np.array_equal(searched(chunkwise, 1.5, brightness, settings), whole[:18])
    with chunkwise.session(PROMPT, seed=3) as session, Search(session, brightness, settings) as search:
        chunks = [chunk for seconds in (0.5, 1.25, 1.25) for chunk in search.stream(seconds)]
        assert np.array_equal(frames(session.stream(1)), plain(chunkwise, 1))  # the session stands where it stood
    assert np.array_equal(frames(chunks), whole)
    assert [chunk.pts for chunk in chunks] == pytest.approx([0, 0.5, 1, 1.75, 2])


def test_the_noise_of_the_winner_makes_its_bytes_again(chunkwise):
    settings = SearchSettings(beams=2, candidates=2)
    with chunkwise.session(PROMPT, seed=3) as session, Search(session, brightness, settings) as search:
        found, noise = frames(search.stream(3)), search.noise
    assert noise.branches and noise.lean == -0.1
    with chunkwise.session(PROMPT, seed=3) as session:
        session.state.rollout.noise = noise
        assert np.array_equal(frames(session.stream(3)), found)


def test_more_candidates_are_better_in_the_eyes_of_the_reward(chunkwise):
    short = SearchSettings(beams=1, candidates=1, lean=0, window=1)
    scores = [float(searched(chunkwise, 3, brightness, settings).mean()) for settings in
              (short, SearchSettings(beams=1, candidates=4, lean=0, window=1))]  # fmt: skip
    assert scores[1] > scores[0]


@pytest.mark.parametrize(("layout", "branch"), [("chunkwise", "entering"), ("rolling", "anew")])
def test_candidates_together_are_those_one_by_one(request, layout, branch):
    model, found = request.getfixturevalue(layout), []
    for together in (False, True):
        settings = SearchSettings(beams=2, candidates=2, branch=branch, together=together)
        found.append(searched(model, 2.5, brightness, settings))
    assert np.array_equal(*found)


def test_a_prompt_reaches_every_beam(chunkwise):
    with chunkwise.session(PROMPT, seed=3) as session, Search(session, brightness) as search:
        begun = next(search.stream())
        search.prompt("the blue star", "keep")
        later = [chunk.prompt for chunk in search.stream(4)]
    assert begun.prompt == PROMPT and later == [PROMPT, *["the blue star"] * 3]  # one was decided ahead


# -- scores and marks -------------------------------------------------------------------------------------------------


def test_scores_and_marks_are_those_of_the_formulas(chunkwise, monkeypatch):
    """alpha * short + (1 - alpha) * long, alpha = min(t / ramp, most); routes by the mean of shorts, the last long."""
    given = {"short": [0.5, 0.7, 0.6, 0.9, 0.9], "long": [0.5, 0.4, 0.6, 0.2, 0.7]}
    calls: list[tuple[int, str]] = []
    marks: list[tuple[str, int]] = []
    monkeypatch.setattr(KVCache, "mark", lambda cache, name, index: marks.append((name, index)))

    def reward(kind: str):
        def judge(pictures, prompt):
            calls.append((len(pictures), kind))
            return given[kind][sum(each == kind for _, each in calls) - 1]

        return judge

    settings = SearchSettings(beams=1, candidates=1, window=3, ramp=8, most=0.4, better=0.05, worse=0.3)
    found = []
    rewards = reward("short"), settings, reward("long")
    with chunkwise.session(PROMPT, seed=3) as session, Search(session, *rewards) as search:
        for _ in zip(range(5), search.stream(), strict=False):
            found.append(search.beams[0].score)
    assert [count for count, kind in calls if kind == "short"] == [12] * 5
    assert [count for count, kind in calls if kind == "long"] == [12, 24, 36, 36, 36]
    alphas = [0, 1 / 8, 2 / 8, 3 / 8, 0.4]
    parts = zip(alphas, given["short"], given["long"], strict=True)
    assert found == pytest.approx([alpha * one + (1 - alpha) * many for alpha, one, many in parts])
    # shorts above their mean by .05: 1 (.7 > .5), 3 (.9 > .65), 4 (.9 > .75); the long reward fell by .3 with 3
    assert marks == [("average", 3), ("append", 9), ("average", 12)]


def test_what_is_good_is_kept_in_routed_memory(folder):
    model = load(folder, stream="stream_t1", overrides=["layout.shift=3"])
    rewards = iter([0.5, 0.4, 0.3, 0.9, 0.1, 0.1, 0.1, 0.1])
    settings = SearchSettings(beams=1, candidates=1)
    short, long = (lambda pictures, prompt: next(rewards)), (lambda pictures, prompt: -len(pictures))
    with model.session(PROMPT) as session, Search(session, short, settings, long) as search:
        list(search.stream(8))
        held = search.beams[0].session.state.rollout.cache.held()
    assert held["routed"] == (0, 1, 2, 9, 10, 11)  # the sink, and the one above the mean, with which long fell


def test_long_rewards_see_only_chunks_of_the_prompt(chunkwise):
    seen = []
    cues = [Cue(2, "the blue star")]

    def long(pictures, prompt):
        seen.append((len(pictures), prompt))
        return 0.0

    with chunkwise.session(PROMPT, cues=cues) as session, Search(session, brightness, ALONE, long) as search:
        list(search.stream(4))
    assert seen == [(12, PROMPT), (24, PROMPT), (12, "the blue star"), (24, "the blue star")]


# -- memory -----------------------------------------------------------------------------------------------------------


def test_pruned_sessions_are_closed_and_freed(chunkwise, monkeypatch):
    forks: list[weakref.ref] = []
    made = Session.fork

    def fork(self, seed=None):
        twin = made(self, seed)
        forks.append(weakref.ref(twin))
        return twin

    def alive() -> int:
        return sum(twin() is not None and not twin().closed for twin in forks)

    monkeypatch.setattr(Session, "fork", fork)
    settings = SearchSettings(beams=2, candidates=3)
    most = []
    with chunkwise.session(PROMPT, seed=3) as session:
        with Search(session, lambda f, p: most.append(alive()) or brightness(f, p), settings) as search:
            list(search.stream(3))
            gc.collect()
            assert sum(twin() is not None for twin in forks) == alive() <= 2 and len(forks) > 12
            assert max(len(beam.rounds) for beam in search.beams) <= 1
        assert alive() == 0 and max(most) <= 2 * settings.beams + 1
        with pytest.raises(SessionClosed, match="This search is closed"):
            search.stream()
        assert next(session.stream()).frames.shape == (12, 32, 48, 3)


# -- noise ------------------------------------------------------------------------------------------------------------

SHAPE = (4, 16, 16)


@pytest.mark.parametrize("lean", [-0.1, 0.6, 0.95])
def test_noise_that_leans_is_the_recursion(lean):
    noise, own = Branched((5,), SHAPE, ((6, 8),), lean, chunk=3), [Noise((seed,), SHAPE) for seed in (5, 8)]
    x: dict[int, torch.Tensor] = {}
    for index in range(30):
        eps = own[index >= 6](index, 0)
        x[index] = eps if index < 3 else lean * x[index - 3] + math.sqrt(1 - lean**2) * eps
        torch.testing.assert_close(noise(index, 0), x[index], atol=2e-6, rtol=0)
        assert torch.equal(noise(index, 1), own[index >= 6](index, 1))  # only what enters leans


@pytest.mark.parametrize("lean", [-0.1, 0.9])
def test_noise_that_leans_keeps_its_variance_and_has_no_state(lean):
    noise = Branched((5,), SHAPE, (), lean, chunk=2)
    far = torch.stack([noise(index, 0) for index in range(1000, 1020)])
    again = torch.stack([Branched((5,), SHAPE, (), lean, chunk=2)(index, 0) for index in reversed(range(1000, 1020))])
    assert torch.equal(far, again.flip(0))  # asked in any order, by another one of its kind
    assert far.std() == pytest.approx(1, abs=0.03) and far.mean() == pytest.approx(0, abs=0.04)
    both = (far[2:] * far[:-2]).mean()
    assert both == pytest.approx(lean, abs=0.05)


def test_without_lean_and_branches_it_is_plain_noise():
    plain_, noise = Noise((5,), SHAPE), Branched((5,), SHAPE)
    assert all(torch.equal(plain_(i, d), noise(i, d)) for i in (-2, 0, 7) for d in (-1, 0, 3))
    twice = noise.branch(4, 8).branch(9, 2).branch(6, 1)  # what lay beyond is forgotten
    assert twice.branches == ((4, 8), (6, 1))
    assert torch.equal(twice(5, 0), Noise((8,), SHAPE)(5, 0)) and torch.equal(twice(9, 0), Noise((1,), SHAPE)(9, 0))


# -- rewards and refusals ---------------------------------------------------------------------------------------------


def test_rewards_of_training_serve_a_search():
    pictures = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)

    def reward(video, prompts):
        assert video.shape == (1, 4, 8, 8, 3) and prompts == [PROMPT]
        return {"one": video.mean((1, 2, 3, 4)), "two": torch.ones(1)}

    assert frame_reward(reward)(pictures, PROMPT) == pytest.approx((pictures.mean() / 255 + 1) / 2, abs=1e-5)
    still = np.repeat(pictures[:1], 4, axis=0)
    assert stillness(still, PROMPT) == 0 > stillness(pictures, PROMPT)


@pytest.mark.parametrize("wrong", [
    {"beams": 0}, {"candidates": 0}, {"lookahead": -1}, {"span": 0}, {"window": 0}, {"lean": 1.0}, {"ramp": 0.0},
    {"most": 1.5},
])  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        SearchSettings(**wrong)


def test_sessions_that_cannot_be_searched(chunkwise, rolling):
    with rolling.session(PROMPT) as session, pytest.raises(ConfigError, match="span 4 or more"):
        Search(session, brightness)
    with chunkwise.session(PROMPT, ahead=True) as session, pytest.raises(ConfigError, match="without ahead"):
        Search(session, brightness)
    with chunkwise.session(PROMPT, pace=Pace()) as session, pytest.raises(ConfigError, match="without pace"):
        Search(session, brightness)
    with chunkwise.session(PROMPT, cues=[Cue(2, seed=4)]) as session, pytest.raises(ConfigError, match="seeds itself"):
        Search(session, brightness)


def test_a_reward_that_says_nothing_ends_the_search(chunkwise):
    with chunkwise.session(PROMPT) as session, Search(session, lambda pictures, prompt: math.nan) as search:
        with pytest.raises(ConfigError, match="chunk at 0 s is not a number"):
            next(search.stream())
        with pytest.raises(SessionClosed):
            search.stream()


# -- what it buys -----------------------------------------------------------------------------------------------------

SCRIPT = runpy.run_path(str(ROOT / "infer" / "search.py"))


@pytest.mark.parametrize(("layout", "ticks"), [("chunkwise", 4), ("rolling", 1)])
def test_twice_the_steps_are_as_many_chunks_in_flight(folder, request, layout, ticks):
    model = request.getfixturevalue(layout)
    twice = load(folder, stream=layout, overrides=SCRIPT["refine_levels"](model.stream_settings.layout, 2))
    one, two = (each.stream_settings.layout.build() for each in (model, twice))
    assert (one.ticks, two.ticks, one.slots, one.shift) == (ticks, 2 * ticks, two.slots, two.shift)
    assert two.sigma[::2] == one.sigma  # the steps it had are among them


def test_the_table_compares_streams_with_those_of_the_first_run():
    args = argparse.Namespace(prompts=8, seeds=1, things=1, seconds=4, runs=["1x1", "2x2"])
    rows = {f"{run}/{number}": dict.fromkeys(SCRIPT["MEASURES"], None) | {"motion": number + gain, "calls": calls}
            for number in range(8) for run, gain, calls in (("1x1", 0, 4), ("2x2", 0.5, 16))}  # fmt: skip
    *_, plain_, wide = SCRIPT["table"](args, rows)
    assert plain_.startswith("| 1x1 | - |") and " 3.50 [" in plain_ and " | 4 | - |" in plain_
    assert " 4.00\\* [" in wide and " | 16 | - |" in wide
