"""Batch: streams of one model that tick together.

Cooperative and pull-driven: there is no thread of its own. Whoever pulls its stream drives rounds, each one model call
for all that want to go on, until its own next commit is there; what the others got meanwhile waits for them. A stream
goes on only if it is pulled, or (`ahead`) has handed out all that is ready: a slow or paused one costs nothing.

More of them than `limit`: those whose frames run out first (earliest deadline first; Liu and Layland 1973, section 7,
are the theorem; deadlines here are soft).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import count
from math import ceil
from threading import Condition, get_ident
from time import monotonic, perf_counter
from weakref import WeakSet

import torch
from torch import Tensor

from rollforce.engine.batched_call import group_key, run_together
from rollforce.engine.rollout import ModelCall
from rollforce.errors import ConfigError, RollforceError, SessionClosed
from rollforce.streaming.bundle import ModelBundle, compute_on, open_pool
from rollforce.streaming.stream_state import ChunkResult, Driver, Stepper
from rollforce.video.values import THREADS, check_count, check_kind


class Batch:
    """Streams of one model whose model calls are made together: `model.session(prompt, batch=model.batch())`. May be
    pulled from several threads; of these, `lanes` at a time make calls, each for its share of the streams. One lane for
    a GPU, and where one thread pulls all; one for each core where a model computes with a single thread.

    Streams are held weakly: one that is dropped, closed or not, leaves. A source that is waited for (a live video)
    holds up the others of its call."""

    def __init__(self, model: ModelBundle, limit: int = 8, ahead: bool = True, lanes: int = 1,
                 clock: Callable[[], float] = monotonic) -> None:  # fmt: skip
        """Put at most `limit` streams in one call; `ahead` computes the next chunk of a stream while others are pulled;
        at most `lanes` calls are made at a time. ConfigError for fewer than one of either."""
        check_count(limit, "limit", remedy="Streams in one model call.")
        check_kind(ahead, bool, "ahead", "true or false")
        check_count(lanes, "lanes", most=THREADS, remedy="Model calls at a time.")
        if lanes > 1 and "blocks" in model.running.offload:
            raise ConfigError(f"{lanes} lanes and offloaded blocks: weights that come and go serve one call at a time. "
                              "Use 1 lane.")  # fmt: skip
        self.model, self.limit, self.ahead, self.lanes, self.clock = model, limit, ahead, lanes, clock
        self.changed = Condition()
        self._members: WeakSet[BatchMember] = WeakSet()
        self._numbers = count()
        self._rounds: dict[int, Sequence[BatchMember]] = {}  # under way: of each thread that drives one, who takes part

    def join(self, model: ModelBundle, begin: Callable[[], Stepper]) -> BatchMember:
        """Give one more stream a place; `begin` begins each of its steps. ConfigError if it is of another model."""
        if model.transformer is not self.model.transformer or model.threads != self.model.threads:
            raise ConfigError(f"this batch is of {self.model.name!r} as it was loaded for it: streams of another model "
                              "need a batch of their own, model.batch().")  # fmt: skip
        with self.changed:
            member = BatchMember(self, next(self._numbers), begin)
            self._members.add(member)
        return member

    @property
    def streams(self) -> int:
        """How many streams are in it now."""
        return len(self._members)

    @cached_property
    def worker(self) -> ThreadPoolExecutor:
        """The threads, one for each lane, that pull for those who may not wait (async)."""
        return open_pool(self.lanes, "rollforce-batch")

    # -- with `changed` held ------------------------------------------------------------------------------------

    def finish(self, member: BatchMember) -> None:
        """Drive, or wait while other threads do, until a member that is on its way has arrived."""
        while member.busy:
            if members := self.choose():
                self.drive(members)
            else:
                self._wait()

    def spare(self, member: BatchMember) -> None:
        """Wait until no round is under way that a member takes part in."""
        while any(member in each for each in self._rounds.values()):
            self._wait()

    def leave(self, member: BatchMember) -> None:
        """Take a member out: no further rounds for this one."""
        self._members.discard(member)
        self.spare(member)

    def _wait(self) -> None:
        if get_ident() in self._rounds:
            raise ConfigError("a stream cannot wait for another one of its batch in the middle of its own chunk: give "
                              "the one that is followed a session outside of it.")  # fmt: skip
        self.changed.wait()

    def choose(self) -> Sequence[BatchMember]:
        """Return who takes part in a round that begins now: the most urgent, as many for each lane that is free."""
        free = self.lanes - len(self._rounds)
        if free < 1 or get_ident() in self._rounds:
            return ()
        busy = {member for each in self._rounds.values() for member in each}
        wanting = [each for each in list(self._members) if each.busy and each not in busy]
        return sorted(wanting, key=lambda each: each.urgency)[: min(self.limit, ceil(len(wanting) / free))]

    def drive(self, members: Sequence[BatchMember]) -> None:
        """Make one round. Others may come and go, and take what is ready, meanwhile."""
        self._rounds[get_ident()] = members
        self.changed.release()
        try:
            self.tick(members)
        finally:
            self.changed.acquire()
            del self._rounds[get_ident()]
            self.changed.notify_all()

    # -- a round ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def tick(self, members: Sequence[BatchMember]) -> None:
        """Step each member by one model call; calls of one group are one call."""
        with compute_on(self.model.threads):
            groups: dict[object, list[tuple[BatchMember, ModelCall]]] = {}
            for member in members:
                if member.call is None:
                    member.advance(None)
                if member.call is not None:
                    groups.setdefault(group_key(member.call), []).append((member, member.call))
            for group in groups.values():
                self._run([member for member, _ in group], [call for _, call in group])

    def _run(self, members: Sequence[BatchMember], calls: Sequence[ModelCall]) -> None:
        velocities: list[Tensor] = []
        begun = perf_counter()
        with FailureScope(*members):
            velocities = run_together(calls, self.model.transformer)
        share = (perf_counter() - begun) / sum(call.x_BTCHW.shape[1] for call in calls)
        for member, velocity in zip(members, velocities, strict=bool(velocities)):
            member.seconds += share * velocity.shape[1]
            member.advance(velocity)


class BatchMember(Driver):
    """The driver of a stream in a batch: it steps to the next commit, at most one ahead of what was asked for. `call`
    is the model call that it waits for; `seconds` it took to compute: of shared calls, its share by latents."""

    def __init__(self, batch: Batch, number: int, begin: Callable[[], Stepper]) -> None:
        self.number = number
        self.call: ModelCall | None = None
        self.seconds = 0.0
        self._batch, self._begin = batch, begin
        self._due = batch.clock()  # when the frames that were handed out have been shown
        self._may_begin = False
        self._stepper: Stepper | None = None
        self._result: ChunkResult | None = None
        self._failure: BaseException | None = None

    # -- as the driver of its session ---------------------------------------------------------------------------

    def expect(self) -> None:
        with self._batch.changed:
            self._may_begin |= self._batch.ahead and not self.busy and not self._arrived

    def take(self, go_on: bool) -> ChunkResult:
        """Return the next commit. Raises, once, what went wrong in its source, cues or steps, or in a shared call."""
        batch = self._batch
        with batch.changed:
            self._may_begin |= not self.busy and not self._arrived
            batch.finish(self)
            result = self._take_result()
            if result.commit is not None:
                frames = result.commit.latents_BTCHW.shape[1] * batch.model.frames_per_latent
                self._due = max(self._due, batch.clock()) + frames / batch.model.fps
                self._may_begin = go_on and batch.ahead
        return result

    def hand_over(self) -> ChunkResult | None:
        with self._batch.changed:
            self._batch.spare(self)
            if self.stepping:
                self._batch.finish(self)
            self._may_begin = False
            return self._take_result() if self._arrived else None

    def close(self) -> None:
        """Leave the batch."""
        with self._batch.changed:
            self._batch.leave(self)
            self._may_begin, self._stepper, self.call, self._result = False, None, None, None
            self._batch.changed.notify_all()

    def _take_result(self) -> ChunkResult:
        result, failure, self._result, self._failure = self._result, self._failure, None, None
        if failure is not None:
            raise failure
        if result is None:
            raise SessionClosed("This session was closed, by another thread, while it was pulled.")
        return result

    # -- as a member of its batch -------------------------------------------------------------------------------

    @property
    def stepping(self) -> bool:
        """Whether it is on its way to a commit."""
        return self._stepper is not None

    @property
    def busy(self) -> bool:
        """Whether it is on its way to a commit, or may begin to be."""
        return self._may_begin or self.stepping

    @property
    def urgency(self) -> tuple[float, int]:
        """Its deadline; of equal ones, who came first."""
        return self._due, self.number

    @property
    def _arrived(self) -> bool:
        return self._result is not None or self._failure is not None

    def advance(self, velocity: Tensor | None) -> None:
        """Go on to the next call it needs, or to the end of its step."""
        begun = perf_counter()
        with FailureScope(self):
            if self._stepper is None:
                self._stepper, self._may_begin, self.seconds = self._begin(), False, 0.0
            self.call = None
            try:
                self.call = next(self._stepper) if velocity is None else self._stepper.send(velocity)
            except StopIteration as end:
                self._result = replace(end.value, seconds=self.seconds + perf_counter() - begun)
                self._stepper = None
        self.seconds += perf_counter() - begun

    def fail(self, error: BaseException) -> None:
        """End the step here; the error is raised when the stream is pulled."""
        self._may_begin, self._stepper, self.call = False, None, None
        self._failure = error


class FailureScope:
    """Within it, what goes wrong is these members' own: it goes no further, and each raises it at its own next pull. An
    interrupt (what is no Exception) does go on; to the members it is an error, for their ticks were broken off."""

    def __init__(self, *members: BatchMember) -> None:
        self._members = members

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        broken = error if isinstance(error, Exception) else RollforceError(
            f"the stream was broken off in the middle of a tick ({type(error).__name__}): begin or resume another."
        )  # fmt: skip
        for member in self._members:
            member.fail(broken)
        return broken is error
