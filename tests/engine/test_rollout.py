"""The laws of design section 7, over every layout x tiers x sight."""

import random
from dataclasses import replace

import laws
import pytest
import torch
from policies import HEIGHT, LADDER, LAYOUTS, SIGHTS, TIERS, WIDTH, condition, latents, policies, room, start
from tiny_transformer import tiny_transformer

from rollforce.cache.policies import Window
from rollforce.cache.visibility import Visibility
from rollforce.engine.layout import chunkwise
from rollforce.engine.rollout import Stepping, index_range
from rollforce.training.causal_masking import additive, block_causal, teacher_forcing

FULL = (Window(40),)
EXACT = Stepping(Visibility(positions="absolute"), Visibility(positions="absolute"))


@policies("layout", "tiers")
def test_1_a_policy_equals_the_full_cache_until_it_overflows(model, layout, tiers):
    fits = room(tiers, layout.shift) + layout.shift  # the next chunk still sees all of the past
    full, policy = (latents(start(model, layout, kept, Stepping()), fits + 4 * layout.shift) for kept in (FULL, tiers))
    torch.testing.assert_close(policy[:, :fits], full[:, :fits], atol=1e-5, rtol=0)
    assert not torch.allclose(policy, full, atol=1e-4)  # and then it does overflow


@policies("layout", "tiers", "stepping")
def test_3_a_state_between_any_two_ticks_resumes_bit_equal(model, layout, tiers, stepping):
    laws.resumes_bit_equal(model, layout, tiers, stepping)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tiers", TIERS)
def test_3_at_200_random_ticks(model, layout, tiers):
    ticks = random.Random(0).sample(range(400), 200)
    laws.resumes_and_forks(model, LAYOUTS[layout], TIERS[tiers], Stepping(), set(ticks))


@policies("layout", "tiers", "stepping")
def test_4_only_relative_time_matters(model, layout, tiers, stepping):
    laws.only_relative_time_matters(model, layout, tiers, stepping)


@policies("layout", "tiers")
def test_8_gradient_exists_only_where_asked(layout, tiers):
    model = tiny_transformer().requires_grad_(True)
    rollout = start(model, layout, tiers, Stepping())
    for tick in range(3 * layout.ticks):
        asked = tick % 2 == 1
        out = rollout.tick(with_grad=asked)
        assert out.clean_BTCHW.requires_grad == asked == out.with_grad
        assert rollout.x is not None and not rollout.x.requires_grad
        if (commit := rollout.commit()) is not None:
            assert not commit.latents_BTCHW.requires_grad
        assert not any(keys.requires_grad for keys in rollout.cache.arena.keys)
        if asked:
            out.clean_BTCHW.square().mean().backward()
    assert model.blocks[0].attn1.to_q.weight.grad.abs().max() > 0


def test_8_a_tick_with_gradient_has_the_numbers_of_one_without(model):
    for layout in LAYOUTS.values():
        plain, grad = (start(model, layout, TIERS["sink+window"], Stepping()) for _ in range(2))
        for _ in range(4 * layout.ticks):
            with torch.no_grad():
                expected = plain.tick().clean_BTCHW
                plain.commit()
            torch.testing.assert_close(grad.tick(with_grad=True).clean_BTCHW.detach(), expected, atol=1e-5, rtol=0)
            grad.commit()


@policies("layout", "tiers", "stepping")
def test_9_a_commit_never_depends_on_noise_beyond_the_slots(model, layout, tiers, stepping):
    laws.depends_on_no_noise_beyond_the_slots(model, layout, tiers, stepping)


@policies("layout", "tiers", "stepping")
def test_13_batch_rows_are_the_streams_alone(model, layout, tiers, stepping):
    laws.rows_are_the_streams_alone(model, layout, tiers, stepping)


@policies("layout", "tiers", "stepping")
def test_the_riding_clean_pass_gives_the_numbers_of_two_calls(model, layout, tiers, stepping):
    laws.riding_gives_the_numbers_of_two_calls(model, layout, tiers, stepping)


@policies("layout")
@pytest.mark.parametrize("length", [1, 2, 3, 7, 9])
def test_any_length_ends_by_itself(model, layout, length):
    """Also shorter than the buffer, and not a multiple of the chunk."""
    rollout = start(model, layout, TIERS["window"], Stepping(), length=length)
    assert latents(rollout, 10**6).shape[1] == length and rollout.done


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_full_cache_is_one_teacher_forcing_pass(model, chunk):
    """With nothing evicted, cached streaming equals one masked pass over clean and noisy latents without a cache."""
    count, tokens = 4 * chunk, HEIGHT * WIDTH // 4
    rollout = start(model, chunkwise(LADDER, chunk), FULL, EXACT, length=count)
    clean, noisy, velocity = [], [], []
    with torch.no_grad():
        while rollout.admit():
            x = rollout.x
            tick = rollout.tick()
            if rollout.row == 2:  # look at the second step of every chunk
                noisy.append(x)
                velocity.append((x - tick.clean_BTCHW) / LADDER[1])
            if (commit := rollout.commit()) is not None:
                clean.append(commit.latents_BTCHW)
        pair = torch.cat([*clean, *noisy], dim=1)
        sigma = torch.tensor([[0.0] * count + [LADDER[1]] * count])
        index = torch.cat([index_range(0, count)] * 2)
        mask = additive(teacher_forcing(count, chunk, tokens))
        expected = model(pair, sigma, index, condition(model), mask=mask)[:, count:]
    torch.testing.assert_close(torch.cat(velocity, dim=1), expected, atol=2e-5, rtol=0)


