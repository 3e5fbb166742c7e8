"""What `rollforce render` does: plan, load, check every prompt, then make one video after the other."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from rollforce.cli.interrupt import INTERRUPT
from rollforce.cli.jobs import RenderPlan, places_of, plan, write_manifest
from rollforce.cli.options import RenderOptions
from rollforce.cli.places import RenderTask, hold_video
from rollforce.cli.progress import Terminal
from rollforce.cli.record import Record, record_path, segments_of
from rollforce.cli.render import Result, find_unfinished, render
from rollforce.cli.resume import snapshot_path
from rollforce.cli.wording import word_prompts
from rollforce.errors import SnapshotError
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.streaming.snapshot import Snapshot
from rollforce.video.duration import parse_duration
from rollforce.video.thumbnail import thumbnail_path, write_thumbnail


class Stop:
    """Handles Ctrl-C and SIGTERM: the first asks to stop behind the chunk in work, the second stops at once."""

    def __init__(self, terminal: Terminal) -> None:
        self.asked, self._terminal = False, terminal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for polite in (signal.SIGINT, signal.SIGTERM):  # also where a shell had them ignored
            self._before[polite] = signal.signal(polite, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._terminal.say("stopping behind this chunk; once more to stop at once")


def make(options: RenderOptions, terminal: Terminal, tell: Callable[[str], None]) -> bool:
    """Carry out a command; return whether it reached its end. `tell` takes records, where JSON is wanted."""
    with ExitStack() as held:
        planned = plan(options, held)
        mine, launch = planned.mine, planned.launch
        if launch.size > 1:
            terminal.say(f"process {launch.rank + 1} of {launch.size}: {len(mine)} of {len(planned.tasks)} videos")
        waiting = [task for task in mine if not task.done]
        if kept := len(mine) - len(waiting):
            one = f"{mine[0].path} is complete and kept"
            terminal.say(one if len(planned.tasks) == 1 else f"{kept} of {len(mine)} videos are complete and kept")
        if not waiting and mine:
            write_manifest(planned, {})
        return not waiting or _render_all(planned, waiting, terminal, options, tell)


def _render_all(planned: RenderPlan, waiting: list[RenderTask], terminal: Terminal, options: RenderOptions,
                tell: Callable[[str], None]) -> bool:  # fmt: skip
    """Make one video after the other; return whether all were made."""
    begun, status, places = time.perf_counter(), dict[Path, str](), places_of(planned, options)
    model = _load(planned)
    INTERRUPT.check()
    loaded_s = time.perf_counter() - begun
    waiting = word_prompts(model, waiting, terminal.say)
    _show_model(planned, model, terminal, loaded_s)
    write_manifest(planned, status)
    with Stop(terminal) as stop:
        for task in waiting:
            if stop.asked:
                return False
            with hold_video(task.path), terminal.tell_of_inputs():
                now = places.look(task) if planned.folder else task  # somebody may have written it meanwhile
                whole = now.done or _render_one(planned, now, model, terminal, options, stop)
            status[task.path] = "done" if whole else "interrupted"
            write_manifest(planned, status)
            if options.as_json:
                tell(json.dumps(json.loads(record_path(task.path).read_text(encoding="utf-8"))))
            if not whole:
                return False
    return True


def _load(planned: RenderPlan) -> Model:
    request = planned.request
    return load(request.model, stream=request.stream, overrides=planned.overrides, window=request.window,
                device=planned.launch.device(request.device), dtype=request.dtype, threads=request.threads,
                running=request.running, size=request.size)  # fmt: skip


def _show_model(planned: RenderPlan, model: Model, terminal: Terminal, loaded_s: float) -> None:
    terminal.show_model(model, planned.request.size or model.size, loaded_s)
    if planned.record and (reasons := planned.record.differences(model)):
        terminal.say(f"this is not where the record was made; bytes may differ: {'; '.join(reasons)}", style="yellow")


def _render_one(planned: RenderPlan, task: RenderTask, model: Model, terminal: Terminal, options: RenderOptions,
                stop: Stop) -> bool:  # fmt: skip
    """Make or continue one video, and compare it with its record, if it repeats one. Return whether it is whole."""
    start = _find_start(planned, task, model, terminal)
    done = 0 if start is None else int(start.state["render"]["streamed"])
    save_every = parse_duration(options.save_every)
    terminal.announce(task.request, model.fps, task.path, done)
    try:
        with terminal.show_progress(task.request.seconds) as report:
            result = render(model, task.request, task.path, report, go_on=start, save_every=save_every,
                            stopping=lambda: stop.asked)  # fmt: skip
    except OSError:  # a full disk, most often
        if snapshot_path(task.path).exists():
            terminal.say(f"to continue, once the reason is gone: rollforce render --resume {task.path}")
        raise
    terminal.show_result(result, task.request, task.path)
    if options.thumbnail and result.frames:
        files = segments_of(task.path)[: result.segments] or [task.path]
        still = write_thumbnail(files[len(files) // 2], thumbnail_path(task.path))
        terminal.say(f"{'thumbnail':<12} {still}")
    if planned.record is not None and not result.interrupted:
        _compare(planned.record, result, terminal)
    return not result.interrupted


def _compare(record: Record, result: Result, terminal: Terminal) -> None:
    """Say whether a video came out as it is recorded."""
    if record.frames_sha256:
        if record.video_sha256 and record.video_sha256 == result.video_sha256:
            terminal.say("the same bytes as recorded")
        elif None in (record.video_sha256, result.video_sha256) and record.frames_sha256 == result.frames_sha256:
            terminal.say("the same frames as recorded (in files that were put together otherwise)")
        else:
            terminal.say("not the recorded bytes", "yellow")


def _find_start(planned: RenderPlan, task: RenderTask, model: Model, terminal: Terminal) -> Snapshot | None:
    """Return where to continue, or None to begin. In a batch, what cannot be continued is made anew."""
    if not task.begun:
        return None
    try:
        return find_unfinished(model, task.request, task.path)
    except SnapshotError as error:
        if planned.folder is None:
            raise
        terminal.say(f"{task.path} is made anew. {error}", "yellow")
        return None
