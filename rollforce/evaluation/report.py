"""A report on judged streams: means with intervals, what was lost by the end, curves, and paired differences.

A report is what its JSON file holds: measures by name, each {"mean", "low", "high"}, those of a group ("seams.chunk")
under the group's name, and under "prompts" every stream with its plain numbers, so that two saved reports can still be
compared stream by stream."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from rollforce.errors import ConfigError, ShapeError
from rollforce.evaluation.judge import WINDOW_S, Numbers

Report = dict[str, Any]
Key = tuple[str, int, float]  # of a stream in both of two reports: prompt, seed, seconds
ENDS = ("first_10s", "last_10s")
NO_MEASURE = ("number", "repeat", "seed", "seconds", "streamed_s")  # numbers of a stream that say nothing about quality
DRAWS = 4000
EXACT = 12  # up to so many prompts every choice of signs is tried, 2**12 of them


@dataclass(frozen=True)
class Interval:
    """A mean over `streams` of `prompts`, and its 95 % interval."""

    mean: float
    low: float
    high: float
    prompts: int
    streams: int

    def numbers(self) -> dict[str, float]:
        """Return the mean and bounds, as they stand in reports."""
        return {name: round(getattr(self, name), 4) for name in ("mean", "low", "high")}


@dataclass(frozen=True)
class Difference(Interval):
    """A mean paired difference. `p`: how often chance makes one as large, by turning the signs of whole prompts."""

    p: float

    @property
    def separable(self) -> bool:
        """Whether the interval leaves out zero and chance makes such a difference in less than 5 % of the cases. With
        fewer than six prompts nothing is separable: five times the same sign happens by chance too often."""
        return (self.low > 0 or self.high < 0) and self.p < 0.05

    def numbers(self) -> dict[str, float]:
        return {**super().numbers(), "p": round(self.p, 4), "separable": self.separable, "prompts": self.prompts,
                "streams": self.streams}


def interval(values: Sequence[float], prompts: Sequence[Hashable] | None = None, draws: int = DRAWS) -> Interval:
    """Return the mean of `values` [N] and its percentile bootstrap over `prompts` [N] (None: each has its own). Streams
    that all have the same value give an interval of no width; with 0 failures in N prompts the rate of failures may
    still be 3 / N. Raises ShapeError without values, or with another number of prompts."""
    sums, counts = _by_prompt(values, prompts)
    drawn = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), len(sums), int(counts.sum()))


def difference(ours: Sequence[float], theirs: Sequence[float], prompts: Sequence[Hashable] | None = None,
               draws: int = DRAWS) -> Difference:
    """Return the mean of `ours` - `theirs`, the same streams [N] in the same order; ShapeError otherwise."""
    if len(ours) != len(theirs):
        raise ShapeError(f"{len(ours)} streams cannot be paired with {len(theirs)}; give the same ones in one order")
    apart = (np.asarray(ours, float) - np.asarray(theirs, float)).tolist()
    return Difference(**vars(interval(apart, prompts, draws)), p=_chance(_by_prompt(apart, prompts)[0], draws))


def _by_prompt(values: Sequence[float], prompts: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and number of the values of each prompt, both [P]."""
    names = range(len(values)) if prompts is None else prompts
    if len(values) == 0 or len(names) != len(values):
        raise ShapeError(f"{len(values)} values of {len(names)} prompts; a mean needs one prompt for each value")
    row = {name: n for n, name in enumerate(dict.fromkeys(names))}
    at = np.array([row[name] for name in names])
    return np.bincount(at, np.asarray(values, float)), np.bincount(at)


def _chance(sums: np.ndarray, draws: int) -> float:
    """Return the share of sign choices under which the sum over prompts is as far from zero as it is."""
    if len(sums) <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(sums))))
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(draws, len(sums)))
        signs[0] = 1  # what was observed is one of the cases
    return float(np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9))


# -- streams, and the report on them -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class StreamedVideo:
    """One stream, judged: numbers by part ("model", "first_10s", "truth", ...) and per window of 5 s. `number` is the
    prompt's, `repeat` tells the streams of one prompt apart, `tiles` is a PNG of some frames in base64."""

    run: str
    number: int
    repeat: int
    prompt: str
    seed: int
    seconds: float
    streamed_s: float  # wall time
    seen: str
    parts: dict[str, Numbers]
    curve: list[Numbers]
    tiles: str = ""

    def row(self) -> dict[str, Any]:
        """The stream's row in a report."""
        about = {name: getattr(self, name) for name in ("number", "repeat", "prompt", "seed", "seen", "seconds")}
        ends = {name: _round(self.parts[name]) for name in ENDS if name in self.parts}
        curve = {"curve_5s": [_round(numbers) for numbers in self.curve]} if self.curve else {}
        return {**about, "streamed_s": round(self.streamed_s, 3), **_round(self.parts["model"]), **ends, **curve}


