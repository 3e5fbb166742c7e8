"""Sound comes along at its own time, from any codec, and does not keep pictures waiting."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from frames import read_frames

from rollforce.video.sound import SoundTrack, find_sound, has_sound
from rollforce.video.writer import VideoWriter

SECONDS = 4


def make(path: Path, codec: str = "aac", rate: int = 44_100, layout: str = "mono") -> Path:
    """A clip of four seconds, silent in the first and the third."""
    time = np.arange(rate * SECONDS) / rate
    tone = (0.5 * np.sin(880 * np.pi * time) * (np.floor(time) % 2)).astype(np.float32)
    samples = np.repeat(tone[None], 2 if layout == "stereo" else 1, axis=0)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libvpx-vp9" if path.suffix == ".webm" else "libx264", rate=12)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        audio: Any = container.add_stream(codec, rate=rate, layout=layout)
        for number in range(12 * SECONDS):
            picture = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 5 * number, np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        size = audio.codec_context.frame_size or 1024
        ready = av.AudioResampler(audio.codec_context.format.name, layout, rate, frame_size=size)
        for part in [*ready.resample(frame), *ready.resample(None)]:
            container.mux(audio.encode(part))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


def loud(path: Path) -> list[float]:
    """When the sound of a file gets loud and quiet again, in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        parts = [frame.to_ndarray()[0] for frame in container.decode(stream)]
        level = np.abs(np.concatenate(parts))
    blocks = level[: len(level) // 480 * 480].reshape(-1, 480).max(1) > 0.1  # hundredths of a second
    return [float(at + 1) / 100 for at in np.flatnonzero(np.diff(blocks.astype(int)))]


def write(path: Path, sound: SoundTrack, count: int = 48, after: int = 0) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (48, 32, 48, 3), dtype=np.uint8)
    with VideoWriter(path, 12, (32, 48), sound=sound, after=after) as video:
        for start in range(after, count, 5):
            video.write(frames[start : min(count, start + 5)])
            assert video.frames - 12 <= max(video.safe, after)  # till then the old file is there
            assert not video.safe or len(read_frames(path)) >= video.safe


@pytest.mark.parametrize(("name", "codec", "rate", "layout"), [
    ("a.mp4", "aac", 44_100, "mono"), ("a.mov", "pcm_s16le", 48_000, "stereo"), ("a.webm", "libopus", 48_000, "stereo"),
])  # fmt: skip
def test_sound_keeps_its_time(tmp_path: Path, name: str, codec: str, rate: int, layout: str) -> None:
    clip = make(tmp_path / name, codec, rate, layout)
    assert has_sound(clip)
    write(tmp_path / "o.mp4", SoundTrack(clip))
    assert loud(tmp_path / "o.mp4")[:3] == pytest.approx([1, 2, 3], abs=0.03)
    write(tmp_path / "p.mp4", SoundTrack(clip, start=0.5, seconds=1.0))
    assert loud(tmp_path / "p.mp4")[0] == pytest.approx(0.5, abs=0.03)
    with av.open(str(tmp_path / "p.mp4")) as container:
        lengths = [float(stream.duration * stream.time_base) for stream in container.streams]
    assert lengths == pytest.approx([4, 1], abs=0.05)


@pytest.mark.parametrize("after", [5, 20, 47])
def test_a_video_with_sound_is_gone_on_with(tmp_path: Path, after: int) -> None:
    clip, path = make(tmp_path / "a.mp4"), tmp_path / "o.mp4"
    write(path, SoundTrack(clip), count=after)
    write(path, SoundTrack(clip), after=after)
    assert len(read_frames(path)) == 48 and loud(path)[:3] == pytest.approx([1, 2, 3], abs=0.03)
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(48) / 12, atol=1e-3)


def test_sound_of_later_files_begins_later(tmp_path: Path) -> None:
    sound = SoundTrack(make(tmp_path / "a.mp4"), start=0.5, seconds=3.0)
    later = sound.behind(0.25)
    assert later is not None and sound.behind(3.0) is None
    write(tmp_path / "o.mp4", later)
    assert loud(tmp_path / "o.mp4")[0] == pytest.approx(0.25, abs=0.03)


def test_what_becomes_of_sound_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = str(make(tmp_path / "a.mp4"))
    with caplog.at_level(logging.INFO, logger="rollforce"):
        assert find_sound(clip, tmp_path / "o.mp4", 0, 1) and "its sound is carried over" in caplog.text
        assert find_sound(clip, tmp_path / "o.mp4", 0, 1, "is odd") is None and "left out, which is odd" in caplog.text
        assert find_sound(clip, tmp_path / "o.gif", 0, 1) is None and "its sound is left out" in caplog.text
        caplog.clear()
        assert find_sound(None, tmp_path / "o.mp4", 0, 1) is None and find_sound(__file__, tmp_path, 0, 1) is None
        assert not caplog.text
