"""What test-time search buys (rollforce/streaming/search.py, Stream-T1) beside other ways to spend as much.

    python infer/search.py --prompts 24 --seconds 10 --json runs/search.json --markdown runs/search.md
    python infer/search.py --stream rolling --branch anew --prompts 24 --json runs/search_rolling.json
    python infer/search.py --prompts 1 --seconds 4 --runs 1x1 1x2 "steps 2"      is it there?

The same prompts and seeds for every run (those of infer/evaluate.py):

    1x1 1x2 2x2     BEAMSxCANDIDATES; the reward is the oracle's: in which share of its frames it is as asked
    2x2 calm        a reward that does not know what was asked: no flicker. What it wants it gets; see what it costs
    best 4          the best of 4 whole streams, by the same reward: search without steps
    steps 4         one stream with 4 times the denoising steps, as many chunks in flight, nothing chosen

"as asked", the mean of the four columns behind it, is what the search was for; the others were not rewarded (but
flicker, in `stillness`). `change` is the mean difference of neighbouring frames: a video that stands still has none.
Numbers are means with 95 % bootstrap intervals over prompts; * marks those that differ from the first run's (paired, p
< .05). `calls`, `latents`: model calls, and latents that went through the model, for a chunk that is shown; chunks
computed beyond the end (lookahead) are counted. With --json, what is there already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import rollforce
from rollforce.checkpoints.outputs import hold, write_whole
from rollforce.engine.layout import Layout
from rollforce.engine.settings import LayoutSettings
from rollforce.errors import ConfigError, call_main
from rollforce.evaluation.report import difference, interval
from rollforce.streaming.model import Model
from rollforce.streaming.search import Search, SearchSettings
from rollforce.training.rewards import FrameReward, OracleReward, frame_reward, stillness
from rollforce.video.duration import duration_argument
from rollforce.video.values import check_arguments
from rollforce.world import caption, sample_scene
from rollforce.world.oracle import differences, score

AXES = ("scene", "colour", "shape", "motion")
REWARDED = ("scene_per_frame", "colour_per_frame", "shape_per_frame", "motion")  # finer: so that few are equal
MEASURES = ("as asked", *AXES, "whole", "seams", "flicker", "change", "calls", "latents", "s per s")
COSTS = ("calls", "latents", "s per s")
RUNS = ("1x1", "1x2", "2x2", "2x2 calm", "best 4", "steps 2", "steps 4")
SEED_STEP = 1_000_000  # between the seeds of one prompt's streams, as in evaluate.py
Row = dict[str, float | None]


@dataclass
class Work:
    """What went through a model: calls, and latents in them."""

    calls: int = 0
    latents: int = 0

    def count(self, _module: object, arguments: tuple[Any, ...]) -> None:
        self.calls, self.latents = self.calls + 1, self.latents + arguments[0].shape[0] * arguments[0].shape[1]


@dataclass(frozen=True)
class Task:
    """One stream to make and its name among the results."""

    run: str
    prompt: str
    seed: int
    number: int

    @property
    def key(self) -> str:
        return f"{self.run}/{self.seed}"


def main() -> None:
    args = arguments()
    check_arguments(args, counts=("prompts", "seeds", "span"), seconds=("seconds",))
    with hold(args.json) if args.json else nullcontext():
        compare(args)


def compare(args: argparse.Namespace) -> None:
    oracle = frame_reward(OracleReward(REWARDED))
    models = Models(args)
    done = read_results(args, models[1])
    for task in tasks(args, args.runs):
        if task.key not in done["rows"]:
            print(f"\r{task.key} ", end="", file=sys.stderr, flush=True)
            done["rows"][task.key] = {"prompt": task.number} | render_task(task, models, oracle, args)
            save_results(done, args.json)
    text = "\n".join(table(args, done["rows"]))
    print(f"\n{text}")
    if args.markdown:
        write_whole(args.markdown, text + "\n")


def tasks(args: argparse.Namespace, runs: list[str]) -> Iterator[Task]:
    """Yield tasks prompt by prompt through all runs, so that all meet the same load."""
    for number in range(args.prompts):
        words = caption(sample_scene(number, count=args.things, held_out=True), number, full=True)
        for repeat in range(args.seeds):
            yield from (Task(run, words, number + repeat * SEED_STEP, number) for run in runs)


# -- one stream ------------------------------------------------------------------------------------------------------


def render_task(task: Task, models: Models, oracle: FrameReward, args: argparse.Namespace) -> Row:
    """Make a stream as its run says, and judge it."""
    maker, model, work = choose_maker(task, models, oracle, args), models[steps_of(task.run)], Work()
    handle = model.transformer.register_forward_pre_hook(work.count)
    begun = perf_counter()
    video = maker(model)
    seconds = perf_counter() - begun
    handle.remove()
    report = score(video, task.prompt, model.frames_per_chunk, model.frames_per_latent).numbers()
    chunks, asked = len(video) / model.frames_per_chunk, [report[axis] for axis in AXES]
    said = [share for share in asked if share is not None]
    return {
        "as asked": sum(said) / len(said), **dict(zip(AXES, asked, strict=True)), "whole": report["whole"],
        "seams": report["seams.chunk_ratio"], "flicker": report["flicker"],
        "change": float(differences(video).mean()),
        "calls": work.calls / chunks, "latents": work.latents / chunks, "s per s": seconds / args.seconds,
    }  # fmt: skip


def choose_maker(
    task: Task, models: Models, oracle: FrameReward, args: argparse.Namespace
) -> Callable[[Model], np.ndarray]:
    """Return how a run makes a stream's frames, uint8 [F, H, W, 3]."""
    kind, _, what = task.run.partition(" ")

    def plain(model: Model, seed: int = task.seed) -> np.ndarray:
        with model.session(task.prompt, seed=seed) as session:
            return np.concatenate([chunk.frames for chunk in session.stream(args.seconds)])

    def best(model: Model) -> np.ndarray:
        videos = (plain(model, task.seed + n * 1000) for n in range(int(what)))
        return max(videos, key=lambda video: oracle(video, task.prompt))

    def searched(model: Model) -> np.ndarray:
        settings, reward = settings_of(kind, model, args), stillness if what == "calm" else oracle
        with model.session(task.prompt, seed=task.seed) as session, Search(session, reward, settings) as search:
            return np.concatenate([chunk.frames for chunk in search.stream(args.seconds)])

    return {"best": best, "steps": plain, "1x1": plain}.get(kind, searched)


