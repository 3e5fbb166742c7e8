"""What to render: one prompt, or a file of them, checked as a whole before anything is made.

A .txt file holds one prompt per line; a .jsonl file one object per line with `prompt` and, if wanted, `id`, `seed` and
`seconds` of its own. Blank lines, lines that begin with #, a byte-order mark and any line ending are fine.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from rollforce.errors import ConfigError

_KEYS = ("id", "prompt", "seed", "seconds")


@dataclass(frozen=True)
class Job:
    """One video to make. `name` is its file name without ending; `where` says which line asked for it."""

    prompt: str
    seed: int
    seconds: float
    name: str
    where: str = ""


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


def read_jobs(content: bytes, source: str, *, seed: int, seconds: float) -> list[Job]:
    """The jobs of a prompt file; lines of a .jsonl name (or that begin with a brace) are objects.

    Raises one ConfigError that lists every bad line as file:line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8 text (byte {error.start}).") from error
    jobs: list[Job] = []
    problems: list[str] = []
    taken: dict[str, str] = {}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{source}:{number}"
        entry, wrong = _parse(line, as_json=source.endswith(".jsonl") or line.startswith("{"))
        name = entry.get("id")
        if isinstance(name, str) and name in taken:
            wrong.append(f"'id' {name!r} is already used in line {taken[name]}")
        elif isinstance(name, str):
            taken[name] = str(number)
        problems += [f"{where}: {problem}." for problem in wrong]
        if not wrong:
            jobs.append(_job(entry, len(jobs), where, seed, seconds))
    if problems:
        raise ConfigError("\n".join(problems))
    if not jobs:
        raise ConfigError(f"{source} has no prompts.")
    return jobs


def _job(entry: dict[str, Any], index: int, where: str, seed: int, seconds: float) -> Job:
    seed, seconds = entry.get("seed", seed), float(entry.get("seconds", seconds))
    stem = slug(entry.get("id") or entry["prompt"])
    return Job(entry["prompt"], seed, seconds, f"{index:04d}-{stem}-seed{seed}", where)


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
    wrong = [_unknown(key) for key in entry if key not in _KEYS]
    for key in ("prompt", "id"):
        if key not in entry:
            wrong += ["'prompt' is missing"] if key == "prompt" else []
        elif not (isinstance(entry[key], str) and entry[key].strip()):
            wrong.append(f"{key!r} must be text, got {json.dumps(entry[key])}")
    wrong += [check_seed(entry["seed"])] if "seed" in entry else []
    wrong += [check_seconds(entry["seconds"])] if "seconds" in entry else []
    return entry, [problem for problem in wrong if problem]


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
    return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}")
