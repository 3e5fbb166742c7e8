"""What becomes of memory when the story goes on differently."""

import pytest
import torch
from policies import LAYOUTS, condition, latents, same, start

from rollforce.cache.kv_cache import LatentGroup
from rollforce.cache.policies import Junction, Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.engine.transitions import Anchors, Cut, Flush, Keep, Recache, Shot, check, transition
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope

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
    with pytest.raises(ConfigError, match="follows a video"):
        check(Recache(), TIERS, follows=True)
    check(Keep(), TIERS, follows=True)
    with pytest.raises(ConfigError, match="keep, blend"):
        transition("melt")
