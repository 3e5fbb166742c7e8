"""Processes of one thread each that share work, and end with the one that began them, however it ended."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import AsyncResult
from threading import Thread
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


def worker_pool(count: int) -> ProcessPoolExecutor:
    """Return a pool of `count` processes. What they call must be importable by name."""
    os.environ["OMP_NUM_THREADS"] = "1"  # they read it as they start
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that is killed says nothing to those it began: they would go on to the end of their work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Renderers(Generic[Result]):
    """Calls `work(number)` in `workers` processes, ahead of who takes the results. `work` must be importable by name
    (or a partial). Not a `worker_pool`, which ends only when all that was ordered is done: here it is dropped."""

    def __init__(self, work: Callable[[int], Result], workers: int) -> None:
        self._work = work
        self._pool = multiprocessing.get_context("spawn").Pool(workers, _begin)
        self._coming: dict[int, AsyncResult[Result]] = {}
        self._next = 0

    def reach(self, stop: int, start: int = 0) -> None:
        """Order all numbers from `start` to `stop`, those that were not ordered before."""
        for number in range(max(start, self._next), stop):
            self._coming[number] = self._pool.apply_async(self._work, (number,))
        self._next = max(self._next, stop)

    def take(self, number: int) -> Result:
        """Return what `work` made of a number; it is waited for, or made now."""
        return (self._coming.pop(number, None) or self._pool.apply_async(self._work, (number,))).get()

    def close(self) -> None:
        """End the processes; what was ordered and not taken is dropped. The end of the program does the same."""
        self._pool.terminate()
