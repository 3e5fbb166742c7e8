"""What to render: one prompt, or a file of them, checked as a whole before anything is made.

A .txt file holds one prompt per line; a .jsonl file one object per line with `prompt` and, if wanted, `id`, `seed`,
`seconds` and `at` of its own. A .json or .yaml file is a list of either, a .csv or .tsv file a table whose first line
names the columns; see prompt_formats.py. `at` is a list of what changes later, such as {"seconds": 10, "prompt": "a
blue star", "transition": "flush", "seed": 1}. Blank lines, lines that begin with #, a byte-order mark and any line
ending are fine.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rollforce.cli.prompt_formats import list_entries
from rollforce.config import read_value
from rollforce.engine.transitions import AnyTransition
from rollforce.errors import ConfigError
from rollforce.streaming.events import RECACHE, Cue
from rollforce.video.duration import parse_duration
from rollforce.video.values import check_prompt, check_seconds, check_seed

_CLOCK_FIRST = re.compile(r"(\d+(?::[0-5]\d)+(?:\.\d+)?)(?=\s*[,:])")  # 1:30 before what follows it in --at


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
class _Change:
    """What a .jsonl file says of a change of prompt; `transition` is a name or settings with their `kind`."""

    seconds: float | str
    prompt: str | None = None
    transition: AnyTransition | str = RECACHE.kind
    seed: int | None = None

    def cue(self) -> Cue:
        check_seed(self.seed or 0)
        prompt = None if self.prompt is None else check_prompt(self.prompt)
        how = _read_transition(self.transition) if isinstance(self.transition, str) else self.transition
        return Cue(parse_duration(self.seconds), prompt, how, self.seed)


@dataclass(frozen=True)
class _Line:
    """What a line of a prompt file says; None is what it leaves to the command."""

    prompt: str
    id: str | None = None
    seed: int | None = None
    seconds: float | str | None = None
    at: tuple[_Change, ...] = ()

    def job(self, index: int, where: str, seed: int, seconds: float) -> PromptJob:
        seed = seed if self.seed is None else self.seed
        seconds = seconds if self.seconds is None else parse_duration(self.seconds, "seconds")
        check_prompt(self.prompt)
        check_seed(seed)
        check_seconds(seconds, remedy="--seconds inf is for one video." if math.isinf(seconds) else "")
        name = self.prompt if self.id is None else _check_text("id", self.id)
        cues = tuple(sorted((change.cue() for change in self.at), key=lambda cue: cue.at))
        check_cues(cues, seconds)
        return PromptJob(self.prompt, seed, seconds, f"{index:04d}-{slug(name)}-seed{seed}", where, cues)


def slug(text: str, longest: int = 48) -> str:
    """Return a file name that every system accepts, from any text."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(plain) > longest:
        plain = plain[:longest].rsplit("-", 1)[0] if "-" in plain[:longest] else plain[:longest]
    return plain or "video"


def read_jobs(content: bytes, source: str, *, seed: int, seconds: float) -> list[PromptJob]:
    """Return the jobs of a prompt file; lines of a .jsonl name (or that begin with a brace) are objects.

    Raises one ConfigError that lists every bad line as file:line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8 text (byte {error.start}).") from error
    jobs: list[PromptJob] = []
    problems: list[str] = []
    first: dict[str, int] = {}
    for number, said in list_entries(text, source):
        try:
            entry = _read_entry(said, as_json=source.lower().endswith(".jsonl"))
            if entry.id is not None and first.setdefault(entry.id, number) != number:
                raise ConfigError(f"id {entry.id!r} is already used in line {first[entry.id]}. Give each its own.")
            jobs.append(entry.job(len(jobs), f"{source}:{number}", seed, seconds))
        except ConfigError as error:
            problems.append(f"{source}:{number}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    if not jobs:
        raise ConfigError(f"{source} has no prompts: write one in each line.")
    return jobs


def _read_entry(said: Any, as_json: bool) -> _Line:
    if isinstance(said, str) and not (as_json or said.startswith("{")):
        return _Line(said)
    try:
        return read_value(json.loads(said) if isinstance(said, str) else said, _Line)  # type: ignore[no-any-return]
    except RecursionError as error:
        raise ConfigError("not valid JSON: brackets are nested too deep.") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON at column {error.colno}: {error.msg}.") from error


def _check_text(name: str, text: str) -> str:
    if not text.strip():
        raise ConfigError(f"{name}: must be text, got {text!r}.")
    return text


# -- what changes later ---------------------------------------------------------------------------------------------


def parse_cue(text: str) -> Cue:
    """Return a change of prompt as it is typed, TIME:PROMPT or TIME,TRANSITION:PROMPT. ConfigError."""
    clock = _CLOCK_FIRST.match(text.lstrip())
    time, text_after = (clock[1], text.lstrip()[clock.end() :]) if clock else ("", text)
    head, colon, prompt = text_after.partition(":")
    before, comma, how = head.partition(",")
    try:
        if not colon:
            raise ConfigError("it is TIME:PROMPT or TIME,TRANSITION:PROMPT, such as 10s,flush:\"a blue star\".")
        if not prompt.strip():
            raise ConfigError("the prompt is empty. Say what to show from then on.")
        return Cue(parse_duration(time or before), prompt.strip(), _read_transition(how.strip()) if comma else RECACHE)
    except ConfigError as error:
        raise ConfigError(f"--at {text!r}: {error}") from None


def check_cues(cues: tuple[Cue, ...], seconds: float) -> None:
    """ConfigError if a change comes after the end of a video of that length, or two come at once."""
    times = sorted(cue.at for cue in cues)
    if times and times[-1] >= seconds:
        raise ConfigError(f"at: a change at {times[-1]:g} s, but the video ends at {seconds:g} s.")
    for time in (time for time, later in pairwise(times) if time == later):
        raise ConfigError(f"at: two changes at {time:g} s.")


def _read_transition(name: str) -> AnyTransition:
    return read_value({"kind": name}, AnyTransition, "transition")  # type: ignore[no-any-return]
