"""What becomes of memory when the story goes on differently."""

import pytest
import torch
from policies import LAYOUTS, condition, latents, same, start

from rollforce import rope
from rollforce.cache import Group, Junction, Sight, Sink, Window
from rollforce.errors import ConfigError
from rollforce.rollout import Rollout, Stepping
from rollforce.transitions import flush, shot, skip, switch

TIERS = (Sink(2), Window(4))


@pytest.fixture
def rollout(model) -> Rollout:
    stream = start(model, LAYOUTS["chunkwise"], TIERS, Stepping())
    latents(stream, 12)
    return stream


def test_flush_leaves_the_sink_and_the_newest(rollout, model):
    flush(rollout, condition(model), keep=2)
    assert rollout.cache.held() == {"sink": (0, 1), "window": (10, 11)}
    moves = dict(rollout.cache.view(Group(12, 2, Sight())).moves)
    assert moves == {"sink": 8, "window": 0}  # 8 9 | 10 11 | 12 13: no gap, right after it as ever
    assert latents(rollout, 6).isfinite().all()


def test_flush_of_nothing_is_keep(model):
    one, other = (start(model, LAYOUTS["chunkwise"], TIERS, Stepping()) for _ in range(2))
    for stream in (one, other):
        latents(stream, 12)
    flush(one, condition(model), keep=4)
    switch(other, condition(model))
    assert same(one.cache.state_dict(), other.cache.state_dict())


def test_skip_puts_the_past_further_back(rollout):
    before = rollout.recent
    skip(rollout, 8)
    low, _ = rollout.live
    assert before is not None and low == 20 and rollout.cache.held()["window"] == (8, 9, 10, 11)
    commit = next(rollout.commits())
    assert commit.start == 20


def test_a_junction_begins_where_the_prompt_changes(model):
    stream = start(model, LAYOUTS["chunkwise"], (Sink(2), Window(4), Junction(2)), Stepping())
    latents(stream, 12)
    switch(stream, condition(model))
    latents(stream, 8)
    assert stream.cache.held()["junction"] == (12, 13)
    resumed = start(model, LAYOUTS["chunkwise"], (Sink(2), Window(4), Junction(2)), Stepping())
    resumed.load_state_dict(stream.state_dict())
    assert torch.equal(latents(resumed, 6), latents(stream, 6))


def test_a_shot_looks_back_through_its_sink_only(rollout, model):
    scene = shot(rollout, condition(model))
    assert scene.index == (6, 11) and rollout.cache.held() == {"sink": (10, 11), "window": ()}
    context = [part.clone() for part in rollout.cache.arena.values]
    latents(rollout, 8)
    tokens = 2 * rollout.cache.shape.tokens
    for then, now in zip(context, rollout.cache.arena.values, strict=True):
        assert torch.equal(then[:, :, :tokens], now[:, :, :tokens])
    assert shot(rollout, condition(model), scene).index[0] == 6  # the first shot is still remembered


def test_the_first_shot_has_nothing_to_look_back_on(model):
    one, other = (start(model, LAYOUTS["chunkwise"], TIERS, Stepping()) for _ in range(2))
    assert shot(one, condition(model)).index == ()
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


def test_what_needs_one_chunk_at_a_time(model):
    stream = start(model, LAYOUTS["rolling"], TIERS, Stepping())
    for cut in (lambda: skip(stream, 8), lambda: shot(stream, condition(model))):
        with pytest.raises(ConfigError, match="chunkwise"):
            cut()
    with pytest.raises(ConfigError, match="sink"):
        shot(start(model, LAYOUTS["chunkwise"], (Window(4),), Stepping()), condition(model))
