"""TODO doc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SMALL = 50_000_000  # parameters


def threads_for(parameters: int, device: Any) -> int:
    """How many CPU threads a model should compute with: one if it is small, else torch's own number.

    A small model's layers are too short to share: a second thread gains little on an idle machine, waits ten times
    longer on a busy one, and would make the bytes depend on the number of cores.
    """
    import torch

    small = parameters < _SMALL and getattr(device, "type", "cpu") == "cpu"
    return 1 if small else torch.get_num_threads()


@contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """torch computes with this many threads inside, and with as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)
