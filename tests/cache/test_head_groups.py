"""Head groups: every head gets the memory of its own label, whatever the others have; and the laws hold for all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import HEIGHT, LAYOUTS, WIDTH, condition, latents, same
from tiny_transformer import TINY, tiny_transformer
from torch import Tensor

from rollforce.cache.head_groups import HeadGroups, read_labels
from rollforce.cache.kv_cache import KVCache, LatentGroup
from rollforce.cache.policies import EmaSink, Segments, Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.config import build
from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.engine.settings import HeadSettings, StreamSettings
from rollforce.engine.transitions import recache
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import KVBlock, KVShape, kernel
from rollforce.models.transformer.transformer import VideoTransformer

CONFIG = replace(TINY, num_attention_heads=4, attention_head_dim=12, num_layers=3)
TOKENS = HEIGHT * WIDTH // CONFIG.patch**2
NEAR, FAR = (Sink(1), Window(2)), (Sink(2), Window(5))
MOVING = (Sink(1), Window(1), Segments(2, segments=3))
LABELS = (("near", "far", "near", "far"), ("far", "far", "near", "near"), ("near",) * 4)  # mixed, in order, one only
GROUPS: dict[str, dict[str, tuple[Any, ...]]] = {
    "streaming and retrieval": {"near": NEAR, "far": FAR},
    "static and dynamic": {"near": (Sink(1), Window(1)), "far": MOVING},
    "averaging": {"near": (Window(2), EmaSink(2, decay=0.5)), "far": FAR},
}


@pytest.fixture(scope="module")
def model() -> VideoTransformer:
    return tiny_transformer(config=CONFIG)


def shape(batch: int = 1) -> KVShape:
    return KVShape(CONFIG.num_layers, batch, CONFIG.num_attention_heads, TOKENS, CONFIG.attention_head_dim)


def grouped(groups: dict[str, Any], labels: Any = LABELS, batch: int = 1, flight: int = 8) -> HeadGroups:
    return HeadGroups(groups, labels, shape(batch), flight)


def begun(
    model: VideoTransformer, cache: Any, layout: str = "rolling", seeds: tuple[int, ...] = (0,), **stepping: Any
) -> Rollout:
    noise = Noise.of(seeds, (CONFIG.in_channels, HEIGHT, WIDTH))
    return Rollout(model, condition(model, len(seeds)), cache, LAYOUTS[layout], noise, Stepping(**stepping))


# -- each head for itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, LABELS[::-1], (LABELS[0],) * 3, (("far",) * 4,) * 3], ids=str)
@pytest.mark.parametrize("tiers", [FAR, MOVING, (Window(2), EmaSink(2))], ids=str)
def test_a_grouping_with_equal_tiers_changes_nothing(model, tiers, labels):
    """But for segments that a group chooses by its own heads: there, all heads are in one group."""
    if tiers is MOVING:
        labels = (("far",) * 4,) * 3
    one = latents(begun(model, KVCache(tiers, shape(), 8)), 16)
    two = latents(begun(model, grouped({"near": tiers, "far": tiers}, labels)), 16)
    torch.testing.assert_close(two, one, atol=1e-6, rtol=0)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_each_head_sees_what_it_would_see_alone(data):
    """Against four caches of one head each, on random queries, keys and values."""
    labels = tuple(tuple(data.draw(st.sampled_from(["near", "far"])) for _ in range(4)) for _ in range(3))
    chunk = data.draw(st.integers(1, 4))
    together, attend = grouped({"near": NEAR, "far": FAR}, labels), kernel("plain")
    alone = {(layer, head): KVCache(NEAR if labels[layer][head] == "near" else FAR, KVShape(1, 1, 1, TOKENS, 12), 8)
             for layer in range(3) for head in range(4)}  # fmt: skip
    for start in range(0, 5 * chunk, chunk):
        calls = [LatentGroup(start, chunk, Visibility(), commit=True), LatentGroup(start + chunk, chunk, Visibility())]
        memory = together.memory(calls)
        for layer in range(3):
            query, key, value = torch.randn(3, 1, 4, 2 * chunk * TOKENS, 12)
            found = memory.attend(layer, query, KVBlock(key, value), attend)
            for head in range(4):
                part = slice(head, head + 1)
                expected = alone[layer, head].memory(calls).attend(
                    0, query[:, part], KVBlock(key[:, part], value[:, part]), attend
                )
                torch.testing.assert_close(found[:, part], expected, atol=1e-6, rtol=0)


def permuted(model: VideoTransformer, orders: list[list[int]]) -> VideoTransformer:
    """DuoAttention's way: the rows of the projections in another order of heads, the columns of the output likewise."""
    other = tiny_transformer(config=CONFIG)
    other.load_state_dict(model.state_dict())
    for block, order in zip(other.blocks, orders, strict=True):
        rows = torch.cat([torch.arange(12) + 12 * head for head in order])
        attention = block.attn1
        for linear in (attention.to_q, attention.to_k, attention.to_v):
            linear.weight.data, linear.bias.data = linear.weight[rows], linear.bias[rows]
        for norm in (attention.norm_q, attention.norm_k):
            norm.weight.data = norm.weight[rows]
        attention.to_out[0].weight.data = attention.to_out[0].weight[:, rows]
    return other


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_weights_and_labels_permuted_together_change_nothing(model, groups):
    """So outputs go back to the right heads, and picking heads is the same function as permuting weights offline."""
    orders = [[2, 0, 3, 1], [3, 2, 1, 0], [1, 2, 3, 0]]
    labels = tuple(tuple(row[head] for head in order) for row, order in zip(LABELS, orders, strict=True))
    plain = latents(begun(model, grouped(groups)), 16)
    torch.testing.assert_close(
        latents(begun(permuted(model, orders), grouped(groups, labels)), 16), plain, atol=2e-5, rtol=0
    )
    other = latents(begun(model, grouped(groups, labels)), 16)
    assert not torch.allclose(other, plain, atol=1e-4)  # labels alone do change something


