"""One stream for hours, steered at random: does memory stay flat, does a chunk take as long at the end?

    OMP_NUM_THREADS=1 python infer/soak.py --hours 2 --json soak.json

Every few chunks one of these happens: a new prompt by any transition, a fork that goes on for two chunks with another
seed, a rewind of up to six seconds, a snapshot from which the stream goes on in a new session. Memory breathes: a
resumed stream has nothing yet that it could be rewound to. So peaks are compared: exit code 1 if the highest resident
memory of the last quarter is more than 2 % above that of the second, or if its median chunk took 1.15 times as long.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import rollforce
from rollforce.checkpoints.outputs import write_whole
from rollforce.engine.transitions import check, transition
from rollforce.errors import call_main
from rollforce.evaluation.process import resident_mb
from rollforce.video.values import check_arguments, check_count, check_number
from rollforce.world import caption, sample_scene

REMEMBER_S = 6
TRANSITIONS = ("keep", "blend", "recache", "flush", "cut", "anchors", "shot")
GROWTH, SLOWER = 1.02, 1.15
LEAST_H = 0.01


def main() -> int:
    args = arguments()
    check_arguments(args, seeds=("seed",))
    check_count(args.rows, "--rows", 4, remedy="Quarters of them are compared.")
    check_number(args.hours, "--hours", LEAST_H, remedy="Quarters of it are compared.")
    model = rollforce.load(args.model, stream=args.stream, threads=1)
    rng, begun, done = random.Random(args.seed), time.perf_counter(), {"prompt": 0, "fork": 0, "rewind": 0, "save": 0}
    session = model.session(prompt_of(rng), seed=args.seed, remember=REMEMBER_S)
    chunks, rows, target = [], [], args.hours * 3600
    streamed = 0.0
    told = 0
    while streamed < target:
        before = time.perf_counter()
        chunk = next(session.stream())
        chunks.append(time.perf_counter() - before)
        streamed += len(chunk.frames) / model.fps
        if rng.random() < args.often:
            what = rng.choice(list(done))
            done[what] += 1
            session = happen(what, session, model, rng)
        if streamed >= told + args.hours * 3600 / args.rows:
            told += args.hours * 3600 / args.rows
            gc.collect()
            rows.append({"video_s": round(streamed), "wall_s": round(time.perf_counter() - begun),
                         "resident_mb": round(resident_mb(), 1), "chunk_ms": round(1000 * median(chunks[-300:]), 1)})
            print(json.dumps(rows[-1]), flush=True)
    session.close()
    return verdict(args, rows, chunks, done)


def happen(what: str, session: Any, model: Any, rng: random.Random) -> Any:
    """Do one random thing, and return the session that goes on."""
    if what == "prompt":
        session.prompt(prompt_of(rng), rng.choice(possible(model)))
    elif what == "fork":
        with session.fork(seed=rng.randrange(1 << 30)) as twin:
            for _ in zip(twin.stream(), range(2), strict=False):
                pass
    elif what == "rewind" and session.remembered:
        session.rewind(rng.uniform(0.1, session.remembered))
    elif what == "save":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stream.safetensors"
            session.snapshot().save(path)
            session.close()
            session = model.resume(rollforce.Snapshot.load(path), remember=REMEMBER_S)
    return session


def possible(model: Any) -> list[str]:
    """Return the transitions that this stream can do."""
    found = []
    for name in TRANSITIONS:
        try:
            check(transition(name), model.stream_settings.tiers)
        except rollforce.ConfigError:
            continue
        found.append(name)
    return found


def prompt_of(rng: random.Random) -> str:
    seed = rng.randrange(1 << 30)
    return caption(sample_scene(seed), seed, full=True)


def verdict(args: argparse.Namespace, rows: list[dict[str, float]], chunks: list[float], done: dict[str, int]) -> int:
    part, quarter = len(rows) // 4, len(chunks) // 4
    early, late = (max(row["resident_mb"] for row in some) for some in (rows[part : 2 * part], rows[-part:]))
    slower = median(chunks[-quarter:]) / median(chunks[quarter : 2 * quarter])
    told = {"command": " ".join(["python", *sys.argv]), "happened": done, "memory_growth": round(late / early, 4),
            "time_growth": round(slower, 4), "flat": late / early <= GROWTH and slower <= SLOWER}
    print(json.dumps(told))
    if args.json:
        write_whole(args.json, json.dumps({**told, "rows": rows}, indent=1) + "\n")
    return 0 if told["flat"] else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="bundled name or model folder")
    parser.add_argument("--stream", default=None, help="stream preset; default: the model's own")
    parser.add_argument("--hours", type=float, default=2, help="of video")
    parser.add_argument("--often", type=float, default=0.3, help="share of the chunks after which something happens")
    parser.add_argument("--rows", type=int, default=24, help="lines that are printed on the way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all of it here")
    return parser.parse_args()


if __name__ == "__main__":
    call_main(lambda: sys.exit(main()))
