"""Who steps a stream to its next commit: whoever pulls it (`Puller`), or a thread of its own, one commit ahead.

A third driver is `batch.BatchMember`, which steps several streams together. All three walk the same `Stepper`, so the
order of the ticks, and with it every byte, is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from rollforce.engine.rollout import Commit, ModelCall
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.streaming.events import Event

T = TypeVar("T")


@dataclass(frozen=True)
class ChunkResult:
    """What stepping to the next commit gave (`commit` None: the stream is over), and the seconds it took.

    `prompt` is the one in force at the commit, `events` are of the cues before it, `before` is a copy of the state it
    began from, for streams that can go back, and `ready` a CUDA event after which the latents are there.
    """

    commit: Commit | None
    seconds: float
    prompt: str = ""
    events: tuple[Event, ...] = ()
    before: Any = None
    ready: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a snapshot keeps of a result that was not yet decoded."""
        from rollforce.config import to_dict  # needs omegaconf, which benchmarks do without

        commit = None if self.commit is None else {"start": self.commit.start, "latents": self.commit.latents_BTCHW}
        return {"commit": commit, "prompt": self.prompt, "events": [to_dict(event) for event in self.events]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChunkResult:
        """Build the result that a `state_dict` describes."""
        from rollforce.config import build

        kept, events = state["commit"], tuple(build(Event, event) for event in state["events"])
        commit = None if kept is None else Commit(int(kept["start"]), kept["latents"])
        return cls(commit, 0.0, state["prompt"], events)


Stepper = Generator[ModelCall, Tensor, ChunkResult]
"""On the way to the next commit: it yields the model calls that it needs, and is sent their velocities."""


def run_stepper(stepper: Stepper, model: VideoTransformer) -> ChunkResult:
    """Walk a stepper to its end, each of its calls by itself."""
    try:
        call = next(stepper)
        while True:
            call = stepper.send(call.run(model))
    except StopIteration as end:
        result: ChunkResult = end.value
        return result


class Driver(Protocol):
    """Steps one stream to its next commit, whenever that is asked for."""

    def expect(self) -> None:
        """Say that the stream will be pulled: from here on its next commit may be computed along with others."""

    def take(self, go_on: bool) -> ChunkResult:
        """Return the next commit; with `go_on` the one after it may be begun."""

    def hand_over(self) -> ChunkResult | None:
        """Finish what is under way and return it. None if nothing is."""

    def beside(self, result: ChunkResult) -> AbstractContextManager[None]:
        """Within the block, work on the latents of a result runs beside the ticks."""

    def close(self) -> None:
        """End, wherever it stands."""


class Puller:
    """Computes what is asked for when it is asked for, in the thread that asks."""

    def __init__(self, step: Callable[[], ChunkResult]) -> None:
        self._step = step

    def expect(self) -> None:
        """See Driver: nothing is computed before it is pulled."""

    def take(self, go_on: bool) -> ChunkResult:
        """See Driver."""
        return self._step()

    def hand_over(self) -> ChunkResult | None:
        """See Driver: nothing is ever under way."""
        return None

    def beside(self, result: ChunkResult) -> AbstractContextManager[None]:
        """See Driver: nothing runs beside."""
        return nullcontext()

    def close(self) -> None:
        """See Driver: there is nothing to end."""


class Prefetcher:
    """Computes at most one commit ahead of what was asked for, in a thread and, on CUDA, beside a stream of its own.

    What a stream is told between two chunks takes effect one chunk later than without it.
    """

    def __init__(self, step: Callable[[], ChunkResult], device: torch.device) -> None:
        self._step, self._device = step, device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rollforce-prefetch")
        self._next: Future[ChunkResult] | None = None
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def expect(self) -> None:
        """See Driver: the first chunk is computed when it is pulled."""

    def take(self, go_on: bool) -> ChunkResult:
        """See Driver."""
        result = (self._next or self._pool.submit(self._compute)).result()
        self._next = self._pool.submit(self._compute) if go_on and result.commit is not None else None
        return result

    def hand_over(self) -> ChunkResult | None:
        """See Driver."""
        result, self._next = None if self._next is None else self._next.result(), None
        return result

    def _compute(self) -> ChunkResult:
        result = self._step()
        if self._side is None:
            return result
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return replace(result, ready=event)

    @contextmanager
    def beside(self, result: ChunkResult) -> Iterator[None]:
        """See Driver: on CUDA the block runs on the side stream, once the latents are there."""
        if self._side is None or result.commit is None or result.ready is None:
            yield
            return
        with torch.cuda.stream(self._side):
            self._side.wait_event(result.ready)
            result.commit.latents_BTCHW.record_stream(self._side)
            yield

    def close(self) -> None:
        """See Driver: waits for the thread to end."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def await_result(worker: Executor, work: Callable[[], T]) -> T:
    """Return what `work` returns, computed by a thread of `worker`, without blocking the event loop.

    Cancelled, it ends at once if the work was not begun, else with the work: nothing is left running behind.
    """
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
