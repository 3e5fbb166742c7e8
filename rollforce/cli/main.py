"""The command `rollforce`. Heavy things are imported inside the commands: --help answers at once.

Exit codes: 2 something typed cannot be used · 3 this machine lacks something · 4 out of memory · 130 interrupted ·
141 nobody reads stdout any more (as of a process that SIGPIPE ends).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rollforce.cli.interrupt import INTERRUPT, INTERRUPTED
from rollforce.cli.options import AsJson, Debug, LiveOptions, PlanOptions, RenderOptions, accept
from rollforce.errors import RollforceError, leave_pipe, spell_out

USAGE, ENVIRONMENT, MEMORY = 2, 3, 4


class Commands(TyperGroup):
    """The commands; where a value is of the wrong kind, typer's error does not say which it was, so this does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words as they were typed, and parse them."""
        ctx.meta["words"] = [part for word in args for part in (word.split("=", 1) if word[:1] == "-" else [word])]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Call the command that was named."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            words, names = ctx.meta["words"], getattr(error.param, "opts", [])
            got = [repr(value) for name, value in pairwise(words) if name in names]
            error.message = f"{error.message.rstrip('.')}, got {', '.join(got)}." if got else error.message
            raise


app = typer.Typer(name="rollforce", cls=Commands, help="Endless video from text.", no_args_is_help=True,
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip

ModelName = Annotated[str, typer.Option("--model", help="A bundled model's name, or a folder with model.yaml.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import rollforce

        typer.echo(f"rollforce {rollforce.__version__}")
        raise typer.Exit


@app.command()
@accept(RenderOptions)
def render(options: RenderOptions) -> None:
    """Render a video from a prompt, or many from a file. --at changes the prompt on the way; --resume goes on with a
    render that was stopped."""
    with _explain_errors(options.debug):
        from rollforce.cli.progress import Terminal
        from rollforce.cli.run import make

        aside = options.output == "-"  # where the video takes stdout
        whole = make(options, Terminal(options.quiet or options.as_json, aside), typer.echo)
        raise typer.Exit(0 if whole else INTERRUPTED)


@app.command()
@accept(LiveOptions)
def live(options: LiveOptions) -> None:
    """Play a stream in the terminal, and tell it otherwise while it runs: type a prompt, or :help.

    The picture is drawn in the terminal and written to a video that plays while it grows. Without a terminal there is
    only the video, and lines are read from stdin."""
    with _explain_errors(options.debug):
        from rollforce.cli.live import live as play

        play(options, typer.echo)


_SCRIPT = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_SCRIPT, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Score models and settings by an oracle: see `rollforce evaluate --help`."""
    with _explain_errors(False):
        from rollforce.cli.scripts import run_script

        run_script("infer", "evaluate", context.args)


@app.command(context_settings=_SCRIPT, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Measure how fast streams and training are, and how near to their floor: see `rollforce bench --help`."""
    with _explain_errors(False):
        from rollforce.cli.scripts import run_script

        run_script("infer", "bench", context.args)


@app.command(context_settings=_SCRIPT, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train: `rollforce train STAGE ...`; alone it lists the stages, `rollforce train STAGE --help` explains one."""
    with _explain_errors(False):
        from rollforce.cli.scripts import describe_scripts, run_script

        stage, *words = context.args or ["--help"]
        if stage in ("-h", "--help"):
            typer.echo("\n".join(["rollforce train STAGE ..., with these stages:", *describe_scripts("train")]))
        else:
            run_script("train", stage, words)


@app.command()
def convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A student: .pt, .safetensors, .gguf, a folder.")],
    base: Annotated[str, typer.Option("--base", help="Where the other parts are: a Wan folder, or a hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The model folder to make.")],
    lora: Annotated[list[str] | None, typer.Option("--lora", help="FILE or FILE=SCALE to bake in; repeatable.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call the model (default: as --out).")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Its licence, if no name tells.")] = None,
    stream: Annotated[str | None, typer.Option("--stream", help="The preset it was trained for.")] = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT of training (default 832x480).")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Store as (default: as FILE; codes bfloat16).")] = None,
    container: Annotated[str | None, typer.Option("--container", help="Which of FILE's state dicts.")] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="FILE is bidirectional: a teacher.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Make a model folder from a released student and its base model."""
    with _explain_errors(debug):
        from rollforce.checkpoints.convert import dtype_of, prepare, write
        from rollforce.video.size import parse_size

        conversion = prepare(file, base, out, lora=lora or (), name=name, licence=licence, stream=stream,
                             size=parse_size(size) if size else None, dtype=dtype_of(dtype), teacher=teacher,
                             overwrite=overwrite, container=container)  # fmt: skip
        for line in conversion.summary():
            typer.echo(line)
        for warning in conversion.warnings:
            typer.echo(f"warning: {warning}", err=True)
        typer.echo(f"wrote {write(conversion)}")


@app.command()
@accept(PlanOptions)
def plan(options: PlanOptions) -> None:
    """Say how much memory a stream needs, whether it fits, and what would make it fit. Nothing is loaded."""
    with _explain_errors(options.debug):
        from rollforce.cli.plan_table import describe, setup_of, show
        from rollforce.engine.budget.fit import fit
        from rollforce.video.values import check_number

        free = None if options.free is None else int(1e9 * check_number(options.free, "--free", 0, 1e6, above=True,
                                                                        remedy="Gigabytes."))  # fmt: skip
        found = fit(setup_of(options), free)
        if options.as_json:
            typer.echo(json.dumps(describe(found), indent=2))
        else:
            show(found)
        raise typer.Exit(0 if found.helps else MEMORY)


@app.command()
def inspect(
    stream: Annotated[str, typer.Option("--stream", help="A stream preset, or a YAML file.")],
    seconds: Annotated[str, typer.Option("--seconds", "-s", metavar="TIME", help="How much to walk: 20, 1:30.")] = "20",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The .png (default: PRESET.png).")] = None,
    model: Annotated[str, typer.Option("--model", help="Whose sizes: a bundled name, a folder, wan-1.3b.")] = "tiny",
    settings: Annotated[list[str] | None, typer.Option("--set", help="Stream setting, e.g. layout.chunk=2.")] = None,
    event: Annotated[list[str] | None, typer.Option("--event", help="keep@10, flush@10, shot@10 (seconds).")] = None,
    debug: Debug = False,
) -> None:
    """Draw what a stream remembers: what each call attends to, where it stands, its bytes. No weights are needed."""
    with _explain_errors(debug):
        from rollforce.evaluation.memory import inspect

        path = output or Path(f"{Path(stream).stem}.png")
        found = inspect.inspect(stream, seconds, model, settings or (), event or ())
        inspect.save(found, path)
        inspect.show(found, path)


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what this machine can do, and what is wrong with it."""
    with _explain_errors(debug):
        from rollforce.cli.doctor import examine, show

        report = examine()
        if as_json:
            typer.echo(json.dumps(report, indent=2))
        else:
            show(report)
        raise typer.Exit(ENVIRONMENT if report["problems"] else 0)


@app.command()
def identify(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file or folder, or a bundled model's name.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a file or folder is, how that is known, whether it streams here, and the command to go on with."""
    with _explain_errors(debug):
        from rollforce.checkpoints.identify import identify as look_at
        from rollforce.cli.identify import describe, memory_of, show

        found = look_at(path)
        memory = memory_of(found)
        if as_json:
            typer.echo(json.dumps(describe(found, memory), indent=2))
        else:
            show(found, memory)


@app.command()
def models(debug: Debug = False) -> None:
    """List the bundled models and the stream presets."""
    with _explain_errors(debug):
        from rollforce.checkpoints.catalog import bundled, presets

        typer.echo(f"models:  {', '.join(bundled()) or 'none'}")
        typer.echo(f"streams: {', '.join(presets())}")


@app.command()
def words(model: ModelName = "tiny", debug: Debug = False) -> None:
    """List the words that a model's prompts may use."""
    with _explain_errors(debug):
        import rollforce

        typer.echo(" ".join(rollforce.load(model).words))


@contextmanager
def _explain_errors(debug: bool) -> Iterator[None]:
    """Turn what can go wrong into one paragraph and an exit code."""
    if debug:  # otherwise Python's own last resort prints warnings to stderr, which is all we want
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("rollforce").setLevel(logging.DEBUG)
    try:
        yield
    except RollforceError as error:
        _fail(str(error), MEMORY if isinstance(error, MemoryError) else USAGE, debug)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED, debug)
    except ImportError as error:
        if INTERRUPT.asked:
            _fail("interrupted", INTERRUPTED, debug)
        _fail(f"{error}. Install what is missing: pip install rollforce, or one of its extras. See: rollforce doctor",
              ENVIRONMENT, debug)  # fmt: skip
    except BrokenPipeError:
        leave_pipe()
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", ENVIRONMENT, debug)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        _fail("Out of memory. If a video was begun, what was written so far plays, and --resume goes on. Try a "
              "smaller --size, or fewer latents in the cache; `rollforce plan` says what is needed.",
              MEMORY, debug)  # fmt: skip


def _is_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: torch has two ways to say it, neither a MemoryError."""
    torch_says = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return torch_says or isinstance(error, MemoryError)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug and sys.exc_info()[1] is not None:
        raise
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))
    raise typer.Exit(code) from None


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    spell_out()
    return app(arguments)