def summarise(streams: Sequence[StreamedVideo]) -> Report:
    """Return the report on one run: main measures, the references, the ends, the curve, and every stream."""
    prompts = [s.number for s in streams]
    parts = {name: group_measures(means([s.parts[name] for s in streams], prompts)) for name in streams[0].parts}
    report = {**parts.pop("model"), **parts}
    if all(name in parts for name in ENDS):
        first, last = ([s.parts[name] for s in streams] for name in ENDS)
        report["change_by_the_end"] = group_measures(changes(last, first, prompts))
    report["curve_5s"] = curve([s.curve for s in streams], prompts)
    return {**report, "prompts": [s.row() for s in streams]}


def means(rows: Sequence[Mapping[str, Any]], prompts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the mean and interval of every measure, over the rows that have it."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        there = [(row[name], prompt) for row, prompt in zip(rows, prompts, strict=True) if row.get(name) is not None]
        if there:
            found[name] = interval([value for value, _ in there], [prompt for _, prompt in there]).numbers()
    return found


def changes(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]],
            prompts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the paired difference `ours` - `theirs` of every measure, over the pairs in which both have it."""
    found = {}
    for name in dict.fromkeys(name for row in ours for name, value in row.items()
                              if name not in NO_MEASURE and isinstance(value, int | float)):
        there = [(our[name], their[name], prompt) for our, their, prompt in zip(ours, theirs, prompts, strict=True)
                 if our.get(name) is not None and their.get(name) is not None]
        if there:
            our_values, their_values, of = (list(column) for column in zip(*there, strict=True))
            found[name] = difference(our_values, their_values, of).numbers()
    return found


def curve(curves: Sequence[Sequence[Numbers]], prompts: Sequence[int]) -> list[dict[str, Any]]:
    """Return each window's bounds in seconds and its measures with intervals, as far as all streams go."""
    return [{"from_s": n * WINDOW_S, "to_s": (n + 1) * WINDOW_S, **means([each[n] for each in curves], prompts)}
            for n in range(min(len(each) for each in curves))]


def group_measures(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return measures with those such as "seams.chunk" put together under "seams"."""
    tree: dict[str, Any] = {}
    for name, value in part.items():
        group, _, leaf = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return tree


def count_prompts(report: Report) -> tuple[int, float]:
    """Return the number of a report's prompts, and of the streams of each."""
    prompts = len({row["number"] for row in report["prompts"]})
    return prompts, len(report["prompts"]) / prompts


def find_measure(report: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return the measure called `name`, such as "shape" or "seams.chunk", where the report has it."""
    group, _, leaf = name.rpartition(".")
    found = (report.get(group) or {} if group else report).get(leaf)
    return found if isinstance(found, dict) else None


def _round(numbers: Numbers) -> Numbers:
    return {name: None if value is None else round(value, 4) for name, value in numbers.items()}


# -- two runs ----------------------------------------------------------------------------------------------------------

def compare(report: Report, reference: Report) -> Report:
    """Return `report` - `reference`, paired by stream: every measure, and under "change_by_the_end" how much more it
    changed from the first 10 s to the last. ConfigError if they do not hold the same prompts, seeds and lengths."""
    ours, theirs = ({(row["prompt"], row["seed"], row["seconds"]): row for row in each["prompts"]}
                    for each in (report, reference))
    _check_same(ours, theirs)
    our_rows, their_rows = list(ours.values()), [theirs[key] for key in ours]
    prompts = [row["number"] for row in our_rows]
    found = group_measures(changes(our_rows, their_rows, prompts))
    if all(end in row for end in ENDS for row in (*our_rows, *their_rows)):
        our_change, their_change = ([_change(row) for row in rows] for rows in (our_rows, their_rows))
        found["change_by_the_end"] = group_measures(changes(our_change, their_change, prompts))
    return found


def _change(row: Mapping[str, Any]) -> Numbers:
    """Return the last 10 s minus the first 10 s of one stream."""
    first, last = (row[end] for end in ENDS)
    return {name: last[name] - value for name, value in first.items()
            if value is not None and last.get(name) is not None}


def _check_same(ours: Mapping[Key, Any], theirs: Mapping[Key, Any]) -> None:
    if ours.keys() == theirs.keys():
        return
    prompt, seed, seconds = min(ours.keys() ^ theirs.keys())
    raise ConfigError(
        f"the two reports hold different streams ({len(ours)} and {len(theirs)}, {len(ours.keys() & theirs.keys())} in "
        f'both; only one has "{prompt}", seed {seed}, {seconds:g} s). Make both with the same --prompts, --things, '
        "--seconds, --prompt-seed, --seed and --seeds.")


def read_reports(paths: Sequence[Path]) -> dict[str, Report]:
    """Return the runs of report files by name, with the file before a name that two have. ConfigError for no report."""
    runs: dict[str, Report] = {}
    for path in paths:
        runs |= {f"{path}:{name}" if name in runs else name: run for name, run in _read_report(path).items()}
    return runs


def _read_report(path: Path) -> dict[str, Report]:
    """Return the runs of one file; a file of one run is named after itself."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a report: {error}") from error
    runs = content.get("runs", {path.stem: content}) if isinstance(content, dict) else {}
    rows = [row for run in runs.values() for row in run.get("prompts", [])]
    if not rows or any("number" not in row or "seconds" not in row for row in rows):
        raise ConfigError(f"{path} is no report of infer/evaluate.py, or one of an older version; stream it again")
    return dict(runs)
