"""Score a model on prompts whose combination of attributes it never saw in training.

    python infer/evaluate.py --prompts 64 --seconds 10 --json scores.json --sheet sheet.png
    python infer/evaluate.py --prompts 16 --seconds 60          also the first and last 10 s, and a curve over time

Every prompt is streamed once and judged by the oracle (rollforce/world/oracle.py) from its pixels. Beside the model
stand two references: the rendered truth of the same prompts, and that truth through the model's autoencoder. Each
number comes with a 95 % bootstrap interval over prompts. `seams.*_to_real` is the frame difference at the borders
divided by the one of real video through the autoencoder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rollforce.errors import RollforceError
from rollforce.world import FPS, Scene, caption, render, sample_scene, sheet, wish_of

ENDS_S = 10  # the first and last seconds that are compared in longer videos
REFERENCE_S = 20  # truth is rendered no longer than this
MOMENTS, ROWS = 8, 8  # of the contact sheet
MAIN = ("scene", "colour", "motion", "shape", "count", "whole", "flicker")
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Task:
    """One prompt: the scene it describes (and the truth is rendered from), its words, and the seed of the stream."""

    number: int
    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True)
class Result:
    """What came of one task: numbers by part ("model", "first_10s", "last_10s", "truth", "truth_autoencoder")."""

    task: Task
    parts: dict[str, Numbers]
    curve: list[Numbers]
    seen: str
    tiles: np.ndarray  # uint8 [MOMENTS, H, W, 3]
    streamed_s: float  # wall time of streaming it


def main() -> None:
    args = arguments()
    tasks = draw(args.prompts, args.things, args.prompt_seed, args.seed)
    results = stream_all(tasks, args)
    report = summary(results, args)
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.sheet:
        save_sheet(results, args.sheet)


def draw(prompts: int, things: int, prompt_seed: int, seed: int) -> list[Task]:
    """Held-out scenes and their full captions; the same arguments give the same tasks."""
    tasks = []
    for number in range(prompts):
        draw_seed = prompt_seed * 1_000_003 + number
        scene = sample_scene(draw_seed, count=things, held_out=True)
        tasks.append(Task(number, scene, caption(scene, draw_seed, full=True), seed + number))
    return tasks


def stream_all(tasks: list[Task], args: argparse.Namespace) -> list[Result]:
    """Spread the tasks over processes of one thread each."""
    if args.workers == 1:
        return work(tasks, args)
    shares = [tasks[n :: args.workers] for n in range(min(args.workers, len(tasks)))]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(len(shares), multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(work, share, args) for share in shares]
        results = [result for future in futures for result in future.result()]
    return sorted(results, key=lambda result: result.task.number)


def work(tasks: list[Task], args: argparse.Namespace) -> list[Result]:
    import torch

    import rollforce
    from rollforce.world.eyes import Eyes

    torch.set_num_threads(1)
    model, eyes = rollforce.load(args.model, stream=args.stream, overrides=args.overrides), Eyes.load()
    return [evaluate(task, model, eyes, args.seconds) for task in tasks]


def evaluate(task: Task, model: Any, eyes: Any, seconds: float) -> Result:
    """Stream one prompt, judge it, and judge its truth and its truth through the autoencoder."""
    from rollforce.world.oracle import score, score_windows

    begun = time.perf_counter()
    with model.session(task.prompt, seed=task.seed) as session:
        video = np.concatenate([chunk.frames for chunk in session.stream(seconds)])
    taken = time.perf_counter() - begun
    borders = {"chunk": model.frames_per_chunk, "latent": model.frames_per_latent}
    wish, ends = wish_of(task.scene), ENDS_S * FPS
    whole = score(video, wish, eyes=eyes, **borders)
    videos = {}
    if len(video) >= 2 * ends:
        videos = {"first_10s": video[:ends], "last_10s": video[-ends:]}
    videos["truth"] = render(task.scene, 0, min(len(video), REFERENCE_S * FPS), video.shape[1])
    videos["truth_autoencoder"] = through(model.autoencoder, videos["truth"])
    parts = {"model": whole.numbers()}
    parts |= {name: score(part, wish, eyes=eyes, **borders).numbers() for name, part in videos.items()}
    for border in ("chunk", "latent"):
        real = parts["truth_autoencoder"][f"seams.{border}"]
        ours = parts["model"][f"seams.{border}"]
        parts["model"][f"seams.{border}_to_real"] = ours / max(real, 1e-6) if ours is not None and real else None
    curve = [r.numbers() for r in score_windows(video, wish, eyes=eyes, **borders)] if len(video) >= 2 * ends else []
    tiles = video[np.linspace(0, len(video) - 1, MOMENTS).round().astype(int)]
    return Result(task, parts, curve, whole.seen, tiles, taken)


def through(autoencoder: Any, video: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] encoded and decoded; F is cut to whole latents."""
    import torch

    count = len(video) // autoencoder.config.frames * autoencoder.config.frames
    with torch.no_grad():
        x = torch.from_numpy(video[None, :count]).to(autoencoder.basis.device)
        frames, _ = autoencoder.decode(autoencoder.encode(x))
    return np.asarray(frames[0].mul(255).round().to("cpu", torch.uint8).numpy())


