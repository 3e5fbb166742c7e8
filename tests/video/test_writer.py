"""A video grows on disk, survives being killed, keeps its colours, and has the same bytes each time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from frames import read_frames

from rollforce.errors import ConfigError, ShapeError
from rollforce.video.images import read_clip
from rollforce.video.writer import VideoCodec, VideoWriter, default_scale

COLOURS = np.array([[220, 40, 40], [250, 160, 30], [240, 230, 60], [50, 180, 70], [40, 80, 220], [140, 60, 190],
                    [255, 255, 255], [0, 0, 0]], np.uint8)


def bars(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Colour bars that move one pixel per frame, uint8 [F, H, W, 3]."""
    row = np.repeat(COLOURS, width // len(COLOURS), axis=0)
    return np.stack([np.broadcast_to(np.roll(row, i, axis=0), (height, width, 3)) for i in range(count)])


def write(path: Path, frames: np.ndarray, scale: int = 1, fps: float = 12, codec: VideoCodec | None = None) -> bytes:
    with VideoWriter(path, fps, (frames.shape[1], frames.shape[2]), scale=scale, codec=codec) as video:
        for i in range(0, len(frames), 5):
            video.write(frames[i : i + 5])
    return path.read_bytes()


@pytest.mark.parametrize("codec", [VideoCodec(), VideoCodec(name="mpeg4"), VideoCodec(enlarge="pixels")])
@pytest.mark.parametrize("scale", [1, 3, 4])
def test_frames_come_back(tmp_path: Path, scale: int, codec: VideoCodec) -> None:
    frames = bars(17)
    write(tmp_path / "a.mp4", frames, scale, codec=codec)
    back = read_frames(tmp_path / "a.mp4")
    assert back.shape == (17, 48 * scale, 64 * scale, 3)
    middle = back[0, back.shape[1] // 2, 4 * scale :: 8 * scale].astype(int)
    assert np.abs(middle - COLOURS).max() <= 8


def test_time_is_kept(tmp_path: Path) -> None:
    for fps in (12, 24000 / 1001):
        write(tmp_path / "a.mp4", bars(24), fps=fps)
        with av.open(str(tmp_path / "a.mp4")) as container:
            times = [frame.time for frame in container.decode(video=0)]
        np.testing.assert_allclose(times, np.arange(24) / fps, atol=1e-3)


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    first = write(tmp_path / "a.mp4", frames, 2)
    assert write(tmp_path / "b.mp4", frames, 2) == first
    with VideoWriter(tmp_path / "c.mp4", 12, (48, 64), scale=2) as video:
        video.write(frames)  # another chunking
    assert (tmp_path / "c.mp4").read_bytes() == first


def test_a_growing_file_can_be_watched(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 12, (48, 64)) as video:
        for written in (12, 24, 36):
            video.write(bars(12))
            assert len(read_frames(tmp_path / "a.mp4")) >= written - 6


def test_a_killed_process_leaves_a_playable_file(tmp_path: Path) -> None:
    script = f"""
import os, signal, numpy as np
from rollforce.video.writer import VideoWriter
video = VideoWriter({str(tmp_path / "a.mp4")!r}, 12, (48, 64))
for i in range(4):
    video.write(np.full((12, 48, 64, 3), 40 * i, np.uint8))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    back = read_frames(tmp_path / "a.mp4")
    assert 42 <= len(back) <= 48
    assert abs(int(back[41].mean()) - 120) <= 3


@pytest.mark.parametrize("bytes_behind", [4, 60, 127, 200])
def test_a_truncated_file_gives_its_whole_frames(tmp_path: Path, bytes_behind: int) -> None:
    """Also one that is cut within the head of a fragment, which FFmpeg refuses to open."""
    content = write(tmp_path / "a.mp4", bars(48))
    fragments = [found.start() - 4 for found in re.finditer(b"moof", content)]
    (tmp_path / "b.mp4").write_bytes(content[: fragments[4] + bytes_behind])
    assert len(list(read_clip(tmp_path / "b.mp4", 12))) == 24
    with VideoWriter(tmp_path / "b.mp4", 12, (48, 64), after=20) as video:
        video.write(bars(48)[20:])
    assert len(read_frames(tmp_path / "b.mp4")) == 48


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_key_frames_come_when_they_are_due_and_only_then(tmp_path: Path, name: str) -> None:
    """A scene cut, as x264 sees one in a flat picture that brightens, would end a fragment early."""
    flat = np.repeat(np.minimum(255, 3 * np.arange(90)).astype(np.uint8), 48 * 64 * 3).reshape(90, 48, 64, 3)
    flat[45:] = 255 - flat[45:]  # and a real one
    write(tmp_path / name, flat)
    with av.open(str(tmp_path / name)) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.size and packet.is_keyframe]
    assert keys == list(range(0, 90, 6))


@pytest.mark.parametrize("codec", [VideoCodec(), VideoCodec(name="mpeg4")])
@pytest.mark.parametrize("cut", [1, 6, 7, 30, 40])
def test_a_video_goes_on_behind_any_frame(tmp_path: Path, codec: VideoCodec, cut: int) -> None:
    path, frames = tmp_path / "a.mp4", bars(40)
    write(path, frames, 2, codec=codec)
    before = read_frames(path)
    with VideoWriter(path, 12, (48, 64), scale=2, codec=codec, after=cut) as video:
        assert (video.frames, video.safe) == (cut, 0) and (read_frames(path) == before).all(), "nothing is lost yet"
        for start in range(cut, 40, 9):
            video.write(frames[start : start + 9])
            assert len(read_frames(path)) >= cut, "the new file is in its place as soon as it has as much"
            assert video.safe >= cut
    after = read_frames(path)
    assert len(after) == 40 and (after[:cut] == before[:cut]).all()
    assert cut == 40 or np.abs(after[cut:].astype(int) - before[cut:]).max() < 40
    with av.open(str(path)) as container:
        assert [float(frame.pts * frame.time_base * 12) for frame in container.decode(video=0)] == list(range(40))
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_goes_on_behind_what_a_cut_left(tmp_path: Path) -> None:
    content = write(tmp_path / "a.mp4", bars(48))
    (tmp_path / "a.mp4").write_bytes(content[: len(content) * 2 // 3])
    whole = len(list(read_clip(tmp_path / "a.mp4", 12)))
    with pytest.raises(ConfigError, match=f"has {whole} frames, and 48 are needed"):
        VideoWriter(tmp_path / "a.mp4", 12, (48, 64), after=48)
    with VideoWriter(tmp_path / "a.mp4", 12, (48, 64), after=20) as video:
        video.write(bars(48)[20:])
    assert len(read_frames(tmp_path / "a.mp4")) == 48


def test_what_is_safe_is_in_the_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 12, (48, 64)) as video:
        for start in range(0, 30, 5):
            video.write(bars(30)[start : start + 5])
            assert video.frames - 6 <= video.safe
            assert not video.safe or len(read_frames(tmp_path / "a.mp4")) >= video.safe
    assert video.safe == 30


def test_wrong_frames_and_sizes_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 12, (48, 64)) as video:
        with pytest.raises(ShapeError, match=r"uint8 \[F, 48, 64, 3\], got uint8 \[3, 64, 48, 3\]"):
            video.write(np.zeros((3, 64, 48, 3), np.uint8))
        with pytest.raises(ShapeError, match="float32"):
            video.write(np.zeros((3, 48, 64, 3), np.float32))
    with pytest.raises(ShapeError, match=r"63x45: H\.264 needs even sides"):
        VideoWriter(tmp_path / "b.mp4", 12, (45, 63))
    with pytest.raises(ConfigError, match="scale"):
        VideoWriter(tmp_path / "b.mp4", 12, (48, 64), scale=0)
    with pytest.raises(ConfigError, match="quality 99"):
        VideoCodec(quality=99)
    assert not (tmp_path / "b.mp4").exists()


def test_small_pictures_are_enlarged_for_viewing() -> None:
    assert [default_scale(size) for size in [(64, 64), (48, 96), (256, 300), (480, 832), (255, 999)]] == [4, 6, 1, 1, 2]
