"""Values that people give, one door for each sort: a mistake has the same answer in every command, script and call.

Each function takes a value and the name that its giver knows it by, and returns it as the program wants it. What cannot
be used raises a ConfigError that says the name, what would be right and why, the value, and often what to do instead.
"""

from __future__ import annotations

import math
import numbers
import os
import secrets
import tempfile
import unicodedata
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rollforce.errors import ConfigError

LONGEST_S = 1e8  # three years
SIDE = 16384  # pixels: the longest that H.264 can code
SEEDS = 2**63  # of torch's generator
THREADS = 1024  # far above, the OpenMP runtime ends the process where it cannot begin one
COUNT = 2**31 - 1
EXAMPLE = 'Say what to show, e.g. "a red ball bounces over green hills".'


def refuse(name: str, right: str, value: Any, remedy: str = "") -> ConfigError:
    """Return the error for a value that is not what is right for `name`: a number, a range, a kind of thing."""
    return ConfigError(f"{name} must be {right}, got {show(value)}.{remedy and ' '}{remedy}")


def show(value: Any) -> str:
    """Return a value as an error text shows it, shortened."""
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_count(value: Any, name: str, least: int = 1, most: int = COUNT, remedy: str = "") -> int:
    """Return a whole number, of Python or NumPy, from `least` to `most`. ConfigError."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        limit = f"of at least {least}" if most == COUNT else f"from {least} to {most}"
        raise refuse(name, f"a whole number {limit}", value, remedy)
    return int(value)


def check_number(value: Any, name: str, least: float = 0.0, most: float = math.inf, *, above: bool = False,
                 below: bool = False, remedy: str = "") -> float:  # fmt: skip
    """Return a finite number from `least` to `most`: more than `least` where `above`, less than `most` where `below`.
    ConfigError."""
    inside = _is_number(value) and least <= value <= most and math.isfinite(value)
    if not inside or (above and value == least) or (below and value == most):
        low = f"above {least:g}" if above else f"of at least {least:g}"
        high = "" if most == math.inf else f" and below {most:g}" if below else f" and at most {most:g}"
        raise refuse(name, f"a number {low}{high}", value, remedy)
    return float(value)


def check_seconds(value: Any, name: str = "seconds", *, zero: bool = False, endless: bool = False,
                  remedy: str = "") -> float:  # fmt: skip
    """Return a length of time up to three years; `zero` and `endless` (infinity) only where they make sense.
    ConfigError."""
    if endless and _is_number(value) and value == math.inf:
        return math.inf
    if not _is_number(value) or not 0 <= value <= LONGEST_S or (value == 0 and not zero):
        least = "0 or more" if zero else "above 0"
        end = ", or inf for no end" if endless else ""
        raise refuse(name, f"{least} and at most {LONGEST_S:g} seconds (three years){end}", value, remedy)
    return float(value)


def check_seed(seed: Any, name: str = "seed") -> int:
    """Return a seed, of Python or NumPy, from 0 to 2^63 - 1: what a generator takes. ConfigError."""
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < SEEDS:
        raise refuse(name, "from 0 to 2^63 - 1, a whole number", seed)
    return int(seed)


def draw_seed() -> int:
    """Return a seed that nobody chose, short enough to be typed again."""
    return secrets.randbelow(2**32)


def check_prompt(text: Any, name: str = "prompt") -> str:
    """Return text that says something: ConfigError for what is none, is empty, holds signs only, or no UTF-8."""
    if not isinstance(text, str):
        raise refuse(f"The {name}", "text", text, EXAMPLE)
    if not text.strip():
        raise ConfigError(f"The {name} is empty. {EXAMPLE}")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ConfigError(f"The {name} {show(text)} is not UTF-8 text. Write it in a file, for --prompts.")
    if not any(sign.isalnum() or unicodedata.category(sign) == "So" for sign in text):
        raise ConfigError(f"The {name} {show(text)} has no word in it. {EXAMPLE}")
    return text


def check_picture_size(size: Any, name: str = "size") -> tuple[int, int]:
    """Return (height, width) in pixels, 1 to 16384 each. ConfigError."""
    pair = tuple(size) if isinstance(size, tuple | list) else ()
    whole = all(isinstance(side, numbers.Integral) and not isinstance(side, bool) for side in pair)
    if len(pair) != 2 or not whole or not all(1 <= side <= SIDE for side in pair):
        raise refuse(name, f"height and width in pixels, 1 to {SIDE} each", size, "Such as (480, 832).")
    return int(pair[0]), int(pair[1])


def check_threads(threads: Any) -> int:
    """Return a number of CPU threads that can be begun. ConfigError."""
    return check_count(threads, "threads", most=THREADS, remedy=f"This machine has {os.cpu_count()} cores.")


def check_path(path: Any, name: str) -> Path:
    """Return a path that may name something: ConfigError for what is no text, empty, or has a null character."""
    if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
        raise refuse(name, "the path of a file or folder", path)
    return Path(path)


def check_file_name(path: Any, name: str, example: str) -> Path:
    """Return a path that can be that of a file to write. ConfigError if it names none, a folder, or is too long."""
    found = check_path(path, name)
    if not found.name or len(os.fsencode(found.name)) > 250:
        raise refuse(name, "the name of a file, of at most 250 bytes", str(path), f"Such as {example}.")
    if found.is_dir():
        raise ConfigError(f"{name} {found} is a folder; name a file in it, such as {found / example}.")
    return found


def make_folder(path: Any, name: str) -> Path:
    """Return a folder that files can be written into, made where it is missing. ConfigError."""
    folder = check_path(path, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except FileExistsError as error:
        raise ConfigError(f"{name} {folder} is a file; name a folder.") from error
    except OSError as error:
        raise ConfigError(f"{name} {folder} cannot be written into: {error.strerror}. Name another folder.") from error
    return folder


def check_arguments(args: Namespace, counts: Sequence[str] = (), seconds: Sequence[str] = (),
                    seeds: Sequence[str] = ()) -> None:  # fmt: skip
    """Check what a script was given under these names: whole numbers from 1, seconds, seeds; None is what was not. And
    each prompt, and each folder that a file shall be written into. ConfigError."""
    checks: dict[str, Callable[..., object]] = {
        **dict.fromkeys(counts, check_count), **dict.fromkeys(seconds, check_seconds),
        **dict.fromkeys(seeds, check_seed)}  # fmt: skip
    for name, check in checks.items():
        if (value := getattr(args, name)) is not None:
            check(value, f"--{name.replace('_', '-')}")
    for name in ("json", "markdown", "sheet", "plot"):
        if (path := getattr(args, name, None)) is not None:
            make_folder(check_file_name(path, f"--{name}", f"{name}.out").parent, f"the folder of --{name}")


def check_kind(value: Any, kind: Any, name: str, right: str) -> Any:
    """Return a value that is of a class, or one of several. ConfigError; `right` says what it would be."""
    if not isinstance(value, kind):
        raise refuse(name, right, value)
    return value


def check_texts(values: Any, name: str, example: str) -> tuple[str, ...]:
    """Return a list or tuple of texts as a tuple. ConfigError for anything else, a single text too."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise refuse(name, f"a list of texts, such as [{example!r}]", values)
    return tuple(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
