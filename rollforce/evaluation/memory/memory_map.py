"""A picture of a stream's memory: which latents each call attends to, where they stand, and what that takes.

Drawn with Pillow alone. Time runs down in the two maps and to the right in the two curves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rollforce.engine.dry_run import CallTrace, GroupTrace

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Curve = tuple[str, Colour, Sequence[float], Sequence[float]]  # its name, stream indices, values
KNOWN: dict[str, Colour] = {"sink": (0, 114, 178), "window": (0, 158, 115)}  # the same in every picture
OTHERS: tuple[Colour, ...] = ((204, 121, 167), (86, 180, 233), (120, 94, 240), (148, 148, 0), (0, 90, 60),
                              (130, 60, 100))  # told apart by all  # fmt: skip
HELD: Colour = (0, 114, 178)
NOISY, CLEAN = (255, 226, 190), (205, 80, 0)  # the call's own latents at noise 1 and 0
COMMIT: Colour = (40, 40, 40)
INK, PALE, LINE, FAULT = (25, 25, 25), (110, 110, 110), (225, 225, 225), (200, 0, 0)
TEXT, SMALL, TITLE = 20, 17, 28
WIDTH, MARGIN, GAP, LABELS = 1640, 30, 90, 78
MAP, CURVE, ROWS = 640, 200, 150
FURTHEST = 48  # latents behind the newest that the second map shows


@dataclass(frozen=True)
class Page:
    """What is written around the drawings. `pace`: latents of a second. `regions`: of each, what it is."""

    title: str
    lines: tuple[str, ...]
    pace: float
    regions: dict[str, str]


@dataclass(frozen=True)
class Row:
    """One attention group of a call: a row of the maps."""

    look: GroupTrace
    newest: int  # the newest latent of its own: RoPE knows differences only


@dataclass(frozen=True)
class Box:
    """A rectangle of the page and the stretch of numbers that its width shows."""

    left: int
    top: int
    width: int
    height: int
    low: float
    high: float

    def x(self, value: float) -> float:
        return self.left + (value - self.low) / (self.high - self.low) * self.width

    def inside(self, value: float) -> float:
        return min(max(self.x(value), self.left), self.left + self.width)


def draw(calls: Sequence[CallTrace], page: Page) -> Image.Image:
    """The page of a stream's calls, RGB. At least one call."""
    from PIL import Image, ImageDraw

    head = MARGIN + TITLE + 14 + (TEXT + 8) * len(page.lines) + 28 * (len(page.regions) + 1) + 100
    image = Image.new("RGB", (WIDTH, head + MAP + 150 + CURVE + 100), "white")
    brush = _Brush(ImageDraw.Draw(image), page)
    brush.heading()
    rows, every = thinned([Row(look, look.own[-1]) for call in calls for look in call.looks], ROWS)
    half = (WIDTH - 2 * MARGIN - GAP - 2 * LABELS) // 2
    left, right = MARGIN + LABELS, MARGIN + 2 * LABELS + half + GAP
    last = max(row.newest for row in rows) + 1
    first = min(row.look.start for row in rows)
    brush.seen(Box(left, head, half, MAP, min(0, first), last), rows, every)
    brush.placed(Box(right, head, half, MAP, *reach(rows)), rows)
    top = head + MAP + 150
    seconds = (first / page.pace, last / page.pace)
    brush.bytes_over_time(Box(left, top, half, CURVE, *seconds), calls)
    brush.latents_over_time(Box(right, top, half, CURVE, *seconds), calls)
    return image


