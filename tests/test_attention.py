import pytest
import torch

from rollforce.attention import additive, block_causal, kernel, teacher_forcing
from rollforce.errors import ConfigError


def test_kernels_agree():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = additive(torch.rand(5, 7) > 0.3)
    torch.testing.assert_close(kernel("plain")(q, k, v, mask), kernel("sdpa")(q, k, v, mask))


def test_unknown_kernel_lists_the_known():
    with pytest.raises(ConfigError, match="sdpa"):
        kernel("flash9")


def seen(mask, query, tokens):
    return [i for i in range(mask.shape[1] // tokens) if mask[query * tokens, i * tokens]]


def test_block_causal_by_hand():
    mask = block_causal(6, 2, tokens=2)
    assert seen(mask, 0, 2) == [0, 1] and seen(mask, 3, 2) == [0, 1, 2, 3]
    assert seen(block_causal(6, 2, 1, window=3), 5, 1) == [3, 4, 5]
    assert seen(block_causal(5, 2, 1, first=1), 1, 1) == [0, 1, 2]  # 0 | 1 2 | 3 4


def test_teacher_forcing_by_hand():
    mask = teacher_forcing(4, 2, tokens=1)  # clean 0..3, noisy 4..7
    assert seen(mask, 3, 1) == [0, 1, 2, 3] and seen(mask, 4, 1) == [4, 5] and seen(mask, 7, 1) == [0, 1, 6, 7]
