"""What to render: one prompt, or a file of them, checked as a whole before anything is made.

A .txt file holds one prompt per line; a .jsonl file one object per line with `prompt` and, if wanted, `id`, `seed`,
`seconds` and `at` of its own; `at` is a list of what changes later, such as {"seconds": 10, "prompt": "a blue star",
"transition": "flush", "seed": 1}. Blank lines, lines that begin with #, a byte-order mark and any line ending are fine.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rollforce.config import build
from rollforce.engine.transitions import NAMES, AnyTransition, transition
from rollforce.errors import ConfigError
from rollforce.streaming.events import RECACHE, Cue

_KEYS = ("id", "prompt", "seed", "seconds", "at")
_CUE_KEYS = ("seconds", "prompt", "transition", "seed")
_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True)
class PromptJob:
    """One video to make. `name` is its file name without ending; `where` says which line asked for it."""

    prompt: str
    seed: int
    seconds: float
    name: str
    where: str = ""
    cues: tuple[Cue, ...] = ()


@dataclass(frozen=True)
class _Named:
    """A transition by its settings."""

    transition: AnyTransition


def slug(text: str, longest: int = 48) -> str:
    """A file name that every system accepts, from any text."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(plain) > longest:
        plain = plain[:longest].rsplit("-", 1)[0] if "-" in plain[:longest] else plain[:longest]
    return plain or "video"


def check_seconds(value: Any) -> str:
    """What is wrong with a length, or ''."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"'seconds' must be a number, got {json.dumps(value)}"
    if not math.isfinite(value) or value <= 0:
        return f"'seconds' must be above 0, got {value:g}"
    return ""


def check_seed(value: Any) -> str:
    """What is wrong with a seed, or ''."""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"'seed' must be a whole number, got {json.dumps(value)}"
    return "" if 0 <= value < 2**63 else f"'seed' must be from 0 to 2^63 - 1, got {value}"


def read_jobs(content: bytes, source: str, *, seed: int, seconds: float) -> list[PromptJob]:
    """The jobs of a prompt file; lines of a .jsonl name (or that begin with a brace) are objects.

    Raises one ConfigError that lists every bad line as file:line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8 text (byte {error.start}).") from error
    jobs: list[PromptJob] = []
    problems: list[str] = []
    taken: dict[str, str] = {}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{source}:{number}"
        entry, wrong = _parse(line, as_json=source.endswith(".jsonl") or line.startswith("{"))
        if not wrong:
            wrong = _wrong_cues(entry.get("at", []), float(entry.get("seconds", seconds)))
        name = entry.get("id")
        if isinstance(name, str) and name in taken:
            wrong.append(f"'id' {name!r} is already used in line {taken[name]}")
        elif isinstance(name, str):
            taken[name] = str(number)
        problems += [f"{where}: {problem}{'' if problem.endswith('?') else '.'}" for problem in wrong]
        if not wrong:
            jobs.append(_job(entry, len(jobs), where, seed, seconds))
    if problems:
        raise ConfigError("\n".join(problems))
    if not jobs:
        raise ConfigError(f"{source} has no prompts.")
    return jobs


def _job(entry: dict[str, Any], index: int, where: str, seed: int, seconds: float) -> PromptJob:
    seed, seconds = entry.get("seed", seed), float(entry.get("seconds", seconds))
    stem = slug(entry.get("id") or entry["prompt"])
    cues = tuple(sorted((_cue(each) for each in entry.get("at", ())), key=lambda cue: cue.at))
    return PromptJob(entry["prompt"], seed, seconds, f"{index:04d}-{stem}-seed{seed}", where, cues)


def _parse(line: str, as_json: bool) -> tuple[dict[str, Any], list[str]]:
    """One line's entry and what is wrong with it."""
    if not as_json:
        return {"prompt": line}, []
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        return {}, [f"not valid JSON at column {error.colno}: {error.msg}"]
    if not isinstance(entry, dict):
        return {}, [f'must be an object such as {{"prompt": "..."}}, got {line[:40]}']
    wrong = [_unknown(key, _KEYS) for key in entry if key not in _KEYS]
    for key in ("prompt", "id"):
        if key not in entry:
            wrong += ["'prompt' is missing"] if key == "prompt" else []
        elif not (isinstance(entry[key], str) and entry[key].strip()):
            wrong.append(f"{key!r} must be text, got {json.dumps(entry[key])}")
    wrong += [check_seed(entry["seed"])] if "seed" in entry else []
    wrong += [check_seconds(entry["seconds"])] if "seconds" in entry else []
    return entry, [problem for problem in wrong if problem]


