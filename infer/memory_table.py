"""The table of memory policies, as Markdown, from the presets and a file of results.

    python infer/memory_table.py                                  prints it; what no result tells is "not measured"
    python infer/memory_table.py --cost m.json                    takes in what `infer/bench.py --case memory` wrote
    python infer/memory_table.py --quality longlive=scores.json   takes in a report of `infer/evaluate.py`: as it is
    python infer/memory_table.py --tuned longlive=scores.json     the same after tuning

Bytes are those of the bundled model's sizes, by a walk without weights (rollforce/trace.py): what memory keeps, the
chunk in flight included, and what attention reads of it for one chunk, all calls and layers. Time is that of a chunk of
a random-weight model beside plain sink + window which attends to as many latents, and beside a dense one of a longer
context; the middle half of the repeats in brackets. Quality is the share of things drawn as the prompt says, mean and
95 % interval over prompts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rollforce.config import build, resource
from rollforce.load import presets
from rollforce.memory_map import size
from rollforce.needs import Setup
from rollforce.positions import Anchored, RunningAhead
from rollforce.settings import StreamSettings
from rollforce.sizes import sizes_of
from rollforce.trace import trace

RESULTS = Path(__file__).with_name("memory.json")
MEASURE = "whole"
NOTHING = "not measured"
PLAIN_FILES = {"sink.py", "window.py"}
HEAD = ("preset", "method", "paper", "what it is made of", "lines", "kept", "read a chunk", "time, plain = 1",
        "time, dense = 1", "quality as it is", "quality tuned")  # fmt: skip


def main() -> None:
    args = arguments().parse_args()
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    if args.cost:
        results["cost"] = json.loads(args.cost.read_text())
    for kind in ("quality", "tuned"):
        for text in getattr(args, kind) or ():
            results.setdefault(kind, {}).update(scored(text))
    if args.cost or args.quality or args.tuned:
        args.results.write_text(json.dumps(results, indent=1) + "\n")
    print(*lines(results), sep="\n")


def lines(results: dict[str, Any]) -> Iterator[str]:
    """The table, with where it was measured below. Columns for which nothing was measured are left out."""
    columns = [column for column in zip(HEAD, *(row(name, results) for name in presets()), strict=True)
               if set(column[1:]) != {NOTHING}]  # fmt: skip
    head, *rows = zip(*columns, strict=True)
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cells) + " |"
    if told := results.get("cost", {}).get("environment"):
        yield f"\nTime: {told['gpu'] or told['processor']}, {told['threads']} thread(s), torch {told['torch']}, " \
              f"commit {told['commit']}; `infer/bench.py --case memory`."  # fmt: skip


def row(name: str, results: dict[str, Any]) -> list[str]:
    path = resource(f"configs/stream/{name}.yaml")
    stream = build(StreamSettings, path)
    method, paper = described(path.read_text())
    files = made_of(stream)
    long = sum(len(file.read_text().splitlines()) for file in files if file.name not in PLAIN_FILES)
    kept, read = bytes_of(stream)
    costs = {line["against"]: line for line in results.get("cost", {}).get("results", ()) if line["case"] == name}
    return [f"`{name}`", method, paper, ", ".join(f"`{file.name}`" for file in files), str(long) if long else "",
            size(kept), size(read), *(time(costs.get(against)) for against in ("plain", "dense")),
            *(quality(results.get(kind, {}).get(name)) for kind in ("quality", "tuned"))]  # fmt: skip


# -- what the presets say --------------------------------------------------------------------------------------------


def described(text: str) -> tuple[str, str]:
    """Method and paper, from the comment that a preset begins with."""
    comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    method = re.split(r" \(| at the size| with |, |: |\. ", comment)[0]
    found = re.search(r"arXiv (\d{4}\.\d{5})", comment)
    return method, f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


def made_of(stream: StreamSettings) -> list[Path]:
    """The files of its tiers, sparse sights and positions."""
    kinds: list[Any] = [type(tier) for tier in stream.tiers]
    for sight in (stream.stepping.denoise, stream.stepping.commit):
        kinds += [type(part) for part in (sight.sparse, sight.text) if part is not None]
        kinds += [type(sight.positions)] if isinstance(sight.positions, Anchored | RunningAhead) else []
    files = [Path(str(sys.modules[kind.__module__].__file__)) for kind in kinds]
    files += [files[0].with_name("heads.py")] if stream.heads is not None else []
    return list(dict.fromkeys(files))


def bytes_of(stream: StreamSettings) -> tuple[int, int]:
    """Kept, and read for one chunk, once memory is full, at the bundled model's sizes."""
    sizes, table = sizes_of("tiny"), stream.layout.build()
    config, grid = sizes.transformer, Setup(sizes, stream, sizes.size, torch.float32, torch.device("cpu")).grid
    shape = config.shape(grid)
    room = max(sum(tier.latents for tier in tiers) for tiers in stream.memories)
    chunks = (room + 2 * table.slots) // table.shift + 24
    calls = list(islice(trace(stream, shape), chunks * table.ticks))[-table.ticks :]
    return calls[-1].bytes, sum(call.read for call in calls)


# -- what the results say --------------------------------------------------------------------------------------------


def time(line: dict[str, Any] | None) -> str:
    return NOTHING if line is None else f"{line['ratio']:.2f} [{line['ratio_low']:.2f}, {line['ratio_high']:.2f}]"


def quality(line: dict[str, Any] | None) -> str:
    return NOTHING if line is None else f"{line['mean']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"


def scored(text: str) -> dict[str, Any]:
    """PRESET=REPORT.json: what the report says, with the seconds and prompts that it took."""
    name, _, path = text.partition("=")
    if name not in presets() or not path:
        raise SystemExit(f"{text!r} must be PRESET=REPORT.json, with one of: {', '.join(presets())}.")
    report = json.loads(Path(path).read_text())
    if MEASURE not in report:
        raise SystemExit(f"{path} holds no {MEASURE!r}: it must be the report of one run.")
    about = {key: report["settings"][key] for key in ("seconds", "prompts")}
    return {name: {**{key: report[MEASURE][key] for key in ("mean", "low", "high")}, **about}}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--cost", type=Path, help="what bench.py --case memory --json wrote")
    parser.add_argument("--quality", action="append", help="PRESET=REPORT.json of evaluate.py; repeatable")
    parser.add_argument("--tuned", action="append", help="the same, of a model that was tuned for the preset")
    return parser


if __name__ == "__main__":
    main()
