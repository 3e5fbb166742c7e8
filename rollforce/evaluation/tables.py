"""Reports as text: a table for the terminal, and Markdown tables of runs and of their differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollforce.evaluation.report import ENDS, Report, count_prompts, find_measure

MEASURES = ("scene", "colour", "motion", "shape", "count", "both", "identity", "recognised", "whole", "flicker",
            "shape_per_frame", "present", "x_real_time")  # fmt: skip
COLUMNS = {"scene": "scene", "colour": "colour", "motion": "motion", "shape": "shape", "count": "count",
           "both": "both right", "identity": "identity", "recognised": "recognised", "whole": "whole",
           "flicker": "flicker", "seams.chunk_to_real": "seam, to real", "x_real_time": "x real time"}  # fmt: skip
REFERENCES = ("truth", "truth_autoencoder")


def format_terminal(runs: Mapping[str, Report]) -> str:
    """Return all measures, a column per run; one run alone stands beside its first and last 10 s."""
    first = next(iter(runs.values()))
    others = REFERENCES if len(runs) > 1 else (*ENDS, *REFERENCES)
    columns = {**runs, **{name: first[name] for name in others if name in first}}
    names = [name for name in MEASURES if any(find_measure(run, name) for run in runs.values())]
    names += [f"{group}.{leaf}" for group in ("seams", "drift") for leaf in first.get(group, {})]
    width = max(22, *(len(name) + 2 for name in columns))
    lines = [f"{'':22s}" + "".join(f"{name:>{width}s}" for name in columns)]
    for name in names:
        cells = (_plain(find_measure(part, name)) for part in columns.values())
        lines.append((f"{name:22s}" + "".join(f"{cell:>{width}s}" for cell in cells)).rstrip())
    return "\n".join(lines)


def _plain(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.3f} [{value['low']:.3f} {value['high']:.3f}]"


def format_differences(name: str, first: str, found: Report) -> str:
    """Return the paired differences of run `name` against `first`, separable ones marked with a star."""
    lines = [f"{name} - {first}, paired; * separable from zero"]
    for label, part in (("", found), ("by the end: ", found.get("change_by_the_end", {}))):
        for measured in (*COLUMNS, "shape_per_frame", *(f"drift.{leaf}" for leaf in found.get("drift", {}))):
            if value := find_measure(part, measured):
                star = "*" if value["separable"] else ""
                lines.append(f"{label + measured:32s} {value['mean']:+.3f} [{value['low']:+.3f} {value['high']:+.3f}]"
                             f"  p {value['p']:.3f} {star}".rstrip())
    return "\n".join(lines)


def format_markdown(command: str, runs: Mapping[str, Report], against_first: Mapping[str, Report]) -> str:
    """Return the command, a row per run, the changes by the end, and paired differences (bold if separable)."""
    blocks = [f"`{command}`", _runs_table(runs)]
    if any("change_by_the_end" in report for report in runs.values()):
        ends = {name: report.get("change_by_the_end", {}) for name, report in runs.items()}
        blocks += ["Last 10 s minus first 10 s of the same streams:", _differences_table(ends)]
    if against_first:
        first = next(iter(runs))
        blocks += [f"Paired differences against `{first}`:", _differences_table(against_first)]
        key = "change_by_the_end"
        if ends := {name: found[key] for name, found in against_first.items() if key in found}:
            blocks += [f"How much more than `{first}` a run changed from its first to its last 10 s:",
                       _differences_table(ends)]
    return "\n\n".join([*blocks, _footnote(runs, against_first)]) + "\n"


def _runs_table(runs: Mapping[str, Report]) -> str:
    names = _present(runs)
    rows = [["run", "prompts x seeds", "s", *(COLUMNS[name] for name in names)]]
    for run, report in runs.items():
        about = [run, "{} x {:g}".format(*count_prompts(report)), f"{report['prompts'][0]['seconds']:g}"]
        rows.append(about + [_cell(find_measure(report, name)) for name in names])
    return _table(rows)


def _differences_table(found: Mapping[str, Report]) -> str:
    names = [name for name in _present(found) if name != "x_real_time"]
    rows = [["run", *(COLUMNS[name] for name in names)]]
    rows += [[run, *(_cell(find_measure(part, name), "+") for name in names)] for run, part in found.items()]
    return _table(rows)


def _present(parts: Mapping[str, Report]) -> list[str]:
    return [name for name in COLUMNS if any(find_measure(part, name) for part in parts.values())]


def _table(rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def _cell(value: Mapping[str, Any] | None, sign: str = "") -> str:
    if value is None:
        return ""
    mean, low, high = (_digits(value[name], sign) for name in ("mean", "low", "high"))
    text = mean if value["low"] == value["high"] else f"{mean} [{low}, {high}]"
    return f"**{text}**" if value.get("separable") else text


def _digits(value: float, sign: str) -> str:
    """Two digits behind the point, one for large numbers; zero has no sign."""
    text = format(value, f"{sign}.{1 if abs(value) >= 10 else 2}f")
    return "0.00" if float(text) == 0 else text


def _footnote(runs: Mapping[str, Report], against_first: Mapping[str, Report]) -> str:
    prompts, _ = count_prompts(next(iter(runs.values())))
    text = (f"Means over streams with 95 % intervals that resample the {prompts} prompts. Where none is given, "
            f"no prompt was an exception; up to {min(3 / prompts, 1):.0%} of all prompts may still be one.")
    if against_first or any("change_by_the_end" in report for report in runs.values()):
        text += (" Bold differences are separable from zero: the interval leaves it out, and turning signs of whole "
                 "prompts gives p < 0.05; of every 20 comparisons one is bold by luck.")
    return text