# -- numbers ---------------------------------------------------------------------------------------------------------


def summary(results: list[Result], args: argparse.Namespace) -> dict[str, Any]:
    """The report: main numbers on top, then the parts, the curve and every prompt."""
    parts = {name: together([r.parts[name] for r in results]) for name in results[0].parts}
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "sheet")}
    curve = [{name: value["mean"] for name, value in together([r.curve[n] for r in results]).items()}
             for n in range(min(len(r.curve) for r in results))]
    prompts = [{"prompt": r.task.prompt, "seed": r.task.seed, "seen": r.seen, "streamed_s": round(r.streamed_s, 3)}
               | r.parts["model"] for r in results]
    main_part = grouped(parts.pop("model"))
    others = {name: grouped(part) for name, part in parts.items()}
    return {"settings": settings, **main_part, **others, "curve_5s": curve, "prompts": prompts}


def together(rows: Sequence[Numbers]) -> dict[str, dict[str, float]]:
    """Mean and 95 % interval over prompts of every measure that any prompt has."""
    names = {name: None for row in rows for name in row}
    values = {name: np.array([row[name] for row in rows if row.get(name) is not None], float) for name in names}
    return {name: interval(v) for name, v in values.items() if len(v)}


def interval(values: np.ndarray, draws: int = 2000) -> dict[str, float]:
    """Mean of `values` and the percentile bootstrap of it."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": round(float(values.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def grouped(part: dict[str, dict[str, float]]) -> dict[str, Any]:
    """ "seams.chunk" and its like are put together under "seams"."""
    tree: dict[str, Any] = {}
    for name, value in part.items():
        group, _, leaf = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return tree


def show(report: dict[str, Any]) -> None:
    columns = {"model": report} | {name: report[name] for name in
                                   ("first_10s", "last_10s", "truth", "truth_autoencoder") if name in report}
    print(f"{'':22s}" + "".join(f"{name:>22s}" for name in columns))
    paths: list[tuple[str, ...]] = [(name,) for name in (*MAIN, "shape_per_frame", "present")]
    paths += [(group, leaf) for group in ("seams", "drift") for leaf in report[group]]
    for path in paths:
        cells = []
        for part in columns.values():
            value = part.get(path[0])
            value = value.get(path[1]) if value is not None and len(path) == 2 else value
            cells.append("" if value is None else f"{value['mean']:.3f} [{value['low']:.3f} {value['high']:.3f}]")
        print(f"{'.'.join(path):22s}" + "".join(f"{cell:>22s}" for cell in cells))


def save_sheet(results: list[Result], path: Path) -> None:
    from PIL import Image

    chosen = results[:ROWS]
    Image.fromarray(sheet([r.tiles for r in chosen], MOMENTS, [r.task.prompt for r in chosen], zoom=2)).save(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the stream, such as layout.levels=[1,0.75]")
    parser.add_argument("--model", default="tiny", help="bundled name or model folder")
    parser.add_argument("--stream", default=None, help="stream preset or YAML file; default: the model's own")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--things", type=int, default=1, choices=(1, 2), help="things per prompt")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--prompt-seed", type=int, default=0, help="which prompts are drawn")
    parser.add_argument("--seed", type=int, default=0, help="noise of the first stream; the others count up from it")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) here")
    args = parser.parse_args()
    if args.prompts < 1 or args.workers < 1 or args.seconds < 1:
        parser.error("--prompts, --workers and --seconds must be at least 1")
    return args


if __name__ == "__main__":
    try:
        main()
    except RollforceError as error:
        sys.exit(str(error))
