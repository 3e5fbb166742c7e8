"""Batch: streams of one model that tick together.

Cooperative and pull-driven: there is no thread of its own. Whoever pulls its stream drives rounds, each one model call
for all that want to go on, until its own next commit is there; what the others got meanwhile waits for them. A stream
goes on only if it is pulled, or (`ahead`) has handed out all that is ready: a slow or paused one costs nothing.

More of them than `limit`: those whose frames run out first (earliest deadline first; Liu and Layland 1973, section 7,
are the theorem; deadlines here are soft)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import count
from math import ceil
from threading import Condition, get_ident
from time import monotonic, perf_counter
from types import TracebackType
from weakref import WeakSet

import torch
from torch import Tensor

from rollforce.engine.batched_call import group_key, run_together
from rollforce.engine.rollout import ModelCall
from rollforce.engine.threads import computing_on
from rollforce.errors import ConfigError, RollforceError, SessionClosed
from rollforce.streaming.bundle import ModelBundle
from rollforce.streaming.prefetch import ChunkResult, Stepper


class Batch:
    """Streams of one model whose model calls are made together: `model.session(prompt, batch=model.batch())`.

    May be pulled from several threads; of these, `lanes` at a time make calls, each for its share of the streams. One
    lane for a GPU, and where one thread pulls all; one for each core where a model computes with a single thread.

    Streams are held weakly: one that is dropped, closed or not, leaves. A source that is waited for (a live video)
    holds up the others of its call."""

    def __init__(
        self, model: ModelBundle, limit: int = 8, ahead: bool = True, lanes: int = 1,
        clock: Callable[[], float] = monotonic,
    ) -> None:  # fmt: skip
        """`limit` streams at most in one call; `ahead` compute the next chunk of a stream while others are pulled;
        `lanes` calls at most at a time."""
        if limit < 1 or lanes < 1:
            raise ConfigError(f"a batch with limit {limit} and {lanes} lanes: at least 1 stream in a call, and 1 lane.")
        if lanes > 1 and "blocks" in model.running.offload:
            raise ConfigError(f"{lanes} lanes and offloaded blocks: weights that come and go serve one call at a time. "
                              "Use 1 lane.")  # fmt: skip
        self.model, self.limit, self.ahead, self.lanes, self.clock = model, limit, ahead, lanes, clock
        self.changed = Condition()
        self._members: WeakSet[BatchMember] = WeakSet()
        self._numbers = count()
        self._rounds: dict[int, Sequence[BatchMember]] = {}  # under way: of each thread that drives one, who takes part

    def join(self, model: ModelBundle) -> BatchMember:
        """A place for one more stream. ConfigError if it is of another model."""
        if model.transformer is not self.model.transformer or model.threads != self.model.threads:
            raise ConfigError(f"this batch is of {self.model.name!r} as it was loaded for it: streams of another model "
                              "need a batch of their own, model.batch().")  # fmt: skip
        with self.changed:
            member = BatchMember(self, next(self._numbers))
            self._members.add(member)
        return member

    @property
    def streams(self) -> int:
        """That are in it now."""
        return len(self._members)

    @cached_property
    def worker(self) -> ThreadPoolExecutor:
        """The threads, one for each lane, that pull for those who may not wait (async)."""
        return ThreadPoolExecutor(self.lanes, thread_name_prefix="rollforce-batch")

    # -- with `changed` held ------------------------------------------------------------------------------------

    def finish(self, member: BatchMember) -> None:
        """Until a member that is on its way has arrived: drive, or wait while other threads do."""
        while member.busy:
            chosen = self._chosen()
            if chosen:
                self._drive(chosen)
            else:
                self._wait()

    def spare(self, member: BatchMember) -> None:
        """Wait until no round is under way that a member takes part in."""
        while any(member in each for each in self._rounds.values()):
            self._wait()

    def leave(self, member: BatchMember) -> None:
        """No further rounds for this one."""
        self._members.discard(member)
        self.spare(member)

    def _wait(self) -> None:
        if get_ident() in self._rounds:
            raise ConfigError("a stream cannot wait for another one of its batch in the middle of its own chunk: give "
                              "the one that is followed a session outside of it.")  # fmt: skip
        self.changed.wait()

    def _chosen(self) -> Sequence[BatchMember]:
        """Who takes part in a round that would begin now: the most urgent, and as many for each lane that is free."""
        free = self.lanes - len(self._rounds)
        if free < 1 or get_ident() in self._rounds:
            return ()
        taken = {member for each in self._rounds.values() for member in each}
        wanting = [each for each in list(self._members) if each.busy and each not in taken]
        return sorted(wanting, key=lambda each: each.urgency)[: min(self.limit, ceil(len(wanting) / free))]

    def _drive(self, members: Sequence[BatchMember]) -> None:
        """One round. Others may come and go, and take what is ready, meanwhile."""
        self._rounds[get_ident()] = members
        self.changed.release()
        try:
            self._tick(members)
        finally:
            self.changed.acquire()
            del self._rounds[get_ident()]
            self.changed.notify_all()

    # -- a round ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _tick(self, members: Sequence[BatchMember]) -> None:
        """One tick of each; calls of one kind are one call."""
        with computing_on(self.model.threads):
            calls: dict[object, list[tuple[BatchMember, ModelCall]]] = {}
            for member in members:
                if member.asking is None:
                    member.go_on(None)
                if member.asking is not None:
                    calls.setdefault(group_key(member.asking), []).append((member, member.asking))
            for together in calls.values():
                self._call([member for member, _ in together], [ask for _, ask in together])

    def _call(self, members: Sequence[BatchMember], asks: Sequence[ModelCall]) -> None:
        velocities: list[Tensor] = []
        begun = perf_counter()
        with FailureScope(*members):
            velocities = run_together(asks, self.model.transformer)
        share = (perf_counter() - begun) / sum(ask.x_BTCHW.shape[1] for ask in asks)
        for member, velocity in zip(members, velocities, strict=bool(velocities)):
            member.seconds += share * velocity.shape[1]
            member.go_on(velocity)


class BatchMember:
    """A stream's place in a batch: it goes on to the next commit, at most one ahead of what was asked for."""

    def __init__(self, batch: Batch, number: int) -> None:
        self._batch, self._number = batch, number
        self._due = batch.clock()  # when the frames that were handed out have been shown
        self._start: Callable[[], Stepper] | None = None  # it may begin to advance
        self._advancing: Stepper | None = None
        self._ready: ChunkResult | None = None
        self._failed: BaseException | None = None
        self.asking: ModelCall | None = None
        self.seconds = 0.0  # of computing, for this advance; of calls that were shared, its share by latents

    # -- of its session -----------------------------------------------------------------------------------------

    def expect(self, start: Callable[[], Stepper]) -> None:
        """It will be pulled: it may be computed along with others."""
        with self._batch.changed:
            if self._batch.ahead and not self.busy and not self._arrived:
                self._start = start

    def take(self, start: Callable[[], Stepper], go_on: bool) -> ChunkResult:
        """The next commit; with `go_on` the one after it may be begun. `start` begins to advance.

        Raises what went wrong in its own source, cues or steps, or in a call that it took part in; once."""
        batch = self._batch
        with batch.changed:
            if not self.busy and not self._arrived:
                self._start = start
            batch.finish(self)
            done = self._handed_out()
            if done.commit is not None:
                frames = done.commit.latents_BTCHW.shape[1] * batch.model.frames_per_latent
                self._due = max(self._due, batch.clock()) + frames / batch.model.fps
                self._start = start if go_on and batch.ahead else None
        return done

    def hand_over(self) -> ChunkResult | None:
        """Finish what is under way and give it out. None if nothing is."""
        with self._batch.changed:
            self._batch.spare(self)
            if self._advancing is not None:
                self._batch.finish(self)
            self._start = None
            return self._handed_out() if self._arrived else None

    def beside(self, done: ChunkResult) -> AbstractContextManager[None]:
        """See Ahead.beside: here, what is computed ahead is computed while others are pulled."""
        return nullcontext()

    def close(self) -> None:
        """Leave the batch, wherever it stands."""
        with self._batch.changed:
            self._batch.leave(self)
            self._start = self._advancing = self.asking = self._ready = None
            self._batch.changed.notify_all()

    def _handed_out(self) -> ChunkResult:
        done, failed, self._ready, self._failed = self._ready, self._failed, None, None
        if failed is not None:
            raise failed
        if done is None:
            raise SessionClosed("This session was closed, by another thread, while it was pulled.")
        return done

    # -- of its batch -------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """On its way to a commit, or about to be."""
        return self._start is not None or self._advancing is not None

    @property
    def urgency(self) -> tuple[float, int]:
        """Its deadline; of equal ones, who came first."""
        return self._due, self._number

    @property
    def _arrived(self) -> bool:
        return self._ready is not None or self._failed is not None

    def go_on(self, velocity: Tensor | None) -> None:
        """To the next call it needs, or to the end of its advance."""
        begun = perf_counter()
        with FailureScope(self):
            if self._advancing is None:
                assert self._start is not None
                self._advancing, self._start, self.seconds = self._start(), None, 0.0
            self.asking = None
            try:
                self.asking = next(self._advancing) if velocity is None else self._advancing.send(velocity)
            except StopIteration as end:
                self._ready = replace(end.value, seconds=self.seconds + perf_counter() - begun)
                self._advancing = None
        self.seconds += perf_counter() - begun

    def fail(self, error: BaseException) -> None:
        """It ends here, and will say why when it is pulled."""
        self._start = self._advancing = self.asking = None
        self._failed = error


class FailureScope:
    """What goes wrong within is these members' own: it goes no further, and each says it at its own next pull.

    An interrupt (what is no Exception) does go on; to the members it is an error, for their ticks were broken off."""

    def __init__(self, *members: BatchMember) -> None:
        self._members = members

    def __enter__(self) -> None: ...

    def __exit__(
        self, group_key: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        broken = error if isinstance(error, Exception) else RollforceError(
            f"the stream was broken off in the middle of a tick ({type(error).__name__}): begin or resume another."
        )  # fmt: skip
        for member in self._members:
            member.fail(broken)
        return broken is error
