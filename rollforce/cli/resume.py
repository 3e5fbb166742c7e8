"""Unfinished renders: a snapshot beside the growing video, from which another process goes on.

A snapshot belongs to a number of frames, and is of use only where the file has them. A fragment of the file is complete
when the key frame behind it has come, so a new snapshot waits under another name until then; the old one holds till it
takes its place.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError

from rollforce.checkpoints.safetensors_folder import read_json
from rollforce.cli.record import record_path, segment_path
from rollforce.errors import CheckpointError, ConfigError, SnapshotError
from rollforce.streaming.snapshot import Snapshot
from rollforce.video.outputs import beside, can_resume, cannot_resume, find_video, is_folder

log = logging.getLogger(__name__)

SAVE_EVERY_S = 10.0
_SHARE = 0.02  # of the time may go into saving


def snapshot_path(video: Path) -> Path:
    """Return where the snapshot of an unfinished video lies."""
    return beside(video, ".resume.safetensors")


def read_unfinished(video: Path) -> Snapshot:
    """Return the newest snapshot of an unfinished video. SnapshotError if there is none."""
    path = snapshot_path(video)
    if not path.exists():
        raise SnapshotError(f"{path} is not there, so {video} cannot be continued. Make it again: "
                            f"rollforce render --from {record_path(video)} --overwrite")  # fmt: skip
    return Snapshot.load(path)


def find_resumed(typed: Path) -> Path:
    """Return the video that was typed, or that a typed record describes. ConfigError, which names what was typed, if it
    cannot be continued."""
    if not typed.name:
        raise ConfigError(f"--resume {str(typed)!r} names no file: give the video that was stopped.")
    video = _name_video(typed)
    if not can_resume(video):
        raise ConfigError(f"--resume {typed}: {cannot_resume(video)}")
    record = record_path(video)
    if not any(path.exists() for path in (video, segment_path(video, 0))):
        there = f", though {record} is" if record.exists() else ""
        raise ConfigError(f"--resume {typed}: {video} is not there{there}, so there is nothing to continue.")
    if not record.exists():
        raise ConfigError(f"--resume {typed}: {record}, the record of its render, is not there, so it cannot be "
                          "continued. Make it again with another name.")  # fmt: skip
    return video


def _name_video(typed: Path) -> Path:
    """Return the video of a typed video, record, or file of a video in several."""
    found = find_video(typed)
    if is_folder(found):
        return found
    if typed.suffix.lower() == ".json":
        with suppress(CheckpointError):
            named = Path(str(read_json(typed, {}).get("video", ""))).name.replace("-%04d", "")
            return typed.with_name(named) if named else found
    whole = typed.with_stem(re.sub(r"-\d{4,}$", "", typed.stem) or typed.stem)
    return whole if record_path(whole).exists() and not record_path(typed).exists() else typed


class Keeper:
    """Saves a render now and then. Enter it before the video is opened: at its end, what waits is good.

    `every_s`: seconds between two snapshots, more where one takes long; 0: none are made."""

    def __init__(self, video: Path, every_s: float = SAVE_EVERY_S) -> None:
        self.path, self.every_s = snapshot_path(video), every_s
        self._fresh = self.path.with_suffix(".safetensors.part")
        self._frames: int | None = None  # of the snapshot that waits
        self._due = time.monotonic()
        self._warned = False

    def update(self, frames: int, safe: int, take: Callable[[], Snapshot]) -> None:
        """Save if it is time to: `frames` were written, `safe` of which are in the file whatever happens."""
        if self._frames is not None and safe >= self._frames:
            self._settle()
        if self._frames is None and time.monotonic() >= self._due:
            self.save(frames, take)

    def save(self, frames: int, take: Callable[[], Snapshot]) -> None:
        """Save now. An error is logged once, and saving tried again when it is due; it must not end the video."""
        if not self.every_s:
            return
        begun = time.monotonic()
        try:
            take().save(self._fresh)
        except (OSError, SafetensorError, SnapshotError, torch.OutOfMemoryError) as error:
            self._warn(error.__cause__ or error)
            self._frames = None
            self._fresh.unlink(missing_ok=True)  # half of it: room for the video
        else:
            self._frames, self._warned = frames, False
        now = time.monotonic()
        self._due = now + max(self.every_s, (now - begun) / _SHARE)

    def _warn(self, error: BaseException) -> None:
        """Say once what --resume will do, until saving works again."""
        if not self._warned:
            then = "--resume goes on from the one before" if self.path.exists() else "there is nothing to --resume from"
            log.warning("%s cannot be saved now (%s): until it can, %s", self.path, error, then)
        self._warned = True

    def forget(self) -> None:
        """Delete what was saved: the video is complete, or begins anew."""
        self._frames = None
        self._fresh.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _settle(self) -> None:
        self._fresh.replace(self.path)
        self._frames = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if isinstance(error, OSError):  # of the video, which may lack what the newest snapshot counts on
            self._fresh.unlink(missing_ok=True)
        elif self._frames is not None:  # the file is closed, and has all that was written
            self._settle()
