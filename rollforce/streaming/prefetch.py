"""Who steps a stream to its next commit: whoever pulls it (`Driver`), or a thread of its own, one commit ahead.

A third is `batch.BatchMember`, which steps several streams together. All three walk the same `Stepper`, so the
order of the ticks, and with it every byte, is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

import torch

from rollforce.streaming.stream_state import ChunkResult, Driver

T = TypeVar("T")


class Prefetcher(Driver):
    """Computes at most one commit ahead of what was asked for, in a thread and, on CUDA, beside a stream of its own.
    What a stream is told between two chunks takes effect one chunk later than without it."""

    def __init__(self, step: Callable[[], ChunkResult], device: torch.device) -> None:
        super().__init__(step)
        self._device = device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rollforce-prefetch")
        self._next: Future[ChunkResult] | None = None
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def take(self, go_on: bool) -> ChunkResult:
        result = (self._next or self._pool.submit(self._compute)).result()
        self._next = self._pool.submit(self._compute) if go_on and result.commit is not None else None
        return result

    def hand_over(self) -> ChunkResult | None:
        result, self._next = None if self._next is None else self._next.result(), None
        return result

    def _compute(self) -> ChunkResult:
        result = self.step()
        if self._side is None:
            return result
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return replace(result, ready=event)

    @contextmanager
    def beside(self, result: ChunkResult) -> Iterator[None]:
        """On CUDA, run the block on the side stream, once the latents are there."""
        if self._side is None or result.commit is None or result.ready is None:
            yield
            return
        with torch.cuda.stream(self._side):
            self._side.wait_event(result.ready)
            result.commit.latents_BTCHW.record_stream(self._side)
            yield

    def close(self) -> None:
        """Wait for the thread to end."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def await_result(worker: Executor, work: Callable[[], T]) -> T:
    """Return what `work` returns, computed by a thread of `worker`, without blocking the event loop. Cancelled, it ends
    at once if the work was not begun, else with the work: nothing is left running behind."""
    future = worker.submit(work)
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        future.cancel()
        while not waiting.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((waiting,))
        raise
