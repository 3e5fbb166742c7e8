"""Streams that tick together make the bytes they make alone; who goes first; who leaves; what goes wrong."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from policies import LAYOUTS, SIGHTS, TIERS, latents, start
from small_model import FOR_ANY_MODEL, make_model_folder
from tiny_transformer import TINY, tiny_transformer

from rollforce.cache.head_groups import HeadGroups
from rollforce.cache.policies import Sink, Window
from rollforce.config import build, resource
from rollforce.engine.batched_call import group_key, run_together
from rollforce.engine.rollout import ModelCall, Rollout
from rollforce.engine.settings import StreamSettings
from rollforce.engine.transitions import Keep
from rollforce.errors import ConfigError, RollforceError, SessionClosed
from rollforce.evaluation.process import resident_mb
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.transformer.transformer import Condition
from rollforce.streaming import batch as batch_module
from rollforce.streaming.batch import Batch
from rollforce.streaming.events import Cue
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.streaming.session import Session
from rollforce.streaming.stream_state import ChunkResult

PROMPTS = ("a red ball bounces over green hills", "the blue star", "a green ball", "the red star bounces")
PRESETS = ("chunkwise", "rolling", "streamdit", "tempcache", "kivi4", "self_forcing")  # streamdit: partitioned


def preset(model: Model, name: str) -> Model:
    """The same weights, streaming otherwise."""
    return replace(model, stream_settings=build(StreamSettings, resource(f"configs/stream/{name}.yaml")))


def frames(session: Session, seconds: float) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in session.stream(seconds)])


def lone(model: Model, number: int, seconds: float, **more) -> np.ndarray:
    with model.session(PROMPTS[number % 4], seed=number, **more) as session:
        return frames(session, seconds)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[ModelCall]]:
    """What was asked for in each joint call."""
    made: list[list[ModelCall]] = []

    def watched(asks, model):
        made.append(list(asks))
        return run_together(asks, model)

    monkeypatch.setattr(batch_module, "run_together", watched)
    return made


# -- one call for several streams: the law ---------------------------------------------------------------------------


def company(model) -> list[Rollout]:
    """A stream of every memory, each with a layout, a sight, a seed and a start of its own."""
    layouts, sights = [LAYOUTS[name] for name in LAYOUTS if name != "bidirectional"], list(SIGHTS.values())
    streams = [
        start(model, layouts[n % len(layouts)], tiers, sights[n % len(sights)], seeds=n, start=7 * n)
        for n, tiers in enumerate(TIERS.values())
    ]
    grouped = start(model, LAYOUTS["chunkwise"], (), SIGHTS["all realigned"], seeds=20)
    grouped.cache = HeadGroups({"far": (Sink(1), Window(4)), "near": (Window(1),)}, (("near", "far"),) * 2,
                               grouped.cache.shape, grouped.layout.slots)  # fmt: skip
    streams.append(grouped)
    streams[1].phase = 0.5  # a second shot
    return streams


@torch.no_grad()
def ticked_together(model, streams: list[Rollout], ticks: int) -> list[torch.Tensor]:
    """What each committed, every tick of all being one call."""
    done: list[list[torch.Tensor]] = [[] for _ in streams]
    for _ in range(ticks):
        asks = [stream.next_call() for stream in streams]
        assert len({group_key(ask) for ask in asks}) == 1
        for stream, velocity, mine in zip(streams, run_together(asks, model), done, strict=True):
            stream.apply(velocity)
            commit = stream.commit()
            mine += [] if commit is None else [commit.latents_BTCHW]
    return [torch.cat(each, dim=1) for each in done]


def test_a_call_for_many_gives_each_what_it_gets_alone(model):
    together = ticked_together(model, company(model), 24)
    for n, (stream, ours) in enumerate(zip(company(model), together, strict=True)):
        assert ours.shape[1] >= 8 and torch.equal(ours, latents(stream, ours.shape[1])), n


def test_a_call_for_many_keeps_prompts_and_images_apart():
    """Cross-attention of an image-to-video model: each stream its own text and its own image."""
    config = replace(TINY, image_dim=12, added_kv_proj_dim=TINY.width)
    model, generator = tiny_transformer(config=config), torch.Generator().manual_seed(5)

    def streams() -> Iterator[Rollout]:
        generator.manual_seed(5)
        for _ in range(3):
            text, image = torch.randn(1, 5, 8, generator=generator), torch.randn(1, 3, 12, generator=generator)
            given: Condition = model.condition(text, image)
            stream = start(tiny_transformer(), LAYOUTS["chunkwise"], (Window(4),), SIGHTS["buckets"], seeds=0)
            stream.model, stream.condition = model, given
            yield stream

    together = ticked_together(model, list(streams()), 12)
    assert not torch.equal(together[0], together[1])
    for stream, ours in zip(streams(), together, strict=True):
        assert torch.equal(ours, latents(stream, ours.shape[1]))


def test_other_sizes_and_lengths_are_other_calls(model):
    one, other = (start(model, LAYOUTS["chunkwise"], (), SIGHTS["euler"]) for _ in range(2))
    first, second = one.next_call(), other.next_call()
    assert group_key(first) == group_key(replace(second, index_T=second.index_T + 5))
    assert group_key(first) != group_key(replace(second, x_BTCHW=second.x_BTCHW[..., :2]))
    shorter = tuple(tuple(block.latents(0, 4, 1) for block in given) for given in second.condition.layers)
    assert group_key(first) != group_key(replace(second, condition=Condition(shorter)))


# -- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("presets", [PRESETS, pytest.param(FOR_ANY_MODEL, marks=pytest.mark.slow)], ids=["some", "all"])
def test_streams_of_a_batch_make_the_bytes_they_make_alone(folder, calls, presets):
    small = load(folder)
    models = [preset(small, name) for name in presets]
    for model in models:
        small.transformer.learn(model.stream_settings.tiers)
    batch = small.batch(limit=len(models))
    cues = [Cue(1.5, PROMPTS[3]), Cue(2.5, PROMPTS[2], seed=9)]
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(model.session(PROMPTS[n % 4], seed=n, cues=cues[: n % 3], batch=batch))
            for n, model in enumerate(models)
        ]
        together = [[] for _ in models]
        for chunks in zip(*(session.stream(5) for session in sessions), strict=True):
            for mine, chunk in zip(together, chunks, strict=True):
                mine.append(chunk.frames)
    assert max(map(len, calls)) == len(models)
    for n, (model, mine) in enumerate(zip(models, together, strict=True)):
        assert np.array_equal(np.concatenate(mine), lone(model, n, 5, cues=cues[: n % 3])), presets[n]


def test_joining_leaving_and_other_sizes(small, calls):
    batch = small.batch()
    first, second = (small.session(PROMPTS[n], seed=n, batch=batch) for n in range(2))
    head = frames(first, 1.5)
    big = small.session(PROMPTS[2], seed=2, size=(48, 32), batch=batch)
    streams = [each.stream() for each in (first, second, big)]
    pulled = [[next(stream).frames for stream in streams] for _ in range(3)]
    second.close()
    assert batch.streams == 2
    with pytest.raises(SessionClosed):
        next(streams[1])
    rest = [next(streams[0]).frames, next(streams[0]).frames]
    mine = np.concatenate([head, *(row[0] for row in pulled), *rest])
    assert np.array_equal(mine, lone(small, 0, 6))
    assert np.array_equal(np.concatenate([row[1] for row in pulled]), lone(small, 1, 3))
    assert np.array_equal(np.concatenate([row[2] for row in pulled]), lone(small, 2, 3, size=(48, 32)))
    assert all(len({group_key(ask) for ask in asks}) == 1 for asks in calls)


def test_fork_rewind_snapshot_and_resume_in_a_batch(small):
    """All of them come to a session that others have ticked into the middle of a chunk."""
    batch, model = small.batch(limit=3), preset(small, "chunkwise")
    with model.session(PROMPTS[0], seed=0, remember=3, batch=batch) as session, \
            model.session(PROMPTS[1], seed=1, batch=batch) as other:  # fmt: skip
        head, beside = frames(session, 2), other.stream()
        session.stream()  # from here on it takes part
        next(beside)
        session.prompt(PROMPTS[2], "keep", at=4)
        saved, twin = session.snapshot(), session.fork()
        assert twin.options.batch is batch and batch.streams == 3
        rest = frames(session, 4)
        next(beside)
        assert np.array_equal(frames(twin, 4), rest)
        with model.resume(saved, batch=batch) as again:
            assert np.array_equal(frames(again, 4), rest)
        session.rewind(2)
        assert np.array_equal(frames(session, 2), rest[-24:])
        twin.close()
    expected = lone(model, 0, 6, cues=[Cue(4, PROMPTS[2], Keep())])
    assert np.array_equal(np.concatenate([head, rest]), expected)


def test_a_batch_is_of_one_model(small, tmp_path):
    other = load(make_model_folder(tmp_path, seed=1))
    with pytest.raises(ConfigError, match="batch of their own"):
        other.session(PROMPTS[0], batch=small.batch())
    with pytest.raises(ConfigError, match="Use 1 lane"):
        replace(small, running=RuntimeOptions(offload=("blocks",))).batch(lanes=2)
    with pytest.raises(ConfigError, match="limit must be a whole number of at least 1, got 0"):
        small.batch(limit=0)


# -- who goes first, and who waits -----------------------------------------------------------------------------------


def who(calls: list[list[ModelCall]], sessions: list[Session]) -> list[tuple[int, ...]]:
    """In each call, the numbers of the sessions that took part."""
    caches = [id(session.state.rollout.cache) for session in sessions]
    return [tuple(sorted(caches.index(id(ask.cache)) for ask in asks)) for asks in calls]


def test_whose_frames_run_out_first_goes_first(small, calls):
    now = [0.0]
    model = preset(small, "chunkwise")  # 12 frames, a second, of 4 ticks
    batch = Batch(model, limit=1, clock=lambda: now[0])
    sessions = [model.session(PROMPTS[n], seed=n, batch=batch) for n in range(3)]
    streams = [session.stream() for session in sessions]
    now[0] = 10.0
    next(streams[2])  # nobody has frames: they come in turn, 0 and 1 first
    assert who(calls, sessions) == [(0,)] * 4 + [(1,)] * 4 + [(2,)] * 4
    del calls[:]
    now[0] = 10.5
    next(streams[1])
    now[0] = 10.75
    next(streams[0])
    assert not calls  # both had one ready
    next(streams[0])  # 2 shows its frames until 11, 1 until 11.5, 0 until 11.75
    assert who(calls, sessions) == [(2,)] * 4 + [(1,)] * 4 + [(0,)] * 4


def test_limit_is_of_streams_in_a_call(small, calls):
    batch = small.batch(limit=2)
    sessions = [small.session(PROMPTS[n], seed=n, batch=batch) for n in range(3)]
    pulled = [list(rows) for rows in zip(*(session.stream(3) for session in sessions), strict=True)]
    assert {len(asks) for asks in calls} == {1, 2}
    for n in range(3):
        assert np.array_equal(np.concatenate([row[n].frames for row in pulled]), lone(small, n, 3))


def test_lanes_share_the_streams(small):
    batch = small.batch(limit=8, lanes=2)
    sessions = [small.session(PROMPTS[n % 4], seed=n, batch=batch) for n in range(5)]
    for session in sessions:
        session.stream()
    rounds = []

    def driven(members):
        rounds.append([member.number for member in members])
        if len(rounds) == 1:  # while it is under way, another thread begins one
            other = threading.Thread(target=lambda: next(sessions[4].stream()))
            other.start()
            other.join(20)
        tick(members)

    tick, batch.tick = batch.tick, driven
    next(sessions[0].stream())
    assert rounds[:2] == [[0, 1, 2], [3, 4]]
    batch.tick = tick
    assert np.array_equal(frames(sessions[3], 2), lone(small, 3, 2))


def test_a_stream_that_nobody_pulls_does_not_grow(small, calls):
    batch = small.batch()
    idle, busy = (small.session(PROMPTS[n], seed=n, batch=batch) for n in range(2))
    next(idle.stream())
    frames(busy, 6)
    assert idle.state.commits == 2  # the one that was handed out, and one ahead
    never = small.session(PROMPTS[2], batch=batch)
    alone = Batch(small, ahead=False)
    one, other = (small.session(PROMPTS[n], seed=n, batch=alone) for n in range(2))
    other.stream()
    frames(busy, 1), frames(one, 2)
    assert never.state.commits == other.state.commits == 0
    assert np.array_equal(frames(idle, 3), lone(small, 0, 4)[12:])


@pytest.mark.parametrize("lanes", [1, 2])
def test_several_threads_share_calls(small, calls, lanes):
    batch, done = small.batch(lanes=lanes), {}
    sessions = [small.session(PROMPTS[n % 4], seed=n, batch=batch) for n in range(5)]
    threads = [threading.Thread(target=lambda n=n: done.update({n: frames(sessions[n], 4)})) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(map(len, calls)) > 1
    for n in range(5):
        assert np.array_equal(done[n], lone(small, n, 4))


# -- what goes wrong -------------------------------------------------------------------------------------------------


class Broken(Exception):
    """Somebody else's mistake."""


