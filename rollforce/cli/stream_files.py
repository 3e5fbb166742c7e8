"""Streams that are kept in files while they play: what a person names may be anything, so it is looked at first."""

from __future__ import annotations

import os
from pathlib import Path

from rollforce.errors import ConfigError, SnapshotError
from rollforce.streaming.session import Session
from rollforce.streaming.snapshot import Snapshot


def write_stream(session: Session, name: str) -> None:
    """Keep a stream in a file, which replaces only one that is a kept stream itself. ConfigError, SnapshotError."""
    path = _read_path(name)
    if path.is_dir() or name.endswith(os.sep):
        raise ConfigError(f"{name} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise ConfigError(f"{name}: there is no folder {path.parent}.")
    if path.is_symlink() or (path.exists() and not _is_stream(path)):
        raise ConfigError(f"{name} exists and is no kept stream: it is not replaced. Use another name.")
    session.snapshot().save(path)


def read_stream(name: str, size: tuple[int, int], trained: tuple[int, int]) -> Snapshot:
    """Return a kept stream whose pictures are of this size (height, width). ConfigError, SnapshotError."""
    path = _read_path(name)
    if not path.is_file():
        raise SnapshotError(f"{name} is not a snapshot: there is no such file.")
    try:
        snapshot = Snapshot.load(path)
    except (LookupError, TypeError, ValueError) as error:
        raise SnapshotError(f"{name} is not a snapshot: its header is damaged ({error}).") from error
    if (kept := snapshot.size or trained) != size:
        raise SnapshotError(f"{name} has pictures of {kept[1]}x{kept[0]}, and this video {size[1]}x{size[0]}: begin "
                            f"another with --size {kept[1]}x{kept[0]}.")  # fmt: skip
    return snapshot


def _is_stream(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        Snapshot.load(path)
    except (SnapshotError, LookupError, TypeError, ValueError):
        return False
    return True


def _read_path(name: str) -> Path:
    if not name:
        raise ConfigError("name a file, such as :save ball.safetensors.")
    return Path(name)
