"""A render that was stopped goes on, in another process, to the frames, counts and drift of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import read_frames
from small_model import make_model_folder
from typer.testing import CliRunner

from rollforce.cli.main import app
from rollforce.cli.record import Request, is_complete, record_path
from rollforce.cli.render import Progress, Result, Tally, find_unfinished, render
from rollforce.cli.resume import Keeper, read_unfinished, snapshot_path
from rollforce.engine.transitions import Blend, Flush
from rollforce.errors import ConfigError, SnapshotError
from rollforce.streaming.events import Cue
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.streaming.snapshot import Snapshot
from rollforce.video.images import read_clip
from rollforce.video.writer import VideoWriter

PROMPT = "a red ball bounces over the green hills"
CUES = (Cue(2, "a blue star", Flush()), Cue(3, "the red hills", Blend(3)), Cue(5.2, seed=9), Cue(99, "a ball"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


@pytest.fixture
def request_() -> Request:
    return Request(PROMPT, seed=3, seconds=7, scale=1, cues=CUES)


def same(one: Result, other: Result) -> bool:
    """All but times, memory, and the coded file."""
    return all(getattr(one, name) == getattr(other, name)
               for name in ("frames", "seconds", "interrupted", "drift", "frames_sha256", "events"))


def after(chunks: int) -> Callable[[], bool]:
    """Says stop when it was asked that often."""
    asked = iter(range(10**6))
    return lambda: next(asked) + 1 >= chunks


def stopped(model: Model, request: Request, path: Path, chunks: int, go_on: Snapshot | None = None) -> Result:
    return render(model, request, path, go_on=go_on, stopping=after(chunks))


def test_a_killed_process_is_continued(folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, then `--resume`: the frames of a render that nobody disturbed."""
    words = [PROMPT, "--at", "2s,flush:a blue star", "-s", "8", "--seed", "0", "--scale", "1", "--model", str(folder)]
    slowly = ("import sys, time; from rollforce.video.writer import VideoWriter; "
              "from rollforce.cli.main import main\n"
              "write = VideoWriter.write\n"
              "VideoWriter.write = lambda self, frames: (write(self, frames), time.sleep(0.4))[0]\n"
              "main(sys.argv[1:])")  # so that there is time to kill it
    killed, whole = tmp_path / "killed.mp4", tmp_path / "whole.mp4"
    process = subprocess.Popen([sys.executable, "-c", slowly, "render", *words, "-o", killed, "--save-every", "0.01"])
    deadline, saved = time.monotonic() + 120, 0
    while saved < 36 and process.poll() is None:  # snapshots come and take each other's place
        assert time.monotonic() < deadline, "nothing was saved"
        saved = frames_saved(killed) if snapshot_path(killed).exists() else 0
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    assert told(killed) is None and not is_complete(killed)
    assert len(read_frames(killed)) >= frames_saved(killed) >= 36
    assert "s are there" in run("--resume", str(killed))
    run(*words, "-o", str(whole))
    result, expected = told(killed), told(whole)
    for name in ("frames", "seconds", "frames_sha256", "drift", "events", "interrupted"):
        assert result[name] == expected[name], name
    (cut,) = result["continued_at"]
    assert cut >= 36 and not expected["continued_at"]
    frames, there = read_frames(killed), read_frames(whole)
    assert frames.shape == there.shape == (96, 32, 48, 3)
    assert (frames[:cut] == there[:cut]).all(), "what was there is copied as it was coded"
    assert abs(frames.astype(int) - there.astype(int))[cut:].mean() < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.json", "killed.mp4", "whole.json", "whole.mp4"]
    assert "is complete and kept" in run("--resume", str(killed))
    assert "the same frames as recorded" in run("--from", str(record_path(killed)), "-o", str(tmp_path / "again.mp4"))


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["render", *words])
    assert result.exit_code == 0, result.output
    return result.output


def told(video: Path) -> Any:
    """The result in a video's record."""
    return json.loads(record_path(video).read_text())["result"]


