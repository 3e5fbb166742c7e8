"""Where videos go: what a name may be, who may write there, and what is there already."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from rollforce.checkpoints.outputs import check_plain, hold
from rollforce.cli.keep import find_kept
from rollforce.cli.record import Request, record_path, segment_path
from rollforce.cli.resume import snapshot_path
from rollforce.cli.segments import check_segments
from rollforce.errors import ConfigError
from rollforce.streaming.load import StreamOrigin
from rollforce.video.gif import check_rate
from rollforce.video.outputs import STDOUT, check_folder, check_output, is_folder
from rollforce.video.thumbnail import thumbnail_path

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class RenderTask:
    """One video to make, or one that is there already (`done`), or a part of which is there (`begun`)."""

    request: Request
    path: Path
    where: str = ""
    done: bool = False
    begun: bool = False


@dataclass(frozen=True)
class Places:
    """What may be done with files that are there: `keep` those that this command would make, `overwrite` any. Of each
    video a `thumbnail` may be made.

    `find_origin` says what the command's videos stream from, which decides whether one may be kept."""

    keep: bool
    overwrite: bool
    thumbnail: bool
    find_origin: Callable[[], StreamOrigin]

    def look(self, task: RenderTask) -> RenderTask:
        """Return a task with what is there of it. ConfigError for a file that may not be replaced."""
        path, segmented = task.path, task.request.segment is not None
        if path == STDOUT:
            return task
        if segmented:
            check_segments(path, self.overwrite)
        elif self.keep:
            done, begun = find_kept(path, task.request, self.find_origin)
            task = dataclasses.replace(task, done=done, begun=begun)
        check_output(path, self.overwrite or self.keep or segmented)
        if not (task.done or task.begun):
            _check_record(path, self.overwrite)
        still = thumbnail_path(path)
        if self.thumbnail and still.exists() and not (self.overwrite or self.keep):
            raise ConfigError(f"{still} exists; use --overwrite to replace it, or another name with -o.")
        return task

    def look_at_all(self, tasks: Sequence[RenderTask]) -> tuple[RenderTask, ...]:
        """Return tasks as `look` does; of several, one ConfigError says how many files are in the way."""
        there = [task.path for task in tasks if task.path.exists()]
        if len(tasks) > 1 and there and not (self.keep or self.overwrite):
            raise ConfigError(f"{len(there)} of {len(tasks)} outputs exist, the first is {there[0]}; use --keep to "
                              "keep those that are complete, or --overwrite to replace them.")  # fmt: skip
        return tuple(map(self.look, tasks))


def check_places(tasks: Sequence[RenderTask], sources: dict[str, str | None], folder: Path | None,
                 thumbnail: bool = False) -> None:  # fmt: skip
    """Raise ConfigError for names that nothing can be written to, whatever is there: of another kind, in no folder,
    links, devices, or what is read (`sources`: files by the option that names them)."""
    for task in tasks:
        _check_kind(task.request, task.path)
    for task in tasks[:1]:
        check_output(task.path, overwrite=True)
    tasks = [task for task in tasks if task.path != STDOUT]
    for place in {task.path.parent for task in tasks}:
        check_folder(place)
    read = {option: Path(path) for option, path in sources.items() if path not in (None, "-")}
    for task in tasks:
        for path in _files_of(task, folder, thumbnail):
            check_plain(path)
            _check_unread(path, read)
        _check_unread_segments(task, read)


def hold_video(path: Path) -> AbstractContextManager[None]:
    """Be the one process that writes a video and what lies beside it, or, of several, their list; see `hold`."""
    return nullcontext() if path == STDOUT else hold(path, folder=path.suffix.lower() not in (".mp4", ".jsonl"))


def _check_kind(request: Request, path: Path) -> None:
    """Raise ConfigError for what an output of this kind cannot be."""
    name = "stdout" if path == STDOUT else str(path)
    if request.segment is not None and path.suffix.lower() not in (".mp4", ".webm"):
        raise ConfigError(f"{name}: --seconds inf and --segment write .mp4 or .webm files, each of a length, and "
                          "nothing else. Take -o ball.mp4, or give --seconds and no --segment.")  # fmt: skip
    if request.fps is not None and is_folder(path):
        raise ConfigError(f"{name}: pictures in a folder have no rate, so fps {request.fps:g} says nothing: leave out "
                          "--fps, or take a file such as -o ball.mp4.")  # fmt: skip
    check_rate(path, request.fps or 1)


def _files_of(task: RenderTask, folder: Path | None, thumbnail: bool) -> Iterator[Path]:
    yield from (task.path, record_path(task.path), snapshot_path(task.path))
    if thumbnail:
        yield thumbnail_path(task.path)
    if folder is not None:
        yield folder / MANIFEST


def _check_unread(path: Path, read: dict[str, Path]) -> None:
    for option, source in read.items():
        same = path.resolve() == source.resolve() or (is_folder(path) and path.resolve() in source.resolve().parents)
        with suppress(OSError):
            same = same or os.path.samefile(path, source)
        if same:
            there = "in it" if is_folder(path) and path.resolve() != source.resolve() else "the same file"
            raise ConfigError(f"{path} would be written, and {option} {source} is {there}: choose another name for "
                              "what is made.")  # fmt: skip


def _check_unread_segments(task: RenderTask, read: dict[str, Path]) -> None:
    for source in read.values() if task.request.segment is not None else ():
        number = source.stem.removeprefix(f"{task.path.stem}-")
        if number.isdigit():
            _check_unread(segment_path(task.path, int(number)), read)


def _check_record(path: Path, overwrite: bool) -> None:
    """A .json beside the video that is not a record is somebody's own: do not write over it unasked."""
    beside = record_path(path)
    if beside.exists() and not overwrite and '"request"' not in beside.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{beside} exists and is not a record of a render; use --overwrite or another name with -o.")
