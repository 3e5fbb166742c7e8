"""Score models and settings on prompts whose combination of attributes never occurs in training.

    python infer/evaluate.py --prompts 64 --seconds 10 --json scores.json --sheet sheet.png
    python infer/evaluate.py --prompts 16 --seeds 4 --seconds 60 --plot drift.png   curves, and what is lost by the end
    python infer/evaluate.py --prompts 8 --seconds 600 --ends --together 8          its first and last 10 s, sooner
    python infer/evaluate.py --things 2 --run plain= --run "two=:rolling layout.levels=[1,0.5]" --markdown table.md
    python infer/evaluate.py --compare a.json b.json --markdown table.md   saved reports, nothing streamed

--run NAME=[MODEL][:STREAM] [KEY=VALUE ...] names one configuration, quoted as a whole; without MODEL or STREAM it has
those of --model and --stream. --runs FILE holds several: runs: {NAME: {model, stream, overrides: [KEY=VALUE, ...]}}.
All runs get the same prompts and seeds, and the others are compared with the first, stream by stream.

Every stream is judged by the oracle (rollforce/world/oracle.py) from its pixels. Beside the runs stand two references:
the rendered truth of the same prompts, and that truth through the model's autoencoder. Each number comes with a 95 %
bootstrap interval over prompts. `seams.*_to_real` is the frame difference at the borders divided by the one of real
video through the autoencoder. With --json, finished streams are kept in a .jsonl beside it as they come, and --resume
goes on from there. With --ends all that is said of a run is said of its last 10 s, beside the first.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rollforce.checkpoints.outputs import check_plain, hold, write_whole
from rollforce.config import build
from rollforce.errors import ConfigError, call_main
from rollforce.evaluation.judge import ENDS_S, WINDOW_S
from rollforce.evaluation.plots import save_curves
from rollforce.evaluation.report import Report, StreamedVideo, compare, read_reports, summarise
from rollforce.evaluation.runner import (
    MOMENTS,
    Configuration,
    EvaluationJob,
    EvaluationJournal,
    EvaluationTask,
    describe_model,
    run_jobs,
)
from rollforce.evaluation.tables import format_differences, format_markdown, format_terminal
from rollforce.video.contact_sheet import contact_sheet, unpack_frames
from rollforce.video.duration import duration_argument
from rollforce.video.values import check_arguments, check_path
from rollforce.world import caption, sample_scene

SEED_STEP = 1_000_000  # between the seeds of one prompt's streams


@dataclass(frozen=True)
class Runs:
    """What a file for --runs holds."""

    runs: dict[str, Configuration] = field(default_factory=dict)


def main() -> None:
    args = arguments()
    check_arguments(args, counts=("prompts", "seeds", "workers", "together"), seconds=("seconds",),
                    seeds=("seed", "prompt_seed"))
    check_path(args.model, "--model")
    with lock(args):
        evaluate(args)


def lock(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Let no other process write the report and the journal beside it."""
    for path in (args.json, args.markdown, args.plot, args.sheet):
        if path:
            check_plain(path)
    return hold(args.json) if args.json else nullcontext()


def evaluate(args: argparse.Namespace) -> None:
    runs = read_reports(args.compare) if args.compare else stream_runs(args)
    first = next(iter(runs))
    against_first = {name: compare(report, runs[first]) for name, report in runs.items() if name != first}
    print(format_terminal(runs) + "\n")
    for name, found in against_first.items():
        print(format_differences(name, first, found) + "\n")
    save(runs, against_first, args)


def stream_runs(args: argparse.Namespace) -> dict[str, Report]:
    """Stream and judge every configuration."""
    configurations, prompts = list_runs(args), draw_tasks(args)
    journal = stream_all(configurations, prompts, args)
    asked = {(task.number, task.repeat) for tasks in prompts for task in tasks}
    streams = sorted((s for s in journal.streams if s.run in configurations and (s.number, s.repeat) in asked),
                     key=lambda s: (s.number, s.repeat))
    if args.sheet:
        save_sheets(streams, list(configurations), args.sheet, args.ends)
    return {name: {"run": asdict(run) | describe_model(run), **summarise([s for s in streams if s.run == name])}
            for name, run in configurations.items()}