def settings_of(width: str, model: Model, args: argparse.Namespace) -> SearchSettings:
    """Return a search that is as wide as BEAMSxCANDIDATES, in rounds that see what they chose."""
    beams, _, candidates = width.partition("x")
    if not (beams.isdecimal() and candidates.isdecimal()):
        raise ConfigError(f"run {width!r} is not known. Use BEAMSxCANDIDATES (with calm), best N, or steps N.")
    table: Layout = model.stream_settings.layout.build()
    span = args.span or (table.slots // table.shift if args.branch == "entering" else 1)
    return SearchSettings(int(beams), int(candidates), span=span, branch=args.branch, lean=args.lean,
                          together=args.together)  # fmt: skip


# -- models ----------------------------------------------------------------------------------------------------------


class Models(dict[int, Model]):
    """The model by how many times its denoising steps it takes: loaded when it is asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args

    def __missing__(self, times: int) -> Model:
        args = self.args
        overrides = list(args.overrides)
        if times > 1:
            overrides += refine_levels(self[1].stream_settings.layout, times)
        self[times] = rollforce.load(args.model, stream=args.stream, overrides=overrides, device=args.device)
        return self[times]


def refine_levels(layout: LayoutSettings, times: int) -> list[str]:
    """Return the layout with so many times its steps, evenly between those it has; as many chunks in flight."""
    levels = [*layout.levels, 0.0]
    ladder = [high + (low - high) * n / times for high, low in pairwise(levels) for n in range(times)]
    kinds = {"rolling": "partitioned", "partitioned": "partitioned"}
    micro = [f"layout.micro={layout.micro * times}"] if layout.kind in kinds else []
    return [f"layout.kind={kinds.get(layout.kind, layout.kind)}", f"layout.levels={ladder}",
            f"layout.chunk={layout.chunk}", f"layout.shift={layout.shift}", *micro]  # fmt: skip


def steps_of(run: str) -> int:
    return int(run.removeprefix("steps ")) if run.startswith("steps ") else 1


# -- results ---------------------------------------------------------------------------------------------------------


def read_results(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Return what an earlier call left. ConfigError if it was another one's."""
    settings = {name: getattr(args, name) for name in
                ("stream", "overrides", "things", "seconds", "branch", "span", "lean")}  # fmt: skip
    settings |= {"weights": model.fingerprint[:16]}
    if not (args.json and args.json.is_file()):
        return {"settings": settings, "rows": {}}
    done: dict[str, Any] = json.loads(args.json.read_text())
    if done["settings"] != settings:
        raise ConfigError(f"{args.json} holds results of {done['settings']}, not of {settings}: use another file.")
    return done


def save_results(done: dict[str, Any], path: Path | None) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(done, indent=1) + "\n")


