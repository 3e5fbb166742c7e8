"""Sparse sights against references with masks and loops: which keys are attended to, and that nothing else changes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import LAYOUTS, TIERS, latents, start
from torch import Tensor

from rollforce.cache.region import Query
from rollforce.cache.visibility import Visibility
from rollforce.config import build
from rollforce.engine.rollout import Stepping
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVShape, kernel
from rollforce.models.transformer.block_sparse import BlockSparse, cut, joined
from rollforce.models.transformer.hash_attention import HashAttention, HashTextAttention, heights, numbered

ATTEND = kernel("sdpa")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(queries: int, keys: int, batch: int = 2, heads: int = 3, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(random(batch, heads, n, width, seed=i) for i, n in enumerate((queries, keys, keys)))


def by_mask(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention over the keys marked in `seen` [B, N, L, L']."""
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias
    return logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def block_of(token: int, tokens: int, block: int) -> tuple[int, int]:
    """The latent of a token, and its block inside of it."""
    size = -(-tokens // -(-tokens // block))
    return token // tokens, token % tokens // size


def brute_force(q: Tensor, k: Tensor, tokens: int, sparse: BlockSparse, bias: Tensor | None) -> Tensor:
    """Which keys each query sees, [B, N, L, L'], with loops over tokens; keys centred over all tokens that are there,
    as the paper has it."""
    seen = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.bool)
    there = torch.ones(*k.shape[:3], dtype=torch.bool) if bias is None else (
        bias.isfinite()[:, :, 0].expand(*k.shape[:3]))
    asked = [block_of(i, tokens, sparse.queries or sparse.block) for i in range(q.shape[2])]
    held = [block_of(i, tokens, sparse.block) for i in range(k.shape[2])]
    blocks = sorted(set(held))
    count = max(1, math.floor(sparse.top * len(blocks) + 1e-6))
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            real = there[b, n]
            centred = k[b, n] - k[b, n][real].mean(0)
            for mine in set(asked):
                rows = [i for i, each in enumerate(asked) if each == mine]
                scores = {}
                for block in blocks:
                    columns = [i for i, each in enumerate(held) if each == block and real[i]]
                    if columns:
                        scores[block] = float(q[b, n, rows].mean(0) @ centred[columns].mean(0))
                best = sorted(scores, key=scores.__getitem__, reverse=True)[:count]
                for column, block in enumerate(held):
                    if block in best and real[column]:
                        seen[b, n, rows, column] = True
    return seen


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 9), past=st.integers(1, 5), own=st.integers(1, 3), block=st.integers(1, 10),
    queries=st.one_of(st.none(), st.integers(1, 10)), top=st.sampled_from([0.01, 0.2, 0.5, 0.99]), bias=st.booleans(),
)  # fmt: skip
def test_the_block_map_is_that_of_brute_force(tokens, past, own, block, queries, top, bias):
    q, k, v = qkv(own * tokens, (past + own) * tokens)
    sparse = BlockSparse(top, block, queries)
    added = None
    if bias:
        added = random(2, 1, 1, k.shape[2], seed=7)
        added[:, :, :, : past * tokens][random(2, 1, 1, past * tokens, seed=8) > 0.5] = -torch.inf
    expected = by_mask(q, k, v, brute_force(q, k, tokens, sparse, added), added)
    torch.testing.assert_close(sparse.kernel(ATTEND, tokens)(q, k, v, added), expected)


@pytest.mark.parametrize("sparse", [BlockSparse(1.0, 3), HashAttention(bits=0), HashAttention(bits=0, exact=True),
                                    HashAttention(bits=2, reach=4)], ids=str)  # fmt: skip
def test_all_of_it_is_dense(sparse):
    q, k, v = qkv(10, 35)
    torch.testing.assert_close(sparse.kernel(ATTEND, 5)(q, k, v, None), ATTEND(q, k, v, None))


def test_cutting_and_joining_leaves_all_as_it_was():
    x = random(2, 3, 21, 4)
    assert cut(x, 7, 3).shape == (2, 3, 9, 3, 4)  # 3 + 3 + 1 of each latent
    assert torch.equal(joined(cut(x, 7, 3), 7, 21), x)


