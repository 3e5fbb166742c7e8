"""A picture of a stream's memory: which latents each call attends to, where they stand, and what that takes.

Time runs down in the maps, whose cells are latents, and to the right in the curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from rollforce.engine.dry_run import CallTrace, GroupTrace

Colour = tuple[int, int, int]
KNOWN: dict[str, Colour] = {"sink": (0, 114, 178), "window": (0, 158, 115)}  # the same in every picture
OTHERS: tuple[Colour, ...] = ((204, 121, 167), (86, 180, 233), (120, 94, 240), (148, 148, 0), (0, 90, 60),
                              (130, 60, 100))  # told apart by all  # fmt: skip
HELD: Colour = (0, 114, 178)
NOISY, CLEAN = (255, 226, 190), (205, 80, 0)  # the call's own latents at noise 1 and 0
COMMIT: Colour = (40, 40, 40)
PALE = "#6e6e6e"
ROWS = 150
FURTHEST = 48  # latents behind the newest that the second map shows
EDGE = 2  # columns left of a map: one for what is too far back to be drawn where it is, and a gap
STYLE: dict[str, Any] = {
    "font.size": 12, "axes.titlelocation": "left", "axes.titlesize": 14, "axes.titlepad": 26, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#e1e1e1", "axes.labelcolor": PALE, "xtick.color": PALE, "ytick.color": PALE,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 7, "ytick.major.pad": 7, "legend.frameon": False,
    "legend.borderaxespad": 0, "legend.borderpad": 0, "figure.constrained_layout.w_pad": 0.3,
    "figure.constrained_layout.h_pad": 0.15,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")}}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """What is written around the drawings. `pace`: latents of a second. `regions`: of each, what it is."""

    title: str
    lines: tuple[str, ...]
    pace: float
    regions: dict[str, str]

    @property
    def colours(self) -> dict[str, Colour]:
        """The colour of each region."""
        others = [name for name in self.regions if name not in KNOWN]
        return KNOWN | {name: OTHERS[n % len(OTHERS)] for n, name in enumerate(others)}


def save_map(calls: Sequence[CallTrace], page: Page, path: Path) -> None:
    """Write the page of a stream's calls, at least one, as a PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # draws with Agg by itself: no window, no pyplot

    looks, every = thin([look for call in calls for look in call.groups], ROWS)
    denoised, written = ([look for look in looks if look.commit is commit] for commit in (False, True))
    head = 1 + 0.3 * (len(page.lines) + len(page.regions) + 1)
    with rc_context(STYLE):
        figure: Any = Figure(figsize=(16.4, head + 11.6), layout="constrained")
        top, body = figure.subfigures(2, 1, height_ratios=(head, 11.6))
        _write_heading(top, page, head)
        grid = body.add_gridspec(3, 2, height_ratios=(4, 2, 2), wspace=0.08, hspace=0.06)
        _draw_seen(body.add_subplot(grid[:2, 0]), looks, every, page)
        _draw_placed(body.add_subplot(grid[0 if written else slice(2), 1]), denoised, reach(looks), page,
                     "Where that stands for attention (RoPE)", "relative to the call's newest latent")  # fmt: skip
        if written:
            _draw_placed(body.add_subplot(grid[1, 1]), written, reach(looks), page, "",
                         "the same of passes that write to memory")  # fmt: skip
        _draw_curves(body.add_subplot(grid[2, 0]), "Bytes", calls, page.pace, lambda look: look.read, format_bytes,
                     "reads", [call.bytes for call in calls])  # fmt: skip
        _draw_curves(body.add_subplot(grid[2, 1]), "Latents attended to, those in work included", calls, page.pace,
                     lambda look: look.attended, lambda count: f"{count:g}", "up to")  # fmt: skip
        figure.savefig(path, dpi=100)


# -- what is drawn -----------------------------------------------------------------------------------------------------

