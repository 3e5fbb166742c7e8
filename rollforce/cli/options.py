"""What the commands can be told: each option once, with its name, type, default and help. Loads nothing heavy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from rollforce.models.runtime.options import RuntimeOptions

_what = partial(typer.Option, rich_help_panel="What to show")
_file = partial(typer.Option, rich_help_panel="Files")
_past = partial(typer.Option, rich_help_panel="Pictures to begin with")
_model = partial(typer.Option, rich_help_panel="Model and machine")

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and log details.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines, and nothing else.")]


def _complete_preset(incomplete: str) -> list[str]:
    from rollforce.checkpoints.catalog import presets

    return [name for name in presets() if name.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    from rollforce.checkpoints.catalog import bundled

    return [name for name in bundled() if name.startswith(incomplete)]


Enhance = Annotated[str | None, _what("--enhance", metavar="URL", show_default=False,
    help="Let a language model rewrite prompts: an OpenAI-compatible endpoint, e.g. http://localhost:11434/v1. Its "
         "key, if it wants one, is $ROLLFORCE_ENHANCE_KEY.")]  # fmt: skip
EnhanceModel = Annotated[str | None, _what("--enhance-model", metavar="NAME", show_default=False,
    help="What the endpoint calls its model.")]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What was typed of the options that every command with a stream has; None or an empty value is what was not.

    `running`: fields of RuntimeOptions, each an option of its own."""

    stream: Annotated[str | None, _model("--stream", autocompletion=_complete_preset,
        help="A stream preset, or a YAML file.")] = None
    window: Annotated[int | None, _model("--window", help="Latents that the memory's window holds.")] = None
    size: Annotated[str | None, _model("--size", help="WIDTHxHEIGHT in pixels (default: as trained).")] = None
    model: Annotated[str | None, _model("--model", autocompletion=_complete_model,
        help="A bundled name, a folder or a hub id (default tiny); plan also knows wan-1.3b and wan-14b.")] = None
    device: Annotated[str | None, _model("--device", help="auto, cpu, cuda, cuda:1, mps.")] = None
    dtype: Annotated[str | None, _model("--dtype", help="auto, float32, bfloat16, float16.")] = None
    running: dict[str, Any] = field(default_factory=dict)

    as_json: AsJson = False
    debug: Debug = False

    def flags(self) -> dict[str, str]:
        """Return the flag of each option that differs from its default, by its field."""
        hints = get_type_hints(type(self), include_extras=True)
        own = [each for each in fields(self) if each.name != "running" and getattr(self, each.name) != _default(each)]
        shown = {each.name: hints[each.name].__metadata__[0].default for each in own}  # the first name
        return {name: flag if isinstance(flag, str) else "a prompt" for name, flag in shown.items()} | {
            each.name: _flag(each) for each in fields(RuntimeOptions) if each.name in self.running}


@dataclass(frozen=True)
class PlanOptions(Options):
    """Options of `rollforce plan`."""

    free: Annotated[float | None, _model("--free", help="GB to plan with (default: what is free).")] = None