def frames_saved(video: Path) -> int:
    return int(read_unfinished(video).state["render"]["frames"])


@pytest.mark.parametrize("stops", [(1,), (3, 1), (6,)])
def test_any_number_of_stops(model: Model, request_: Request, tmp_path: Path, stops: tuple[int, ...]) -> None:
    expected = render(model, request_, tmp_path / "whole.mp4")
    assert [event.kind for event in expected.events].count("visible") == 3 and not expected.continued_at
    path, go_on, reached = tmp_path / "parts.mp4", None, []
    for chunks in stops:
        result = stopped(model, request_, path, chunks, go_on)
        assert result.interrupted and result.frames == len(read_frames(path)) and not is_complete(path)
        reached.append(result.frames)
        go_on = find_unfinished(model, request_, path)
    result = render(model, request_, path, go_on=go_on)
    assert same(result, expected) and result.continued_at == tuple(reached)
    assert len(read_frames(path)) == 84 and is_complete(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["parts.json", "parts.mp4", "whole.json", "whole.mp4"]


@pytest.mark.parametrize("given", ["image", "video"])
def test_a_stream_that_began_with_pictures(model: Model, request_: Request, tmp_path: Path, given: str) -> None:
    render(model, replace(request_, seconds=1), tmp_path / "clip.mp4")
    picture = tmp_path / "clip.mp4"
    if given == "image":
        from PIL import Image

        picture = tmp_path / "last.png"
        Image.fromarray(read_frames(tmp_path / "clip.mp4")[-1]).save(picture)
    begun = replace(request_, seconds=4, **{given: str(picture)})
    expected = render(model, begun, tmp_path / "whole.mp4")
    stopped(model, begun, tmp_path / "parts.mp4", 2)
    result = render(model, begun, tmp_path / "parts.mp4", go_on=find_unfinished(model, begun, tmp_path / "parts.mp4"))
    assert same(result, expected) and len(read_frames(tmp_path / "parts.mp4")) == expected.frames > 48


@pytest.mark.parametrize("name", ["parts.webm", "parts"])
def test_other_outputs_go_on_too(model: Model, request_: Request, tmp_path: Path, name: str) -> None:
    expected = render(model, request_, tmp_path / f"whole{Path(name).suffix}")
    path = tmp_path / name
    assert stopped(model, request_, path, 2).interrupted
    result = render(model, request_, path, go_on=find_unfinished(model, request_, path))
    assert same(result, expected) and is_complete(path) and not snapshot_path(path).exists()
    assert len(list(read_clip(path, 12))) == expected.frames
    assert name != "parts" or result.video_sha256 == expected.video_sha256


def test_a_gif_is_not_saved_for_later(model: Model, request_: Request, tmp_path: Path) -> None:
    assert stopped(model, request_, tmp_path / "a.gif", 2).frames == len(list(read_clip(tmp_path / "a.gif", 12)))
    assert not snapshot_path(tmp_path / "a.gif").exists()


def test_a_hard_stop_goes_on_from_the_snapshot_before(model: Model, request_: Request, tmp_path: Path) -> None:
    def report(progress: Progress) -> None:
        if progress.frames == 36:
            raise KeyboardInterrupt

    path = tmp_path / "a.mp4"
    result = render(model, request_, path, report, save_every=1e-3)
    assert result.interrupted and len(read_frames(path)) == 36 and frames_saved(path) < 36
    again = render(model, request_, path, go_on=find_unfinished(model, request_, path))
    assert same(again, render(model, request_, tmp_path / "whole.mp4"))


def test_an_error_leaves_what_can_be_continued(
    model: Model, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(progress: Progress) -> None:
        if progress.frames == 60:
            raise RuntimeError("out of luck")

    path = tmp_path / "a.mp4"
    with pytest.raises(RuntimeError, match="luck"):
        render(model, request_, path, report, save_every=1e-3)
    result = render(model, request_, path, go_on=find_unfinished(model, request_, path))
    assert same(result, render(model, request_, tmp_path / "whole.mp4")) and result.continued_at[0] >= 12


def test_what_is_not_the_same_is_refused(model: Model, request_: Request, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(SnapshotError, match=r"a\.resume\.safetensors is not there.*--from .*a\.json --overwrite"):
        find_unfinished(model, request_, path)
    stopped(model, request_, path, 2)
    for other in (replace(request_, seed=4), replace(request_, cues=CUES[:1]), replace(request_, scale=2)):
        with pytest.raises(SnapshotError, match="saved by a render of something else"):
            find_unfinished(model, other, path)
    with pytest.raises(SnapshotError):
        find_unfinished(load(folder, overrides=["layout.chunk=2"]), request_, path)
    with pytest.raises(SnapshotError):
        find_unfinished(load(make_model_folder(tmp_path / "other", seed=5)), request_, path)
    go_on = find_unfinished(model, request_, path)
    render(model, replace(request_, seconds=1), path, save_every=0)  # somebody puts another file there
    with pytest.raises(ConfigError):
        render(model, request_, path, go_on=go_on)
    assert len(read_frames(path)) == 12 and not list(tmp_path.glob("*.part"))


def test_what_a_snapshot_keeps_of_a_render_does_not_grow(model: Model) -> None:
    tally = Tally(Request(PROMPT, seconds=3600), model.fps)
    with model.session(PROMPT) as session:
        chunk = next(session.stream(2))
    sizes = []
    for count in range(60):
        tally.add(chunk)
        if count in (15, 59):  # the two ends that are compared are five seconds each
            sizes.append(sum(tensor.nbytes for tensor in tally.state_dict()["meter"].values()))
    assert sizes[0] == sizes[1]


def test_a_snapshot_waits_for_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    saved: list[int] = []

    def take(frames: int, cost: float = 0.0) -> Callable[[], Any]:
        def of() -> Snapshot:
            saved.append(frames)
            now[0] += cost
            return Snapshot("", "", "", 0, None, {"frames": torch.tensor(frames)})
        return of

    def there() -> int | None:
        path = snapshot_path(tmp_path / "a.mp4")
        return int(Snapshot.load(path).state["frames"]) if path.exists() else None

    with Keeper(tmp_path / "a.mp4", every_s=10) as keeper:
        keeper.update(12, 6, take(12))
        assert saved == [12] and there() is None
        keeper.update(24, 18, take(24))
        assert saved == [12] and there() == 12, "its frames are in the file"
        now[0] += 10
        keeper.update(36, 30, take(36, cost=1))
        now[0] += 40
        keeper.update(48, 42, take(48))
        assert saved == [12, 36] and there() == 36, "one that took a second comes once in fifty"
        now[0] += 10
        keeper.update(60, 54, take(60))
        assert saved == [12, 36, 60] and there() == 36
    assert there() == 60, "at the end the file is closed, and has all"
    keeper.forget()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_spoils_no_snapshot(
    model: Model, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_write = VideoWriter.write

    def write(self: VideoWriter, frames: Any) -> None:
        if self.frames >= 48:
            raise OSError(28, "No space left on device")
        true_write(self, frames)

    path = tmp_path / "a.mp4"
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(VideoWriter, "write", write)
        render(model, request_, path, save_every=1e-3)
    assert 0 < frames_saved(path) < 48 and not list(tmp_path.glob("*.part")), "the newest may lack its frames"
    again = render(model, request_, path, go_on=find_unfinished(model, request_, path))
    assert same(again, render(model, request_, tmp_path / "whole.mp4"))


def test_a_full_disk_does_not_end_the_video(
    model: Model, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Snapshot, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Snapshot, "save", full)
    result = render(model, replace(request_, seconds=3), tmp_path / "a.mp4", save_every=1e-3)
    assert not result.interrupted and result.frames == 36
    assert caplog.text.count("cannot be saved now") == caplog.text.count("there is nothing to --resume from") == 1


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("WARNING"):
        yield
