"""What a video can become: .mp4, .webm, .gif, a folder of PNG files, or MP4 on stdout; the name's ending chooses."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from rollforce.errors import ConfigError
from rollforce.video.frame_folder import FrameFolder, foreign_file, frame_paths
from rollforce.video.values import check_path

if TYPE_CHECKING:
    import numpy as np

    from rollforce.video.sound import SoundTrack
    from rollforce.video.writer import VideoCodec

STDOUT = Path("-")
FILES = (".mp4", ".webm", ".gif")


class Output(Protocol):
    """A video that is being written; see VideoWriter."""

    path: Path
    frames: int

    @property
    def safe(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    def write(self, frames_FHWC: np.ndarray) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def parse_output(typed: str | Path) -> Path:
    """Return what -o names: a file with a known ending, "frames/" (a slash, or a folder that is there) for a folder of
    PNG files, "-" for stdout. ConfigError."""
    text = str(typed)
    path = check_path(text or " ", "-o")
    if not text.strip() or not path.name:
        raise ConfigError(f"-o {text!r} names no file; write one, such as -o ball.mp4.")
    if path.suffix == "" and path != STDOUT and not (text.endswith(("/", os.sep)) or path.is_dir()):
        raise ConfigError(_endings(path))
    return path


def is_folder(path: Path) -> bool:
    """Return whether an output is a folder of PNG files: a name without an ending."""
    return path != STDOUT and not path.suffix


def beside(video: Path, ending: str) -> Path:
    """Return where what belongs to a video lies: "ball.json" for ball.mp4, "ball.webm.json", "frames/record.json"."""
    if is_folder(video):
        return video / f"record{ending}"
    return video.with_suffix(ending) if video.suffix.lower() == ".mp4" else video.with_name(f"{video.name}{ending}")


def find_video(path: Path) -> Path:
    """Return the video that a path names: itself, or what it is the record of."""
    if path.suffix.lower() != ".json" or path.is_dir():
        return path
    if path.name == beside(Path("frames"), ".json").name:
        return path.parent
    whole = path.with_suffix("")
    return whole if whole.suffix.lower() in FILES else path.with_suffix(".mp4")


def can_resume(path: Path) -> bool:
    """Return whether an output that was stopped can be gone on with."""
    return path != STDOUT and path.suffix.lower() != ".gif"


def check_output(path: Path, overwrite: bool = False) -> None:
    """Raise ConfigError if a video cannot be written to `path`; cheap, so that it is asked before a model is loaded."""
    if path == STDOUT:
        if sys.stdout.isatty():
            raise ConfigError("-o - writes a video to stdout, which is a terminal: pipe it on, as in | ffplay -.")
        return
    if is_folder(path):
        _check_frame_folder(path, overwrite)
        return
    if path.suffix.lower() not in FILES:
        raise ConfigError(_endings(path))
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it, such as {path / 'video.mp4'}.")
    check_folder(path.parent)
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; use --overwrite to replace it, or -o for another name.")


def check_folder(folder: Path) -> None:
    """Raise ConfigError if no file can be made in `folder`: tried, because permissions alone do not tell."""
    if not folder.exists():
        raise ConfigError(f"the folder {folder} does not exist: mkdir -p {folder}")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}. Choose another place with -o.") from error


def open_output(path: Path, fps: float, size: tuple[int, int], *, scale: int = 1, codec: VideoCodec | None = None,
                after: int = 0, sound: SoundTrack | None = None) -> Output:  # fmt: skip
    """Begin a video, or go on behind `after` frames of one; see VideoWriter. ConfigError where that cannot be."""
    if after and not can_resume(path):
        raise ConfigError(cannot_resume(path))
    if is_folder(path):
        return FrameFolder(path, fps, size, scale=scale, codec=codec, after=after)
    if path.suffix.lower() == ".gif":
        from rollforce.video.gif import GifWriter

        return GifWriter(path, fps, size, scale=scale, codec=codec)
    from rollforce.video.writer import VideoWriter

    pipe: Any = Pipe() if path == STDOUT else None
    return VideoWriter(path, fps, size, scale=scale, codec=codec, after=after, sound=sound, file=pipe)


def _endings(path: Path) -> str:
    return (f"{path}: only {', '.join(FILES)} can be written, and folders of PNG files: a name without a dot, and a "
            f"slash. Try {path.with_suffix('.mp4')} or {path.with_suffix('')}/.")  # fmt: skip


def cannot_resume(path: Path) -> str:
    """Return why an output cannot be gone on with, and what to do."""
    if path == STDOUT:
        return "a video on stdout cannot be continued: nothing of it is kept. Make it with -o ball.mp4."
    return f"{path} cannot be continued: a GIF is made in one go. Make it again with --overwrite, or as .mp4."


def digest_output(path: Path) -> str | None:
    """Return the SHA-256 of what was written: of a folder that of its frames' digests, of stdout None."""
    if path == STDOUT:
        return None
    if not is_folder(path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digests = (hashlib.sha256(frame.read_bytes()).digest() for frame in frame_paths(path))
    return hashlib.sha256(b"".join(digests)).hexdigest()


class Pipe:
    """Stdout as a file that is only written. What a reader that went away leaves unread is let go without a word."""

    def write(self, data: bytes) -> int:
        """Write all of `data` at once."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return len(data)


def _check_frame_folder(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; name another folder for the frames.")
    if not path.exists():
        check_folder(path.parent)
        return
    check_folder(path)
    if other := foreign_file(path):
        raise ConfigError(f"{path} holds other files, such as {other.name}: name a new folder for the frames.")
    if frame_paths(path) and not overwrite:
        raise ConfigError(f"{path} holds frames; use --overwrite to replace them, or -o for another folder.")
