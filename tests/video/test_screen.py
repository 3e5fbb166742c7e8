"""The terminal that a stream is drawn in: half blocks, a line to type, the last lines that were said."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from rollforce.video.screen import Screen, draw_half_blocks


def test_a_picture_is_drawn_in_half_blocks():
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[0, 1], frame[1, 1], frame[2:, 2] = (255, 0, 0), (0, 0, 255), 9
    lines = draw_half_blocks(frame, columns=4, rows=10)
    plain = [re.sub(r"\033\[[0-9;]*m", "", line) for line in lines]
    assert plain == ["▀▀▀▀"] * 2
    assert "\033[38;2;255;0;0;48;2;0;0;255m▀" in lines[0] and lines[1].count("\033[38;2;9;9;9;48;2;9;9;9m") == 1
    for columns, rows in ((80, 24), (20, 50), (300, 100), (1, 1)):
        lines = draw_half_blocks(frame, columns, rows)
        assert len(lines) <= rows and lines[0].count("▀") <= min(columns, 96)


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (100, 40)])
def test_a_screen_fits_its_terminal(size):
    out = io.StringIO()
    screen = Screen(out, lambda: size)
    screen.say("short")
    screen.say("word " * 60)
    for character in "a blux\x7fe":
        assert screen.key(character) is None
    screen.show(np.zeros((64, 64, 3), np.uint8), "status " * 30)
    lines = re.sub(r"\033\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).split("\r\n")
    assert len(lines) <= size[1] and all(len(line) <= size[0] for line in lines) and lines[-1] == "> a blue"
    assert screen.key("\n") == "a blue" and screen.typing == ""
    assert screen.key("\x04") == ":quit" and screen.key("x") is None
    assert screen.key("\x04") is None and screen.key("\x15") is None and screen.key("\r") == ""


def test_the_last_lines_are_seen_and_all_of_a_long_text():
    screen = Screen(io.StringIO(), lambda: (80, 24))
    for number in range(20):
        screen.say(f"line {number}")
    assert screen.said == [f"line {number}" for number in range(14, 20)]
    screen.say("\n".join("abcdefghij"))
    assert screen.said == list("abcdefghij")
    screen.say("k")
    assert screen.said == list("fghijk")
