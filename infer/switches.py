"""Compare transitions: what a new prompt does to a running stream, judged by the oracle with bootstrap intervals.

    python infer/switches.py --prompts 32 --json switches.json --markdown switches.md --sheet switches.png
    python infer/switches.py --often --prompts 8 --transitions recache flush cut    20 prompts in 5 minutes

Each stream shows one thing for 8 s and then gets a prompt, twice: `colour` asks for nothing but another colour, and
`scene` for something else altogether. All transitions go on from forks of one stream. Columns: seconds until some, and
all, of what is new is seen and stays (and the share where that came within 1 s), how far the thing leaves its way and
how much the background changes at the switch, against chunk borders before it (colour only), and the oracle's scores of
the last 6 s.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from rollforce.checkpoints.outputs import write_whole
from rollforce.errors import call_main
from rollforce.evaluation.report import difference, interval
from rollforce.video.contact_sheet import contact_sheet
from rollforce.video.values import check_arguments
from rollforce.world import Scene, caption, sample_scene, wish_of
from rollforce.world.processes import worker_pool
from rollforce.world.scenes import COLOURS, FPS
from rollforce.world.switching import judge_switch

BEFORE_S, AFTER_S, LAST_S = 8, 10, 6
EVERY_S, TIMES = 15, 20  # --often
SCORES = ("scene", "colour", "motion", "shape")
STREAMS = {"anchors": "anchor_forcing", "shot": "shotstream"}  # of transitions that need a memory of their own
ALL = ("keep", "blend", "recache", "anchors", "flush", "cut", "shot")
TITLES = {"first": "some of it after s", "some": "within 1 s", "delay": "all of it after s", "soon": "within 1 s ",
          "jump": "leaves its way"}
Row = dict[str, Any]


def main() -> None:
    args = arguments()
    check_arguments(args, counts=("prompts", "workers"))
    work = partial(switch_often if args.often else switch, args)
    rows: list[Row] = []
    with worker_pool(min(args.workers, args.prompts)) as pool:
        for number, found in enumerate(pool.map(work, range(args.prompts)), 1):
            rows += found
            print(f"\r{number} of {args.prompts} prompts ", end="", file=sys.stderr, flush=True)
    text = "\n\n".join([f"`python {shlex.join(sys.argv)}`", *(often_table(rows) if args.often else tables(rows))])
    print(f"\n{text}")
    if args.markdown:
        write_whole(args.markdown, text + "\n")
    if args.sheet:
        save_sheet(rows, args.sheet)
    if args.json:
        plain = [{name: value for name, value in row.items() if name != "frames"} for row in rows]
        write_whole(args.json, json.dumps(plain, indent=1) + "\n")


# -- one switch ------------------------------------------------------------------------------------------------------


def switch(args: argparse.Namespace, number: int) -> list[Row]:
    """Measure all transitions of one prompt, to another colour and to another scene."""
    scene = sample_scene(1_000_003 + number, count=1, held_out=True)
    goals = {"colour": recolour(scene, number), "scene": sample_scene(2_000_003 + number, count=1, held_out=True)}
    rows = []
    for stream, names in by_stream(args).items():
        model = load_model(args.model, stream)
        with model.session(caption(scene, number, full=True), seed=number) as session:
            before = np.concatenate([chunk.frames for chunk in session.stream(BEFORE_S)])
            for name in names:
                for kind, goal in goals.items():
                    found = continue_fork(session, before, name, (scene, goal))
                    rows.append({"prompt": number, "transition": name, "kind": kind, **found})
    return rows


def continue_fork(session: Any, before: np.ndarray, transition: str, scenes: tuple[Scene, Scene]) -> Row:
    """Measure how a fork of a stream goes on with another prompt; `scenes`: what it showed, and what it is to show."""
    goal = scenes[1]
    with session.fork() as twin:
        twin.prompt(caption(goal, 0, full=True), transition)
        frames = np.concatenate([before, *(chunk.frames for chunk in twin.stream(AFTER_S))])
    look, wish = load_eyes().look(frames), wish_of(goal)
    found = judge_switch(frames, look, wish_of(scenes[0]), wish, len(before))
    part = slice(len(frames) - LAST_S * FPS, len(frames))
    report = judge_part(frames[part], wish)
    times = {"some": found.first, "soon": found.delay}
    soon = {name: float(time is not None and time <= 1) for name, time in times.items()}
    return {**vars(found), **soon, **report,
            "frames": frames[len(before) - 6 :: 6][:10]}


def recolour(scene: Scene, number: int) -> Scene:
    """Return the same scene in another colour."""
    thing = scene.things[0]
    others = [colour for colour in COLOURS if colour != thing.colour]
    return replace(scene, things=(replace(thing, colour=others[number % len(others)]),))


def by_stream(args: argparse.Namespace) -> dict[str | None, list[str]]:
    """Return the transitions by the stream that they need."""
    found: dict[str | None, list[str]] = {}
    for name in args.transitions:
        found.setdefault(STREAMS.get(name, args.stream), []).append(name)
    return found


# -- many switches ---------------------------------------------------------------------------------------------------


def switch_often(args: argparse.Namespace, number: int) -> list[Row]:
    """Show 20 prompts in 5 minutes of one stream, each judged against a stream of its own of the same length."""
    scenes = [sample_scene(3_000_003 + 1000 * number + n, count=1, held_out=True) for n in range(TIMES)]
    words = [caption(scene, 0, full=True) for scene in scenes]
    rows = []
    for stream, names in by_stream(args).items():
        model = load_model(args.model, stream)
        alone = []
        for n, text in enumerate(words):
            with model.session(text, seed=1000 * number + n) as session:
                alone.append(np.concatenate([chunk.frames for chunk in session.stream(EVERY_S)]))
        for name in names:
            with model.session(words[0], seed=number) as session:
                for n, text in enumerate(words):
                    if n:
                        session.prompt(text, name)
                    frames = np.concatenate([chunk.frames for chunk in session.stream(EVERY_S)])
                    for kind, video in (("steered", frames), ("alone", alone[n])):
                        rows.append({"prompt": number, "segment": n, "transition": name, "kind": kind,
                                     **judge_part(video[FPS:], wish_of(scenes[n]))})
    return rows


# -- what is shared --------------------------------------------------------------------------------------------------


@cache
def load_model(model: str, stream: str | None) -> Any:
    import rollforce

    return rollforce.load(model, stream=stream, threads=1)


@cache
def load_eyes() -> Any:
    from rollforce.world.eyes import Eyes

    return Eyes.load()


def judge_part(frames: np.ndarray, wish: Any) -> Row:
    from rollforce.world.oracle import judge

    report = judge(frames, load_eyes().look(frames), wish)
    return {name: float(getattr(report, name)) for name in SCORES}


# -- tables ----------------------------------------------------------------------------------------------------------


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table for each kind of change."""
    for kind in ("colour", "scene"):
        found = ("delay", "soon", "jump", "background") if kind == "colour" else ("first", "some", "delay", "soon")
        names = (*found, *SCORES)
        titles = [TITLES.get(name, name) for name in names]
        lines = [f"| {kind} | " + " | ".join(titles) + " |", "|---" + "|---:" * len(names) + "|"]
        for transition in dict.fromkeys(row["transition"] for row in rows):
            mine = [row for row in rows if row["transition"] == transition and row["kind"] == kind]
            lines.append(f"| {transition} | " + " | ".join(format_mean(mine, name) for name in names) + " |")
        yield "\n".join(lines)


