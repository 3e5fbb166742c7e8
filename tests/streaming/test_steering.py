"""A stream that is told otherwise while it runs: to the chunk, and to the same bytes whenever it is told so again."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from repository import ROOT

from rollforce.engine.transitions import NAMES, Blend, Flush, transition
from rollforce.errors import ConfigError, SnapshotError
from rollforce.streaming.events import Cue, Event
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.streaming.session import Session
from rollforce.streaming.snapshot import Snapshot, fork

PROMPT, OTHER, THIRD = "a red ball bounces", "the blue star", "a green ball"
STREAMS = ("chunkwise", "rolling", "streamdit", "anchor_forcing", "tempcache", "kivi4", "hybrid_forcing")


def frames(session: Session, seconds: float) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in session.stream(seconds)])


def told(session: Session, seconds: float) -> list[Event]:
    return [event for chunk in session.stream(seconds) for event in chunk.events]


def possible(model: Model) -> list[str]:
    kinds = {tier.kind for tier in model.stream_settings.tiers}
    missing = {"anchors": "junction", "shot": "sink"}
    return [name for name in NAMES if missing.get(name) is None or missing[name] in kinds]


@pytest.mark.parametrize("stream", STREAMS)
def test_its_cues_make_the_same_bytes_again(folder, stream):
    model = load(folder, stream=stream)
    with model.session(PROMPT, seed=3) as session:
        video = [frames(session, 2)]
        for name, prompt in zip(possible(model), (OTHER, THIRD, PROMPT) * 3, strict=False):
            session.prompt(prompt, name)
            video.append(frames(session, 2.5))
        cues, prompt = session.cues, session.prompt
    assert len(cues) == len(possible(model)) and callable(prompt)
    whole = np.concatenate(video)
    for ahead in (False, True):
        with model.session(PROMPT, seed=3, cues=cues, ahead=ahead) as again:
            assert np.array_equal(frames(again, len(whole) / 12), whole)


@pytest.mark.parametrize("stream", STREAMS)
def test_saved_forked_and_rewound_in_the_middle_of_it_all(folder, stream, tmp_path):
    model = load(folder, stream=stream)
    with model.session(PROMPT, seed=3, remember=3) as session:
        frames(session, 3.5)
        session.prompt(OTHER, Blend(3))
        session.prompt(THIRD, "flush", at=6)
        frames(session, 1)  # half way from one to the other, half a chunk not yet asked for, a cue waiting
        session.snapshot().save(tmp_path / "stream")
        twin, stray = session.fork(), session.fork(seed=4)
        rest = frames(session, 4)
        strays = frames(stray, 4)
        assert np.array_equal(frames(twin, 4), rest)
        assert not np.array_equal(strays, rest) and np.array_equal(strays[:6], rest[:6])  # those were there already
        assert np.array_equal(frames(model.resume(Snapshot.load(tmp_path / "stream")), 4), rest)
        start = session.rewind(3).seconds
        assert start == 5.0  # 5.5 lies in a chunk
        assert np.array_equal(frames(session, 3.5), rest[6:])  # it still knows what waited then
        assert twin.cues == session.cues


@pytest.mark.parametrize(("stream", "flying"), [("chunkwise", 0), ("rolling", 3), ("streamdit", 3)])
def test_events_say_when_to_the_chunk(folder, stream, flying):
    model = load(folder, stream=stream)
    flying = model.stream_settings.layout.build().slots // model.stream_settings.layout.build().shift - 1
    for name, delay in (("keep", flying), ("recache", 0), ("flush", 0), ("cut", 0), (Blend(3), 2 + flying)):
        with model.session(PROMPT) as session:
            frames(session, 2)
            accepted = session.prompt(OTHER, name)
            assert accepted.kind == "accepted" and accepted.cue.at == 2.0
            first = next(session.stream(1))
            assert first.prompt == OTHER and [event.kind for event in first.events][:1] == ["applied"]
            applied, visible = [*first.events, *told(session, 8)]
            assert (applied.kind, applied.chunk, applied.frame) == ("applied", 2, 24)
            assert (visible.kind, visible.chunk, visible.frame) == ("visible", 2 + delay, 24 + 12 * delay)


def test_what_is_visible_never_saw_the_old_prompt(folder):
    """After a cut a stream of another beginning is the same, to the first frame; what is kept in flight is not."""
    model, videos = load(folder, stream="rolling"), {}
    for name in ("keep", "cut"):
        for prompt in (PROMPT, THIRD):
            with model.session(prompt, seed=5) as session:
                frames(session, 3)
                session.prompt(OTHER, name)
                chunk = next(session.stream())
                assert [event.kind for event in chunk.events] == ["applied"] + ["visible"] * (name == "cut")
                videos[name, prompt] = chunk.frames
    assert np.array_equal(videos["cut", PROMPT], videos["cut", THIRD])
    assert not np.array_equal(videos["keep", PROMPT], videos["keep", THIRD])


def test_a_time_is_the_first_chunk_that_begins_then(small):
    with small.session(PROMPT, cues=[Cue(1.5, OTHER), Cue(4.0, THIRD)]) as session:
        chunks = list(session.stream(6))
    assert [chunk.prompt for chunk in chunks] == [PROMPT, PROMPT, OTHER, OTHER, THIRD, THIRD]


def test_of_two_prompts_for_one_chunk_the_later_holds(small):
    with small.session(PROMPT) as session, small.session(PROMPT) as other:
        for each in (session, other):
            frames(each, 1)
        session.prompt(OTHER)
        session.prompt(THIRD)
        other.prompt(THIRD)
        chunk = next(session.stream())
        assert [(event.kind, event.cue.prompt) for event in chunk.events] == [
            ("replaced", OTHER), ("applied", THIRD), ("visible", THIRD)]  # fmt: skip
        assert np.array_equal(chunk.frames, next(other.stream()).frames)
        assert session.cues == other.cues


def test_a_blend_arrives(small):
    """Half way its text is half of each; at the end it is the new one."""
    with small.session(PROMPT) as session:
        steering = session.state.steering
        start = steering.text_BLD
        session.prompt(OTHER, Blend(2))
        frames(session, 1)
        goal = small.text.encode([OTHER])
        assert np.allclose(steering.text_BLD, (start + goal) / 2, atol=1e-6)
        frames(session, 1)
        assert np.array_equal(steering.text_BLD, goal)


def test_another_seed_is_another_video_from_the_next_chunk_on(small):
    with small.session(PROMPT, seed=1, remember=2) as session:
        first, rest = frames(session, 2), frames(session, 2)
        other = frames(session.rewind(2, seed=2), 2)
        assert not np.array_equal(other, rest) and session.seed == 2
        assert session.cues == (Cue(2.0, seed=2),)
    with small.session(PROMPT, seed=1, cues=[Cue(2.0, seed=2)]) as again:
        assert np.array_equal(frames(again, 4), np.concatenate([first, other]))


def test_to_go_back_costs_what_is_remembered(small):
    with small.session(PROMPT, remember=2) as session:
        frames(session, 20)
        assert len(session.history.points) <= 4
        with pytest.raises(ConfigError, match=r"remembers \(2 s\)"):
            session.rewind(5)
        with pytest.raises(ConfigError, match="above 0"):
            session.rewind(0)
    with small.session(PROMPT) as session, pytest.raises(ConfigError, match="remember=1"):
        frames(session, 2)
        session.rewind(1)


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether its bytes are copied only once somebody writes: torch says so in one private place alone."""
    return torch._C._is_cow_tensor(tensor)