def table(args: argparse.Namespace, rows: dict[str, Row]) -> Iterator[str]:
    """Yield the lines of the table: runs down, measures across."""
    yield f"`python {shlex.join(sys.argv)}`: {args.prompts} prompts x {args.seeds}, {args.seconds:g} s each\n"
    yield "| " + " | ".join(("run", *MEASURES)) + " |"
    yield "|" + "---|" * (len(MEASURES) + 1)
    wanted = list(tasks(args, [""]))
    for run in args.runs:
        cells = [cell(measure, run, args.runs[0], wanted, rows) for measure in MEASURES]
        yield "| " + " | ".join((run, *cells)) + " |"


def cell(measure: str, run: str, first: str, wanted: list[Task], rows: dict[str, Row]) -> str:
    """Return a mean with its interval, over the streams of which both runs can tell it; costs without."""
    pairs = [(rows[replace(task, run=run).key][measure], rows[replace(task, run=first).key][measure], task.number)
             for task in wanted]  # fmt: skip
    known = [(ours, theirs, number) for ours, theirs, number in pairs if ours is not None and theirs is not None]
    if not known:
        return "-"
    ours, theirs, numbers = (list(column) for column in zip(*known, strict=True))
    found = interval(ours, numbers)
    if measure in COSTS:
        return f"{found.mean:.3g}"
    star = "\\*" if run != first and difference(ours, theirs, numbers).separable else ""
    return f"{found.mean:.2f}{star} [{found.low:.2f}, {found.high:.2f}]"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the stream, such as layout.shift=3")
    parser.add_argument("--model", default="tiny", help="bundled name or model folder")
    parser.add_argument("--stream", default="chunkwise", help="stream preset or YAML file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), help="see above; others are compared with the first")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=1, help="streams per prompt")
    parser.add_argument("--things", type=int, default=1, choices=(1, 2), help="things per prompt")
    parser.add_argument("--seconds", type=duration_argument, default=10)
    parser.add_argument("--branch", choices=("entering", "anew"), default="entering", help="where candidates differ")
    parser.add_argument("--span", type=int, help="chunks of a round; default: 1, or all in flight where noise enters")
    parser.add_argument("--lean", type=float, default=SearchSettings.lean, help="of noise on that of the chunk before")
    parser.add_argument("--together", action="store_true", help="compute the candidates of a round in one model call")
    parser.add_argument("--json", type=Path, help="keep results here, and go on from them")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    args = parser.parse_intermixed_args()
    return args


if __name__ == "__main__":
    call_main(main, "stopped; with --json, the same command goes on from here")