@dataclass(frozen=True)
class RenderOptions(Options):
    """Options of `rollforce render`."""

    words: Annotated[list[str], typer.Argument(metavar="PROMPT [KEY=VALUE]...", show_default=False,
        help="What to show; then stream settings, e.g. layout.chunk=2.")] = field(default_factory=list)
    at: Annotated[list[str], _what("--at", metavar="TIME[,HOW]:PROMPT", show_default=False,
        help='From then on another prompt: 10s:"a blue star", 1m30s,flush:"a car". HOW: keep, blend, recache, '
             "anchors, flush, cut, shot (default recache). Repeatable.")] = field(default_factory=list)
    seconds: Annotated[str | None, _what("--seconds", "-s", metavar="TIME",
        help="Length of the video: 20, 10s, 1:30, 2m, or inf for one without end (default 20).")] = None
    enhance: Enhance = None
    enhance_model: EnhanceModel = None
    seed: Annotated[int | None, _what("--seed",
        help="Another seed, another video (default: one that is drawn and said; 0 with --prompts).")] = None
    scale: Annotated[int | None, _what("--scale", help="Enlarge N times (default: to 256 or more).")] = None

    fps: Annotated[float | None, _what("--fps",
        help="Play the same frames at another rate, faster or slower (default: the model's).")] = None

    output: Annotated[str | None, _file("-o", "--output",
        help="The .mp4 (default: its prompt), .webm or .gif; NAME/ for a folder of PNG files; - for stdout.")] = None
    thumbnail: Annotated[bool, _file("--thumbnail", help="Write a still, a .jpg, beside the video.")] = False
    prompts: Annotated[str | None, _file("--prompts",
        help="Many: a .txt, .jsonl, .json, .yaml, .csv or .tsv file; - is stdin.")] = None
    out: Annotated[Path | None, _file("--out", help="Folder for what is made (default: here).")] = None
    record: Annotated[Path | None, _file("--from", help="Repeat the render that this .json describes.")] = None
    resume: Annotated[Path | None, _file("--resume", help="Continue this video, whose render was stopped.")] = None
    keep: Annotated[bool, _file("--keep",
        help="Keep videos that are complete, continue those that are not, make the others.")] = False
    overwrite: Annotated[bool, _file("--overwrite", help="Replace files that exist.")] = False
    segment: Annotated[str | None, _file("--segment", metavar="TIME",
        help="Write files of this length, NAME-0000.mp4 and so on (default with --seconds inf: 10m).")] = None
    save_every: Annotated[str, _file("--save-every", metavar="TIME",
        help="How often to save what --resume needs; longer where saving is slow. 0: never.")] = "10"

    image: Annotated[Path | None, _past("--image", help="Go on from this picture.")] = None
    video: Annotated[Path | None, _past("--video",
        help="Go on from this clip: a video, a moving image, or a folder of images.")] = None
    follow: Annotated[Path | None, _past("--follow", help="Show the prompt in this video's place.")] = None
    strength: Annotated[float | None, _past("--strength",
        help="How much of --follow may change: 0.3 little, 0.9 nearly all (default 0.7).")] = None
    loop: Annotated[bool | None, _past("--loop", help="Begin --follow again where it ends, for all of --seconds.",
        show_default=False)] = None
    fit: Annotated[str | None, _past("--fit", help="Pictures of another size: crop, pad, stretch.")] = None

    threads: Annotated[int | None, _model("--threads", help="CPU threads (small models: 1).")] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False


@dataclass(frozen=True)
class LiveOptions(Options):
    """Options of `rollforce live`."""

    words: Annotated[list[str], typer.Argument(metavar="PROMPT [KEY=VALUE]...", show_default=False,
        help="What to show at first; then stream settings.")] = field(default_factory=list)
    seconds: Annotated[str | None, _what("--seconds", "-s", metavar="TIME", show_default=False,
        help="How long: 90, 10s, 1:30, 2m (default: until it is ended; from a pipe, 20).")] = None
    seed: Annotated[int | None, _what("--seed", help="Another seed, another video (default: a drawn one).")] = None
    back: Annotated[str, _what("--back", metavar="TIME", help="How far :back can go: 20, 1m. 0: not at all.")] = "20"
    enhance: Enhance = None
    enhance_model: EnhanceModel = None
    output: Annotated[Path, _file("-o", "--output", help="The video; none that exists is replaced.")] = Path("live.mp4")


T = TypeVar("T", bound=Options)


def accept(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Make a command of a function that takes all its options as one: typer sees them one by one."""
    runtime = {each.name for each in fields(RuntimeOptions)}

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        def run(**words: Any) -> None:
            running = {name: value for name, value in words.items() if name in runtime and value not in (None, [])}
            command(options(running=running, **{name: words[name] for name in words.keys() - runtime}))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(list(_parameters(options)))  # type: ignore[attr-defined]
        return run

    return decorate


def _parameters(options: Any) -> Iterator[inspect.Parameter]:
    """Keyword arguments as typer reads them; those of RuntimeOptions take the place of `running`.

    What all commands share comes last."""
    hints = get_type_hints(options, include_extras=True)
    keyword = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    for each in sorted(fields(options), key=lambda each: each.name in Options.__dataclass_fields__):
        if each.name != "running":
            yield keyword(each.name, default=_default(each), annotation=hints[each.name])
            continue
        for part in fields(RuntimeOptions):
            typed = list[str] if part.default == () else bool if part.default is False else str
            option = _model(_flag(part), help=part.metadata["help"], show_default=False)
            yield keyword(part.name, default=None, annotation=Annotated[typed | None, option])  # type: ignore[operator]


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _flag(each: Field[Any]) -> str:
    return each.metadata["flag"] or f"--{each.name}"