def thin(looks: Sequence[GroupTrace], most: int) -> tuple[list[GroupTrace], int]:
    """Return at most about `most` of the looks: every n-th chunk, all its calls; and n."""
    chunks: list[list[GroupTrace]] = []
    start = None
    for look in looks:  # a chunk begins where its oldest denoised latent does
        if not chunks or (not look.commit and look.start != start):
            chunks.append([])
            start = None if look.commit else look.start
        chunks[-1].append(look)
    every = -(-len(looks) // most)
    return [look for chunk in chunks[::every] for look in chunk], every


def reach(looks: Sequence[GroupTrace]) -> tuple[int, int]:
    """Return the places, relative to the newest own latent, that the second map shows: all, or the nearest FURTHEST."""
    places = [place - look.own[-1] for look in looks for span in look.spans for place in span.positions]
    own = [look.start - look.own[-1] for look in looks]
    return max(-FURTHEST, min([*places, *own, -12])), max([*places, 0]) + 1


def paint_map(looks: Sequence[GroupTrace], colours: Mapping[str, Colour], low: int, high: int,
              placed: bool = False) -> np.ndarray:  # fmt: skip
    """Return a row for each look (for several groups of heads, one below another) and a column for each latent from
    `low` to `high`, behind EDGE more: RGBA, uint8 [rows, columns, 4]. Columns are stream indices; with `placed` they
    are positions relative to the look's newest latent."""
    heads = list(dict.fromkeys(span.heads for look in looks for span in look.spans)) or [""]
    cells = np.zeros((len(looks), len(heads), high - low + EDGE, 4), np.uint8)
    for row, look in zip(cells, looks, strict=True):
        origin = low + (look.own[-1] if placed else 0) - EDGE
        for span in look.spans:
            for place in span.positions if placed else span.indices:
                column = place - origin
                row[heads.index(span.heads), column if column >= EDGE else 0] = (*colours[span.region], 255)
        for index, sigma in zip(look.own, look.sigma, strict=True):
            row[:, index - origin] = (*(COMMIT if look.commit else tone(sigma)), 255)
    return rearrange(cells, "looks heads columns rgba -> (looks heads) columns rgba")


def tone(sigma: float) -> Colour:
    """Return the colour of a latent in work at noise `sigma`."""
    red, green, blue = (round(clean + (noisy - clean) * sigma) for clean, noisy in zip(CLEAN, NOISY, strict=True))
    return red, green, blue


def format_bytes(count: float) -> str:
    """Return a number of bytes for a person, such as "1.77 MB"."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{count / unit:.3g} {name}" for unit, name in units if count >= unit), f"{count:.0f} B")


# -- the page ----------------------------------------------------------------------------------------------------------

def _write_heading(top: Any, page: Page, height: float) -> None:
    """Title, what the stream is, and what the colours mean; `height` in inches."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    top.text(0.02, 1 - 0.25 / height, page.title, va="top", fontsize=21)
    top.text(0.02, 1 - 0.68 / height, "\n".join(page.lines), va="top", fontsize=14, color=PALE, linespacing=1.4)
    meanings = {words: [page.colours[name]] for name, words in page.regions.items()}
    meanings["latents in work: noise 1 to 0"] = [tone(1 - n / 4) for n in range(5)]
    meanings["finished latents, in the pass that writes them to memory"] = [COMMIT]
    swatches = [tuple(Patch(color=_web(colour), linewidth=0) for colour in colours) for colours in meanings.values()]
    top.legend(swatches, list(meanings), handler_map={tuple: HandlerTuple(None, pad=0)}, handlelength=3,
               loc="lower left", bbox_to_anchor=(0.02, 0))  # fmt: skip


def _web(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _draw_seen(axis: Any, looks: Sequence[GroupTrace], every: int, page: Page) -> None:
    """The map over the video's time; seconds at the left stand where a call begins to make them."""
    low, high = min(0, *(look.start for look in looks)), looks[-1].own[-1] + 1
    nth = "" if every == 1 else f" (of one chunk in {every})"
    _write_titles(axis, "What each call attends to", f"a row is a call{nth}, the first on top")
    _show(axis, paint_map(looks, page.colours, low, high), low, high, len(looks), page.pace)
    _mark_seconds(axis)
    begun = {look.start / page.pace: number for number, look in reversed([*enumerate(looks)]) if not look.commit}
    seconds = {min((second for second in begun if second >= tick), default=None) for tick in axis.get_xticks()}
    ticks = sorted(second for second in seconds if second is not None)
    axis.set_yticks([begun[second] for second in ticks], [f"{second:g} s" for second in ticks], va="top")
    axis.grid(visible=False, axis="y")


def _draw_placed(axis: Any, looks: Sequence[GroupTrace], between: tuple[int, int], page: Page, title: str,
                 line: str) -> None:  # fmt: skip
    """A map over positions relative to the newest latent."""
    from matplotlib.ticker import MaxNLocator

    low, high = between
    back = {span.region: look.own[-1] - span.positions[0] for look in looks for span in look.spans
            if span.positions[0] - look.own[-1] < low}  # fmt: skip
    edge = f"; further: {', '.join(f'{name} to -{far}' for name, far in back.items())}" if back else ""
    _write_titles(axis, title, line + edge)
    _show(axis, paint_map(looks, page.colours, low, high, placed=True), low, high, len(looks))
    ticks = [tick for tick in MaxNLocator(10, integer=True).tick_values(low, high) if low <= tick < high]
    axis.set_xticks([tick + 0.5 for tick in ticks], [f"{tick:+g}" if tick else "newest" for tick in ticks])
    axis.set_yticks([])
    axis.set_xlabel("latents before or after")


def _show(axis: Any, cells: np.ndarray, low: int, high: int, rows: int, pace: float = 1.0) -> None:
    """A painted map; `pace`: latents of a unit of the axis."""
    far = EDGE * bool(cells[:, 0].any())
    where = ((low - EDGE) / pace, high / pace, rows, 0)
    axis.imshow(cells, aspect="auto", interpolation="nearest", extent=where, zorder=2)
    axis.set_xlim((low - far) / pace, high / pace)
    if rows <= 40:
        axis.hlines(range(1, rows), *axis.get_xlim(), color="white", linewidth=0.8, zorder=3)


def _draw_curves(axis: Any, title: str, calls: Sequence[CallTrace], pace: float, value: Callable[[GroupTrace], float],
                 label: Callable[[float], str], verb: str, held: Sequence[float] = ()) -> None:  # fmt: skip
    """A curve of what is held, of the groups that denoise, and (thin, to show both) of those that write to memory."""
    looks = [look for call in calls for look in call.groups]
    kinds = [("denoising", CLEAN, 5, [look for look in looks if not look.commit]),
             ("writing", COMMIT, 2, [look for look in looks if look.commit])]  # fmt: skip
    curves = [(f"{words} {verb} {label(max(map(value, some)))}", colour, width, some, [value(look) for look in some])
              for words, colour, width, some in kinds if some]  # fmt: skip
    if held:
        curves.insert(0, (f"memory takes {label(held[-1])}", HELD, 5, [call.groups[-1] for call in calls], [*held]))
    for words, colour, width, some, values in curves:
        axis.plot([look.start / pace for look in some], values, color=_web(colour), linewidth=width, label=words)
    _write_titles(axis, title)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3, labelcolor="linecolor", handlelength=0,
                handletextpad=0, columnspacing=2)  # fmt: skip
    axis.set_ylim(bottom=0)
    axis.set_xlim(looks[0].start / pace, (looks[-1].own[-1] + 1) / pace)
    axis.locator_params(axis="y", nbins=4)
    axis.yaxis.set_major_formatter(lambda count, _: label(count))
    _mark_seconds(axis)


def _mark_seconds(axis: Any) -> None:
    axis.locator_params(axis="x", nbins=8, steps=[1, 2, 5, 10])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axis.set_xlabel("moment of the video")


def _write_titles(axis: Any, title: str, line: str = "") -> None:
    axis.set_title(title)
    axis.text(0, 1.01, line, transform=axis.transAxes, color=PALE, va="bottom")
