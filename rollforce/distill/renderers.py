"""Rendering beside training: clips made by processes of their own, before they are asked for.

What a clip shows depends on its number only, so it does not matter who renders it, or when.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.pool import AsyncResult
from typing import Generic, TypeVar

import torch

Made = TypeVar("Made")


class Renderers(Generic[Made]):
    """`work(number)` in `workers` processes of one thread each. `work` must be importable by name (or a partial)."""

    def __init__(self, work: Callable[[int], Made], workers: int) -> None:
        self._work = work
        self._pool = multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,))
        self._coming: dict[int, AsyncResult[Made]] = {}
        self._next = 0

    def reach(self, stop: int, start: int = 0) -> None:
        """Order all numbers from `start` to `stop`, those that were not ordered before."""
        for number in range(max(start, self._next), stop):
            self._coming[number] = self._pool.apply_async(self._work, (number,))
        self._next = max(self._next, stop)

    def take(self, number: int) -> Made:
        """What `work` made of a number; waits for it, or makes it now."""
        return (self._coming.pop(number, None) or self._pool.apply_async(self._work, (number,))).get()

    def close(self) -> None:
        """End the processes; what was ordered and not taken is dropped. The end of the program does the same."""
        self._pool.terminate()
