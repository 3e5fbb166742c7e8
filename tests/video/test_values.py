"""One door for each sort of value: what may pass, and what each refusal says."""

from __future__ import annotations

from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from rollforce.errors import ConfigError
from rollforce.video import values
from rollforce.video.values import (
    check_arguments,
    check_count,
    check_file_name,
    check_number,
    check_path,
    check_picture_size,
    check_prompt,
    check_seconds,
    check_seed,
    check_texts,
    check_threads,
    make_folder,
)


def test_what_may_pass_is_returned_as_the_program_wants_it() -> None:
    assert check_seed(np.uint8(7)) == 7 and type(check_seed(np.int64(2**62))) is int
    assert check_seconds(np.float32(1.5)) == 1.5 and check_seconds(Fraction(1, 2)) == 0.5
    assert check_seconds(float("inf"), endless=True) == float("inf") and check_seconds(0, zero=True) == 0
    assert check_picture_size([np.int32(48), 64]) == (48, 64)
    assert check_count(np.int16(3), "n") == 3 and check_number(1, "level", 0, 1) == 1
    assert check_prompt("an 8") == "an 8" and check_prompt("🐱") == "🐱" and check_prompt("赤い球")
    assert check_texts(["a"], "overrides", "b") == ("a",) and 0 <= values.draw_seed() < 2**32


@pytest.mark.parametrize(
    ("check", "value", "said"),
    [
        (check_seed, 2.0, "seed must be from 0 to 2^63 - 1, a whole number, got 2."),
        (check_seed, np.bool_(True), "seed must be from 0"),
        (check_seed, 2**63, "got 9223372036854775808."),
        (check_seconds, "3", "seconds must be above 0 and at most 1e+08 seconds (three years), got '3'."),
        (check_seconds, 4e8, "got 4e+08."),
        (check_seconds, float("inf"), "got inf."),
        (check_seconds, False, "got False."),
        (
            check_picture_size,
            (480, 832.0),
            "size must be height and width in pixels, 1 to 16384 each, got (480, 832.0). Such",
        ),
        (check_picture_size, (16385, 8), "got (16385, 8)"),
        (check_picture_size, "480x832", "got '480x832'"),
        (check_prompt, 3, "The prompt must be text, got 3. Say what to show"),
        (check_prompt, " \n", "The prompt is empty. Say"),
        (check_prompt, "?!", "The prompt '?!' has no word in it. Say"),
        (check_prompt, "a \udcff", "is not UTF-8 text"),
        (check_threads, 1025, "threads must be a whole number from 1 to 1024, got 1025. This machine has"),
        (lambda v: check_count(v, "n", least=0), 1.0, "n must be a whole number of at least 0, got 1."),
        (
            lambda v: check_number(v, "level", 0, 1, below=True),
            1,
            "level must be a number of at least 0 and below 1, got 1.",
        ),
        (lambda v: check_number(v, "rate", above=True), 0.0, "rate must be a number above 0, got 0."),
        (lambda v: check_path(v, "model"), "", "model must be the path of a file or folder, got ''."),
        (lambda v: check_path(v, "model"), b"x", "got b'x'"),
        (lambda v: check_path(v, "model"), "a\0", "got 'a\\x00'"),
        (
            lambda v: check_file_name(v, "-o", "video.mp4"),
            Path(),
            "-o must be the name of a file, of at most 250 bytes, got '.'.",
        ),
        (
            lambda v: check_file_name(v, "-o", "video.mp4"),
            "/tmp",
            "-o /tmp is a folder; name a file in it, such as /tmp/video",
        ),
        (
            lambda v: check_texts(v, "overrides", "a=1"),
            "b=2",
            "overrides must be a list of texts, such as ['a=1'], got 'b=2'.",
        ),
        (lambda v: make_folder(v, "--out"), __file__, "is a file; name a folder"),
        (lambda v: make_folder(v, "--out"), "/proc/none", "cannot be written into"),
    ],
)
def test_what_may_not_pass_is_answered(check, value, said):
    with pytest.raises(ConfigError) as caught:
        check(value)
    assert said in str(caught.value)


def test_a_scripts_arguments_are_checked_by_sort(tmp_path: Path) -> None:
    args = Namespace(prompts=2, seconds=None, seed=3, json=tmp_path / "new" / "a.json")
    check_arguments(args, counts=("prompts",), seconds=("seconds",), seeds=("seed",))
    assert (tmp_path / "new").is_dir()
    for name, wrong in {"prompts": 0, "seconds": float("nan"), "seed": -2}.items():
        with pytest.raises(ConfigError, match=f"--{name} must be"):
            check_arguments(Namespace(**{**vars(args), name: wrong}), ("prompts",), ("seconds",), ("seed",))
