"""The profile of heads: where attention goes, against a softmax over all keys in the order of time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rollforce.cache.head_groups import read_labels, write_labels
from rollforce.cache.kv_cache import LatentGroup
from rollforce.cache.visibility import Visibility
from rollforce.config import resource
from rollforce.errors import ConfigError
from rollforce.evaluation.memory.head_profile import Profile, ProfilingCache, label_heads
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape, kernel

SHAPE = KVShape(layers=2, batch=1, heads=3, tokens=4, width=16)
PROFILE = Profile(reach=8, first=1, recent=1)


def expected(query: Tensor, keys: list[Tensor], past: int) -> list[tuple[float, float]]:
    """(near, counted) of each head: `keys` of each latent in view, oldest first, `past` of them not the call's own."""
    found = []
    for head in range(SHAPE.heads):
        mass = torch.cat([key[0, head] for key in keys]).double() @ query[0, head].double().T / SHAPE.width**0.5
        each = mass.softmax(0).sum(1).unflatten(0, (len(keys), -1)).sum(1).tolist()
        found.append((sum(each[past - 1 :]), sum(each[1:])))
    return found


def test_shares_are_those_of_a_softmax_in_the_order_of_time():
    cache, attend = ProfilingCache(PROFILE, SHAPE, 2, torch.float32, torch.device("cpu")), kernel("plain")
    latents: list[list[Tensor]] = [[] for _ in range(SHAPE.layers)]  # of each layer, the keys of each latent
    near, counted = (torch.zeros(SHAPE.layers, SHAPE.heads, dtype=torch.float64) for _ in range(2))
    for start in range(0, 20, 2):
        memory = cache.memory(
            [LatentGroup(start, 2, Visibility(), commit=True), LatentGroup(start + 2, 2, Visibility())]
        )
        for layer in range(SHAPE.layers):
            query, key, value = torch.randn(3, 1, SHAPE.heads, 4 * SHAPE.tokens, SHAPE.width)
            memory.attend(layer, query, KVBlock(key, value), attend)
            each = list(key.split(SHAPE.tokens, dim=2))
            latents[layer] += each[:2]
            past = latents[layer]
            if len(past) < 6:
                continue
            sink = rope.turn(past[0], len(past) - 6)  # glued before the newest five
            view = [sink, *past[-5:], *each[2:]]
            for head, (one, all_) in enumerate(expected(query[:, :, 2 * SHAPE.tokens :], view, 6)):
                near[layer, head] += one
                counted[layer, head] += all_
    assert cache.calls == 8  # from the third commit on
    torch.testing.assert_close(cache.near, near, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(cache.all, counted, atol=1e-3, rtol=1e-4)


def test_a_reach_without_a_past_is_refused():
    with pytest.raises(ConfigError, match="reach 8 leaves no past beside 6 latents in flight: use at least 9"):
        ProfilingCache(PROFILE, SHAPE, 6, torch.float32, torch.device("cpu"))


def test_labels_follow_the_threshold_and_the_lowest_layers_are_plain():
    shares = torch.tensor([[0.1, 0.9], [0.8, 0.79]])
    assert label_heads(shares, Profile()) == (("static", "static"), ("static", "dynamic"))
    assert label_heads(shares, Profile(plain=0))[0] == ("dynamic", "static")


def test_the_labels_that_ship_are_those_of_their_shares(tmp_path: Path):
    path = resource("configs/heads/tiny.json")
    told = json.loads(path.read_text())
    labels = label_heads(torch.tensor(told["shares"]), Profile())
    assert read_labels(path) == labels
    again = write_labels(tmp_path / "new" / "heads.json", labels, told["description"], shares=told["shares"])
    assert again.read_bytes() == path.read_bytes()
