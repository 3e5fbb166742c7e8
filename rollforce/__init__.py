"""rollforce: endless video, one small engine. Public names are imported when first used: `import rollforce` is free.

    for frame in rollforce.stream("a red ball bounces over green hills", seconds=10):   # uint8 [H, W, 3]
        show(frame)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollforce.errors import (
        CheckpointError,
        ConfigError,
        DoesNotFit,
        RollforceError,
        SessionClosed,
        ShapeError,
        SnapshotError,
        TrainingError,
    )  # fmt: skip
    from rollforce.streaming.events import Chunk, Cue, Event
    from rollforce.streaming.load import load, stream
    from rollforce.streaming.model import Model
    from rollforce.streaming.pace import Pace
    from rollforce.streaming.session import Session
    from rollforce.streaming.snapshot import Snapshot

    __version__: str

__all__ = [
    "CheckpointError", "Chunk", "ConfigError", "Cue", "DoesNotFit", "Event", "Model", "Pace", "RollforceError",
    "Session", "SessionClosed", "ShapeError", "Snapshot", "SnapshotError", "TrainingError", "__version__", "load",
    "stream",
]  # fmt: skip

_HOMES = {"load": "load", "stream": "load", "Cue": "events", "Event": "events", "Chunk": "events", "Pace": "pace",
          "Model": "model", "Session": "session", "Snapshot": "snapshot"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rollforce")
    if name not in __all__:
        raise AttributeError(f"module 'rollforce' has no attribute {name!r}")
    home = f"streaming.{_HOMES[name]}" if name in _HOMES else "errors"
    found = getattr(import_module(f"rollforce.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
