"""Video files as phones, cameras, editors and browsers write them."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from rollforce.errors import ConfigError
from rollforce.video.containers import container_seconds
from rollforce.video.images import read_clip

TURNS = {(1, 0, 0, 1): lambda a: a, (0, 1, -1, 0): lambda a: np.rot90(a, -1), (-1, 0, 0, -1): lambda a: a[::-1, ::-1],
         (0, -1, 1, 0): np.rot90, (-1, 0, 0, 1): lambda a: a[:, ::-1], (1, 0, 0, -1): lambda a: a[::-1],
         (0, 1, 1, 0): lambda a: a.transpose(1, 0, 2), (0, -1, -1, 0): lambda a: np.rot90(a, 2).transpose(1, 0, 2)}
"""Display matrices [[a, b], [c, d]]: turned clockwise by quarters, then mirrored."""


def corners() -> np.ndarray:
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, 32:], picture[16:, :32], picture[16:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return picture


def make(path: Path, pictures: list[np.ndarray], codec: str = "libx264", pix_fmt: str = "yuv420p", rate: int = 12,
         source: str = "rgb24", form: str | None = None, change: Callable[[Any], None] = lambda context: None) -> Path:
    """A video of these pictures."""
    with av.open(str(path), "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate, options={"crf": "4"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        change(stream.codec_context)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=source)))
        container.mux(stream.encode())
    return path


def shades(count: int) -> list[np.ndarray]:
    return [np.full((32, 48, 3), 10 * n, np.uint8) for n in range(count)]


def numbers(path: Path, fps: float = 12) -> list[int]:
    return [round(float(picture.mean()) / 10) for picture in read_clip(path, fps)]


@pytest.mark.parametrize("matrix", TURNS)
def test_turned_and_mirrored_clips_are_shown_as_players_do(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = make(tmp_path / "a.mp4", [corners()] * 3)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    seen, right = next(read_clip(path, 12)), TURNS[matrix](corners())
    assert seen.shape == right.shape and np.abs(seen.astype(int) - right).mean() < 8


@pytest.mark.parametrize(("aspect", "shape"), [(Fraction(4, 3), (32, 64)), (Fraction(1, 2), (64, 48)),
                                               (Fraction(1, 500), (32, 48))])  # fmt: skip
def test_pixels_are_square_afterwards(tmp_path: Path, aspect: Fraction, shape: tuple[int, int]) -> None:
    """None is lost; an aspect that no camera has is taken for a mistake."""
    path = make(tmp_path / "a.mp4", shades(2), change=lambda context: setattr(context, "sample_aspect_ratio", aspect))
    assert next(read_clip(path, 12)).shape == (*shape, 3)


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [
    ("a.webm", "libvpx-vp9", "yuva420p"), ("a.mov", "qtrle", "argb"), ("a.mov", "prores_ks", "yuva444p10le"),
])  # fmt: skip
def test_transparent_parts_of_clips_are_black(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    picture = np.zeros((32, 48, 4), np.uint8)
    picture[:, :24], picture[:, 24:] = (255, 0, 255, 0), (0, 200, 0, 255)
    path = make(tmp_path / name, [picture] * 3, codec, pix_fmt, source="rgba")
    seen = next(read_clip(path, 12)).astype(int)
    assert seen[16, 6].max() < 8 and np.abs(seen[16, 42] - (0, 200, 0)).max() < 12


@pytest.mark.parametrize(("transfer", "curve", "white"), [(16, "PQ", 148), (18, "HLG", 191)])
def test_hdr_is_brought_to_sdr_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, transfer: int, curve: str,
                                        white: int) -> None:  # fmt: skip
    def hdr(context: Any) -> None:
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, 9, 9, 1

    path = make(tmp_path / "a.mp4", [np.full((32, 48, 3), white, np.uint8)] * 2, pix_fmt="yuv420p10le", change=hdr)
    with caplog.at_level(logging.INFO, logger="rollforce"):
        assert 228 < next(read_clip(path, 12)).mean() < 248
    assert f"a.mp4: HDR ({curve}) brought to SDR" in caplog.text


def test_colours_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", shades(2), change=lambda context: setattr(context, "colorspace", 14))
    with pytest.raises(ConfigError, match="ICtCp.*export it as SDR"):
        next(read_clip(path, 12))


def test_full_range_is_not_stretched(tmp_path: Path) -> None:
    pictures = [np.full((32, 48, 3), level, np.uint8) for level in (10, 128, 245)]
    path = make(tmp_path / "a.mp4", pictures, pix_fmt="yuvj420p")
    assert [round(float(picture.mean())) for picture in read_clip(path, 12)] == pytest.approx([10, 128, 245], abs=2)


@pytest.mark.parametrize(("name", "codec", "form"), [("a.ts", "libx264", "mpegts"), ("a.avi", "mpeg4", "avi"),
                                                     ("a.flv", "flv", "flv"), ("a.wmv", "wmv2", "asf")])  # fmt: skip
def test_other_containers_are_taken_by_time(tmp_path: Path, name: str, codec: str, form: str) -> None:
    path = make(tmp_path / name, shades(24), codec, form=form)
    assert np.abs(np.array(numbers(path)) - np.arange(24)).max() <= 1
    assert len(numbers(path, 24)) == 48 and container_seconds(path) == pytest.approx(2, abs=0.1)


def test_without_time_stamps_pictures_follow_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path / "a.h264", shades(24), form="h264")  # a bare stream: FFmpeg takes it for 25 fps
    with caplog.at_level(logging.INFO, logger="rollforce"):
        assert numbers(path, 25) == list(range(24))
    assert "no time stamps, so taken for 25 fps" in caplog.text
    assert container_seconds(path) == pytest.approx(24 / 25)


def test_times_that_jump_are_a_cut(tmp_path: Path) -> None:
    """Two recordings in one file: the second begins again at 0, or days later."""
    first, second = (make(tmp_path / f"{n}.ts", shades(12), form="mpegts").read_bytes() for n in range(2))
    (tmp_path / "both.ts").write_bytes(first + second)
    assert 23 <= len(numbers(tmp_path / "both.ts")) <= 26


def test_what_can_be_decoded_of_a_damaged_clip_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(48)]
    content = bytearray(make(tmp_path / "a.avi", pictures, "mpeg4", form="avi").read_bytes())
    for at in range(9000, len(content) - 9000, 7000):
        content[at : at + 60] = random.bytes(60)
    (tmp_path / "a.avi").write_bytes(content)
    assert 20 <= len(list(read_clip(tmp_path / "a.avi", 12))) <= 49


def test_a_file_that_was_cut_says_how_much_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for _ in range(60):
            picture = random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    assert 15 < len(list(read_clip(tmp_path / "a.mp4", 12))) < 40
    assert "is cut off" in caplog.text or "is damaged" in caplog.text


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ConfigError, match="there are no pictures in it"):
        next(read_clip(tmp_path / "a.m4a", 12))


@pytest.mark.parametrize("tag", [3, 6, 8])
def test_pictures_with_exif_in_a_container_are_upright(tmp_path: Path, tag: int) -> None:
    """As cameras write into MJPEG clips; PyAV 18 then gives no side data at all."""
    exif = Image.Exif()
    exif[0x0112] = tag
    lying = {3: corners()[::-1, ::-1], 6: np.rot90(corners()), 8: np.rot90(corners(), -1)}[tag]
    Image.fromarray(np.ascontiguousarray(lying)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    (tmp_path / "a.mjpeg").write_bytes((tmp_path / "a.jpg").read_bytes() * 3)
    seen = next(read_clip(tmp_path / "a.mjpeg", 25))
    assert seen.shape == (32, 64, 3) and np.abs(seen.astype(int) - corners()).mean() < 12
