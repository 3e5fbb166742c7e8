"""Pictures of reports: measures over time, a line with its interval for every run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollforce.errors import ConfigError
from rollforce.evaluation.judge import WINDOW_S
from rollforce.evaluation.report import Report, count_prompts

PANELS = {"scene": "scene", "colour": "colour", "motion": "motion", "shape": "shape",
          "shape_per_frame": "shape, single frames", "both": "both things right", "identity": "same things as at first",
          "count": "number of things", "whole": "whole", "flicker": "flicker, grey levels",
          "seams.chunk_ratio": "jump at chunk borders, ratio", "drift.luma": "brightness, to first 5 s",
          "drift.saturation": "saturation, to first 5 s", "drift.sharpness": "sharpness, to first 5 s",
          "drift.contrast": "contrast, to first 5 s", "drift.motion": "movement, to first 5 s"}  # fmt: skip
SHARES = ("scene", "colour", "motion", "shape", "shape_per_frame", "both", "identity", "count", "whole")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666", "#000000")  # told apart by all
STROKES = ("-", "--", "-.", ":")  # so that lines which cover each other are both seen
ACROSS = 4


def save_curves(runs: Mapping[str, Report], path: Path) -> None:
    """Write the runs' curves as a PNG, a panel per measure with 95 % intervals. ConfigError below two windows."""
    from matplotlib.figure import Figure  # draws with Agg by itself: no window, no pyplot, no settings changed

    curves = {name: report["curve_5s"] for name, report in runs.items() if len(report.get("curve_5s", ())) > 1}
    if not curves:
        raise ConfigError("a plot over time needs streams of at least 10 s; give more --seconds")
    panels = [name for name in PANELS if any(name in window for curve in curves.values() for window in curve)]
    down = -(-len(panels) // ACROSS)
    figure: Any = Figure(figsize=(3.1 * ACROSS, 2.2 * down + 0.9), layout="constrained")
    for number, name in enumerate(panels, 1):
        _panel(figure.add_subplot(down, ACROSS, number), name, curves)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    size = "{} prompts x {:g} streams".format(*count_prompts(next(iter(runs.values()))))
    figure.supxlabel(f"seconds of video, in windows of {WINDOW_S} s; bands: 95 % intervals over {size}", fontsize=9)
    figure.savefig(path, dpi=120)


def _panel(axis: Any, name: str, curves: Mapping[str, list[dict[str, Any]]]) -> None:
    for n, (run, curve) in enumerate(curves.items()):
        colour, stroke = COLOURS[n % len(COLOURS)], STROKES[n % len(STROKES)]
        there = [window for window in curve if name in window]
        at = [(window["from_s"] + window["to_s"]) / 2 for window in there]
        low, mean, high = ([window[name][part] for window in there] for part in ("low", "mean", "high"))
        axis.fill_between(at, low, high, color=colour, alpha=0.1, linewidth=0)
        for bound in (low, high):
            axis.plot(at, bound, color=colour, alpha=0.4, linestyle=stroke, linewidth=0.7)
        axis.plot(at, mean, color=colour, label=run, linestyle=stroke, linewidth=1.6, marker="o", markersize=2.5)
    if name in SHARES:
        axis.set_ylim(-0.03, 1.03)
    elif name.startswith("drift"):
        axis.axhline(1, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        reach = max(0.1, *(abs(bound - 1) for bound in axis.get_ylim()))  # tiny changes shall look tiny
        axis.set_ylim(1 - reach, 1 + reach)
    else:
        axis.set_ylim(bottom=0)
    axis.set_xlim(0, max(window["to_s"] for curve in curves.values() for window in curve))
    axis.set_title(PANELS[name], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
