import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollforce.engine.rollout import index_range
from rollforce.models.transformer import rope

ROWS, COLUMNS, HEAD = 2, 3, 16


def keys(latents: int = 2) -> torch.Tensor:
    return torch.randn(1, 2, latents * ROWS * COLUMNS, HEAD, dtype=torch.float64)


def rotate(key: torch.Tensor, start: int) -> torch.Tensor:
    return rope.rotate(
        key.float(), rope.angles(index_range(start, key.shape[2] // (ROWS * COLUMNS)), ROWS, COLUMNS, HEAD)
    )


def test_split_is_that_of_wan():
    assert rope.split(128) == (44, 42, 42)


@settings(max_examples=30, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(-(10**5), 10**5))
def test_turning_rotated_keys_is_rotating_further(start, move):
    key = keys()
    torch.testing.assert_close(rope.turn(rotate(key, start), move), rotate(key, start + move), atol=2e-5, rtol=0)


@pytest.mark.parametrize("shift", [1, 1000, 100_000])
def test_only_relative_time_matters(shift):
    q, k = keys(), keys()
    near = rotate(q, 5) @ rotate(k, 2).transpose(-1, -2)
    far = rotate(q, 5 + shift) @ rotate(k, 2 + shift).transpose(-1, -2)
    torch.testing.assert_close(near, far, atol=2e-5, rtol=0)


def test_time_is_seen_at_all():
    q, k = keys(), keys()
    assert (rotate(q, 5) @ rotate(k, 2).mT - rotate(q, 5) @ rotate(k, 1).mT).abs().max() > 0.1