def test_no_heads_of_a_group_means_no_memory_for_it():
    cache = grouped({"near": NEAR, "far": FAR, "unused": (Window(100),)})
    assert set(cache.parts) == {"near", "far"} and cache.capacity == 7
    assert cache.parts["far"].arena.keys[2].numel() == 0  # layer 2 is all near


def test_streaming_heads_cost_what_they_hold():
    """(capacity + flight) latents of each head, keys and values: nothing is kept twice."""
    cache, latent = grouped({"near": NEAR, "far": FAR}), 2 * TOKENS * 12 * 4
    assert cache.bytes == latent * (8 * (3 + 8) + 4 * (7 + 8))  # 8 near heads in all, 4 far ones


# -- the laws, for the whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("layout", ["chunkwise", "rolling"])
def test_a_state_resumes_bit_equal_and_a_denoising_tick_leaves_memory_alone(model, layout, groups):
    whole = latents(begun(model, grouped(groups), layout), 20)
    rollout = begun(model, grouped(groups), layout)
    done = latents(rollout, 10)
    with torch.no_grad():
        rollout.tick()  # the clean pass rides here
    state = rollout.state_dict()
    again = begun(model, grouped(groups), layout)
    again.load_state_dict(state)
    if layout == "chunkwise":
        before = rollout.cache.state_dict()
        with torch.no_grad():
            rollout.tick()
        assert same(before, rollout.cache.state_dict())
    else:
        commit = again.commit()
        done = torch.cat([done, commit.latents_BTCHW], dim=1)
    assert torch.equal(torch.cat([done, latents(again, 20 - done.shape[1])], dim=1), whole)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_rows_are_the_streams_alone_and_riding_is_two_calls(model, groups):
    both = latents(begun(model, grouped(groups, batch=2), seeds=(5, 6)), 14)
    apart = latents(begun(model, grouped(groups, batch=2), seeds=(5, 6), ride=False), 14)
    torch.testing.assert_close(apart, both, atol=1e-5, rtol=0)
    for row, seed in enumerate((5, 6)):
        alone = latents(begun(model, grouped(groups), seeds=(seed,)), 14)
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_memory_does_not_grow(model, groups):
    rollout, sizes = begun(model, grouped(groups)), []
    for _ in range(24):
        latents(rollout, 1)
        sizes.append(rollout.cache.bytes)
    assert len(set(sizes[10:])) == 1


