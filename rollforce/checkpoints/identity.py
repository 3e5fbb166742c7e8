"""The answer of `identify`: what a file or folder is, how that is known, and the command to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from rollforce.checkpoints.parts import Part

PROMPT = '"a red ball bounces over green hills"'


@dataclass(frozen=True)
class Identity:
    """What something is: `kind` in a word, `what` in a few, `format` of its file, `family` of its latents.

    `causal` is None where nothing tells, `causal_by` is what tells; so are `licence_by` and `stream_by`. `facts` are
    for people, `config` the settings of a transformer, measured. `needs` what it wants besides; `streams` whether it
    can stream, itself or once converted (None: it is no model), `obstacles` why it cannot; `then` the command to go on
    with, "" if there is none."""

    path: Path
    kind: str
    what: str
    format: str = ""
    family: str = ""
    causal: bool | None = None
    causal_by: str = ""
    licence: str = ""
    licence_by: str = ""
    stream: str = ""
    stream_by: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    needs: tuple[str, ...] = ()
    streams: bool | None = None
    obstacles: tuple[str, ...] = ()
    then: str = ""


def render_with(option: str, path: str | Path, more: str = "") -> str:
    """Return the command that renders with a file."""
    return f"rollforce render {PROMPT} {option} {quote(str(path))}{more}"


def facts_of(part: Part | None) -> dict[str, Any]:
    """Return the numbers of a transformer that people ask for."""
    names = ("channels", "blocks", "heads", "width", "text_width", "size")
    return {} if part is None else {name: getattr(part, name) for name in names}