def test_an_error_ends_one_stream_only(small):
    batch = small.batch()
    sessions = [small.session(PROMPTS[n], seed=n, batch=batch) for n in range(4)]
    _, steps, decoder, source = sessions

    def wrong(*_):
        raise Broken

    steps.state.steering.step = wrong
    decoder._frames.decoder.decode = wrong
    source.state.rollout.source = wrong
    streams = [session.stream(2) for session in sessions]
    first = next(streams[0]).frames  # nobody's mistake is this one's
    for stream in streams[1:]:
        with pytest.raises(Broken):
            next(stream)
    assert np.array_equal(np.concatenate([first, next(streams[0]).frames]), lone(small, 0, 2))
    del steps.state.steering.step
    assert np.array_equal(frames(steps, 2), lone(small, 1, 2))  # it was said once; the stream stands where it stood


def test_an_error_of_the_call_is_everybodys(small, monkeypatch):
    batch = small.batch()
    sessions = [small.session(PROMPTS[n], seed=n, batch=batch) for n in range(3)]
    streams = [session.stream() for session in sessions[:2]]

    def wrong(asks, model):
        raise torch.cuda.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(batch_module, "run_together", wrong)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            next(streams[0])
    with pytest.raises(torch.cuda.OutOfMemoryError):
        next(streams[1])
    assert np.array_equal(frames(sessions[2], 2), lone(small, 2, 2))

    def interrupted(asks, model):
        raise KeyboardInterrupt

    streams = [small.session(PROMPTS[n], seed=n, batch=batch).stream() for n in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(batch_module, "run_together", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(streams[0])
    with pytest.raises(RollforceError, match="broken off"):
        next(streams[1])


def test_closing_while_another_thread_pulls(small):
    session = small.session(PROMPTS[0], batch=small.batch())
    step, stream = session.state.steering.step, session.stream()
    closing = threading.Thread(target=session.close)
    session.state.steering.step = lambda *place: (closing.start(), step(*place))[1]
    with pytest.raises(SessionClosed):
        count_frames_two = [next(stream), next(stream)]
        assert not count_frames_two  # the round that was under way may have been the last of its chunk
    closing.join(20)
    assert not closing.is_alive()


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_stream_cannot_wait_for_a_neighbour_in_its_own_chunk(small, lanes):
    batch = small.batch(lanes=lanes)
    one, other = (small.session(PROMPTS[n], batch=batch) for n in range(2))
    step = one.state.steering.step
    one.state.steering.step = lambda *place: (next(other.stream()), step(*place))[1]
    with pytest.raises(ConfigError, match="in the middle of its own chunk"):
        next(one.stream())


# -- coming and going ------------------------------------------------------------------------------------------------


def alive() -> int:
    """Bytes of all tensors there are."""
    gc.collect()
    return sum(thing.nbytes for thing in gc.get_objects() if type(thing) is torch.Tensor)


def test_a_thousand_sessions_leave_nothing(small):
    """Half of them are dropped, in the middle of a chunk."""
    model = preset(small, "chunkwise")
    batch = model.batch(limit=4)
    kept = model.session(PROMPTS[0], batch=batch)
    chunks = kept.stream()
    size, held = (16, 16), []
    for n in range(1000):
        session = model.session(PROMPTS[n % 4], seed=n, size=size if n % 50 else None, batch=batch)
        session.stream()
        if n % 25 == 0:
            next(chunks)
        elif n % 2 == 0:
            with batch.changed:
                batch.drive(batch.choose())  # as far as one tick
            assert session.driver.stepping
        if n % 2:
            session.close()
        if n % 200 == 199:
            del session
            assert batch.streams == 1
            held.append((alive(), resident_mb()))
    tensors, resident = zip(*held[1:], strict=True)
    assert max(tensors) == min(tensors) and resident[-1] - resident[0] < 30


def test_what_is_dropped_is_gone_at_once(small):
    """Nobody has to look for cycles first."""
    batch = small.batch(limit=1)
    kept, dropped = (small.session(PROMPTS[n], seed=n, batch=batch) for n in range(2))
    pulled, memory = dropped.stream(), weakref.ref(dropped.state.rollout)
    next(kept.stream())
    gc.collect()
    gc.disable()
    try:
        with batch.changed:
            batch.drive(batch.choose())
        assert dropped.driver.stepping
        del dropped, pulled
        assert batch.streams == 1 and memory() is None
    finally:
        gc.enable()


# -- async -----------------------------------------------------------------------------------------------------------


async def gathered(session: Session, seconds: float) -> np.ndarray:
    return np.concatenate([chunk.frames async for chunk in session.astream(seconds)])


@pytest.mark.parametrize("lanes", [1, 2])
def test_tasks_share_calls(small, calls, lanes):
    async def both(sessions: list[Session]) -> list[np.ndarray]:
        return await asyncio.gather(*(gathered(session, 3) for session in sessions))

    batch = small.batch(lanes=lanes)
    done = asyncio.run(both([small.session(PROMPTS[n], seed=n, batch=batch) for n in range(2)]))
    assert lanes > 1 or any(len(asks) == 2 for asks in calls)
    done += asyncio.run(both([small.session(PROMPTS[n], seed=n) for n in range(2)]))
    for n, mine in enumerate(done):
        assert np.array_equal(mine, lone(small, n % 2, 3))


@pytest.mark.parametrize("together", [False, True])
def test_cancelling_and_leaving_drop_nothing(small, together):
    session = small.session(PROMPTS[0], seed=0, batch=small.batch() if together else None)
    started, seen = threading.Event(), []
    step = session.state.steering.step
    session.state.steering.step = lambda *place: (started.set(), step(*place))[1]

    async def watch() -> None:
        async for chunk in session.astream():
            seen.append(chunk.frames)

    async def main() -> None:
        task = asyncio.create_task(watch())
        await asyncio.to_thread(started.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for chunk in session.astream():
            seen.append(chunk.frames)
            if len(seen) >= 3:
                break
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await watch()

    asyncio.run(main())
    seen.append(frames(session, 1))
    whole = np.concatenate(seen)
    assert np.array_equal(whole, lone(small, 0, 12)[: len(whole)])


def test_what_a_task_is_told(small):
    session = small.session(PROMPTS[0], batch=small.batch())

    def wrong(*_) -> ChunkResult:
        raise Broken

    session.state.steering.step = wrong
    with pytest.raises(Broken):
        asyncio.run(gathered(session, 1))
    session.close()
    with pytest.raises(SessionClosed):
        asyncio.run(gathered(session, 1))