def test_committed_memory_is_one_block_causal_pass(model):
    """The keys in a full cache are those of one block-causal pass over the clean latents: seen through its output."""
    chunk, tokens = 2, HEIGHT * WIDTH // 4
    rollout = start(model, chunkwise(LADDER, chunk), FULL, EXACT, length=6)
    clean = latents(rollout, 6)
    mask = additive(block_causal(6, chunk, tokens))
    whole = model(clean, torch.zeros(1, 6), index_range(0, 6), condition(model), mask=mask)
    from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup

    cache = KVCache(FULL, rollout.cache.shape, chunk)
    parts = []
    with torch.no_grad():
        for at in range(0, 6, chunk):
            group = LatentGroup(at, chunk, EXACT.commit, commit=True)
            memory = CallMemory(cache, [group])
            parts.append(
                model(
                    clean[:, at : at + chunk], torch.zeros(1, chunk), index_range(at, chunk), condition(model), memory
                )
            )
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=0)


def test_sights_differ_where_they_should(model):
    """A law that all policies obey says little if they were all the same: they are not."""
    streams = {
        name: latents(start(model, LAYOUTS["rolling"], TIERS["sink+window"], how), 20) for name, how in SIGHTS.items()
    }
    names = sorted(streams)
    for i, one in enumerate(names):
        for two in names[i + 1 :]:
            assert not torch.allclose(streams[one], streams[two], atol=1e-4), (one, two)


@policies("tiers", "stepping")
def test_a_past_that_is_given_equals_one_that_was_made(model, tiers, stepping):
    layout, apart = chunkwise(LADDER, 3), replace(stepping, ride=False)
    whole = latents(start(model, layout, tiers, apart), 24)
    given = start(model, layout, tiers, apart, start=12)
    with torch.no_grad():
        given.prefill(whole[:, :12])
    assert torch.equal(latents(given, 12), whole[:, 12:])


def test_what_fills_no_chunk_comes_first(model):
    rollout, written = start(model, chunkwise(LADDER, 3), FULL, Stepping(), start=7), []
    plan = rollout.cache.plan
    rollout.cache.plan = lambda first, count: written.append((first, count)) or plan(first, count)
    with torch.no_grad():
        rollout.prefill(torch.randn(1, 7, 4, HEIGHT, WIDTH))
    assert written == [(0, 1), (1, 3), (4, 3)]  # a single image is a chunk of its own
    assert rollout.cache.held()["window"] == tuple(range(7)) and rollout.live == (7, 10)


class Given:
    """A source of `count` latents that enter at `level`."""

    def __init__(self, video: torch.Tensor, level: float) -> None:
        self.video, self.level, self.asked = video, level, []

    def __call__(self, index: int):
        self.asked.append(index)
        return None if index >= self.video.shape[1] else (self.video[:, index], self.level)


@policies("layout", "tiers")
def test_a_source_at_full_noise_changes_nothing_and_its_end_is_the_stream_s(model, layout, tiers):
    count = 3 * layout.slots + 1
    source = Given(torch.randn(1, count, 4, HEIGHT, WIDTH), 1.0)
    plain = start(model, layout, tiers, Stepping(), length=count)
    follows = start(model, layout, tiers, Stepping(), source=source)
    with torch.no_grad():
        expected = torch.cat([c.latents_BTCHW for c in plain.commits()], dim=1)
        found = torch.cat([c.latents_BTCHW for c in follows.commits()], dim=1)
    assert torch.equal(found, expected) and follows.done
    assert source.asked[: count + 1] == list(range(count + 1))  # in order, each once, and the end


def test_a_source_enters_at_its_level(model):
    video = torch.randn(1, 6, 4, HEIGHT, WIDTH)
    rollout = start(model, chunkwise((0.5, 0.25), 3), FULL, Stepping(), source=Given(video, 0.4))
    with torch.no_grad():
        rollout.admit()
        noise = torch.stack([rollout.noise(i, 0) for i in range(3)], dim=1)
        torch.testing.assert_close(rollout.x, 0.6 * video[:, :3] + 0.4 * noise)
        assert rollout.tick().sigma_T == (0.4,) * 3 and rollout.tick().sigma_T == (0.25,) * 3