def thinned(rows: Sequence[Row], most: int) -> tuple[list[Row], int]:
    """At most about `most` rows: every n-th chunk, all its calls; and n."""
    chunks: list[list[Row]] = []
    for row in rows:  # a chunk begins where its oldest denoised latent does
        if not chunks or (not row.look.commit and row.look.start != _start(chunks[-1])):
            chunks.append([])
        chunks[-1].append(row)
    every = -(-len(rows) // most)
    return [row for chunk in chunks[::every] for row in chunk], every


def _start(chunk: Sequence[Row]) -> int | None:
    return next((row.look.start for row in chunk if not row.look.commit), None)


def reach(rows: Sequence[Row]) -> tuple[float, float]:
    """Places, relative to the newest own latent, that the second map shows: all, or the nearest FURTHEST."""
    places = [place - row.newest for row in rows for stretch in row.look.stretches for place in stretch.positions]
    own = [row.look.start - row.newest for row in rows]
    return max(-FURTHEST, min([*places, *own, -12])), max([*places, 0]) + 1


class _Brush:
    """Knows colours, fonts and the page's words."""

    def __init__(self, pen: ImageDraw.ImageDraw, page: Page) -> None:
        from PIL import ImageFont

        self.pen, self.page = pen, page
        self.fonts = {size: ImageFont.load_default(size=size) for size in (TEXT, SMALL, TITLE)}
        others = [name for name in page.regions if name not in KNOWN]
        self.colour = KNOWN | {name: OTHERS[n % len(OTHERS)] for n, name in enumerate(others)}

    # -- words ------------------------------------------------------------------------------------------------

    def text(self, x: float, y: float, words: str, size: int = SMALL, fill: Colour = INK, anchor: str = "la") -> float:
        """Write; return where it ends."""
        self.pen.text((x, y), words, font=self.fonts[size], fill=fill, anchor=anchor)
        return x + self.fonts[size].getlength(words)

    def heading(self) -> None:
        """Title, what the stream is, and what the colours mean."""
        self.text(MARGIN, MARGIN, self.page.title, TITLE)
        y = MARGIN + TITLE + 14
        for line in self.page.lines:
            self.text(MARGIN, y, line, TEXT, PALE)
            y += TEXT + 8
        y += 10
        for name, words in self.page.regions.items():
            self._swatch(MARGIN, y, [self.colour[name]], words)
            y += 28
        x = self._swatch(MARGIN, y, [tone(1 - n / 4) for n in range(5)], "latents in work: noise 1 to 0")
        self._swatch(x, y, [COMMIT], "finished latents, in the pass that writes them to memory")

    def _swatch(self, x: float, y: float, colours: Sequence[Colour], words: str) -> float:
        for colour in colours:
            self.pen.rectangle((x, y, x + 19, y + 19), fill=colour)
            x += 20
        return self.text(x + 8, y, words) + 34

    def _axis(self, box: Box, step: float, label: Callable[[float], str], title: str) -> None:
        """Upright lines at multiples of `step`, labelled below."""
        value = -(-box.low // step) * step + 0.0  # never -0
        while value <= box.high + 1e-9:
            x = box.x(value)
            self.pen.line((x, box.top, x, box.top + box.height), fill=LINE)
            self.text(x, box.top + box.height + 8, label(value), SMALL, PALE, "ma")
            value += step
        self.text(box.left + box.width / 2, box.top + box.height + 34, title, SMALL, PALE, "ma")

    # -- the two maps -----------------------------------------------------------------------------------------

    def seen(self, box: Box, rows: Sequence[Row], every: int) -> None:
        """Rows over the video's time."""
        pace = self.page.pace
        self._titles(box, "What each call attends to", f"a row is a call{_nth(every)}, the first on top")
        self._axis(box, nice((box.high - box.low) / pace, 8) * pace, lambda at: f"{at / pace:g} s",
                   "moment of the video")  # fmt: skip
        self._rows(box, rows, lambda row: 0)
        self._moments(box, rows)

    def placed(self, box: Box, rows: Sequence[Row]) -> None:
        """Rows over positions relative to the newest latent."""
        back = {stretch.region: row.newest - stretch.positions[0] for row in rows for stretch in row.look.stretches
                if stretch.positions[0] - row.newest < box.low}  # fmt: skip
        edge = f"; further: {', '.join(f'{name} to -{far}' for name, far in back.items())}" if back else ""
        self._titles(box, "Where that stands for attention (RoPE)", f"relative to the call's newest latent{edge}")
        self._axis(box, max(1, nice(box.high - box.low, 10)), lambda at: f"{at:+g}" if at else "newest",
                   "latents before or after")  # fmt: skip
        kinds = [[row for row in rows if row.look.commit is commit] for commit in (False, True)]
        above = replace(box, height=round(box.height * (0.66 if kinds[1] else 1)))
        self._rows(above, kinds[0], lambda row: row.newest, placed=True)
        if kinds[1]:
            below = replace(box, top=above.top + above.height + 34, height=box.height - above.height - 34)
            self.pen.rectangle((box.left, below.top - 33, box.left + box.width, below.top - 1), fill="white")
            self.text(box.left, below.top - 28, "the same of passes that write to memory", SMALL, PALE)
            self._rows(below, kinds[1], lambda row: row.newest, placed=True)

    def _titles(self, box: Box, title: str, line: str) -> None:
        self.text(box.left, box.top - 62, title, TEXT)
        self.text(box.left, box.top - 32, line, SMALL, PALE)

    def _rows(self, box: Box, rows: Sequence[Row], origin: Callable[[Row], int], placed: bool = False) -> None:
        height = box.height / len(rows)
        gap = 1 if height >= 5 else 0
        for number, row in enumerate(rows):
            top = box.top + number * height
            bottom = max(top + 1, top + height - gap) - 1
            groups = list(dict.fromkeys(stretch.heads for stretch in row.look.stretches))  # of heads: one above another
            band = (bottom + 1 - top) / max(1, len(groups))
            for stretch in row.look.stretches:
                high = top + groups.index(stretch.heads) * band
                for place in stretch.positions if placed else stretch.indices:
                    self._cell(box, place - origin(row), high, high + band - 1, self.colour[stretch.region])
            for index, sigma in zip(row.look.own, row.look.sigma, strict=True):
                self._cell(box, index - origin(row), top, bottom, COMMIT if row.look.commit else tone(sigma))

    def _cell(self, box: Box, place: float, top: float, bottom: float, colour: Colour) -> None:
        if place < box.low:  # too far back to be drawn where it is: at the edge
            self.pen.rectangle((box.left - 16, top, box.left - 8, bottom), fill=colour)
            return
        low, high = box.x(place), box.x(place + 1)
        self.pen.rectangle((low, top, max(low + 1, high) - 1, bottom), fill=colour)

    def _moments(self, box: Box, rows: Sequence[Row]) -> None:
        """Seconds at the left, where a call begins to make them."""
        pace, height = self.page.pace, box.height / len(rows)
        step = nice((box.high - box.low) / pace, 8)
        due, free = 0.0, float(box.top - 30)
        for number, row in enumerate(rows):
            y = box.top + number * height
            if not row.look.commit and row.look.start / pace >= due + box.low / pace and y > free + 20:
                self.text(box.left - 14, y - 8, f"{row.look.start / pace:g} s", SMALL, PALE, "ra")
                due, free = (row.look.start - box.low) / pace // step * step + step, y

    # -- the two curves ---------------------------------------------------------------------------------------

    def bytes_over_time(self, box: Box, calls: Sequence[CallTrace]) -> None:
        """What memory takes, and what attention reads of it."""
        held = [call.bytes for call in calls]
        taken = (f"memory takes {size(held[-1])}", HELD, [call.looks[-1].start for call in calls], held)
        self._curves(box, "Bytes", "reads", size, _curves_of(calls, lambda look: look.read), [taken])

    def latents_over_time(self, box: Box, calls: Sequence[CallTrace]) -> None:
        """How many latents attention goes over, its own included."""
        self._curves(box, "Latents attended to, those in work included", "up to", lambda count: f"{count:g}",
                     _curves_of(calls, lambda look: look.attended), [])  # fmt: skip

    def _curves(
        self, box: Box, title: str, verb: str, label: Callable[[float], str], found: Sequence[Curve],
        more: Sequence[Curve],
    ) -> None:  # fmt: skip
        self._titles(box, title, "")
        curves = [*more, *((f"{words} {verb} {label(max(values))}", colour, at, values)
                           for words, colour, at, values in found)]  # fmt: skip
        highest = 1.04 * max([1, *(value for *_, values in curves for value in values)])
        step, x = nice(highest, 4), float(box.left)
        self._axis(box, nice(box.high - box.low, 8), lambda value: f"{value:g} s", "moment of the video")
        for line in range(int(highest // step) + 1):
            y = box.top + box.height * (1 - line * step / highest)
            self.pen.line((box.left, y, box.left + box.width, y), fill=LINE)
            self.text(box.left - 8, y, label(line * step), SMALL, PALE, "rm")
        for number, (words, colour, at, values) in enumerate(curves):  # the last one thin: both show where they meet
            x = self.text(x, box.top - 32, words, SMALL, colour) + 24
            points = [(box.inside(begun / self.page.pace), box.top + box.height * (1 - value / highest))
                      for begun, value in zip(at, values, strict=True)]  # fmt: skip
            if len(points) > 1:
                self.pen.line(points, fill=colour, width=3 if number == len(curves) - 1 else 7)


def _curves_of(calls: Sequence[CallTrace], value: Callable[[GroupTrace], float]) -> list[Curve]:
    """A curve of the groups that denoise, and one of those that write to memory."""
    looks = [look for call in calls for look in call.looks]
    kinds = (("denoising", CLEAN, [look for look in looks if not look.commit]),
             ("writing", COMMIT, [look for look in looks if look.commit]))  # fmt: skip
    return [(words, colour, [look.start for look in some], [value(look) for look in some])
            for words, colour, some in kinds if some]  # fmt: skip


def tone(sigma: float) -> Colour:
    """The colour of a latent in work."""
    red, green, blue = (round(clean + (noisy - clean) * sigma) for clean, noisy in zip(CLEAN, NOISY, strict=True))
    return red, green, blue


def nice(length: float, parts: int) -> float:
    """A round step that divides a length into about so many parts."""
    step = 1e-3
    while True:
        for factor in (1, 2, 5):
            if length / (step * factor) <= parts:
                return step * factor
        step *= 10


def size(count: float) -> str:
    """Bytes for a person."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def _nth(every: int) -> str:
    return "" if every == 1 else f" (of one chunk in {every})"
