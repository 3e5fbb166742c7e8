"""Lengths of time as people type them."""

from __future__ import annotations

import argparse
import math

import pytest

from rollforce.errors import ConfigError
from rollforce.video.duration import duration_argument, parse_duration


@pytest.mark.parametrize(("text", "seconds"), [
    ("10", 10), ("10s", 10), (" 2.5s ", 2.5), ("1m30s", 90), ("1m30", 90), ("2m", 120), ("1h0m1.5s", 3601.5), ("0", 0),
    (".5", 0.5), ("1.5m", 90), ("2H", 7200), ("1:30", 90), ("0:07.5", 7.5), ("90:00", 5400), ("1:00:01", 3601), (7, 7),
])
def test_times_as_people_write_them(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "m", ":", "-1", "10 s", "1s2m", "ten", "nan", "1:90", "1:2:3:4", "1e300",
                                  "inf"])  # fmt: skip
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a time"):
        parse_duration(text)


def test_the_option_and_the_way_out_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration("soon", "--seconds", endless=True)
    assert str(caught.value) == ("--seconds 'soon' is not a time; write seconds (10, 10s, 2.5s), 1m30s or 1:30, or inf "
                                 "for no end.")
    assert parse_duration("inf", endless=True) == math.inf


def test_scripts_say_the_same() -> None:
    assert duration_argument("1:30") == 90
    for text, words in (("soon", "'soon' is not a time"), ("0", "above 0")):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            duration_argument(text)
