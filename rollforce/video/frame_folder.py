"""Folders of PNG files, one a frame: lossless, whole one by one, and gone on with behind any of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

import numpy as np

from rollforce.errors import ConfigError
from rollforce.video.writer import Enlarger, VideoCodec, check_frames

_NAME = re.compile(r"frame-\d{6,}\.png(\.part)?")
_RECORD = re.compile(r"record\.(json|jpg|resume\.safetensors|.*\.part)")


def foreign_file(folder: Path) -> Path | None:
    """Return a file in a folder that no render of ours put there, if there is one."""
    return next((path for path in sorted(folder.iterdir()) if not _NAME.fullmatch(path.name)
                 and not _RECORD.fullmatch(path.name)), None)  # fmt: skip


def frame_paths(folder: Path) -> list[Path]:
    """Return the frames in a folder, in their order."""
    return sorted(folder.glob("frame-*.png"))


class FrameFolder:
    """A folder that gets a PNG for each frame: frame-000000.png, ...; see VideoWriter. `after`: keep so many of those
    that are there; the others are deleted. ConfigError if there are fewer, OSError when the disk is full."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], *, scale: int = 1,
                 codec: VideoCodec | None = None, after: int = 0) -> None:  # fmt: skip
        self.path, self.fps, self.size, self.scale, self.frames = Path(path), fps, size, scale, after
        self._enlarge = Enlarger(size, scale, (codec or VideoCodec()).enlarge, "rgb24")
        self.path.mkdir(exist_ok=True)
        there = frame_paths(self.path)
        if [path.name for path in there[:after]] != [_name(number) for number in range(after)]:
            raise ConfigError(f"{path} has not the {after} frames that are needed to go on behind them: it is not the "
                              "folder that was being made.")  # fmt: skip
        for old in there[after:]:
            old.unlink()

    @property
    def safe(self) -> int:
        """Frames that are there whatever happens: all."""
        return self.frames

    @property
    def seconds(self) -> float:
        """Length of what was written."""
        return self.frames / self.fps

    def write(self, frames_FHWC: np.ndarray) -> None:
        """Append uint8 frames [F, H, W, 3], each whole under its name."""
        check_frames(frames_FHWC, self.size)
        for frame_HWC in frames_FHWC:
            place = self.path / _name(self.frames)
            fresh = place.with_name(f"{place.name}.part")
            self._enlarge(frame_HWC).to_image().save(fresh, format="PNG")
            fresh.replace(place)
            self.frames += 1

    def close(self) -> None:
        """Do nothing: each frame is whole already."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _name(number: int) -> str:
    return f"frame-{number:06d}.png"
