"""How many CPU threads torch computes with: a number of the whole process, which several streams hold at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

SMALL = 50_000_000  # parameters: a model with fewer computes on one thread

_lock = Lock()
_held: list[int] = []  # a number for each block that is running now
_outside = 1  # torch's number before the first of them


def threads_for(parameters: int, device: Any) -> int:
    """Return how many CPU threads a model should compute with: one if it is small, else torch's own number.

    A small model's layers are too short to share: a second thread gains little on an idle machine, waits ten times
    longer on a busy one, and would make the bytes depend on the number of cores.
    """
    import torch

    small = parameters < SMALL and getattr(device, "type", "cpu") == "cpu"
    return 1 if small else torch.get_num_threads()


@contextmanager
def compute_on(threads: int) -> Iterator[None]:
    """Let torch compute with this many threads inside the block.

    Blocks may overlap in any order, in one thread or several: the number from before the first of them comes back when
    the last one ends, not before.
    """
    global _outside
    import torch

    with _lock:
        if not _held:
            _outside = torch.get_num_threads()
        _held.append(threads)
        _set(threads)
    try:
        yield
    finally:
        with _lock:
            _held.remove(threads)
            _set(_held[-1] if _held else _outside)


def _set(threads: int) -> None:
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
