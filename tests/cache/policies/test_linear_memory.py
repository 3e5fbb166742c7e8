"""LinearMemory against closed-form sums over all that fell, and its weights on their way through the model."""

import logging

import numpy as np
import pytest
import torch
from policies import LAYOUTS, TIERS, latents, start
from small_model import make_model_folder
from tiny_transformer import TINY, tiny_transformer
from torch import Tensor

from rollforce import load
from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import LinearMemory, Sink, Window
from rollforce.cache.region import Query
from rollforce.cache.visibility import Visibility
from rollforce.config import build
from rollforce.engine.rollout import Stepping
from rollforce.engine.rollout_group import RolloutGroup
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.training.network import Network
from rollforce.training.optim import build_optimisers
from rollforce.training.recipes import Optimiser

ROWS, COLUMNS, WINDOW, SINK, CHUNK = 2, 3, 3, 1, 2
TOKENS = ROWS * COLUMNS
SHAPE = KVShape(layers=1, batch=2, heads=2, tokens=TOKENS, width=16, columns=COLUMNS)


def bare(count: int, seed: int) -> Tensor:
    return torch.randn(2, 2, count * TOKENS, 16, generator=torch.Generator().manual_seed(seed))


def turned(x: Tensor, at: int) -> Tensor:
    """`x` of consecutive latents from `at` on."""
    return rope.rotate(x, rope.angles(torch.arange(at, at + x.shape[2] // TOKENS), ROWS, COLUMNS, 16))


def stream(tier: LinearMemory, chunks: int) -> tuple[KVCache, list[Tensor], list[Tensor]]:
    """A cache after so many commits, and the bare keys and values of each."""
    cache = KVCache([Sink(SINK), Window(WINDOW), tier], SHAPE, CHUNK)
    keys, values = ([bare(CHUNK, seed=2 * i + part) for i in range(chunks)] for part in (0, 1))
    for i in range(chunks):
        memory = CallMemory(cache, [LatentGroup(CHUNK * i, CHUNK, Visibility(), commit=True)])
        own = KVBlock(turned(keys[i], CHUNK * i), values[i])
        memory.attend(0, own.key, own, lambda q, k, v, mask: q)
    return cache, keys, values


def added(cache: KVCache, query: Tensor, start: int, proj: Tensor | None) -> Tensor | None:
    return cache.addition(Query(0, start, query, {} if proj is None else {"linear_memory": proj}))


def expected(keys: list[Tensor], values: list[Tensor], query: Tensor, proj: Tensor, compat: bool) -> Tensor:
    """What is added for a call after all of that, summed latent by latent."""
    key = torch.cat(keys, dim=2).unflatten(2, (-1, TOKENS))
    value = torch.cat(values, dim=2).unflatten(2, (-1, TOKENS))
    total = key.shape[2]
    key_sum, kv, count = torch.zeros(2, 2, 16), torch.zeros(2, 2, 16, 16), 0
    for index in range(SINK, total - WINDOW):  # all but what the sink and the window keep
        k = key[:, :, index]
        left_at = index + WINDOW + 1  # the commit of this latent pushed it out ...
        following = -(-left_at // CHUNK) * CHUNK  # ... and this is where the next call began
        key_sum += k.relu().sum(2)
        kv += turned(k if compat else k.relu(), index - following).transpose(2, 3) @ value[:, :, index]
        count += TOKENS
    above = turned(query if compat else query.relu(), 0) @ (kv / count)
    below = (query.relu() * (key_sum / count)[:, :, None]).sum(-1, keepdim=True) + 1e-6
    assert below.min() >= 1e-6
    return above / below @ proj[0]


@pytest.mark.parametrize("compat", [False, True])
def test_what_is_added_is_the_closed_form_of_all_that_fell(compat):
    proj = torch.randn(1, 16, 16)
    cache, keys, values = stream(LinearMemory(compat), 7)
    query = bare(3, seed=99)
    found = added(cache, turned(query, 14), 14, proj)
    torch.testing.assert_close(found, expected(keys, values, query, proj, compat), atol=2e-4, rtol=1e-4)


def test_training_s_formula_is_not_the_release_s():
    proj, query = torch.randn(1, 16, 16), turned(bare(1, seed=99), 14)
    caches = (stream(LinearMemory(compat), 7)[0] for compat in (False, True))
    ours, release = (added(cache, query, 14, proj) for cache in caches)
    assert not torch.allclose(ours, release, atol=1e-2)


def test_the_means_are_of_what_fell_and_the_sink_did_not():
    cache, keys, _ = stream(LinearMemory(), 6)
    key = torch.cat(keys, dim=2)
    fell = key[:, :, SINK * TOKENS : -WINDOW * TOKENS].relu()
    state = cache.region
    torch.testing.assert_close(state.key_mean[0], fell.mean(2), atol=1e-5, rtol=1e-5)
    assert state.count == [fell.shape[2]]


def test_nothing_is_added_before_anything_fell_or_without_weights():
    for chunks, proj in ((2, torch.randn(1, 16, 16)), (7, None)):
        cache = stream(LinearMemory(), chunks)[0]
        assert added(cache, turned(bare(1, seed=99), 2 * chunks), 2 * chunks, proj) is None


def test_weights_of_zeros_are_the_window_alone(model):
    """The law of the start of training: bit for bit."""
    tiers = TIERS["sink+window+linear"]
    plain = latents(start(model, LAYOUTS["rolling"], tiers[:2], Stepping()), 16)
    rollout = start(model, LAYOUTS["rolling"], tiers, Stepping())
    with torch.no_grad():
        model.policy["linear_memory"].zero_()
    assert torch.equal(latents(rollout, 16), plain)
    assert not torch.allclose(latents(start(model, LAYOUTS["rolling"], tiers, Stepping()), 16), plain, atol=1e-3)


def test_the_state_does_not_grow():
    sizes = {stream(LinearMemory(), chunks)[0].region.bytes for chunks in (1, 3, 12)}
    assert sizes == {2 * 2 * (16 + 16 * 16) * 4}


def test_a_shape_without_columns_is_refused():
    with pytest.raises(ConfigError, match="columns"):
        KVCache([LinearMemory()], KVShape(1, 1, 1, 6, 16), 1)


# -- the weights ------------------------------------------------------------------------------------------------


def test_gradient_reaches_the_weights():
    model = tiny_transformer().requires_grad_(True)
    tiers = TIERS["sink+window+linear"]
    rollout = start(model, LAYOUTS["rolling"], tiers, Stepping())
    model.policy.clear()
    model.learn(tiers)
    for _ in range(8):
        rollout.tick()
        rollout.commit()
    rollout.tick(with_grad=True).clean_BTCHW.square().mean().backward()
    gradient = model.policy["linear_memory"].grad
    assert gradient is not None and gradient.flatten(1).abs().amax(1).min() > 0  # in every layer
    assert model.policy["linear_memory"].abs().max() == 0  # it starts as nothing


def test_distillation_trains_them(tmp_path):
    """The student's own streams, as train/distill.py walks them, and its optimiser."""
    folder = make_model_folder(tmp_path / "small")
    tiers = [{"kind": "window", "latents": 1}, {"kind": "linear_memory"}]
    settings = build(StreamSettings, {"layout": {"chunk": 1, "levels": [1.0, 0.5]}, "cache": tiers})
    student = Network.load(folder)
    student.transformer.learn(settings.tiers)
    (made,) = build_optimisers(student.transformer, Optimiser(kind="adamw", lr=0.1))
    text = student.text(student.text.numbers(["a red ball"])).detach()
    streams = RolloutGroup(student.transformer, settings, text, (0,), (8, 4, 6))
    for _ in range(5):
        made.zero_grad()
        streams.tick().square().mean().backward()
    made.step()
    assert student.transformer.policy["linear_memory"].abs().amax((1, 2)).min() > 0.01


def test_weights_are_saved_and_loaded_under_their_name(tmp_path):
    model = tiny_transformer()
    assert not any(name.startswith("policy") for name in model.state_dict())  # diffusers' names exactly
    model.learn([Window(3), LinearMemory()])
    model.learn([LinearMemory()])  # once is enough
    with torch.no_grad():
        model.policy["linear_memory"].normal_()
    model.save(tmp_path)
    again = VideoTransformer.load(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys() and "policy.linear_memory" in again.state_dict()
    assert torch.equal(again.policy["linear_memory"], model.policy["linear_memory"])
    assert again.policy["linear_memory"].shape == (TINY.num_layers, 16, 16)
    assert again.unlearned([LinearMemory()]) == []


def test_a_model_without_weights_streams_and_says_so(tmp_path, caplog):
    folder = make_model_folder(tmp_path / "small")
    changes = ["layout={kind: chunkwise, chunk: 1, levels: [1]}",
               "cache=[{kind: window, latents: 2}, {kind: linear_memory}]"]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        plain = load(folder, overrides=changes)
    assert "not trained with linear_memory" in caplog.text
    network = Network.load(folder)
    network.transformer.learn([LinearMemory()])
    with torch.no_grad():
        network.transformer.policy["linear_memory"].normal_(0, 10)
    network.save(folder)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trained = load(folder, overrides=changes)
    assert "linear_memory" not in caplog.text
    ours, without = (torch.from_numpy(frames(each)) for each in (trained, plain))
    early = 3 * plain.frames_per_latent  # a window of 2 and the chunk itself: nothing fell before
    assert torch.equal(ours[:early], without[:early]) and not torch.equal(ours, without)


def frames(model) -> np.ndarray:
    with model.session("a red ball", seed=1) as session:
        return np.concatenate([chunk.frames for chunk in session.stream(2.0)])
