"""Lengths of time as people type them, in one place for every option that takes seconds."""

from __future__ import annotations

import argparse
import math
import re

from rollforce.errors import ConfigError

_UNITS = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?|\.\d+)s?)?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):([0-5]?\d(?:\.\d+)?)")


def parse_duration(text: str | float, name: str = "", endless: bool = False) -> float:
    """Return the seconds of "10", "10s", "2.5s", "1m30s", "2m", "1h", "1:30" or "1:00:00"; where it may be `endless`,
    infinity of "inf". A number is returned as it is. `name` is the option that it was given for. ConfigError."""
    if not isinstance(text, str):
        return text
    seconds = _read(text)
    if seconds is None or (math.isinf(seconds) and not endless):
        before, more = f"{name} " if name else "", ", or inf for no end" if endless else ""
        raise ConfigError(f"{before}{text!r} is not a time; write seconds (10, 10s, 2.5s), 1m30s or 1:30{more}.")
    return seconds


def duration_argument(text: str) -> float:
    """Return what `parse_duration` does, above 0, as a `type` of argparse, which then shows the error's own words."""
    try:
        seconds = parse_duration(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not seconds:
        raise argparse.ArgumentTypeError("it must be above 0 seconds.")
    return seconds


def _read(text: str) -> float | None:
    text = text.strip().lower()
    if text in ("inf", "infinity"):
        return math.inf
    match = _CLOCK.fullmatch(text) or _UNITS.fullmatch(text)
    if not match or not any(match.groups()):
        return None
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds
