"""What to render: one prompt, or a file of them, checked as a whole before anything is made.

A .txt file holds one prompt per line; a .jsonl file one object per line with `prompt` and, if wanted, `id`, `seed`,
`seconds` and `at` of its own; `at` is a list of what changes later, such as {"seconds": 10, "prompt": "a blue star",
"transition": "flush", "seed": 1}. Blank lines, lines that begin with #, a byte-order mark and any line ending are fine.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise

from rollforce.cli.record import check_seconds, check_seed
from rollforce.config import read_value
from rollforce.engine.transitions import AnyTransition
from rollforce.errors import ConfigError
from rollforce.streaming.events import RECACHE, Cue
from rollforce.video.duration import parse_duration

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
        prompt = None if self.prompt is None else _check_text("prompt", self.prompt)
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
        check_seed(seed)
        check_seconds(seconds)
        if math.isinf(seconds):
            raise ConfigError("seconds must have an end in a prompt file; --seconds inf is for one video.")
        name = _check_text("prompt", self.prompt) if self.id is None else _check_text("id", self.id)
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
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            entry = _read_line(line, as_json=source.endswith(".jsonl") or line.startswith("{"))
            if entry.id is not None and first.setdefault(entry.id, number) != number:
                raise ConfigError(f"id {entry.id!r} is already used in line {first[entry.id]}.")
            jobs.append(entry.job(len(jobs), f"{source}:{number}", seed, seconds))
        except ConfigError as error:
            problems.append(f"{source}:{number}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    if not jobs:
        raise ConfigError(f"{source} has no prompts.")
    return jobs


def _read_line(line: str, as_json: bool) -> _Line:
    if not as_json:
        return _Line(line)
    try:
        return read_value(json.loads(line), _Line)  # type: ignore[no-any-return]
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
