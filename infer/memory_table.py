"""The table of memory policies, as Markdown, from the presets and a file of results.

    python infer/memory_table.py                                  prints it; what no result tells is "not measured"
    python infer/memory_table.py --cost m.json                    takes in what `infer/bench.py --case memory` wrote
    python infer/memory_table.py --quality scores.json            takes in a report of `infer/evaluate.py --ends`, whose
                                                                  runs have presets' names: as they are
    python infer/memory_table.py --tuned scores.json              the same after tuning

Bytes are those of the bundled model's sizes, by a walk without weights (rollforce/engine/dry_run.py): what memory
keeps, the chunk in flight included, and what attention reads of it for one chunk, all calls and layers. Time is that of
a chunk of a random-weight model beside plain sink + window which attends to as many latents, and beside a dense one
of a longer context; the middle half of the repeats in brackets. Quality is the mean of scene, colour, motion, shape and
count in the last 10 s, with its 95 % interval over prompts, and after the comma what that is more or less than in the
first.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollforce.cache.head_groups import HeadGroups
from rollforce.cache.visibility import Anchored, RunningAhead
from rollforce.checkpoints.catalog import presets
from rollforce.checkpoints.outputs import write_whole
from rollforce.config import build, resource
from rollforce.engine.budget.model_sizes import sizes_of
from rollforce.engine.budget.requirements import MemorySetup
from rollforce.engine.dry_run import trace
from rollforce.engine.settings import StreamSettings
from rollforce.errors import call_main
from rollforce.evaluation.memory.memory_map import format_bytes
from rollforce.evaluation.report import interval

RESULTS = Path(__file__).with_name("memory.json")
SCORES = ("scene", "colour", "motion", "shape", "count")
NOTHING = "not measured"
PLAIN_FILES = {"sink.py", "window.py"}
HEAD = ("preset", "method", "paper", "what it is made of", "lines", "kept", "read a chunk", "time, plain = 1",
        "time, dense = 1", "after ten minutes")  # fmt: skip


def main() -> None:
    args = arguments().parse_args()
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    if args.cost:
        results["cost"] = json.loads(args.cost.read_text())
    for kind in ("quality", "tuned"):
        for path in getattr(args, kind) or ():
            results.setdefault(kind, {}).update(score_report(path))
    if args.cost or args.quality or args.tuned:
        write_whole(args.results, json.dumps(results, indent=1) + "\n")
    print(*lines(results), sep="\n")


def lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the table, with where it was measured below. Columns for which nothing was measured are left out."""
    columns = [column for column in zip(HEAD, *(row(name, results) for name in presets()), strict=True)
               if set(column[1:]) - {NOTHING, "", "1"}]  # fmt: skip
    head, *rows = zip(*columns, strict=True)
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cells) + " |"
    if told := results.get("cost", {}).get("environment"):
        yield f"\nTime: {told['gpu'] or told['processor']}, {told['threads']} thread(s), torch {told['torch']}, " \
              f"commit {told['commit']}; `infer/bench.py --case memory`."  # fmt: skip


def row(name: str, results: dict[str, Any]) -> list[str]:
    stream = load_preset(name)
    method, paper = describe_preset(resource(f"configs/stream/{name}.yaml").read_text())
    files = list_files(stream)
    long = sum(len(file.read_text().splitlines()) for file in files if file.name not in PLAIN_FILES)
    kept, read = bytes_of(stream)
    costs = {line["against"]: line for line in results.get("cost", {}).get("results", ()) if line["case"] == name}
    plain = "1" if {file.name for file in files} <= PLAIN_FILES else NOTHING
    times = (format_time(costs.get("plain"), "" if "dense" in costs else plain), format_time(costs.get("dense"), ""))
    plainly, tuned = (format_quality(find_result(results.get(kind, {}), stream)) for kind in ("quality", "tuned"))
    both = [plainly] * bool(plainly) + [f"tuned: {tuned}"] * bool(tuned)
    return [f"`{name}`", method, paper, ", ".join(f"`{file.name}`" for file in files), str(long) if long else "",
            format_bytes(kept), format_bytes(read), *times, "; ".join(both) or NOTHING]