def test_a_fork_costs_nothing_until_it_differs(small):
    """Tensors are shared: the bytes of the arena are the same until one of the two writes."""
    with small.session(PROMPT) as session:
        frames(session, 4)
        twin = session.fork()
        mine, other = (each.state.rollout.cache.arena.keys[0] for each in (session, twin))
        assert is_shared(mine) and is_shared(other)
        before = other.clone()
        frames(session, 2)
        assert torch.equal(other, before) and not is_shared(session.state.rollout.cache.arena.keys[0])
        twin.close()


@pytest.mark.parametrize(("wrong", "words"), [
    (lambda session: session.prompt("a koi pond"), None),
    (lambda session: session.prompt(""), None),
    (lambda session: session.prompt(OTHER, "melt"), None),
    (lambda session: session.prompt(OTHER, "anchors"), None),
    (lambda session: session.prompt(OTHER, at=-1), "0 or more"),
    (lambda session: session.prompt(OTHER, Flush(-1)), None),
    (lambda session: session.model.session(PROMPT, cues=[Cue(1, "a koi pond")]), None),
])  # fmt: skip
def test_what_cannot_be_is_said_at_once(small, wrong, words):
    with small.session(PROMPT) as session:
        expected = frames(small.session(PROMPT), 2)
        with pytest.raises(ConfigError, match=words):
            wrong(session)
        assert np.array_equal(frames(session, 2), expected)  # and the stream goes on as if nothing had been said


def test_a_stream_that_follows_a_video_can_only_be_talked_to(small):
    clip = np.zeros((48, 32, 48, 3), dtype=np.uint8)
    with small.session(PROMPT, follow=clip) as session:
        session.prompt(OTHER, "keep")
        with pytest.raises(ConfigError):
            session.prompt(OTHER)
        for back in (session.fork, lambda: session.rewind(1)):
            with pytest.raises(SnapshotError):
                back()


def test_transitions_have_names():
    assert [transition(name).kind for name in NAMES] == list(NAMES)


def test_what_was_resumed_from_a_file_can_be_forked(small, tmp_path):
    with small.session(PROMPT) as session:
        frames(session, 3.5)
        session.snapshot().save(tmp_path / "stream")
        with small.resume(Snapshot.load(tmp_path / "stream"), remember=2) as again, again.fork() as twin:
            rest = frames(session, 3)
            assert np.array_equal(frames(again, 3), rest) and np.array_equal(frames(twin, 3), rest)
            assert is_shared(again.fork().state.rollout.cache.arena.keys[0])
            assert 2 <= again.remembered <= 3


def test_memory_of_others_is_copied():
    mine = np.zeros(4, dtype=np.float32)
    twin = fork({"x": torch.from_numpy(mine)})["x"]
    mine[:] = 1
    assert torch.equal(twin, torch.zeros(4))


def test_what_was_never_seen_is_not_said_to_be(folder):
    model = load(folder, stream="rolling")
    with model.session(PROMPT) as session:  # the second prompt comes before the first has landed
        frames(session, 2)
        session.prompt(OTHER, "keep")
        frames(session, 1)
        session.prompt(THIRD, "keep")
        seen = [(event.cue.prompt, event.chunk) for event in told(session, 8) if event.kind == "visible"]
        assert seen == [(THIRD, 6)]
    with model.session(PROMPT) as session:  # another seed throws away what is in flight: nothing is left of the old one
        frames(session, 2)
        session.prompt(OTHER, "keep")
        frames(session, 1)
        session.state.steering.add(Cue(0, seed=8), now=True)
        seen = [(event.cue.prompt, event.chunk) for event in told(session, 8) if event.kind == "visible"]
        assert seen == [(OTHER, 3), (None, 3)]


@pytest.mark.slow
def test_hours_of_it_are_flat():
    """Two hours of video, steered at random (infer/soak.py): memory and time at the end as before."""
    command = [sys.executable, "infer/soak.py", "--hours", "2"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
