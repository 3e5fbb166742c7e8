"""infer/interactive.py: a stream that is told otherwise while it plays."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from frames import read_frames
from repository import ROOT
from small_model import make_model_folder
from typer.testing import CliRunner

from rollforce.cli.main import app
from rollforce.cli.record import read_record
from rollforce.streaming.load import load
from rollforce.streaming.model import Model

PROMPT, OTHER = "a red ball bounces over green hills", "a blue star drifts right"
SCRIPT = ROOT / "infer" / "interactive.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("small"), world=True)


@pytest.fixture(scope="module")
def small(folder: Path) -> Model:
    return load(folder)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("interactive", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Played:
    """A stream that was played with these lines typed, as fast as it goes."""

    def __init__(self, program: ModuleType, model: Model, out: Path, lines: list[str], seconds: float) -> None:
        chosen = argparse.Namespace(prompt=PROMPT, seed=3, model=model.name, stream=None, out=out, back=20.0,
                                    seconds=seconds, live=False)  # fmt: skip
        self.said: list[str] = []
        player = program.Player(model, chosen, self.said.append)
        inbox: SimpleQueue[str] = SimpleQueue()
        for line in lines:
            inbox.put(line)
        program.play(player, inbox, None, False)
        player.pool.shutdown()
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
def exact(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[Path, np.ndarray]:
    """Videos are kept here as they are."""
    monkeypatch.setattr(program, "VideoWriter", Reel)
    monkeypatch.setattr(sys.modules[__name__], "read_frames", lambda path: Reel.kept[path])
    monkeypatch.setattr(Reel, "kept", {})
    return Reel.kept


def test_a_line_is_a_prompt_and_the_command_at_the_end_makes_the_same_bytes(program, small, folder, tmp_path):
    out = tmp_path / "live.mp4"
    played = Played(program, small, out, [":wait 1", OTHER, ":wait 1", f":flush {PROMPT}"], 4)
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


def test_going_back_leaves_the_video_of_what_is_left(program, small, tmp_path, exact):
    lines = [":wait 1", OTHER, ":wait 3", ":back 2", f":cut {OTHER}", ":wait 2", ":again 1"]
    played = Played(program, small, tmp_path / "live.mp4", lines, 7)
    assert played.heard("back at") and played.heard("seed 4 from here")
    assert not any(line.startswith("or ") for line in played.summary)  # a seed has no --at
    request = read_record(tmp_path / "live.json").request
    assert request.seconds == 7 and [cue.transition.kind for cue in request.cues if cue.prompt] == ["recache", "cut"]
    with small.session(request.prompt, request.seed, cues=request.cues) as session:
        assert np.array_equal(np.concatenate([chunk.frames for chunk in session.stream(7)]), played.frames)


def test_a_kept_stream_is_gone_on_from(program, small, tmp_path, exact):
    kept = tmp_path / "kept"
    lines = [":wait 1", f":save {kept}", f":cut {OTHER}", ":wait 2", f":load {kept}"]
    played = Played(program, small, tmp_path / "live.mp4", lines, 5)
    assert played.heard("kept") and played.heard("goes on from") and any("no command" in s for s in played.summary)
    with small.session(PROMPT, 3) as session:
        plain = np.concatenate([chunk.frames for chunk in session.stream(5)])
    at = next(12 * int(line.split(" at ")[1].split()[0]) for line in played.said if line.startswith("goes on"))
    assert at >= 12 and np.array_equal(played.frames[-12:], plain[at : at + 24][-12:])
    assert not np.array_equal(played.frames[24:36], plain[24:36])
    assert not (tmp_path / "live.json").exists()


def test_what_is_wrong_is_said_and_it_goes_on(program, small, tmp_path):
    lines = ["a purple elephant", ":nonsense", ":back 30", ":back soon", ":load none", ":shot a blue star", "",
             ":words", ":help"]  # fmt: skip
    played = Played(program, small, tmp_path / "live.mp4", lines, 1)
    assert len(played.frames) == 12
    for words in ("elephant", ":nonsense is none", "remembers", "soon", "not a snapshot", "sink", "star", ":quit"):
        assert played.heard(words), words
    assert Played(program, small, tmp_path / "other.mp4", [":wait 1", ":quit"], 60).frames.shape[0] == 12


def test_from_a_pipe_and_ended_by_ctrl_c(folder, tmp_path):
    command = [sys.executable, str(SCRIPT), PROMPT, "--model", str(folder), "--out", "live.mp4"]
    run: Any = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run([*command, "--seconds", "2"], input=f"{OTHER}\n", **run, timeout=100)
    assert done.returncode == 0 and "accepted" in done.stdout, done.stderr
    assert len(read_frames(tmp_path / "live.mp4")) == 24 and "rollforce render" in done.stdout
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # as a shell starts what is in its background
    with subprocess.Popen([*ignoring, *command, "--seconds", "1e6"], stdin=subprocess.PIPE, **run) as endless:
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