def often_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what 20 switches cost, against streams of the same prompts that never heard of another."""
    lines = ["| transition | | " + " | ".join(SCORES) + " |", "|---|---" + "|---:" * len(SCORES) + "|"]
    for transition in dict.fromkeys(row["transition"] for row in rows):
        kinds = {kind: [row for row in rows if row["transition"] == transition and row["kind"] == kind]
                 for kind in ("steered", "alone")}
        for kind, mine in kinds.items():
            lines.append(f"| {transition} | {kind} | " + " | ".join(format_mean(mine, name) for name in SCORES) + " |")
        prompts = [row["prompt"] for row in kinds["alone"]]
        lost = [difference([row[name] for row in kinds["steered"]], [row[name] for row in kinds["alone"]], prompts)
                for name in SCORES]
        lines.append(f"| {transition} | difference | "
                     + " | ".join(f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for d in lost) + " |")
    yield "\n".join(lines)


def format_mean(rows: Sequence[Row], name: str) -> str:
    """Return a mean with its interval over prompts; of delays, those that came."""
    known = [(float(row[name]), row["prompt"]) for row in rows if row[name] is not None]
    if not known:
        return ""
    found = interval([value for value, _ in known], [prompt for _, prompt in known])
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def save_sheet(rows: Sequence[Row], path: Path) -> None:
    """Write a row for each transition and kind of the first prompts: half seconds around the switch."""
    import imageio.v3 as iio

    shown = [row for row in rows if row["prompt"] < 2 and "frames" in row]
    labels = [f"{row['transition']}: {row['kind']}" for row in shown]
    heads = [f"{n / 2 - 0.5:+.1f} s" for n in range(10)]
    iio.imwrite(path, contact_sheet([row["frames"] for row in shown], 10, labels, zoom=1, heads=heads))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="bundled name or model folder")
    parser.add_argument("--stream", default=None, help="stream preset; default: the model's own")
    parser.add_argument("--transitions", nargs="+", default=list(ALL), choices=ALL)
    parser.add_argument("--often", action="store_true", help=f"{TIMES} prompts, one each {EVERY_S} s, in one stream")
    parser.add_argument("--prompts", type=int, default=32, help="streams; with --often each has 20 prompts")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) here")
    return parser.parse_args()


if __name__ == "__main__":
    call_main(main)
