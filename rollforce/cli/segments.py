"""A video as several files of one length, each of which plays by itself: what has no end needs no file without end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from rollforce.checkpoints.outputs import check_plain, hold
from rollforce.cli.record import segment_path, segments_of
from rollforce.errors import ConfigError
from rollforce.video.outputs import Output

SEGMENT_S = 600.0  # of a video without end

Open = Callable[[Path, int, int], Output]
"""Opens the writer of a file: its name, the number of its first frame, how many frames of what is there are kept."""


class SegmentedWriter:
    """Writes like a VideoWriter, into files of `length` frames: NAME-0000.mp4, NAME-0001.mp4, ...

    `after`: go on behind that many frames of what is there; files behind them are removed. ConfigError if a file's name
    is taken, OSError when the disk is full."""

    def __init__(self, open_: Open, path: Path, length: int, after: int = 0) -> None:
        self.path, self.length, self._open = path, length, open_
        self._number, left = divmod(after, length)
        for old in segments_of(path)[self._number + bool(left) :]:
            check_plain(old)
            old.unlink()
        self._held = ExitStack()
        self._video = self._begin(left)

    @property
    def frames(self) -> int:
        """Frames of all files."""
        return self._number * self.length + self._video.frames

    @property
    def safe(self) -> int:
        """Frames that are in the files whatever happens to this process."""
        return self._number * self.length + self._video.safe

    @property
    def count(self) -> int:
        """Number of files."""
        return self._number + 1

    def write(self, frames_FHWC: np.ndarray) -> None:
        """Append uint8 frames [F, H, W, 3], which may end one file and begin others."""
        while len(frames_FHWC):
            if self._video.frames == self.length:
                self.close()
                self._number += 1
                self._video = self._begin()
            room = self.length - self._video.frames
            self._video.write(frames_FHWC[:room])
            frames_FHWC = frames_FHWC[room:]

    def close(self) -> None:
        """Finish the last file; a second call does nothing."""
        with self._held:
            self._video.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, after: int = 0) -> Output:
        path = segment_path(self.path, self._number)
        self._held.enter_context(hold(path))
        check_plain(path)
        if path.exists() and not after:
            raise ConfigError(f"{path} exists, and this render did not make it: move it away, and go on with --resume.")
        return self._open(path, self._number * self.length, after)


def check_segments(path: Path, overwrite: bool) -> None:
    """Raise ConfigError if a name that the files of a video may get is taken."""
    names = f"{path.stem}-[0-9][0-9][0-9][0-9]*{path.suffix}"
    there = sorted(file for file in path.parent.glob(names) if file.stem.removeprefix(f"{path.stem}-").isdigit())
    for file in there:
        check_plain(file)
    if there and not overwrite:
        raise ConfigError(f"{there[0]} exists; use --overwrite to replace it, or -o for another name.")
