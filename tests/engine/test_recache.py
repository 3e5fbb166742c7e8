"""Recache: law 10 (the same prompt changes nothing), and what another prompt changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from conftest import TINY
from policies import HEIGHT, WIDTH, latents, start

from rollforce.cache.commit_plan import Candidates, Role
from rollforce.cache.policies import EmaSink, Sink, Window
from rollforce.engine.layout import chunkwise, rolling
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.engine.transitions import Flush, recache
from rollforce.models.transformer.transformer import Condition, VideoTransformer

LADDER = (1.0, 0.6, 0.3)
LAYOUTS = {"chunkwise": chunkwise(LADDER, 2), "rolling": rolling(LADDER, 2)}
ROOM = (Window(12),)


@torch.no_grad()
def told(model: VideoTransformer, seed: int) -> Condition:
    return model.condition(torch.randn(1, 5, TINY.text_dim, generator=torch.Generator().manual_seed(seed)))


def walked(model: VideoTransformer, layout: str, tiers, count: int) -> Rollout:
    rollout = start(model, LAYOUTS[layout], tiers, Stepping())
    latents(rollout, count)
    return rollout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_10_the_same_prompt_changes_nothing(model: VideoTransformer, layout: str) -> None:
    plain, again = (walked(model, layout, ROOM, 8) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in again.cache.state_dict().items() if torch.is_tensor(tensor)}
    recache(again, told(model, 1))  # the one it has
    assert again.cache.held() == plain.cache.held() == {"window": tuple(range(6))}
    for name, tensor in before.items():
        torch.testing.assert_close(again.cache.state_dict()[name], tensor, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents(again, 4), latents(plain, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_past_speaks_for_the_new_prompt(model: VideoTransformer, layout: str, together: bool) -> None:
    """Memory afterwards is that of a stream which had these latents and the new prompt from the beginning."""
    rollout = walked(model, layout, ROOM, 8)
    assert rollout.recent is not None and (rollout.recent.start, rollout.recent.stop) == (0, 6)
    recache(rollout, told(model, 2), together)
    if together:
        return  # latents saw those after them, too: see the next test
    new = start(model, LAYOUTS[layout], ROOM, Stepping(), start=6)
    new.condition = told(model, 2)
    with torch.no_grad():
        new.prefill(rollout.recent.latents_BTCHW)
    used = 6 * HEIGHT * WIDTH // 4
    for mine, theirs in zip(rollout.cache.arena.keys, new.cache.arena.keys, strict=True):
        torch.testing.assert_close(mine[:, :, :used], theirs[:, :, :used], atol=1e-5, rtol=0)


def test_together_is_not_one_after_the_other(model: VideoTransformer) -> None:
    one, other = (walked(model, "rolling", ROOM, 8) for _ in range(2))
    recache(one, told(model, 2), together=False)
    recache(other, told(model, 2), together=True)
    assert one.cache.held() == other.cache.held()
    first, second = (rollout.cache.arena.keys[1][:, :, : 6 * HEIGHT * WIDTH // 4] for rollout in (one, other))
    assert not torch.allclose(first[:, :, : HEIGHT * WIDTH // 4], second[:, :, : HEIGHT * WIDTH // 4], atol=1e-4)


@pytest.mark.parametrize("tiers", [(Sink(2), Window(4)), (Window(4), EmaSink(2))], ids=["sink", "ema"])
def test_what_is_older_stays(model: VideoTransformer, tiers) -> None:
    rollout = walked(model, "chunkwise", tiers, 14)
    held, sink = rollout.cache.held(), tiers[0].kind if isinstance(tiers[0], Sink) else tiers[1].kind
    first = rollout.cache.arena.offset[sink] * HEIGHT * WIDTH // 4
    place = slice(first, first + 2 * HEIGHT * WIDTH // 4)
    window = torch.stack(rollout.cache.arena.values)
    before = window[:, :, :, place]
    recache(rollout, told(model, 2))
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
    rollout = walked(model, "chunkwise", (tier, Window(6)), 8)
    recache(rollout, told(model, 2))
    assert rollout.cache.held()["stranger"] == (0, 1)
    one, place = rollout.cache, slice(0, 2 * HEIGHT * WIDTH // 4)
    plain = walked(model, "chunkwise", (tier, Window(6)), 8).cache
    same = torch.equal(torch.stack(one.arena.values)[..., place, :], torch.stack(plain.arena.values)[..., place, :])
    assert same is (tier.role == "anchor")
    Flush(keep=1).begin(rollout, told(model, 2))
    assert rollout.cache.held()["stranger"] == ((0, 1) if tier.role == "anchor" else ())


def test_a_rollout_writes_nothing_into_its_cache(model: VideoTransformer) -> None:
    """What a model has learned for tiers comes with each of its calls."""
    cache = walked(model, "chunkwise", ROOM, 2).cache
    before = dict(vars(cache))
    Rollout(model, told(model, 1), cache, LAYOUTS["chunkwise"], lambda index, draw: torch.zeros(1))
    assert all(vars(cache)[name] is value for name, value in before.items()) and vars(cache).keys() == before.keys()


def test_before_there_is_a_past(model: VideoTransformer) -> None:
    rollout = start(model, LAYOUTS["rolling"], ROOM, Stepping())
    recache(rollout, told(model, 2))
    assert rollout.cache.used == 0


def test_a_state_knows_what_to_replay(model: VideoTransformer) -> None:
    one = walked(model, "rolling", (Window(4),), 10)
    other = start(model, LAYOUTS["rolling"], (Window(4),), Stepping())
    other.load_state_dict(one.state_dict())
    for rollout in (one, other):
        recache(rollout, told(model, 2))
    assert torch.equal(latents(one, 6), latents(other, 6))
