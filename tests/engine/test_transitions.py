"""What becomes of memory when the story goes on differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from policies import HEIGHT, LAYOUTS, WIDTH, condition, latents, same, start
from tiny_transformer import TINY

from rollforce.cache.commit_plan import Candidates, Role
from rollforce.cache.kv_cache import LatentGroup
from rollforce.cache.policies import EmaSink, Junction, Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.engine.layout import chunkwise, rolling
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.engine.transitions import Anchors, Cut, Flush, Keep, Recache, Shot, check, recache, transition
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.transformer import Condition, VideoTransformer

TIERS = (Sink(2), Window(4))


@pytest.fixture
def rollout(model) -> Rollout:
    stream = start(model, LAYOUTS["chunkwise"], TIERS, Stepping())
    latents(stream, 12)
    return stream


def test_flush_leaves_the_sink_and_the_newest(rollout, model):
    Flush(keep=2).begin(rollout, condition(model))
    assert rollout.cache.held() == {"sink": (0, 1), "window": (10, 11)}
    moves = dict(rollout.cache.view(LatentGroup(12, 2, Visibility())).moves)
    assert moves == {"sink": 8, "window": 0}  # 8 9 | 10 11 | 12 13: no gap, right after it as ever
    assert latents(rollout, 6).isfinite().all()


def test_flush_of_nothing_is_keep(model):
    one, other = (start(model, LAYOUTS["chunkwise"], TIERS, Stepping()) for _ in range(2))
    for stream in (one, other):
        latents(stream, 12)
    Flush(keep=4).begin(one, condition(model))
    Keep().begin(other, condition(model))
    assert same(one.cache.state_dict(), other.cache.state_dict())


@pytest.mark.parametrize("layout", ["chunkwise", "rolling", "partitioned"])
def test_a_cut_that_remembers_puts_the_past_further_back(layout, model):
    stream = start(model, LAYOUTS[layout], TIERS, Stepping())
    latents(stream, 12)
    Cut(remember=True, jump=8).begin(stream, condition(model))
    assert stream.cache.held() == {"sink": (0, 1), "window": (8, 9, 10, 11)}
    assert next(stream.commits()).start == 20


@pytest.mark.parametrize("layout", ["chunkwise", "rolling", "partitioned"])
def test_a_cut_begins_a_stream_of_its_own(layout, model):
    cut = start(model, LAYOUTS[layout], TIERS, Stepping())
    latents(cut, 12)
    Cut().begin(cut, condition(model))
    whole = start(model, LAYOUTS[layout], TIERS, Stepping(), start=12)
    assert torch.equal(latents(cut, 8), latents(whole, 8))


@pytest.mark.parametrize("layout", ["chunkwise", "rolling", "partitioned"])
def test_what_is_in_flight_begins_anew(layout, model):
    """The next chunk never saw the old prompt: it is that of a stream that was given its past."""
    stream = start(model, LAYOUTS[layout], (Window(4),), Stepping())
    past = latents(stream, 12)
    with torch.no_grad():
        other = model.condition(torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(7)))
    Recache().begin(stream, other)
    given = start(model, LAYOUTS[layout], (Window(4),), Stepping(), start=12)
    given.condition = other
    given.prefill(past[:, 8:])
    torch.testing.assert_close(latents(stream, 4), latents(given, 4), atol=1e-5, rtol=0)


def test_a_junction_begins_where_the_prompt_changes(model):
    stream = start(model, LAYOUTS["chunkwise"], (Sink(2), Window(4), Junction(2)), Stepping())
    latents(stream, 12)
    Keep().begin(stream, condition(model))
    latents(stream, 8)
    assert stream.cache.held()["junction"] == (12, 13)
    resumed = start(model, LAYOUTS["chunkwise"], (Sink(2), Window(4), Junction(2)), Stepping())
    resumed.load_state_dict(stream.state_dict())
    assert torch.equal(latents(resumed, 6), latents(stream, 6))


def test_a_shot_looks_back_through_its_sink_only(rollout, model):
    Shot().begin(rollout, condition(model))
    assert rollout.scene.index == (6, 11) and rollout.cache.held() == {"sink": (10, 11), "window": ()}
    context = [part.clone() for part in rollout.cache.arena.values]
    latents(rollout, 8)
    tokens = 2 * rollout.cache.shape.tokens
    for then, now in zip(context, rollout.cache.arena.values, strict=True):
        assert torch.equal(then[:, :, :tokens], now[:, :, :tokens])
    Shot().begin(rollout, condition(model))
    assert rollout.scene.index[0] == 6  # the first shot is still remembered


def test_the_first_shot_has_nothing_to_look_back_on(model):
    one, other = (start(model, LAYOUTS["chunkwise"], TIERS, Stepping()) for _ in range(2))
    Shot().begin(one, condition(model))
    assert one.scene.index == ()
    torch.testing.assert_close(latents(one, 8), latents(other, 8), atol=1e-5, rtol=0)  # one phase everywhere is none


def test_phases_tell_shots_apart():
    index = torch.arange(3)
    key = torch.randn(1, 2, 3, 16, generator=torch.Generator().manual_seed(0))

    def logits(query_phase: float, key_phase: float) -> torch.Tensor:
        q, k = (rope.rotate(key, rope.angles(index, 1, 1, 16, torch.full((3,), p))) for p in (query_phase, key_phase))
        return q @ k.transpose(-1, -2)

    torch.testing.assert_close(logits(0.5, 0.5), logits(0.0, 0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(0.5, 1 / 3), logits(1 / 6, 0.0), atol=1e-5, rtol=0)
    assert not torch.allclose(logits(1 / 6, 0.0), logits(0.0, 0.0), atol=1e-3)


def test_what_a_transition_needs():
    with pytest.raises(ConfigError, match="sink"):
        check(Shot(), (Window(4),))
    with pytest.raises(ConfigError, match="junction"):
        check(Anchors(), TIERS)
    with pytest.raises(ConfigError, match="keep or blend"):
        check(Recache(), TIERS, follows=True)
    check(Keep(), TIERS, follows=True)
    with pytest.raises(ConfigError, match="keep, blend"):
        transition("melt")


# -- recache: law 10 (the same prompt changes nothing), and what another prompt changes ------------------------------

LADDER = (1.0, 0.6, 0.3)
SHORT = {"chunkwise": chunkwise(LADDER, 2), "rolling": rolling(LADDER, 2)}
ROOM = (Window(12),)


@torch.no_grad()
def another_prompt(model: VideoTransformer, seed: int) -> Condition:
    return model.condition(torch.randn(1, 5, TINY.text_dim, generator=torch.Generator().manual_seed(seed)))


def walk(model: VideoTransformer, layout: str, tiers, count: int) -> Rollout:
    rollout = start(model, SHORT[layout], tiers, Stepping())
    latents(rollout, count)
    return rollout


@pytest.mark.parametrize("layout", SHORT)
def test_10_the_same_prompt_changes_nothing(model: VideoTransformer, layout: str) -> None:
    plain, again = (walk(model, layout, ROOM, 8) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in again.cache.state_dict().items() if torch.is_tensor(tensor)}
    recache(again, another_prompt(model, 1))  # the one it has
    assert again.cache.held() == plain.cache.held() == {"window": tuple(range(6))}
    for name, tensor in before.items():
        torch.testing.assert_close(again.cache.state_dict()[name], tensor, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents(again, 4), latents(plain, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("layout", SHORT)
def test_the_past_speaks_for_the_new_prompt(model: VideoTransformer, layout: str, together: bool) -> None:
    """Memory afterwards is that of a stream which had these latents and the new prompt from the beginning."""
    rollout = walk(model, layout, ROOM, 8)
    assert rollout.recent is not None and (rollout.recent.start, rollout.recent.stop) == (0, 6)
    recache(rollout, another_prompt(model, 2), together)
    if together:
        return  # latents saw those after them, too: see the next test
    new = start(model, SHORT[layout], ROOM, Stepping(), start=6)
    new.condition = another_prompt(model, 2)
    with torch.no_grad():
        new.prefill(rollout.recent.latents_BTCHW)
    used = 6 * HEIGHT * WIDTH // 4
    for mine, theirs in zip(rollout.cache.arena.keys, new.cache.arena.keys, strict=True):
        torch.testing.assert_close(mine[:, :, :used], theirs[:, :, :used], atol=1e-5, rtol=0)


def test_together_is_not_one_after_the_other(model: VideoTransformer) -> None:
    one, other = (walk(model, "rolling", ROOM, 8) for _ in range(2))
    recache(one, another_prompt(model, 2), together=False)
    recache(other, another_prompt(model, 2), together=True)
    assert one.cache.held() == other.cache.held()
    first, second = (rollout.cache.arena.keys[1][:, :, : 6 * HEIGHT * WIDTH // 4] for rollout in (one, other))
    assert not torch.allclose(first[:, :, : HEIGHT * WIDTH // 4], second[:, :, : HEIGHT * WIDTH // 4], atol=1e-4)


@pytest.mark.parametrize("tiers", [(Sink(2), Window(4)), (Window(4), EmaSink(2))], ids=["sink", "ema"])
def test_what_is_older_stays(model: VideoTransformer, tiers) -> None:
    rollout = walk(model, "chunkwise", tiers, 14)
    held, sink = rollout.cache.held(), tiers[0].kind if isinstance(tiers[0], Sink) else tiers[1].kind
    first = rollout.cache.arena.offset[sink] * HEIGHT * WIDTH // 4
    place = slice(first, first + 2 * HEIGHT * WIDTH // 4)
    window = torch.stack(rollout.cache.arena.values)
    before = window[:, :, :, place]
    recache(rollout, another_prompt(model, 2))
    assert rollout.cache.held() == held
    assert torch.equal(torch.stack(rollout.cache.arena.values)[:, :, :, place], before)
    assert not torch.equal(torch.stack(rollout.cache.arena.values), window)
    assert latents(rollout, 4).isfinite().all()


@dataclass(frozen=True)
class Stranger:
    """A policy that no other file knows: it keeps what the stream began with."""

    role: ClassVar[Role]
    latents: int
    kind: str = "stranger"

    def keep(self, held: Candidates) -> tuple[int, ...]:
        return held.indices[: self.latents]


class Lasting(Stranger):
    role = "anchor"


class Passing(Stranger):
    role = "past"


@pytest.mark.parametrize("tier", [Lasting(2), Passing(2)])
def test_a_tier_says_itself_whether_it_stays(model: VideoTransformer, tier: Stranger) -> None:
    rollout = walk(model, "chunkwise", (tier, Window(6)), 8)
    recache(rollout, another_prompt(model, 2))
    assert rollout.cache.held()["stranger"] == (0, 1)
    one, place = rollout.cache, slice(0, 2 * HEIGHT * WIDTH // 4)
    plain = walk(model, "chunkwise", (tier, Window(6)), 8).cache
    same = torch.equal(torch.stack(one.arena.values)[..., place, :], torch.stack(plain.arena.values)[..., place, :])
    assert same is (tier.role == "anchor")
    Flush(keep=1).begin(rollout, another_prompt(model, 2))
    assert rollout.cache.held()["stranger"] == ((0, 1) if tier.role == "anchor" else ())


def test_a_rollout_writes_nothing_into_its_cache(model: VideoTransformer) -> None:
    """What a model has learned for tiers comes with each of its calls."""
    cache = walk(model, "chunkwise", ROOM, 2).cache
    before = dict(vars(cache))
    Rollout(model, another_prompt(model, 1), cache, SHORT["chunkwise"], lambda index, draw: torch.zeros(1))
    assert all(vars(cache)[name] is value for name, value in before.items()) and vars(cache).keys() == before.keys()


def test_before_there_is_a_past(model: VideoTransformer) -> None:
    rollout = start(model, SHORT["rolling"], ROOM, Stepping())
    recache(rollout, another_prompt(model, 2))
    assert rollout.cache.used == 0


def test_a_state_knows_what_to_replay(model: VideoTransformer) -> None:
    one = walk(model, "rolling", (Window(4),), 10)
    other = start(model, SHORT["rolling"], (Window(4),), Stepping())
    other.load_state_dict(one.state_dict())
    for rollout in (one, other):
        recache(rollout, another_prompt(model, 2))
    assert torch.equal(latents(one, 6), latents(other, 6))
