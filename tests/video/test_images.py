"""Pictures and clips as people have them: any container, any frame rate, from phones held upright."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from rollforce.errors import ConfigError
from rollforce.video.images import read_clip, read_duration, read_picture

HEIGHT, WIDTH = 48, 64


def shade(n: int) -> np.ndarray:
    """A picture whose grey level tells its number."""
    return np.full((HEIGHT, WIDTH, 3), 10 * (n % 25), np.uint8)


def make(path: Path, times_ms: list[int] | None = None, count: int = 24, codec: str = "libx264",
         pix_fmt: str = "yuv420p", rate: int = 24) -> Path:
    """A video of `shade`s at these times, or evenly."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        base = Fraction(1, 1000) if times_ms else Fraction(1, rate)
        stream.codec_context.time_base = base
        for n in range(len(times_ms) if times_ms else count):
            frame = av.VideoFrame.from_ndarray(shade(n), format="rgb24")
            frame.pts, frame.time_base = times_ms[n] if times_ms else n, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(path: Path, fps: float) -> list[int]:
    return [round(float(picture.mean()) / 10) for picture in read_clip(path, fps)]


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt"), [
    (".mp4", "libx264", "yuv420p"), (".mkv", "libx264", "yuv420p"), (".mkv", "libx264", "yuv420p10le"),
    (".webm", "libvpx-vp9", "yuva420p"), (".mov", "prores_ks", "yuva444p10le"),
])  # fmt: skip
def test_every_container_is_brought_to_a_frame_rate(tmp_path: Path, suffix: str, codec: str, pix_fmt: str) -> None:
    """Also where times are whole milliseconds, with alpha and with ten bits."""
    path = make(tmp_path / f"a{suffix}", codec=codec, pix_fmt=pix_fmt)
    assert numbers(path, 24) == list(range(24))
    assert numbers(path, 12) == list(range(0, 24, 2))
    assert numbers(path, 48) == [n for n in range(24) for _ in range(2)]
    assert read_duration(path) == pytest.approx(1, abs=0.05)


def test_a_picture_stands_until_the_next_however_long_that_takes(tmp_path: Path) -> None:
    """Once the gap before a picture was filled with that picture itself."""
    path = make(tmp_path / "a.mkv", [0, 500, 1000, 1040, 1080, 2000])
    assert numbers(path, 4) == [0, 0, 1, 1, 2, 4, 4, 4, 5]


def test_a_phone_s_video_is_upright(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", count=3)
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 4 + 4 + 20 + 16  # behind version, times, ids and layers
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = quarter
    path.write_bytes(content)
    assert next(read_clip(path, 24)).shape == (WIDTH, HEIGHT, 3)


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    picture, exif = np.zeros((HEIGHT, WIDTH, 3), np.uint8), Image.Exif()
    picture[:, : WIDTH // 2] = 255  # its left half
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
    upright = read_picture(tmp_path / "a.jpg")
    assert upright.shape == (WIDTH, HEIGHT, 3)
    assert upright[: WIDTH // 2].min() > 240 and upright[WIDTH // 2 + 8 :].max() < 9


def test_a_gif_is_a_clip_and_its_first_picture_an_image(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(shade(n)) for n in range(10))
    for name in ("a.gif", "a.webp"):
        first.save(tmp_path / name, save_all=True, append_images=others, duration=100)
        assert read_picture(tmp_path / name).max() <= 1
    assert numbers(tmp_path / "a.gif", 10) == list(range(10))


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\0\0\0\x20ftypisom"])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as a video"):
        next(read_clip(tmp_path / "a.mp4", 12))
    assert read_duration(tmp_path / "a.mp4") is None


def test_a_clip_is_read_as_it_is_needed(tmp_path: Path) -> None:
    clip = read_clip(make(tmp_path / "a.mp4", count=200), 24)
    assert [round(float(next(clip).mean()) / 10) for _ in range(3)] == [0, 1, 2]