# -- what the presets say --------------------------------------------------------------------------------------------


@cache
def load_preset(name: str) -> StreamSettings:
    return build(StreamSettings, resource(f"configs/stream/{name}.yaml"))


def describe_preset(text: str) -> tuple[str, str]:
    """Return method and paper, from the comment that a preset begins with."""
    comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    method = re.split(r" \(| at the size| with |, |: |\. ", comment)[0]
    found = re.search(r"arXiv (\d{4}\.\d{5})", comment)
    return method, f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


def list_files(stream: StreamSettings) -> list[Path]:
    """Return the files of its tiers, sparse sights and positions."""
    kinds: list[Any] = [type(tier) for tier in stream.tiers] + [HeadGroups] * (stream.heads is not None)
    for sight in (stream.stepping.denoise, stream.stepping.commit):
        kinds += [type(part) for part in (sight.sparse, sight.text) if part is not None]
        kinds += [type(sight.positions)] if isinstance(sight.positions, Anchored | RunningAhead) else []
    files = [Path(str(sys.modules[kind.__module__].__file__)) for kind in kinds]
    return list(dict.fromkeys(files))


def bytes_of(stream: StreamSettings) -> tuple[int, int]:
    """Return the bytes kept, and those read for one chunk, once memory is full, at the bundled model's sizes."""
    sizes, table = sizes_of("tiny"), stream.layout.build()
    config, grid = sizes.transformer, MemorySetup(sizes, stream, sizes.size, torch.float32, torch.device("cpu")).grid
    shape = config.shape(grid)
    room = max(sum(tier.latents for tier in tiers) for tiers in stream.memories)
    chunks = (room + 2 * table.slots) // table.shift + 24
    calls = list(islice(trace(stream, shape), chunks * table.ticks))[-table.ticks :]
    return calls[-1].bytes, sum(call.read for call in calls)


# -- what the results say --------------------------------------------------------------------------------------------


def format_time(line: dict[str, Any] | None, otherwise: str) -> str:
    return otherwise if line is None else f"{line['ratio']:.2f} [{line['ratio_low']:.2f}, {line['ratio_high']:.2f}]"


def find_result(lines: dict[str, Any], stream: StreamSettings) -> dict[str, Any] | None:
    """Return what was measured of this stream: presets may differ only in how their students were trained."""
    return next((line for name, line in lines.items() if load_preset(name) == stream), None)


def format_quality(line: dict[str, Any] | None) -> str:
    return "" if line is None else f"{line['mean']:.2f} [{line['low']:.2f}, {line['high']:.2f}], {line['change']:+.2f}"


def score_report(path: Path) -> dict[str, Any]:
    """Return the quality at the end of every run of a report, with the seconds and prompts that it took."""
    report = json.loads(path.read_text())
    runs = report.get("runs") or {report.get("run", {}).get("stream"): report}  # one alone has no name but its stream's
    if unknown := runs.keys() - set(presets()):
        raise SystemExit(f"{path} must be a report of evaluate.py --ends whose runs have the names of presets, not "
                         f"{', '.join(sorted(map(str, unknown)))}.")
    return {name: score_ends(run["prompts"]) | {key: report["settings"][key] for key in ("seconds", "prompts")}
            for name, run in runs.items()}


def score_ends(streams: list[dict[str, Any]]) -> dict[str, float]:
    first, last = ([float(np.mean([stream[end][score] for score in SCORES])) for stream in streams]
                   for end in ("first_10s", "last_10s"))
    by_end = interval(last, [stream["number"] for stream in streams])
    return by_end.numbers() | {"change": round(float(np.mean(last) - np.mean(first)), 4)}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--cost", type=Path, help="what bench.py --case memory --json wrote")
    parser.add_argument("--quality", type=Path, action="append", help="report of evaluate.py --ends; repeatable")
    parser.add_argument("--tuned", type=Path, action="append", help="the same, of models tuned for these presets")
    return parser


if __name__ == "__main__":
    call_main(main)