def test_the_release_s_centring_over_heads_chooses_otherwise():
    q, k, v = qkv(12, 48)
    right, wrong = (BlockSparse(0.2, 4, compat=compat).kernel(ATTEND, 12)(q, k, v, None) for compat in (False, True))
    assert not torch.allclose(right, wrong)
    centred = k - k.mean(1, keepdim=True)
    chosen = brute_force(q, centred, 12, BlockSparse(0.2, 4), None)
    torch.testing.assert_close(wrong, by_mask(q, k, v, chosen))


def test_only_chosen_keys_reach_the_kernel():
    """The law of cost: the kernel is given the `top` share of the keys, and no mask where blocks fit."""
    given: list[tuple[int, ...]] = []

    def spy(q, k, v, mask):
        assert mask is None
        given.append(tuple(k.shape))
        return ATTEND(q, k, v, mask)

    q, k, v = qkv(32, 320)
    BlockSparse(0.2, 4, 16).kernel(spy, 16)(q, k, v, None)
    HashAttention(bits=3, chunk=16).kernel(spy, 16)(q, k, v, None)
    assert given == [(6, 2, 64, 8), (6, 2, 40, 8)]


# -- buckets ----------------------------------------------------------------------------------------------------


def sides(x: Tensor, bits: int, seed: int = 0) -> list[list[list[tuple[bool, ...]]]]:
    """Of each vector of [B, N, L, K], centred, on which side of each plane it lies."""
    planes = torch.randn(x.shape[-1], bits, generator=torch.Generator().manual_seed(seed))
    return [[[tuple(bool(each @ planes[:, i] > 0) for i in range(bits)) for each in (head - head.mean(0)).float()]
             for head in row] for row in x]  # fmt: skip


def codes(x: Tensor, bits: int, seed: int = 0) -> Tensor:
    return numbered(heights(x, bits, seed))


def test_codes_are_the_sides_of_planes_and_neighbours_differ_by_one():
    x = random(400, 8)
    found = codes(x, 4, seed=3)
    planes = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
    side = x.float() @ planes > 0
    of_code = {int(code): tuple(each.tolist()) for code, each in zip(found, side, strict=True)}
    assert len(of_code) == 16 == len(set(of_code.values()))  # a bucket is a set of sides, and the other way round
    assert all(sum(a != b for a, b in zip(of_code[i], of_code[i + 1], strict=True)) == 1 for i in range(15))


@pytest.mark.parametrize("biased", [False, True])
def test_exact_buckets_are_the_mask_of_equal_sides(biased):
    q, k, v = qkv(6, 40)
    bias = random(2, 1, 1, 40, seed=5) if biased else None
    asked, held = sides(q, 3), sides(k, 3)
    seen = torch.tensor([[[[one == two for two in held[b][n]] for one in asked[b][n]] for n in range(3)]
                          for b in range(2)])  # fmt: skip
    seen |= ~seen.any(-1, keepdim=True)
    assert 0.05 < seen.float().mean() < 0.4
    found = HashAttention(bits=3, exact=True).kernel(ATTEND, 1)(q, k, v, bias)
    torch.testing.assert_close(found, by_mask(q, k, v, seen, bias))


