"""What `rollforce render` can be told: each option once, with its name, type, default and help. Loads nothing heavy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

T = TypeVar("T")

_what = partial(typer.Option, rich_help_panel="What to show")
_file = partial(typer.Option, rich_help_panel="Files")
_past = partial(typer.Option, rich_help_panel="Pictures to begin with")
_model = partial(typer.Option, rich_help_panel="Model and machine")
_told = partial(typer.Option, rich_help_panel="What it says")


@dataclass(frozen=True)
class Options:
    """What was typed; None, False or an empty list is what was not."""

    words: Annotated[list[str], typer.Argument(metavar="PROMPT [KEY=VALUE]...", show_default=False,
        help="What to show; then stream settings, e.g. layout.chunk=2.")] = field(default_factory=list)
    at: Annotated[list[str], _what("--at", metavar="TIME[,HOW]:PROMPT", show_default=False,
        help='From then on another prompt: 10s:"a blue star", 1m30s,flush:"a car". HOW: keep, blend, recache, '
             "anchors, flush, cut, shot (default recache). Repeatable.")] = field(default_factory=list)
    seconds: Annotated[float | None, _what("--seconds", "-s", help="Length of the video (default 20).")] = None
    seed: Annotated[int | None, _what("--seed", help="Another seed, another video (default 0).")] = None
    stream: Annotated[str | None, _what("--stream", help="A stream preset, or a YAML file.")] = None
    window: Annotated[int | None, _what("--window", help="Latents that the memory's window holds.")] = None
    size: Annotated[str | None, _what("--size", help="WIDTHxHEIGHT in pixels (default: as trained).")] = None
    scale: Annotated[int | None, _what("--scale", help="Enlarge N times (default: to 256 or more).")] = None

    output: Annotated[Path | None, _file("-o", "--output", help="The .mp4 (default: its prompt).")] = None
    prompts: Annotated[str | None, _file("--prompts", help="Many: a .txt or .jsonl file; - is stdin.")] = None
    out: Annotated[Path | None, _file("--out", help="Folder for what is made (default: here).")] = None
    record: Annotated[Path | None, _file("--from", help="Repeat the render that this .json describes.")] = None
    resume: Annotated[Path | None, _file("--resume", help="Continue this .mp4, whose render was stopped.")] = None
    keep: Annotated[bool, _file("--keep",
        help="Keep videos that are complete, continue those that are not, make the others.")] = False
    overwrite: Annotated[bool, _file("--overwrite", help="Replace files that exist.")] = False
    save_every: Annotated[float, _file("--save-every", metavar="SECONDS",
        help="How often to save what --resume needs; longer where saving is slow. 0: never.")] = 10.0

    image: Annotated[Path | None, _past("--image", help="Go on from this picture.")] = None
    video: Annotated[Path | None, _past("--video", help="Go on from this clip.")] = None
    follow: Annotated[Path | None, _past("--follow", help="Show the prompt in this video's place.")] = None
    strength: Annotated[float | None, _past("--strength",
        help="How much of --follow may change: 0.3 little, 0.9 nearly all (default 0.7).")] = None
    fit: Annotated[str | None, _past("--fit", help="Pictures of another size: crop, pad, stretch.")] = None

    model: Annotated[str | None, _model("--model", help="A bundled name or a folder (default tiny).")] = None
    lora: Annotated[list[str], _model("--lora", show_default=False,
        help="FILE or FILE=SCALE to bake in; repeatable.")] = field(default_factory=list)
    decoder: Annotated[Path | None, _model("--decoder", help="A small one, TAEHV's format: fast.")] = None
    device: Annotated[str | None, _model("--device", help="auto, cpu, cuda, cuda:1, mps.")] = None
    dtype: Annotated[str | None, _model("--dtype", help="auto, float32, bfloat16, float16.")] = None
    threads: Annotated[int | None, _model("--threads", help="CPU threads (small models: 1).")] = None
    attention: Annotated[str | None, _model("--attention", help="Kernel: sdpa, cudnn, flash, sage...")] = None
    quantize: Annotated[str | None, _model("--quantize", help="Weights of the blocks: int8, fp8.")] = None
    offload: Annotated[list[str], _model("--offload", show_default=False,
        help="What waits on the CPU: text, blocks.")] = field(default_factory=list)
    tiling: Annotated[bool | None, _model("--tiling", help="Decode in tiles.")] = None
    compile: Annotated[str | None, _model("--compile", help="blocks, or graphs on CUDA: slow start.")] = None

    quiet: Annotated[bool, _told("--quiet", "-q", help="Say nothing unless something is wrong.")] = False
    as_json: Annotated[bool, _told("--json", help="Print JSON for machines, and nothing else.")] = False
    debug: Annotated[bool, _told("--debug", help="Show the traceback of an error, and log details.")] = False

    def typed(self) -> dict[str, str]:
        """What was typed, apart from defaults: names of fields, and how they are spelled on a command line."""
        return {each.name: _spelling(each.name) for each in fields(self)
                if getattr(self, each.name) != _default(each)}  # fmt: skip


def taking(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Make a command of a function that takes all its options as one: typer sees them one by one."""

    def of(command: Callable[[T], None]) -> Callable[..., None]:
        def typed(**words: Any) -> None:
            command(options(**words))

        hints = get_type_hints(options, include_extras=True)
        typed.__name__, typed.__doc__ = command.__name__, command.__doc__
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=_default(each),
                               annotation=hints[each.name]) for each in fields(options)]  # type: ignore[arg-type]
        )  # fmt: skip
        return typed

    return of


def _default(each: Any) -> Any:
    return each.default if each.default is not MISSING else each.default_factory()


def _spelling(name: str) -> str:
    special = {"words": "a prompt", "record": "--from", "output": "-o", "as_json": "--json"}
    return special.get(name, f"--{name.replace('_', '-')}")
