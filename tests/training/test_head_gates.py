"""Gates (DuoAttention): what they mix, that only they learn, and that they find the heads that look far back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from policies import HEIGHT, LAYOUTS, WIDTH, condition, latents
from tiny_transformer import TINY, tiny_transformer

from rollforce.cache.head_groups import HeadGroups, read_labels
from rollforce.cache.kv_cache import KVCache
from rollforce.cache.policies import Sink, Window
from rollforce.config import resource
from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.models.transformer.attention import KVShape
from rollforce.training.head_gates import DualCache, Gating, label_heads

CONFIG = replace(TINY, num_attention_heads=3)
FULL, SHORT = (Window(6),), (Sink(1), Window(1))
SHAPE = KVShape(CONFIG.num_layers, 1, 3, HEIGHT * WIDTH // CONFIG.patch**2, CONFIG.attention_head_dim)


def begun(gates: torch.Tensor, full: Any = FULL, short: Any = SHORT) -> tuple[Gating, Rollout]:
    model = tiny_transformer(config=CONFIG)
    gating = Gating(model, DualCache(full, KVCache(short, SHAPE, 2), SHAPE, 2), gates)
    noise = Noise.of(0, (CONFIG.in_channels, HEIGHT, WIDTH))
    stepping = Stepping(ride=False)
    return gating, Rollout(gating, condition(model), gating.cache, LAYOUTS["chunkwise"], noise, stepping)  # type: ignore[arg-type]


def walked(gates: torch.Tensor, ticks: int, **tiers: Any) -> list[torch.Tensor]:
    gating, rollout = begun(gates, **tiers)
    found = []
    for _ in range(ticks):
        rollout.admit()
        found.append(gating.tick(rollout))
    return found


def test_open_gates_and_equal_memories_are_the_full_model():
    for distance in walked(torch.ones(2, 3), 16):
        assert float(distance) < 1e-10
    for distance in walked(torch.rand(2, 3), 16, short=FULL):
        assert float(distance) < 1e-10


def test_the_walk_is_that_of_the_full_model():
    gating, rollout = begun(torch.zeros(2, 3))
    model = gating.transformer
    plain = Rollout(model, condition(model), KVCache(FULL, SHAPE, 2), LAYOUTS["chunkwise"], rollout.noise,
                    Stepping(ride=False))  # fmt: skip
    assert torch.equal(latents(rollout, 16), latents(plain, 16))


@pytest.mark.parametrize("gates", [[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [1, 1, 1]]], ids=str)
def test_gates_of_zero_and_one_are_head_groups(gates):
    """The same call under head groups gives the distance that is reported: for the first chunk that lost something."""
    groups = tuple(tuple("retrieval" if gate else "streaming" for gate in row) for row in gates)
    gating, rollout = begun(torch.tensor(gates, dtype=torch.float32))
    grouped = HeadGroups({"retrieval": FULL, "streaming": SHORT}, groups, SHAPE, 2)
    model, seen = gating.transformer, []

    def both(x, sigma, index, told, memory, phase_T=None):
        calls = memory.groups
        full = gating(x, sigma, index, told, memory, phase_T)
        if calls[0].commit:  # the past is that of the full model, for both
            for name, part in grouped.parts.items():
                state = (gating.cache if name == "retrieval" else gating.cache.streaming).state_dict()
                heads = [torch.tensor(where, dtype=torch.int64) for where in grouped.heads[name]]
                for kind in ("keys", "values"):
                    rows = state["arena"][kind]
                    state["arena"][kind] = [row[:, pick] for row, pick in zip(rows, heads, strict=True)]
                for copies in ("masters", "exact"):
                    state["arena"][copies] = {
                        region: [row[:, pick] for row, pick in zip(rows, heads, strict=True)]
                        for region, rows in state["arena"][copies].items()
                    }
                part.load_state_dict(state)
        else:
            with torch.no_grad():
                mixed = model(x, sigma, index, told, grouped.memory(calls))
            seen.append(float((mixed - full).square().mean() / full.square().mean()))
        return full

    both.policy = gating.policy  # type: ignore[attr-defined]
    rollout.model = both  # type: ignore[assignment]
    with torch.no_grad():
        latents(rollout, 10)
    torch.testing.assert_close(torch.stack(gating.losses).detach(), torch.tensor(seen), atol=1e-6, rtol=1e-4)
    assert max(seen) > 1e-4


def test_only_gates_learn_and_heads_that_look_far_back_keep_theirs():
    """A head whose value projection is zero says nothing whatever it sees: its gate closes, the others resist."""
    gates = torch.ones(2, 3, requires_grad=True)
    gating, rollout = begun(gates)
    with torch.no_grad():
        for block in gating.transformer.blocks:
            block.attn1.to_v.weight[:16], block.attn1.to_v.bias[:16] = 0, 0  # head 0
    latents(rollout, 8)
    with torch.no_grad():
        gates.fill_(0.5)
    rollout.admit()
    gating.tick(rollout).backward()
    assert gates.grad is not None
    assert (gates.grad[:, 0] == 0).all() and (gates.grad[:, 1:] < 0).all()  # opening them brings it nearer
    assert all(parameter.grad is None for parameter in gating.transformer.parameters())


def test_the_largest_gates_become_retrieval_heads():
    gates = torch.tensor([[0.1, 0.9], [0.5, 0.4]])
    assert label_heads(gates, 0.5) == (("streaming", "retrieval"), ("retrieval", "streaming"))
    assert label_heads(gates, 0) == (("streaming",) * 2,) * 2
    assert label_heads(gates, 1) == (("retrieval",) * 2,) * 2


def test_the_labels_that_ship_are_those_of_their_gates():
    path = resource("configs/heads/tiny_duo.json")
    gates = torch.tensor(json.loads(path.read_text())["gates"])
    assert read_labels(path) == label_heads(gates, 0.25)
    assert (gates > 0.5).float().mean() == 0.25