def save(runs: dict[str, Report], against_first: dict[str, Report], args: argparse.Namespace) -> None:
    command = "python " + shlex.join(sys.argv)
    if args.json:
        names = ("prompts", "seeds", "things", "seconds", "prompt_seed", "seed", "workers",
                 "model", "stream", "overrides")
        content = {"command": command, "settings": {name: getattr(args, name) for name in names}}
        several = {"runs": runs, "differences": against_first}
        content |= several if len(runs) > 1 else next(iter(runs.values()))
        write_whole(args.json, json.dumps(content, indent=1) + "\n")
    if args.markdown:
        write_whole(args.markdown, format_markdown(command, runs, against_first))
    if args.plot:
        save_curves(runs, args.plot)


# -- what is streamed ------------------------------------------------------------------------------------------------


def draw_tasks(args: argparse.Namespace) -> list[list[EvaluationTask]]:
    """Draw held-out scenes with full captions, `--seeds` streams of each; the same arguments, the same tasks."""
    prompts = []
    for number in range(args.prompts):
        draw_seed = args.prompt_seed * 1_000_003 + number
        scene = sample_scene(draw_seed, count=args.things, held_out=True)
        words = caption(scene, draw_seed, full=True)
        prompts.append([EvaluationTask(number, repeat, scene, words, args.seed + number + repeat * SEED_STEP)
                        for repeat in range(args.seeds)])
    return prompts


def list_runs(args: argparse.Namespace) -> dict[str, Configuration]:
    """Return the configurations by name, in the order they were given; one called "model" if none was."""
    runs = dict(build(Runs, args.runs).runs) if args.runs else {}
    for text in args.run:
        name, run = parse_run(text)
        if name in runs:
            raise ConfigError(f"two runs are called {name!r}; every run needs a name of its own")
        runs[name] = run
    changes = tuple(args.overrides)
    return {name: Configuration(run.model or args.model, run.stream or args.stream, changes + run.overrides)
            for name, run in (runs or {"model": Configuration()}).items()}


def parse_run(text: str) -> tuple[str, Configuration]:
    """Return a name and its run from NAME=[MODEL][:STREAM] [KEY=VALUE ...]; values may hold blanks, but no =."""
    what, *overrides = re.split(r"\s+(?=[\w.]+=)", text.strip())
    name, equals, place = what.partition("=")
    if not equals or not name or " " in place:
        raise ConfigError(f"--run {text!r} is not NAME=[MODEL][:STREAM] [KEY=VALUE ...], such as "
                          '"plain=tiny:rolling layout.levels=[1,0.5]"')
    model, _, stream = place.partition(":")
    return name, Configuration(model or None, stream or None, tuple(overrides))


