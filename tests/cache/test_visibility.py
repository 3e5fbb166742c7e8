import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollforce.cache.visibility import absolute, positions, realigned
from rollforce.errors import ConfigError


@given(st.integers(1, 5), st.integers(0, 9), st.integers(0, 10**6))
def test_realigned_is_contiguous_and_ends_at_now(sink, window, gap):
    first = sink + gap
    visible = {"sink": tuple(range(sink)), "window": tuple(range(first, first + window))}
    moves = realigned(visible, range(first + window, first + window + 3))
    moved = [i + moves.get(region, 0) for region, held in visible.items() for i in held]
    assert moved == list(range(first + window - len(moved), first + window))
    assert moves.get("window", 0) == 0  # the newest past never turns


def test_rolling_forcing_by_hand():
    """Window 8 of the golden trace: sink at 6-8, work 9-11, window from 12."""
    assert realigned({"sink": (0, 1, 2), "window": (9, 10, 11)}, range(12, 27)) == {"window": 0, "sink": 6}


def test_absolute_moves_nothing():
    assert absolute({"sink": (0,), "window": (900,)}, range(901, 904)) == {}


def test_unknown_positions_list_the_known():
    with pytest.raises(ConfigError, match="realigned"):
        positions("relative")
