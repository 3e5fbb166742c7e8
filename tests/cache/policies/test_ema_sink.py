"""EMA sink (Reward Forcing): what it holds against a plain recomputation, and the preset against a trace by hand."""

from __future__ import annotations

import pytest
import torch
from traces import settings_of, spans, walk

from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import EmaSink, Window
from rollforce.cache.visibility import Visibility
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape

SHAPE = KVShape(layers=2, batch=1, heads=2, tokens=6, width=16)
DECAY = 0.75


def unrotated(latent: int, layer: int) -> KVBlock:
    generator = torch.Generator().manual_seed(100 * latent + layer)
    return KVBlock(*(torch.randn(1, 2, 6, 16, generator=generator) for _ in range(2)))


def committed(cache: KVCache, latents: int, chunk: int) -> None:
    """Write latents 0.. chunk by chunk, keys rotated at their own index."""
    for start in range(0, latents, chunk):
        memory = CallMemory(cache, [LatentGroup(start, chunk, Visibility(), commit=True)])
        angle = rope.angles(torch.arange(start, start + chunk), 2, 3, 16)
        for layer in range(SHAPE.layers):
            blocks = [unrotated(index, layer) for index in range(start, start + chunk)]
            key = rope.rotate(torch.cat([block.key for block in blocks], dim=2), angle)
            own = KVBlock(key, torch.cat([block.value for block in blocks], dim=2))
            memory.attend(layer, own.key, own, lambda q, k, v, mask: q)


@pytest.mark.parametrize(("chunk", "window", "sink"), [(3, 3, 3), (3, 6, 3), (2, 4, 4), (2, 1, 2), (2, 0, 2)])
def test_the_sink_is_the_average_of_what_left_without_its_time(chunk: int, window: int, sink: int) -> None:
    cache, latents = KVCache([Window(window), EmaSink(sink, DECAY)], SHAPE, flight=chunk), 8 * chunk
    committed(cache, latents, chunk)
    assert cache.held() == {"window": tuple(range(latents - window, latents)), "ema_sink": tuple(range(sink))}
    for layer in range(SHAPE.layers):
        for kept in range(sink):
            expected = unrotated(kept, layer)
            key, value = expected.key, expected.value
            for left in range(kept + sink, latents - window, sink):  # in the order in which they fell
                gone = unrotated(left, layer)
                key, value = DECAY * key + (1 - DECAY) * gone.key, DECAY * value + (1 - DECAY) * gone.value
            place = slice(cache.contents.slots["ema_sink"][kept] * 6, cache.contents.slots["ema_sink"][kept] * 6 + 6)
            angle = rope.angles(torch.tensor([kept]), 2, 3, 16)
            moved = rope.turn(rope.rotate(key, angle), cache.arena.moves["ema_sink"][layer])
            torch.testing.assert_close(cache.arena.keys[layer][:, :, place], moved, atol=2e-5, rtol=0)
            torch.testing.assert_close(cache.arena.values[layer][:, :, place], value, atol=2e-5, rtol=0)


def test_the_average_is_exact_in_bfloat16() -> None:
    """With a decay of .999 a bfloat16 average would hardly move."""
    fine, coarse = (KVCache([Window(2), EmaSink(2)], SHAPE, 2, dtype) for dtype in (torch.float32, torch.bfloat16))
    for cache in (fine, coarse):
        committed(cache, 400, 2)
    found, wanted = (torch.stack(cache.arena.exact["ema_sink"]) for cache in (coarse, fine))
    begun = torch.stack([torch.cat([unrotated(i, layer).value for i in range(2)], dim=2) for layer in range(2)])
    assert (wanted - begun).abs().mean() > 0.1
    assert (found - wanted).abs().mean() < 0.02 * (wanted - begun).abs().mean()


def test_a_decay_of_one_is_a_sink() -> None:
    cache = KVCache([Window(2), EmaSink(2, decay=1.0)], SHAPE, 2)
    committed(cache, 40, 2)
    for layer in range(SHAPE.layers):
        values = torch.cat([unrotated(i, layer).value for i in range(2)], dim=2)
        assert torch.equal(cache.arena.exact["ema_sink"][layer], values)


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_decays_that_are_none(decay: float) -> None:
    with pytest.raises(ConfigError, match="decay"):
        EmaSink(3, decay)


def test_reward_forcing_sees_nine_latents() -> None:
    """Release: 9 latents at places 0..8 with the chunk itself; sink 0..2, then what is newest."""
    by_hand = [
        "0-2",
        "0-2 3-5",
        "0-2 3-5 6-8",
        "0-2@3 6-8 9-11",
        "0-2@6 9-11 12-14",
        "0-2@9 12-14 15-17",
        "0-2@12 15-17 18-20",
        "0-2@15 18-20 21-23",
    ]
    model, _ = walk("reward_forcing", len(by_hand))
    for number, text in enumerate(by_hand):
        calls = [call for call in model.denoised if call.start == 3 * number]
        assert [call.sigma[0] for call in calls[:4]] == pytest.approx([1, 0.9375, 0.8333333, 0.625])
        clean = next(call for call in model.committed if call.start == 3 * number)
        assert all(call.seen == spans(text) for call in (*calls, clean)), number
    tier = settings_of("reward_forcing").cache[1]
    assert isinstance(tier, EmaSink) and tier.decay == 0.999