def stream_all(
    runs: dict[str, Configuration], prompts: list[list[EvaluationTask]], args: argparse.Namespace
) -> EvaluationJournal:
    """Stream what is not in the journal yet: prompt by prompt through all runs, so that all meet the same load."""
    settings: dict[str, Any] = {name: getattr(args, name)
                                for name in ("seconds", "things", "prompt_seed", "seed", "ends")}
    settings |= {f"run {name}": describe_model(run) for name, run in runs.items()}  # loads each: wrong ones end here
    journal = EvaluationJournal(args.json and args.json.with_suffix(".jsonl"), settings, args.resume)
    if args.ends:  # streams of several prompts go together
        every = list(chain.from_iterable(prompts))
        prompts = [every[start : start + args.together] for start in range(0, len(every), args.together)]
    jobs = []
    for tasks in prompts:
        for name, run in runs.items():
            missing = [task for task in tasks if not journal.has(name, task.number, task.repeat)]
            if missing:
                weights = describe_model(run)["weights"]
                jobs.append(EvaluationJob(name, run, weights, missing, args.seconds, args.together, args.ends))
    total, begun = sum(len(job.tasks) for job in jobs), time.monotonic()
    for done, streamed in enumerate(run_jobs(jobs, args.workers), 1):
        journal.add(streamed)
        left = (time.monotonic() - begun) / done * (total - done)
        print(f"\r{done} of {total} streams, {left / 60:.1f} minutes left ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return journal


# -- pictures --------------------------------------------------------------------------------------------------------


def save_sheets(streams: Sequence[StreamedVideo], runs: list[str], path: Path, ends: bool = False) -> None:
    """Write a sheet of each run; of several also one where a prompt's rows stand together, and that is `path`."""
    import imageio.v3 as iio

    rows = {(s.number, s.run): s for s in sorted(streams, key=lambda s: (s.number, runs.index(s.run))) if s.tiles}

    def save_rows(chosen: list[StreamedVideo], labels: list[str], target: Path) -> None:
        videos, seconds = [unpack_frames(s.tiles, MOMENTS) for s in chosen], chosen[0].seconds
        moments = np.linspace(0, 2 * ENDS_S if ends else seconds, MOMENTS)
        moments = np.where(ends & (moments > ENDS_S), moments + seconds - 2 * ENDS_S, moments)
        heads = [f"{moment:.3g} s" for moment in moments]
        iio.imwrite(target, contact_sheet(videos, MOMENTS, labels, zoom=2, heads=heads))

    for run in runs:
        mine = [s for s in rows.values() if s.run == run]
        target = path if len(runs) == 1 else path.with_stem(f"{path.stem}_{run}")
        save_rows(mine, [s.prompt for s in mine], target)
    if len(runs) > 1:
        save_rows(list(rows.values()), [f"{s.run}:  {s.prompt}" if s.run == runs[0] else f"{s.run}"
                                        for s in rows.values()], path)


# -- arguments -------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of every run's stream, such as layout.levels=[1,0.75]")
    parser.add_argument("--model", default="tiny", help="bundled name or model folder")
    parser.add_argument("--stream", default=None, help="stream preset or YAML file; default: the model's own")
    parser.add_argument("--run", action="append", default=[], metavar="NAME=[MODEL][:STREAM] [KEY=VALUE ...]")
    parser.add_argument("--runs", type=Path, metavar="FILE", help="YAML: runs: {NAME: {model, stream, overrides}}")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="JSON", help="saved reports, compared to the first")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1, help="streams per prompt")
    parser.add_argument("--things", type=int, default=1, choices=(1, 2), help="things per prompt")
    parser.add_argument("--seconds", type=duration_argument, default=10)
    parser.add_argument("--prompt-seed", type=int, default=0, help="which prompts are drawn")
    parser.add_argument("--seed", type=int, default=0, help="noise of the first stream; the others count up from it")
    parser.add_argument("--together", type=int, default=1,
                        help="streams of one prompt that share their model calls: the same streams, sooner")
    parser.add_argument("--ends", action="store_true",
                        help="draw and judge the first and last 10 s only; --together are one batch, of any prompts")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--resume", action="store_true", help="go on from the .jsonl beside --json")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--markdown", type=Path, help="write tables here")
    parser.add_argument("--plot", type=Path, help="write curves over time (PNG) here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) here; several runs: and NAME_RUN.png")
    args = parser.parse_intermixed_args()
    if args.seconds < 1:
        parser.error(f"--seconds must be at least 1, got {args.seconds:g}")
    if args.ends and (args.seconds < 2 * ENDS_S or args.plot):
        parser.error(f"--ends needs --seconds {2 * ENDS_S} or more, and has no curve to --plot")
    if args.plot and not args.compare and args.seconds < 2 * WINDOW_S:
        parser.error(f"--plot shows windows of {WINDOW_S} s; give it --seconds {2 * WINDOW_S} or more")
    if args.resume and not args.json:
        parser.error("--resume goes on from the .jsonl beside --json; say which --json")
    if args.compare and (args.run or args.runs or args.sheet):
        parser.error("--compare streams nothing: it goes with neither --run, --runs nor --sheet")
    return args


if __name__ == "__main__":
    call_main(main, "stopped; with --json, the same command and --resume go on from here")
