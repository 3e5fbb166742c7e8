"""The next latents, computed beside the decoding of the last: a thread, and on CUDA a stream, of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rollforce.engine.rollout import Commit, ModelCall
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.streaming.events import Event


@dataclass(frozen=True)
class ChunkResult:
    """What came of going on to the next commit (None: the stream is over), and the seconds it took."""

    commit: Commit | None
    seconds: float
    prompt: str = ""  # in force at the commit
    events: tuple[Event, ...] = ()  # of cues, before it
    before: Any = None  # what it began from, for those who may go back
    ready: Any = None  # CUDA event after which the latents are there

    def state_dict(self) -> dict[str, Any]:
        """What a snapshot keeps of one that was not yet taken."""
        from rollforce.config import to_dict  # needs omegaconf, which benchmarks do without

        commit = None if self.commit is None else {"start": self.commit.start, "latents": self.commit.latents_BTCHW}
        return {"commit": commit, "prompt": self.prompt, "events": [to_dict(event) for event in self.events]}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> ChunkResult:
        """From a `state_dict`."""
        from rollforce.config import build

        kept, events = state["commit"], tuple(build(Event, event) for event in state["events"])
        commit = None if kept is None else Commit(int(kept["start"]), kept["latents"])
        return cls(commit, 0.0, state["prompt"], events)


Stepper = Generator[ModelCall, Tensor, ChunkResult]
"""On the way to the next commit: it asks for model calls, and is sent their velocities."""


def step_alone(advancing: Stepper, model: VideoTransformer) -> ChunkResult:
    """Go all the way, each call by itself."""
    try:
        call = next(advancing)
        while True:
            call = advancing.send(call.run(model))
    except StopIteration as end:
        done: ChunkResult = end.value
        return done


class Prefetcher:
    """Calls `advance` at most once ahead of what was asked for.

    Bytes do not change: the order of the ticks is the same, only their time is another. What a stream is told between
    two chunks takes effect one chunk later than without it."""

    def __init__(self, advance: Callable[[], ChunkResult], device: torch.device) -> None:
        self._advance, self._device = advance, device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rollforce-ahead")
        self._next: Future[ChunkResult] | None = None
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def take(self, go_on: bool) -> ChunkResult:
        """The next commit; with `go_on` the one after it is begun."""
        done = (self._next or self._pool.submit(self._timed)).result()
        self._next = self._pool.submit(self._timed) if go_on and done.commit is not None else None
        return done

    def hand_over(self) -> ChunkResult | None:
        """Wait for what is under way and give it out. None if nothing is."""
        done, self._next = None if self._next is None else self._next.result(), None
        return done

    def _timed(self) -> ChunkResult:
        done = self._advance()
        if self._side is None:
            return done
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return replace(done, ready=event)

    @contextmanager
    def beside(self, done: ChunkResult) -> Iterator[None]:
        """Within it, work on these latents runs beside the ticks."""
        if self._side is None or done.commit is None or done.ready is None:
            yield
            return
        with torch.cuda.stream(self._side):
            self._side.wait_event(done.ready)
            done.commit.latents_BTCHW.record_stream(self._side)
            yield

    def close(self) -> None:
        """Wait for the thread to end."""
        self._pool.shutdown(wait=True, cancel_futures=True)


T = TypeVar("T")


async def await_result(worker: Executor, work: Callable[[], T]) -> T:
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
