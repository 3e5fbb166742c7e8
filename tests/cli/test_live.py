"""rollforce live: a stream that is told otherwise while it plays, and that nothing typed can end."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from frames import read_frames
from small_model import make_model_folder
from typer.testing import CliRunner

from rollforce.cli import player as player_module
from rollforce.cli.live import play
from rollforce.cli.main import app
from rollforce.cli.player import Player
from rollforce.cli.record import Request, read_record
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.video.writer import default_scale

PROMPT, OTHER = "a red ball bounces over green hills", "a blue star drifts right"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("small"), world=True)


@pytest.fixture(scope="module")
def small(folder: Path) -> Model:
    return load(folder)


class Played:
    """A stream that was played with these lines typed, as fast as it goes."""

    def __init__(self, model: Model, out: Path, lines: list[str], seconds: float) -> None:
        self.said: list[str] = []
        request = Request(PROMPT, 3, size=model.size, scale=default_scale(model.size), model=model.name,
                          threads=model.threads)  # fmt: skip
        player = Player(model, request, out, self.said.append, seconds=seconds)
        inbox: SimpleQueue[str] = SimpleQueue()
        for line in lines:
            inbox.put(line)
        play(player, inbox, None, False)
        self.summary = list(player.summary())
        player.close()
        self.frames = read_frames(out)

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.said)


class Reel:
    """A video that nothing is lost in."""

    kept: dict[Path, np.ndarray] = {}  # noqa: RUF012

    def __init__(self, path: Path, fps: float, size: tuple[int, int], *, scale: int = 1, after: int = 0) -> None:
        self.path, self.fps, self.scale = path, fps, scale
        self.shown = self.kept[path][:after] if after else np.empty((0, *size, 3), np.uint8)

    @property
    def frames(self) -> int:
        return len(self.shown)

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    def write(self, frames: np.ndarray) -> None:
        self.shown = np.concatenate([self.shown, frames])

    def close(self) -> None:
        self.kept[self.path] = self.shown


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> dict[Path, np.ndarray]:
    """Videos are kept here as they are."""
    monkeypatch.setattr(player_module, "VideoWriter", Reel)
    monkeypatch.setattr(sys.modules[__name__], "read_frames", lambda path: Reel.kept[path])
    monkeypatch.setattr(Reel, "kept", {})
    return Reel.kept


def test_a_line_is_a_prompt_and_the_command_at_the_end_makes_the_same_bytes(small, folder, tmp_path):
    out = tmp_path / "live.mp4"
    played = Played(small, out, [":wait 1", OTHER, ":wait 1", f":flush {PROMPT}"], 4)
    assert played.frames.shape == (48, 256, 384, 3)
    assert played.heard(f"accepted: {OTHER!r} by recache") and played.heard(f"accepted: {PROMPT!r} by flush")
    assert played.heard(f"visible: {OTHER!r} from") and played.heard("after it was typed")
    assert any("4 s in" in line for line in played.summary) and any("real time" in line for line in played.summary)
    command = next(line for line in played.summary if line.startswith("or ")).removeprefix("or").strip()
    words = [str(tmp_path / "again.mp4") if word == "again.mp4" else word for word in shlex.split(command)]
    words = [str(folder) if word == "small" else word for word in words]
    assert words[:2] == ["rollforce", "render"] and words.count("--at") == 2
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "again.mp4").read_bytes() == out.read_bytes()


def test_going_back_leaves_the_video_of_what_is_left(small, tmp_path, exact):
    lines = [":wait 1", OTHER, ":wait 3", ":back 2", f":cut {OTHER}", ":wait 2", ":again 1"]
    played = Played(small, tmp_path / "live.mp4", lines, 7)
    assert played.heard("back at") and played.heard("seed 4 from here")
    assert not any(line.startswith("or ") for line in played.summary)  # a seed has no --at
    request = read_record(tmp_path / "live.json").request
    assert request.seconds == 7 and [cue.transition.kind for cue in request.cues if cue.prompt] == ["recache", "cut"]
    with small.session(request.prompt, request.seed, cues=request.cues) as session:
        assert np.array_equal(np.concatenate([chunk.frames for chunk in session.stream(7)]), played.frames)


def test_a_kept_stream_is_gone_on_from(small, tmp_path, exact):
    kept = tmp_path / "kept"
    lines = [":wait 1", f":save {kept}", f":cut {OTHER}", ":wait 2", f":load {kept}"]
    played = Played(small, tmp_path / "live.mp4", lines, 5)
    assert played.heard("kept") and played.heard("goes on from") and any("no command" in s for s in played.summary)
    with small.session(PROMPT, 3) as session:
        plain = np.concatenate([chunk.frames for chunk in session.stream(5)])
    at = next(12 * int(line.split(" at ")[1].split()[0]) for line in played.said if line.startswith("goes on"))
    assert at >= 12 and np.array_equal(played.frames[-12:], plain[at : at + 24][-12:])
    assert not np.array_equal(played.frames[24:36], plain[24:36])
    assert not (tmp_path / "live.json").exists()


def test_what_is_wrong_is_said_and_it_goes_on(small, tmp_path):
    lines = ["a purple elephant", ":nonsense", ":back 30", ":back soon", ":load none", ":shot a blue star", "",
             ":words", ":help"]  # fmt: skip
    played = Played(small, tmp_path / "live.mp4", lines, 1)
    assert len(played.frames) == 12
    for words in ("elephant", ":nonsense is none", "remembers", "soon", "not a snapshot", "sink", "star", ":quit"):
        assert played.heard(words), words
    assert Played(small, tmp_path / "other.mp4", [":wait 1", ":quit"], 60).frames.shape[0] == 12


def test_from_a_pipe_and_ended_by_ctrl_c(folder, tmp_path):
    command = [sys.executable, "-m", "rollforce", "live", PROMPT, "--model", str(folder), "-o", "live.mp4"]
    run: Any = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run([*command, "--seconds", "2"], input=f"{OTHER}\n", **run, timeout=100)
    assert done.returncode == 0 and "accepted" in done.stdout, done.stderr
    assert len(read_frames(tmp_path / "live.mp4")) == 24 and "rollforce render" in done.stdout
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # as a shell starts what is in its background
    with subprocess.Popen([*ignoring, *command, "--seconds", "1000h"], stdin=subprocess.PIPE, **run) as endless:
        until = time.monotonic() + 60
        while time.monotonic() < until and (not (tmp_path / "live-2.mp4").exists()  # the first one is not replaced
                                            or (tmp_path / "live-2.mp4").stat().st_size < 50_000):  # fmt: skip
            time.sleep(0.1)
        endless.send_signal(signal.SIGINT)
        try:
            out, errors = endless.communicate(timeout=60)
        finally:
            endless.kill()
    assert endless.returncode == 0 and not errors and "again" in out
    assert len(read_frames(tmp_path / "live-2.mp4")) >= 12
    assert read_record(tmp_path / "live-2.json").request.prompt == PROMPT


GARBAGE = ["save", "load", "back", "again", "wait", "words", "help", "keep", "blend", "cut", "flush", "shot", "anchors",
           "recache", "", "quit!", "SAVE", "é", "\x1b[2J"]
WORDS = ["", " ", "/x/y", ".", "..", "/", "inf", "-inf", "nan", "1e400", "-1", "0", "3", "1:30", "1s", "live.mp4",
         "kept", "a\0b", "x" * 300, "\ud800", "雪", "two stars", "a cat", "/dev/null", "/dev/zero", "~", "%s", "{}",
         "'", '"', "!!!", "a red ball a red ball", "a" * 5000, "9" * 400, "left right", "none/kept"]  # fmt: skip


def test_nothing_that_is_typed_ends_it(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(17)
    lines = [f"{rng.choice((':', ':', '::', ''))}{rng.choice(GARBAGE)} {rng.choice(WORDS)}" for _ in range(300)]
    lines = [line for line in lines if not line.startswith(":wait 1:30")]  # it would read no more
    fixed = [":save live.mp4", ":wait 1", ":save", ":save /x/y", ":again inf", ":load /dev/zero", ":wait inf"]
    played = Played(small, Path("live.mp4"), [*fixed, *lines, ":wait 1"], 2)
    assert played.frames.shape[0] >= 24 and played.said
    for words in ("name a file", "no folder /x", "live.mp4 belongs to this video", "'inf'"):
        assert played.heard(words), words
    assert {path.name for path in tmp_path.iterdir()} >= {"live.mp4"}


def test_a_stream_of_another_size_is_not_gone_on_from(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with small.session(PROMPT, size=(32, 32)) as session:
        next(session.stream())
        session.snapshot().save("other")
    Path("damaged").write_bytes(Path("other").read_bytes()[:2000])
    played = Played(small, Path("live.mp4"), [":wait 1", ":load other", ":load damaged", ":save other"], 2)
    assert played.heard("other has pictures of 32x32, and this video 48x32")
    assert played.heard("damaged is not a snapshot") and played.heard("kept other") and len(played.frames) == 24
    assert not list(tmp_path.glob("*.part"))


def test_a_short_prompt_is_completed_said_and_recorded(small, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = "an orange star rolls left and a yellow star circles over green hills by day"
    played = Played(small, Path("live.mp4"), [":wait 1", "two stars"], 3)
    assert played.heard(f"accepted: 'two stars' by recache, shown as '{shown}'")
    assert read_record(Path("live.json")).request.wording == {"two stars": shown}
    for words in (["a ball", "-s", "1s"], ["a ball", "--enhance-model", "x"], ["a", "b"], ["a ball", "-s", "0"]):
        result = CliRunner().invoke(app, ["live", *words, "--model", str(folder), "-o", "other.mp4", "--json"])
        if words[1:] == ["-s", "1s"]:
            assert result.exit_code == 0 and json.loads(result.stdout)["request"]["seconds"] == 1
        else:
            assert result.exit_code == 2 and "Traceback" not in result.output