def windows(q: Tensor, k: Tensor, there: Tensor, buckets: HashAttention) -> Tensor:
    """Which keys each query sees, with sorted lists."""
    seen = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.bool)
    width = max(1, -(-int(k.shape[2] * buckets.reach) // 2**buckets.bits))
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            real = there[b]
            mean = k[b, n][real].mean(0)
            code = codes(k[b, n] - mean, buckets.bits, buckets.seed).tolist()
            keys = sorted((i for i in range(k.shape[2])), key=lambda i: (not real[i], code[i]))
            count = int(real.sum())
            asked = codes(q[b, n] - q[b, n].mean(0), buckets.bits, buckets.seed).tolist()
            order = sorted(range(q.shape[2]), key=asked.__getitem__)
            for low in range(0, len(order), buckets.chunk):
                rows, middle = order[low : low + buckets.chunk], low + buckets.chunk // 2
                mid = asked[order[middle]] if middle < len(order) else 2**buckets.bits - 1
                before = sum(code[i] < mid for i in keys[:count])
                inside = sum(code[i] == mid for i in keys[:count])
                first = max(0, min((2 * before + inside - width) // 2, count - width))
                seen[b, n, torch.tensor(rows)[:, None], torch.tensor(keys[first : first + width])] = True
    return seen


def test_buckets_are_of_relative_time():
    q, k, v = (x.float() for x in qkv(32, 96, width=16))
    attention = HashAttention(bits=2, chunk=4)
    near, far, wrong = (attention.kernel(ATTEND, 4, told)(rope.turn(q, at), rope.turn(k, at), v, None)
                        for told, at in ((0, 0), (5000, 5000), (0, 5000)))  # fmt: skip
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)
    assert not torch.allclose(near, wrong, atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(queries=st.integers(1, 20), keys=st.integers(2, 40), bits=st.integers(1, 4), chunk=st.integers(1, 7),
       reach=st.sampled_from([0.5, 1.0, 2.5]), holes=st.booleans())  # fmt: skip
def test_sorted_buckets_are_those_of_sorted_lists(queries, keys, bits, chunk, reach, holes):
    q, k, v = qkv(queries, keys)
    buckets = HashAttention(bits=bits, reach=reach, chunk=chunk)
    there, bias = torch.ones(2, keys, dtype=torch.bool), None
    if holes:
        there = random(2, keys, seed=9) > 0
        there[:, -1] = True
        bias = torch.where(there, 0.3, -torch.inf).double()[:, None, None]
    expected = by_mask(q, k, v, windows(q, k, there, buckets), bias)
    if buckets.reach < 2**bits:
        torch.testing.assert_close(buckets.kernel(ATTEND, 1)(q, k, v, bias), expected)


def test_a_key_like_the_query_is_found():
    """A planted needle: the window around a query's bucket holds the key that points the same way."""
    q, k, _ = qkv(64, 512, batch=1, heads=1, width=16)
    k[0, 0, 100:164] = 4 * q[0, 0]
    found = windows(q, k, torch.ones(1, 512, dtype=torch.bool), HashAttention(bits=2, chunk=1))
    assert found[0, 0].float().mean() < 0.26
    assert found[0, 0, range(64), range(100, 164)].float().mean() > 0.8


# -- the prompt -------------------------------------------------------------------------------------------------


def test_the_prompt_with_all_tokens_is_dense_cross_attention():
    q, k, v = qkv(12, 9)
    for text in (HashTextAttention(bits=0), HashTextAttention(bits=3, share=1.0)):
        torch.testing.assert_close(text.kernel(ATTEND, 4)(q, k, v, None), ATTEND(q, k, v, None))


def test_prompt_tokens_that_share_no_bucket_with_a_latent_are_not_seen_by_it():
    q, k, v = qkv(12, 20)
    held, dropped = sides(k, 4), 0
    seen = torch.zeros(2, 3, 12, 20, dtype=torch.bool)
    for latent in range(3):
        rows = slice(4 * latent, 4 * latent + 4)
        asked = sides(q[:, :, rows], 4)
        for b in range(2):
            for n in range(3):
                near = [each in asked[b][n] for each in held[b][n]]
                dropped += near.count(False)
                seen[b, n, rows] = torch.tensor(near if any(near) else [True] * 20)
    assert dropped > 20
    torch.testing.assert_close(HashTextAttention(bits=4).kernel(ATTEND, 4)(q, k, v, None), by_mask(q, k, v, seen))


def test_a_share_of_the_prompt_is_what_most_queries_ask_for():
    q, k, v = qkv(12, 20)
    held, seen = sides(k, 2), torch.zeros(2, 3, 12, 20, dtype=torch.bool)
    for latent in range(3):
        rows = slice(4 * latent, 4 * latent + 4)
        asked = sides(q[:, :, rows], 2)
        for b in range(2):
            for n in range(3):
                votes = [asked[b][n].count(each) for each in held[b][n]]
                kept = sorted(range(20), key=lambda i: (-votes[i], i))[:5]
                seen[b, n, rows, torch.tensor(kept)[:, None]] = True
    found = HashTextAttention(bits=2, share=0.25).kernel(ATTEND, 4)(q, k, v, None)
    torch.testing.assert_close(found, by_mask(q, k, v, seen))


# -- as sights --------------------------------------------------------------------------------------------------


def test_layers_are_the_last_ones():
    sight, shape = Visibility(sparse=HashAttention(bits=1, layers=0.7)), KVShape(10, 1, 1, 1, 2)
    query = torch.zeros(1, 1, 1, 2)
    on = [sight.kernel(ATTEND, shape, Query(layer, 0, query, {})) is not ATTEND for layer in range(10)]
    assert on == [False] * 3 + [True] * 7


def test_it_is_off_in_noisy_calls():
    sight = Visibility(sparse=BlockSparse(below=0.7))
    assert sight.at(0.71).sparse is None and sight.at(0.7) is sight and sight.at(0.71).text is sight.text


@pytest.mark.parametrize("where", ["denoise", "commit"])
def test_a_prompt_seen_in_part_by_one_of_two_groups(model, where):
    """The clean pass rides with the next tick; each still sees the prompt as its own sight says."""
    part = Visibility(text=HashTextAttention(bits=3, share=0.4))
    sights = {"denoise": Visibility(), "commit": Visibility(), where: part}
    one, two, dense = (latents(start(model, LAYOUTS["chunkwise"], TIERS["window"], how), 8) for how in (
        Stepping(**sights), Stepping(**sights, ride=False), Stepping()))  # fmt: skip
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    assert not torch.allclose(one, dense, atol=1e-4)


def test_settings_come_from_yaml():
    read = build(Stepping, {"denoise": {"sparse": {"kind": "block_sparse", "top": 0.3},
                                            "text": {"kind": "text_buckets", "share": 0.5}},
                                "commit": {"sparse": {"kind": "buckets", "bits": 2}}})  # fmt: skip
    assert read.denoise == Visibility(sparse=BlockSparse(0.3), text=HashTextAttention(share=0.5))
    assert read.commit.sparse == HashAttention(bits=2)


def test_a_sight_that_is_never_sparse_is_refused():
    """All calls of a rolling layout hold a latent of pure noise."""
    sight = {"sparse": {"kind": "buckets", "below": 0.8}}
    build(StreamSettings, {"layout": {"kind": "chunkwise"}, "stepping": {"denoise": sight}})
    with pytest.raises(ConfigError, match="never"):
        build(StreamSettings, {"layout": {"kind": "rolling"}, "stepping": {"denoise": sight}})


def test_a_kernel_without_masks_is_refused_where_the_sight_needs_one():
    sights = {
        "exact": Visibility(sparse=HashAttention(exact=True)),
        "text": Visibility(text=HashTextAttention()),
        "fast": Visibility(sparse=HashAttention(), text=HashTextAttention(share=0.5)),
        "blocks": Visibility(sparse=BlockSparse()),
    }
    masked = {name: StreamSettings(stepping=Stepping(denoise=sight)).masked for name, sight in sights.items()}
    assert masked == {"exact": True, "text": True, "fast": False, "blocks": False}
    with pytest.raises(ConfigError):
        kernel("flash", masked=masked["exact"])


@pytest.mark.parametrize("make", [
    lambda: BlockSparse(top=0), lambda: BlockSparse(top=1.1), lambda: BlockSparse(block=0),
    lambda: HashAttention(bits=-1), lambda: HashAttention(chunk=0), lambda: HashAttention(reach=0),
    lambda: HashAttention(layers=0), lambda: HashTextAttention(share=0), lambda: BlockSparse(below=2)])  # fmt: skip
def test_senseless_settings_are_refused(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("sparse", [BlockSparse(0.5, 2), HashAttention(bits=1)], ids=str)
def test_a_mask_per_query_is_refused(sparse):
    q, k, v = qkv(4, 8)
    with pytest.raises(ConfigError, match="bias per key"):
        sparse.kernel(ATTEND, 4)(q, k, v, torch.zeros(4, 8, dtype=torch.float64))
