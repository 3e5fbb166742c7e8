"""Law 13: the same seed gives the same bytes, however the stream is asked for; and what users do wrong."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from small_model import FOR_ANY_MODEL

import rollforce
from rollforce.errors import CheckpointError, ConfigError, SessionClosed, ShapeError, SnapshotError
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.streaming.snapshot import Snapshot

PROMPT = "a red ball bounces over green hills"


def render(model: Model, seconds: float, prompt: str = PROMPT, seed: int = 3) -> np.ndarray:
    return np.stack(list(rollforce.stream(prompt, seconds, model=model, seed=seed)))


@pytest.mark.parametrize("preset", FOR_ANY_MODEL)
def test_same_seed_same_bytes(folder, preset):
    model = load(folder, stream=preset)
    short, long = render(model, 2.5), render(model, 5)
    assert short.shape == (30, 32, 48, 3) and short.dtype == np.uint8
    assert np.array_equal(short, long[:30])  # the length asked for changes nothing
    with model.session("the blue star", seed=9) as other, model.session(PROMPT, seed=3) as session:
        beside = []
        for chunk, _ in zip(session.stream(5), other.stream(), strict=False):
            beside.append(chunk.frames)
    assert np.array_equal(np.concatenate(beside), long)  # nor does another stream of the same model
    assert not np.array_equal(render(model, 2.5, seed=4), short)
    assert not np.array_equal(render(model, 2.5, prompt="the blue star"), short)


def test_chunks_carry_their_place(small):
    with small.session(PROMPT) as session:
        chunks = list(session.stream(2.5))
    assert [len(chunk.frames) for chunk in chunks] == [12, 12, 6]
    assert [chunk.pts for chunk in chunks] == [0, 1, 2] and [chunk.index for chunk in chunks] == [0, 1, 2]
    assert all(chunk.prompt == PROMPT and chunk.timings.denoise_s > 0 for chunk in chunks)


def test_pulling_in_pieces_is_pulling_at_once(small):
    with small.session(PROMPT, seed=3) as session:
        pieces = [chunk.frames for seconds in (0.5, 1.25, 0.75, 1) for chunk in session.stream(seconds)]
    assert np.array_equal(np.concatenate(pieces), render(small, 3.5))


@pytest.mark.parametrize("preset", FOR_ANY_MODEL)
@pytest.mark.parametrize("at", [0.5, *(pytest.param(at, marks=pytest.mark.slow) for at in (0, 3))])
def test_a_snapshot_resumes_to_the_same_bytes(folder, tmp_path, preset, at):
    model = load(folder, stream=preset)
    with model.session(PROMPT, seed=3) as session:
        if at:
            list(session.stream(at))
        session.snapshot().save(tmp_path / "stream.safetensors")
        rest = np.concatenate([chunk.frames for chunk in session.stream(3)])  # taking one changes nothing
    expected = render(model, at + 3)[round(at * 12) :]
    assert np.array_equal(rest, expected)
    with model.resume(Snapshot.load(tmp_path / "stream.safetensors")) as again:
        assert np.array_equal(np.concatenate([chunk.frames for chunk in again.stream(3)]), expected)


def test_a_snapshot_resumes_in_a_new_process(folder, tmp_path):
    model = load(folder)
    with model.session(PROMPT, seed=3) as session:
        list(session.stream(1.5))
        session.snapshot().save(tmp_path / "stream.safetensors")
    code = (
        "import sys, numpy, rollforce\n"
        "folder, path, out = sys.argv[1:]\n"
        "session = rollforce.load(folder).resume(rollforce.Snapshot.load(path))\n"
        "numpy.save(out, numpy.concatenate([chunk.frames for chunk in session.stream(3)]))"
    )
    out = tmp_path / "rest.npy"
    subprocess.run([sys.executable, "-c", code, folder, tmp_path / "stream.safetensors", out], check=True)
    assert np.array_equal(np.load(out), render(model, 4.5)[18:])


def test_a_snapshot_belongs_to_its_model(small, folder, tmp_path):
    with small.session(PROMPT) as session:
        snapshot = session.snapshot()
    with pytest.raises(SnapshotError, match=r"other settings \(stream.cache\)"):
        load(folder, overrides=["cache.0.latents=5"]).resume(snapshot)
    other = Snapshot("0" * 64, snapshot.settings, snapshot.prompt, snapshot.seed, snapshot.size, snapshot.state)
    with pytest.raises(SnapshotError, match="other weights"):
        small.resume(other)
    (tmp_path / "none").write_bytes(b"no snapshot")
    with pytest.raises(SnapshotError, match="not a snapshot"):
        Snapshot.load(tmp_path / "none")


def test_settings_that_came_later_do_not_part_a_snapshot_from_its_model(small):
    with small.session(PROMPT) as session:
        snapshot = session.snapshot()
    stream = dict(snapshot.settings["stream"])
    del stream["float32_islands"]  # as if it had been added, with its default, after the snapshot was written
    small.check_snapshot(replace(snapshot, settings={**snapshot.settings, "stream": stream}))
    with pytest.raises(SnapshotError, match="does not know: stream.novelty"):
        small.check_snapshot(replace(snapshot, settings={**snapshot.settings, "stream": {**stream, "novelty": 1}}))


def test_a_snapshot_of_an_older_version_says_what_to_do(small, tmp_path):
    with small.session(PROMPT) as session:
        session.snapshot().save(tmp_path / "new")
    tensors = load_file(tmp_path / "new")
    save_file(tensors, tmp_path / "old", metadata={"rollforce": json.dumps({"version": 4, "settings": "a repr"})})
    with pytest.raises(SnapshotError, match="version 4.*Continue it with the rollforce that wrote it"):
        Snapshot.load(tmp_path / "old")


def test_what_a_cancelled_astream_computed_keeps_its_events_and_timings(small):
    """Frames that wait in a snapshot are handed out with what was said of them."""

    began = threading.Event()

    async def cancelled(session: rollforce.Session) -> None:
        step = session.state.steering.step
        session.state.steering.step = lambda *given: began.set() or step(*given)
        task = asyncio.ensure_future(anext(session.astream()))
        assert await asyncio.to_thread(began.wait, 60)  # what was not begun is not computed
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    with small.session(PROMPT) as session:
        session.prompt("a blue star")
        asyncio.run(cancelled(session))
        saved = session.snapshot()
        chunk = next(session.stream())
    with small.resume(saved) as again:
        other = next(again.stream())
    assert {event.kind for event in chunk.events} == {"applied", "visible"}
    assert (other.events, other.timings) == (chunk.events, chunk.timings) and np.array_equal(other.frames, chunk.frames)


def test_closing_and_dropping_free_the_stream(small):
    session = small.session(PROMPT)
    next(session.stream())
    memory = weakref.ref(session.state)
    session.close()
    session.close()
    gc.collect()
    assert memory() is None
    for use in (session.snapshot, session.stream):
        with pytest.raises(SessionClosed, match="This session is closed"):
            use()
    frames = rollforce.stream(PROMPT, model=small)
    next(frames)
    before = sum(isinstance(thing, rollforce.Session) and not thing.closed for thing in gc.get_objects())
    del frames
    gc.collect()
    after = sum(isinstance(thing, rollforce.Session) and not thing.closed for thing in gc.get_objects())
    assert after == before - 1


def test_any_size_and_both_orientations(small):
    for height, width in ((16, 16), (48, 32), (32, 80)):
        with small.session(PROMPT, size=(height, width)) as session:
            assert next(session.stream()).frames.shape == (12, height, width, 3)


@pytest.mark.parametrize(("wrong", "error", "words"), [
    ({"prompt": ""}, ConfigError, "empty"),
    ({"prompt": "a koi pond"}, ConfigError, "koi"),
    ({"size": (30, 32)}, ShapeError, None),
    ({"size": (8, 32)}, ShapeError, None),
])  # fmt: skip
def test_what_a_session_refuses(small, wrong, error, words):
    with pytest.raises(error, match=words):
        small.session(**({"prompt": PROMPT} | wrong))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_seconds_must_be_positive(small, seconds):
    with small.session(PROMPT) as session, pytest.raises(ConfigError, match="seconds must be above 0"):
        session.stream(seconds)


@pytest.mark.parametrize(("wrong", "error", "words"), [
    ({"model": "huge"}, ConfigError, "Bundled: "),
    ({"stream": "spiral"}, ConfigError, "Presets: .*rolling"),
    ({"stream": "none.yaml"}, ConfigError, "no stream file"),
    ({"device": "abacus"}, ConfigError, "abacus"),
    ({"dtype": "int3"}, ConfigError, "float32"),
    ({"overrides": ["layout.chnk=2"]}, ConfigError, "layout.chnk.*chunk"),
    ({"overrides": ["stepping.denoise.budget=8"]}, ConfigError, "use at least 12"),
    ({"overrides": ["layout.levels=[1,2]"]}, ConfigError, "levels|ladder"),
])  # fmt: skip
def test_what_load_refuses(folder, wrong, error, words):
    arguments = {"model": folder} | wrong
    with pytest.raises(error, match=words):
        load(arguments.pop("model"), **arguments)


def test_nothing_is_shown_of_numbers_that_are_none(folder):
    model = load(folder)
    model.transformer.proj_out.bias.fill_(float("nan"))
    with model.session(PROMPT) as session, pytest.raises(ConfigError, match="1 of the weights .* first proj_out.bias"):
        next(session.stream())


@pytest.mark.parametrize(("dtype", "words"), [("float32", "in float32 and from weights that are: .* settings"),
                                              ("float16", "float16 does not hold .* Use --dtype float32")])
def test_numbers_that_are_none_of_sound_weights(folder, dtype, words):
    model = load(folder, dtype=dtype)
    model.transformer.proj_out.weight.fill_(3e38 if dtype == "float32" else 6e4)
    with model.session(PROMPT) as session, pytest.raises(ConfigError, match=words):
        next(session.stream())


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.yaml"):
        load(tmp_path)


@pytest.mark.parametrize("ahead", [False, True])
def test_threads_share_a_session_chunk_by_chunk(small, ahead):
    with small.session(PROMPT) as alone:
        expected = np.concatenate([chunk.frames for chunk in alone.stream(4)])
    with small.session(PROMPT, ahead=ahead) as session, ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda _: list(session.stream(1)), range(4))
        chunks = sorted((chunk for part in parts for chunk in part), key=lambda chunk: chunk.index)
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_model_that_was_loaded_before_a_fork_streams_in_the_child(folder):
    program = f"""
import os, faulthandler, rollforce
model = rollforce.load({str(folder)!r})
before = model.session({PROMPT!r}, ahead=True)
next(before.stream())
child = os.fork()
if child:
    raise SystemExit(os.waitpid(child, 0)[1])
faulthandler.dump_traceback_later(60, exit=True)
model.session({PROMPT!r}, ahead=True).fork()
try:
    next(before.stream())
except rollforce.SessionClosed as error:
    os._exit(0 if len(list(model.session({PROMPT!r}).stream(1))) and "forked" in str(error) else 1)
os._exit(2)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=120).returncode == 0


def test_a_seed_is_drawn_where_none_is_given(small):
    with small.session(PROMPT, seed=None) as one, small.session(PROMPT, seed=None) as other:
        assert one.seed != other.seed
    with pytest.raises(ConfigError, match="seed must be from 0"):
        small.session(PROMPT, seed=1.0)
