"""What prompts are shown as: rewritten by a language model if one is named, and completed for the model that draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rollforce.cli.places import RenderTask
from rollforce.cli.record import Request
from rollforce.engine.transitions import check
from rollforce.errors import ConfigError
from rollforce.models.text.enhance import Enhancer
from rollforce.streaming.model import Model

LISTED = 20  # prompts that are said, of many


def word_prompts(model: Model, tasks: list[RenderTask], say: Callable[[str], None]) -> list[RenderTask]:
    """Return tasks that say in their requests what each prompt is shown as; `say` hears it before anything is made.

    ConfigError that lists what is wrong with all prompts and changes; what the model knows is said once."""
    problems, known, done, said = [], "", list[RenderTask](), dict[str, str]()
    _announce(tasks, say)
    for task in tasks:
        wording = dict(task.request.wording)
        for place, text in _problems(model, task.request, wording):
            problem, _, more = text.partition("\n")
            known = more or known
            problems.append(": ".join(part for part in (task.where, place, problem) if part))
        done.append(replace(task, request=replace(task.request, wording=wording)))
        said |= wording
    if problems:
        raise ConfigError("\n".join([*problems, *([known] if known else [])]))
    for asked, shown in list(said.items())[:LISTED]:
        say(f'"{asked}" is shown as "{shown}"')
    if len(said) > LISTED:
        say(f"and {len(said) - LISTED} more prompts are shown otherwise: see their records")
    return done


def _announce(tasks: list[RenderTask], say: Callable[[str], None]) -> None:
    """Say to whom prompts are sent, for answers may take their time."""
    sent = {text for task in tasks if task.request.enhance for text in task.request.texts
            if text not in task.request.wording}  # fmt: skip
    if sent:
        say(f"{len(sent)} prompts are handed to {tasks[0].request.enhance}" if len(sent) > 1 else
            f"the prompt is handed to {tasks[0].request.enhance}")  # fmt: skip


def word(model: Model, request: Request) -> Request:
    """Return a request that says what its prompts are shown as. ConfigError for one that cannot be shown."""
    wording = dict(request.wording)
    for text in request.texts:
        add_wording(model, request, text, wording)
    return replace(request, wording=wording)


def add_wording(model: Model, request: Request, text: str, wording: dict[str, str]) -> None:
    """Write into `wording` what a text is shown as, if that is something else. What stands there already, holds."""
    if text in wording:
        model.check_prompt(wording[text])
        return
    enhanced = text
    if request.enhance is not None and text.strip():
        enhanced = Enhancer(request.enhance, request.enhance_model).rewrite(text, model.words)
    if (shown := model.complete_prompt(enhanced)) != text:
        wording[text] = shown


def _problems(model: Model, request: Request, wording: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield where in a request something cannot be, and why."""
    yield from _problem("", add_wording, model, request, request.prompt, wording)
    for cue in request.cues:
        place = f"at {cue.at:g} s"
        if cue.prompt is not None:
            yield from _problem(place, add_wording, model, request, cue.prompt, wording)
        yield from _problem(place, check, cue.transition, model.stream_settings.tiers, request.follow is not None)


def _problem(place: str, ask: Callable[..., None], *words: Any) -> Iterator[tuple[str, str]]:
    try:
        ask(*words)
    except ConfigError as error:
        yield place, str(error)
