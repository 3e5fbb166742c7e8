"""What a person sees while a video is made: two lines, a live bar, a few numbers; plain lines without a terminal."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from rollforce.cli.record import Request, record_path, segment_path
from rollforce.cli.render import Progress, Result
from rollforce.cli.resume import snapshot_path
from rollforce.streaming.events import Cue
from rollforce.video.outputs import STDOUT, is_folder

if TYPE_CHECKING:
    from rollforce.streaming.model import Model

Report = Callable[[Progress], None]
_EVERY_S = 10.0  # between two plain lines
_CHANGES = 8  # are listed at the end
_ABOUT_INPUTS = ("rollforce.video", "rollforce.streaming.inputs")  # loggers


class Terminal:
    """Speaks to a person on stdout, or on stderr if `aside`; says nothing when `quiet`."""

    def __init__(self, quiet: bool = False, aside: bool = False) -> None:
        self.console = Console(quiet=quiet, stderr=aside, highlight=False, soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Print one line."""
        self.console.print(Text(text, style=style))

    def show_model(self, model: Model, size: tuple[int, int], seconds: float) -> None:
        """Print which model draws, on which device, and how long it took to load."""
        height, width = size
        dtype = str(model.dtype).removeprefix("torch.")
        what = f"model {model.name} ({_count(model.parameters)} parameters, {model.licence})"
        how = f"{width}x{height} at {model.fps} fps · {model.stream_settings.layout.kind}"
        count = f" on {_plural(model.threads, 'thread')}" if model.device.type == "cpu" else ""
        self.say(f"{what} · {model.device} {dtype}{count} · {how} · loaded in {seconds:.1f} s")

    def announce(self, request: Request, fps: float, path: Path, done: int = 0) -> None:
        """Print what will be made; `done` frames of it are there already."""
        changes = f" · {_plural(len(request.cues), 'change')}" if request.cues else ""
        there = f", of which {done / fps:g} s are there" if done else ""
        rate = f" · played at {request.fps:g} fps" if request.fps not in (None, fps) else ""
        given = request.video or request.image
        behind = f" behind {Path(given).name}" if given else ""
        what = f"{_length(request, fps)} of {request.prompt!r}{behind}{changes}{rate} · seed {request.seed}"
        self.say(f"{what} -> {_place(request, path)}{there} (playable while it grows)")

    @contextmanager
    def tell_of_inputs(self) -> Iterator[None]:
        """Within it, what is logged about pictures, clips and sound is said."""
        handler, loggers = _Speaker(self), [logging.getLogger(name) for name in _ABOUT_INPUTS]
        levels = [each.level for each in loggers]
        for each in loggers:
            each.addHandler(handler)
            each.setLevel(min(each.level or logging.INFO, logging.INFO))
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.removeHandler(handler)
                each.setLevel(level)

    @contextmanager
    def show_progress(self, seconds: float) -> Iterator[Report]:
        """Show a live bar, or a plain line now and then; yields what `render` reports to."""
        if not self.console.is_terminal:
            yield self._plain_lines()
            return
        bar = Bar(TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[text]}"),
                  console=self.console, transient=True)
        with bar:
            total = None if math.isinf(seconds) else seconds
            task = bar.add_task("rendering", total=total, text="waiting for the first frame")
            yield lambda progress: bar.update(task, completed=progress.video_s, text=_text(progress))

    def show_result(self, result: Result, request: Request, path: Path) -> None:
        """Print the numbers of a render, each with what it counts."""
        for name, value in _rows(result, request, path):
            self.say(f"{name:<12} {value}")

    def _plain_lines(self) -> Report:
        said = time.monotonic()

        def report(progress: Progress) -> None:
            nonlocal said
            if time.monotonic() - said > _EVERY_S:
                said = time.monotonic()
                self.say(f"  {_text(progress)}")

        return report