def test_gradient_reaches_every_head_and_not_the_past(model):
    model = tiny_transformer(config=CONFIG).requires_grad_(True)
    rollout = begun(model, grouped(GROUPS["static and dynamic"]))
    latents(rollout, 6)
    rollout.tick(with_grad=True).clean_BTCHW.square().mean().backward()
    for block in model.blocks:
        heads = block.attn1.to_q.weight.grad.unflatten(0, (4, 12)).abs().amax((1, 2))
        assert (heads > 0).all()
    assert not any(keys.requires_grad for part in rollout.cache.parts.values() for keys in part.arena.keys)


def test_recaching_under_the_same_prompt_changes_nothing(model):
    room = {"near": (Window(6),), "far": (Window(12),)}
    one, two = (begun(model, grouped(room), "chunkwise") for _ in range(2))
    latents(one, 8), latents(two, 8)
    recache(two, condition(model))
    assert one.cache.held() == two.cache.held() == {"window": tuple(range(6))}
    torch.testing.assert_close(latents(two, 4), latents(one, 4), atol=1e-4, rtol=0)


# -- settings ---------------------------------------------------------------------------------------------------------


def stream(path: Path | str) -> StreamSettings:
    return build(StreamSettings, {"layout": {"kind": "chunkwise", "chunk": 2}, "heads": {
        "file": str(path), "groups": {"near": [{"kind": "sink", "latents": 1}, {"kind": "window", "latents": 2}],
                                      "far": [{"kind": "window", "latents": 7}]}}})  # fmt: skip


def test_settings_make_the_memory(tmp_path: Path):
    file = tmp_path / "heads.json"
    file.write_text(json.dumps({"description": "by hand", "layers": LABELS}))
    settings_ = stream(file)
    cache = settings_.memory(shape())
    assert isinstance(cache, HeadGroups) and cache.heads["near"] == ((0, 2), (2, 3), (0, 1, 2, 3))
    assert settings_.cache == () and settings_.memories == (NEAR, (Window(7),))
    assert read_labels(file) == LABELS


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (LABELS[:2], "2 layers; this one has 3"),
        ((("near",) * 5, *LABELS[1:]), "layer 0 of the head groups labels 5 heads; the model has 4"),
        ((("near", "near", "mid", "far"), *LABELS[1:]), "head 2 is labelled 'mid', but there are tiers only for near"),
        ("near", "list of lists"),
        ([[1, 2, 3, 4]] * 3, "list of lists"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, layers: Any, message: str):
    file = tmp_path / "heads.json"
    file.write_text(json.dumps({"layers": layers}))
    with pytest.raises(ConfigError, match=message):
        stream(file).memory(shape())


def test_files_that_are_none_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="is not shipped with rollforce"):
        stream("configs/heads/nobody.json").memory(shape())
    for text in ("not json", "[]", "{}"):
        (tmp_path / "heads.json").write_text(text)
        with pytest.raises(ConfigError, match=r"cannot be read as head groups.*infer/heads\.py"):
            stream(tmp_path / "heads.json").memory(shape())


def test_two_memories_at_once_are_refused():
    with pytest.raises(ConfigError, match="with heads, leave cache out"):
        StreamSettings(cache=(Window(3),), heads=HeadSettings("x.json", {"near": NEAR}))


def test_budgets_are_checked_against_the_largest_pinned_group():
    sight = Visibility(4)
    heads = HeadSettings("x.json", {"near": (Sink(1),), "far": (Sink(3),)})
    with pytest.raises(ConfigError, match=r"pinned \(3\)"):
        StreamSettings(stepping=Stepping(sight, sight), heads=heads)


def test_what_is_picked_is_a_slice_where_heads_lie_side_by_side():
    picks = grouped({"near": NEAR, "far": FAR}).picks
    assert picks[1] == {"near": slice(2, 4), "far": slice(0, 2)} and picks[2] == {"near": slice(0, 4)}
    assert isinstance(picks[0]["near"], Tensor)
