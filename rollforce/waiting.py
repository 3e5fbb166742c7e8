"""Waiting for a thread without standing still: how streams are pulled by asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def done_by(worker: Executor, work: Callable[[], T]) -> T:
    """What `work` returns, done by a thread of `worker`.

    Cancelled, it ends at once if the work was not begun, else with the work: nothing is left running behind."""
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