class _Speaker(logging.Handler):
    """Says what is logged, once: warnings in any case."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.INFO)
        self._terminal, self._said = terminal, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() in self._said:  # of a clip that repeats
            return
        self._said.add(record.getMessage())
        if record.levelno >= logging.WARNING and self._terminal.console.quiet:
            Console(stderr=True, soft_wrap=True, highlight=False).print(Text(record.getMessage(), style="yellow"))
        else:
            self._terminal.say(record.getMessage(), "yellow" if record.levelno >= logging.WARNING else "")


def _rows(result: Result, request: Request, path: Path) -> Iterator[tuple[str, str]]:
    if result.interrupted:
        yield "interrupted", f"after {result.seconds:g} s of video; {_files(result, path)} plays"
        if snapshot_path(path).exists():
            yield "to continue", f"rollforce render --resume {path}"
    else:
        given = f", {result.given} of them given," if result.given else ""
        yield "done", f"{result.frames} frames = {result.seconds:g} s of video{given} in {result.elapsed_s:.1f} s"
    yield from _changes(result, request)
    if result.first_frame_s is not None and result.first_frame_since_command_s is not None:
        since = f"{result.first_frame_since_command_s:.1f} s after the command"
        yield "first frame", f"{result.first_frame_s:.2f} s after loading, {since}"
    yield "denoising", f"{result.denoise_fps:.1f} fps"
    yield "end to end", f"{result.end_to_end_fps:.1f} fps = {result.times_real_time:.1f}x real time"
    device = result.peak_device_memory_mb
    yield "peak memory", f"{result.peak_memory_mb:.0f} MB" + (f", device {device:.0f} MB" if device else "")
    if result.drift is not None and result.drift.window_s >= 2 and not request.cues:  # less is motion, others are meant
        yield "drift", result.drift.line()
    if path != STDOUT:
        wrote = f"{_files(result, path)}, {record_path(path)}"
        yield "wrote", f"{wrote} (every setting; `rollforce render --from` repeats it)"


def _changes(result: Result, request: Request) -> Iterator[tuple[str, str]]:
    """Yield when each change began, at the first chunk at its time or later, and when nothing of the old was left."""
    fps = result.frames / max(result.seconds, 1e-9)
    begun = [event for event in result.events if event.kind == "applied" and event.frame is not None]
    for event in begun[:_CHANGES]:
        visible = next((each.frame for each in result.events if each.kind == "visible" and each.cue == event.cue), None)
        whole = "not wholly seen before the end" if visible is None else f"wholly from {visible / fps:g} s"
        at_once = "" if visible == event.frame else f", {whole}"
        yield "change", f"at {(event.frame or 0) / fps:g} s{at_once}: {_describe_cue(event.cue)}"
    if len(begun) > _CHANGES:
        yield "", f"and {len(begun) - _CHANGES} more: see the .json"
    if not result.interrupted and (unseen := len(request.cues) - len(begun)) > 0:
        yield "not made", f"{_plural(unseen, 'change')}: the video ended before, or another took its place"


def _describe_cue(cue: Cue) -> str:
    prompt = "" if cue.prompt is None else f"{cue.prompt!r} ({cue.transition.kind})"
    return " · ".join(part for part in (prompt, "" if cue.seed is None else f"seed {cue.seed}") if part)


def _length(request: Request, fps: float) -> str:
    if math.isinf(request.seconds):
        return "endless (Ctrl-C ends it) video"
    new = "new " if request.video or request.image else ""
    most = "at most " if request.follow and Path(request.follow).is_dir() else ""  # it says not how long it is
    return f"{most}{request.seconds:g} s = {max(1, round(request.seconds * fps))} {new}frames"


def _place(request: Request, path: Path) -> str:
    if request.segment is not None:
        return f"{segment_path(path, 0)}, ... of {request.segment:g} s each"
    return "stdout" if path == STDOUT else f"{path}{'/' if is_folder(path) else ''}"


def _files(result: Result, path: Path) -> str:
    if not result.segments:
        return str(path)
    return " to ".join(str(segment_path(path, number)) for number in sorted({0, result.segments - 1}))


def _text(progress: Progress) -> str:
    total = "" if math.isinf(progress.total_s) else f"/{progress.total_s:g}"
    return (f"{progress.video_s:.1f}{total} s · {progress.fps:.1f} fps · first frame "
            f"{progress.first_frame_s:.2f} s · {progress.memory_mb:.0f} MB")


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
