"""What a name's ending makes of a video: each kind checked before it is begun, written, gone on with, or refused."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rollforce.errors import ConfigError, ShapeError
from rollforce.video.images import read_clip
from rollforce.video.outputs import (
    STDOUT,
    beside,
    can_resume,
    check_output,
    digest_output,
    find_video,
    open_output,
    parse_output,
)

KINDS = ("a.mp4", "a.webm", "a.gif", "a")


def shades(count: int) -> np.ndarray:
    """Pictures that get brighter, uint8 [F, 32, 48, 3]."""
    return np.repeat(np.arange(0, 5 * count, 5, dtype=np.uint8), 32 * 48 * 3).reshape(count, 32, 48, 3)


def levels(path: Path) -> np.ndarray:
    return np.array([picture.mean() for picture in read_clip(path, 12)])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_written_and_read_back(tmp_path: Path, name: str) -> None:
    with open_output(tmp_path / name, 12, (32, 48), scale=2) as video:
        for start in range(0, 30, 7):
            video.write(shades(30)[start : start + 7])
            assert video.frames - 7 < video.safe <= video.frames
        assert video.seconds == 30 / 12
        with pytest.raises(ShapeError, match=r"frames must be uint8 \[F, 32, 48, 3\]"):
            video.write(np.zeros((1, 32, 32, 3), np.uint8))
    assert video.safe == 30
    assert np.abs(levels(tmp_path / name) - np.arange(0, 150, 5)).max() <= 4
    assert next(read_clip(tmp_path / name, 12)).shape == (64, 96, 3)
    video.close()  # again


@pytest.mark.parametrize("name", KINDS)
def test_the_same_frames_give_the_same_digest(tmp_path: Path, name: str) -> None:
    digests = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        with open_output(tmp_path / folder / name, 12, (32, 48)) as video:
            video.write(shades(13))
        digests.append(digest_output(tmp_path / folder / name))
    assert digests[0] == digests[1] and len(digests[0]) == 64


@pytest.mark.parametrize("after", [1, 6, 11, 30])
@pytest.mark.parametrize("name", ["a.webm", "a"])
def test_what_can_be_resumed_is_gone_on_with(tmp_path: Path, name: str, after: int) -> None:
    path = tmp_path / name
    with open_output(path, 12, (32, 48)) as video:
        video.write(shades(30))
    with open_output(path, 12, (32, 48), after=after) as video:
        video.write(shades(30)[after:])
    assert np.abs(levels(path) - np.arange(0, 150, 5)).max() <= 4
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with pytest.raises(ConfigError, match="it is not the (file|folder) that was being made"):
        open_output(path, 12, (32, 48), after=31)


def test_a_growing_webm_can_be_watched(tmp_path: Path) -> None:
    with open_output(tmp_path / "a.webm", 12, (32, 48)) as video:
        for _ in range(5):
            video.write(shades(12))
            assert len(levels(tmp_path / "a.webm")) >= video.safe >= video.frames - 6


def test_a_gif_is_not_gone_on_with(tmp_path: Path) -> None:
    assert not can_resume(tmp_path / "a.gif") and not can_resume(STDOUT) and can_resume(tmp_path / "a.webm")
    with pytest.raises(ConfigError, match="a GIF is made in one go. Make it again with --overwrite"):
        open_output(tmp_path / "a.gif", 12, (32, 48), after=3)


def test_a_gif_keeps_time_and_repeats(tmp_path: Path) -> None:
    from PIL import Image

    with open_output(tmp_path / "a.gif", 12, (32, 48)) as video:
        video.write(shades(24))
    with Image.open(tmp_path / "a.gif") as image:
        durations = [image.seek(n) or image.info["duration"] for n in range(image.n_frames)]
        assert image.info["loop"] == 0
    assert sum(durations) == 2000 and set(durations) == {80, 90}
    with pytest.raises(ConfigError, match="at most 50 pictures a second, not 60"):
        open_output(tmp_path / "b.gif", 60, (32, 48))


@pytest.mark.parametrize("fps", [12, 15, 16, 24, 30])
def test_a_gif_read_at_its_own_rate_has_each_picture_once(tmp_path: Path, fps: int) -> None:
    with open_output(tmp_path / "a.gif", fps, (32, 48)) as video:
        video.write(shades(40))
    found = [round(float(picture.mean()) / 5) for picture in read_clip(tmp_path / "a.gif", fps)]
    assert found == list(range(40))


def test_a_folder_is_replaced_wholly_and_only_if_it_is_ours(tmp_path: Path) -> None:
    for count in (5, 3):
        with open_output(tmp_path / "a", 12, (32, 48)) as video:
            video.write(shades(count))
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [f"frame-{n:06d}.png" for n in range(3)]
    check_output(tmp_path / "a", overwrite=True)
    with pytest.raises(ConfigError, match="holds frames; use --overwrite"):
        check_output(tmp_path / "a")
    (tmp_path / "a" / "holiday.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds other files, such as holiday\.png"):
        check_output(tmp_path / "a", overwrite=True)


def test_mp4_goes_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdout:
        buffer = BytesIO()

    monkeypatch.setattr(sys, "stdout", Stdout())
    with open_output(STDOUT, 12, (32, 48)) as video:
        video.write(shades(12))
        whole = len(Stdout.buffer.getvalue())
    monkeypatch.undo()
    assert whole > 0 and digest_output(STDOUT) is None
    Stdout.buffer.seek(0)
    with av.open(Stdout.buffer) as container:
        assert len(list(container.decode(video=0))) == 12


def test_a_reader_that_went_away_is_a_broken_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdout:
        class buffer:
            @staticmethod
            def write(data: bytes) -> int:
                raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Stdout())
    with pytest.raises(BrokenPipeError), open_output(STDOUT, 12, (32, 48)) as video:
        video.write(shades(12))


def test_outputs_are_checked_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output(tmp_path / "new.mp4")
    (tmp_path / "old.mp4").write_bytes(b"")
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    check_output(tmp_path / "old.mp4", overwrite=True)
    check_output(tmp_path / "frames")
    for name, words in [("old.mp4", "exists; use --overwrite"), ("folder.mp4", "is a folder; name"),
                        ("a.mov", r"only \.mp4, \.webm, \.gif can be written.*Try .*a\.mp4 or .*a/"),
                        ("no/a.mp4", "does not exist: mkdir -p"), ("plain", "is a file; name"),
                        ("no/frames", "does not exist: mkdir -p"), ("old.mp4/a.mp4", "cannot write into"),
                        ("/proc/a.mp4", "cannot write")]:  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            check_output(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.mp4", "old.mp4", "plain"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(ConfigError, match="a terminal: pipe it on"):
        check_output(STDOUT)


@pytest.mark.parametrize("text", ["", " ", "x", ".", "/"])
def test_names_that_say_no_kind_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names no file|only .mp4"):
        parse_output(text)


def test_names_say_where_what_belongs_to_a_video_lies(tmp_path: Path) -> None:
    names: dict[str, Any] = {"a/": "a/record.json", "a.mp4": "a.json", "a.webm": "a.webm.json", "b.gif": "b.gif.json"}
    for text, record in names.items():
        video = parse_output(text)
        assert beside(video, ".json") == Path(record) and find_video(Path(record)) == video
    assert parse_output("-") == STDOUT and parse_output(str(tmp_path)) == tmp_path
    assert find_video(Path("a.json")) == Path("a.mp4") and find_video(Path("a")) == Path("a")
