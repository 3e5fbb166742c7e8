"""A video without end, in files that each play."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frames import read_frames
from small_model import make_model_folder
from typer.testing import CliRunner

from rollforce.cli import run
from rollforce.cli.main import app
from rollforce.cli.record import Request, is_complete, read_record, record_path, segments_of
from rollforce.cli.render import find_unfinished, render
from rollforce.errors import ConfigError
from rollforce.streaming.load import load
from rollforce.streaming.model import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_model_folder(tmp_path_factory.mktemp("models") / "small", world=True))


REQUEST = Request("a red ball", seed=3, seconds=math.inf, scale=1, segment=1.25)  # 15 frames of 12 a second


def after(chunks: int) -> Callable[[], bool]:
    asked = iter(range(1000))
    return lambda: next(asked) + 1 >= chunks


def frames_of(video: Path) -> list[int]:
    return [len(read_frames(path)) for path in segments_of(video)]


def test_an_endless_stream_fills_file_after_file(model: Model, tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    result = render(model, REQUEST, video, stopping=after(4))
    assert result.interrupted and (result.frames, result.segments, result.video_sha256) == (48, 4, None)
    assert [path.name for path in segments_of(video)] == [f"a-000{number}.mp4" for number in range(4)]
    assert frames_of(video) == [15, 15, 15, 3]
    told = json.loads(record_path(video).read_text(), parse_constant=pytest.fail)  # JSON has no Infinity
    assert told["video"] == "a-%04d.mp4" and told["request"]["seconds"] == "inf"
    assert read_record(record_path(video)).request.seconds == math.inf
    one = render(model, replace(REQUEST, seconds=4, segment=None), tmp_path / "one.mp4")
    assert one.frames_sha256 == result.frames_sha256
    together = np.concatenate([read_frames(path) for path in segments_of(video)])
    assert abs(together.astype(int) - read_frames(tmp_path / "one.mp4")).mean() < 3


def test_it_goes_on_where_it_was_stopped(model: Model, tmp_path: Path) -> None:
    video, request = tmp_path / "a.mp4", replace(REQUEST, seconds=6)
    render(model, request, video, stopping=after(2))
    (tmp_path / "a-0002.mp4").write_bytes(b"of a process that was killed")
    assert not is_complete(video)
    result = render(model, request, video, go_on=find_unfinished(model, request, video))
    assert (result.frames, result.segments, result.continued_at) == (72, 5, (24,))
    assert frames_of(video) == [15, 15, 15, 15, 12] and is_complete(video)
    whole = render(model, request, tmp_path / "b.mp4")
    assert result.frames_sha256 == whole.frames_sha256
    (tmp_path / "a-0003.mp4").unlink()
    assert not is_complete(video)


def test_a_file_in_the_way_is_not_replaced(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a-0001.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"a-0001\.mp4 exists, and this render did not make it"):
        render(model, REQUEST, tmp_path / "a.mp4", stopping=after(4))
    assert (tmp_path / "a-0001.mp4").read_bytes() == b"mine"


def test_webm_is_written_in_several_files_and_gone_on_with(model: Model, tmp_path: Path) -> None:
    video, request = tmp_path / "a.webm", replace(REQUEST, seconds=4)
    render(model, request, video, stopping=after(2))
    result = render(model, request, video, go_on=find_unfinished(model, request, video))
    assert [path.name for path in segments_of(video)] == [f"a-000{number}.webm" for number in range(4)]
    assert frames_of(video) == [15, 15, 15, 3] and is_complete(video)
    mp4 = render(model, request, tmp_path / "a.mp4")
    assert result.frames_sha256 == mp4.frames_sha256


def test_on_the_command_line(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_model_folder(tmp_path / "small", world=True)
    endless = ["render", "a red ball", "-s", "inf", "--segment", "1s", "--scale", "1", "-o", "a.mp4", "--model=small"]

    def stop_behind(files: int) -> None:
        asked = property(lambda stop: len(segments_of(Path("a.mp4"))) >= files, lambda stop, value: None)
        monkeypatch.setattr(run.Stop, "asked", asked, raising=False)

    stop_behind(3)
    first = CliRunner().invoke(app, endless, env={"COLUMNS": "200"})
    assert first.exit_code == 130 and "endless (Ctrl-C ends it) video of 'a red ball' · seed " in first.output
    assert "a-0000.mp4 to a-0002.mp4 plays" in first.output and "render --resume a.mp4" in first.output
    stop_behind(4)
    again = CliRunner().invoke(app, ["render", "--resume", "a-0001.mp4"], env={"COLUMNS": "200"})
    assert again.exit_code == 130 and "of which 3 s are there" in again.output
    assert json.loads(Path("a.json").read_text())["result"]["segments"] == 4
    assert not list(tmp_path.glob(".*"))
