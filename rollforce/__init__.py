"""rollforce: endless video, one small engine. Public names are imported when first used: `import rollforce` is free.

    for frame in rollforce.stream("a red ball bounces over green hills", seconds=10):   # uint8 [H, W, 3]
        show(frame)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollforce.chunk import Chunk
    from rollforce.cues import Cue, Event
    from rollforce.errors import (
        CheckpointError,
        ConfigError,
        RollforceError,
        SessionClosed,
        ShapeError,
        SnapshotError,
    )
    from rollforce.live import Pace
    from rollforce.load import load, stream
    from rollforce.model import Model
    from rollforce.session import Session
    from rollforce.snapshot import Snapshot

    __version__: str

__all__ = [
    "CheckpointError",
    "Chunk",
    "ConfigError",
    "Cue",
    "Event",
    "Model",
    "Pace",
    "RollforceError",
    "Session",
    "SessionClosed",
    "ShapeError",
    "Snapshot",
    "SnapshotError",
    "__version__",
    "load",
    "stream",
]

_HOME = {
    "load": "load", "stream": "load",
    "Cue": "cues", "Event": "cues", "Pace": "live",
    "Model": "model", "Session": "session", "Snapshot": "snapshot", "Chunk": "chunk",
    "RollforceError": "errors", "ConfigError": "errors", "ShapeError": "errors", "CheckpointError": "errors",
    "SnapshotError": "errors", "SessionClosed": "errors",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rollforce")
    if name not in _HOME:
        raise AttributeError(f"module 'rollforce' has no attribute {name!r}")
    found = getattr(import_module(f"rollforce.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`rollforce.load` is a function and also the file that holds it: importing the file must not hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
