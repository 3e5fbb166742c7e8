"""The number of threads is held by all who compute, and comes back when the last of them is done."""

from __future__ import annotations

import pytest
import torch

from rollforce import Model
from rollforce.engine.threads import SMALL, compute_on, threads_for


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_the_first_of_two_that_ends_does_not_bring_the_number_back():
    one, two = compute_on(1), compute_on(1)
    with two:
        with one:
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    one, two = compute_on(1), compute_on(2)
    one.__enter__()
    two.__enter__()
    assert torch.get_num_threads() == 2
    one.__exit__(None, None, None)
    assert torch.get_num_threads() == 2
    two.__exit__(None, None, None)
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_of_two_sessions_the_first_that_closes_leaves_the_other_its_threads(small: Model):
    first, second = (small.session("a red ball bounces over green hills", ahead=True) for _ in range(2))
    next(first.stream())
    next(second.stream())
    first.close()
    assert torch.get_num_threads() == small.threads == 1
    second.close()
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_small_model_on_a_cpu_takes_one_thread_and_a_large_one_torchs():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [threads_for(SMALL - 1, cpu), threads_for(SMALL, cpu), threads_for(1, gpu)] == [1, 3, 3]