def _unknown(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")


# -- what changes later ---------------------------------------------------------------------------------------------


def parse_time(text: str) -> float:
    """Seconds of "10", "10s", "2.5s", "1m30s", "1h". ConfigError."""
    match = _TIME.fullmatch(text.strip())
    if not match or not any(match.groups()):
        raise ConfigError(f"{text!r} is not a time; write seconds (10, 10s, 2.5s) or 1m30s.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def parse_cue(text: str) -> Cue:
    """A change of prompt as it is typed, TIME:PROMPT or TIME,TRANSITION:PROMPT. ConfigError."""
    head, colon, prompt = text.partition(":")
    time, comma, how = head.partition(",")
    try:
        if not colon:
            raise ConfigError("it is TIME:PROMPT or TIME,TRANSITION:PROMPT, such as 10s,flush:\"a blue star\".")
        if not prompt.strip():
            raise ConfigError("the prompt is empty. Say what to show from then on.")
        return Cue(parse_time(time), prompt.strip(), _transition(how.strip()) if comma else RECACHE)
    except ConfigError as error:
        raise ConfigError(f"--at {text!r}: {error}") from None


def check_cues(cues: tuple[Cue, ...], seconds: float) -> str:
    """What is wrong with the times of changes in a video of that length, or ''."""
    times = sorted(cue.at for cue in cues)
    if times and times[-1] >= seconds:
        return f"a change at {times[-1]:g} s, but the video ends at {seconds:g} s"
    twice = [time for time, later in pairwise(times) if time == later]
    return f"two changes at {twice[0]:g} s" if twice else ""


def _wrong_cues(entries: Any, seconds: float) -> list[str]:
    """What is wrong with the `at` of a line."""
    if not isinstance(entries, list):
        return [f'\'at\' must be a list such as [{{"seconds": 10, "prompt": "..."}}], got {json.dumps(entries)[:40]}']
    wrong, cues = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            cues.append(_cue(entry))
        except ConfigError as error:
            wrong.append(f"'at' {number}: {str(error).removesuffix('.')}")
    late = check_cues(tuple(cues), seconds)
    return [*wrong, *([f"'at': {late}"] if late else [])]


def _cue(entry: Any) -> Cue:
    """A change of a .jsonl file. ConfigError."""
    if not isinstance(entry, dict):
        raise ConfigError(f'must be an object such as {{"seconds": 10, "prompt": "..."}}, got {json.dumps(entry)[:40]}')
    problems = [_unknown(key, _CUE_KEYS) for key in entry if key not in _CUE_KEYS]
    problems += [] if "seconds" in entry else ["'seconds' is missing"]
    seconds = entry.get("seconds", 0)
    seconds = parse_time(seconds) if isinstance(seconds, str) else seconds
    problems += [] if seconds == 0 and not isinstance(seconds, bool) else [check_seconds(seconds)]
    prompt, seed = entry.get("prompt"), entry.get("seed")
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        problems.append(f"'prompt' must be text, got {json.dumps(prompt)}")
    problems += [] if seed is None else [check_seed(seed)]
    if found := [problem for problem in problems if problem]:
        raise ConfigError("; ".join(found))
    return Cue(float(seconds), prompt, _transition(entry.get("transition", RECACHE.kind)), seed)


def _transition(choice: Any) -> AnyTransition:
    """By name, or by settings such as {"kind": "blend", "chunks": 6}. ConfigError."""
    if isinstance(choice, dict):
        return build(_Named, {"transition": choice}).transition
    near = difflib.get_close_matches(str(choice), NAMES, n=1, cutoff=0.5)
    if choice not in NAMES and near:
        raise ConfigError(f"transition {choice!r} is not known; did you mean {near[0]!r}? There are: "
                          f"{', '.join(NAMES)}.")  # fmt: skip
    return transition(str(choice))
