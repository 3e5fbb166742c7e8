"""Moving images and folders of images are clips; every clip is taken by time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rollforce.errors import ConfigError
from rollforce.video.clips import Timed, list_pictures, sample
from rollforce.video.images import read_clip, read_duration, read_picture

LEVELS = (0, 80, 160, 240)


def shade(level: int) -> Image.Image:
    return Image.fromarray(np.full((16, 24, 3), level, np.uint8))


def animate(path: Path, durations: list[int], default_image: bool = False) -> Path:
    first, *others = map(shade, LEVELS)
    more = {"default_image": True} if default_image else {}
    first.save(path, save_all=True, append_images=others, duration=durations, lossless=True, loop=0, **more)
    return path


def levels(path: Path, fps: float) -> list[int]:
    return [round(float(picture.mean()) / 80) * 80 for picture in read_clip(path, fps)]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "apng"])
def test_pictures_stand_as_long_as_they_say(tmp_path: Path, kind: str) -> None:
    path = animate(tmp_path / f"a.{kind}", [100, 300, 50, 200])
    assert levels(path, 20) == [0] * 2 + [80] * 6 + [160] + [240] * 4
    assert levels(path, 10) == [0, 80, 80, 80, 160, 240, 240]
    assert read_duration(path) == pytest.approx(0.65)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_what_says_that_it_is_shorter_than_browsers_show_stands_a_tenth(tmp_path: Path, kind: str) -> None:
    assert levels(animate(tmp_path / f"a.{kind}", [0, 10, 100, 100]), 10) == list(LEVELS)


def test_the_picture_for_those_who_know_no_apng_is_left_out(tmp_path: Path) -> None:
    assert levels(animate(tmp_path / "a.png", [100, 100, 100], default_image=True), 10) == list(LEVELS[1:])


def test_transparent_parts_of_an_animation_are_black(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (8, 8), (255, 0, 255, alpha)) for alpha in (0, 255)]
    how = {"duration": 100, "lossless": True, "exact": True}
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], **how)
    assert [picture[0, 0].tolist() for picture in read_clip(tmp_path / "a.webp", 10)] == [[0, 0, 0], [255, 0, 255]]


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_of_a_cut_animation_what_is_whole_is_used(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    content = animate(tmp_path / f"a.{kind}", [100] * 4).read_bytes()
    (tmp_path / f"a.{kind}").write_bytes(content[: len(content) * 2 // 3])
    found = levels(tmp_path / f"a.{kind}", 10)
    assert 0 < len(found) < 4 and found == list(LEVELS[: len(found)])
    assert f"its first {len(found)} pictures are used" in caplog.text


def test_one_image_is_no_clip(tmp_path: Path) -> None:
    for kind in ("gif", "png", "webp", "tif"):
        shade(3).save(tmp_path / f"a.{kind}")
        with pytest.raises(ConfigError, match="is one image: use image="):
            read_clip(tmp_path / f"a.{kind}", 12)


def test_pages_of_a_tiff_are_no_clip(tmp_path: Path) -> None:
    shade(0).save(tmp_path / "a.tif", save_all=True, append_images=[shade(9)])
    with pytest.raises(ConfigError, match="is one image"):
        read_clip(tmp_path / "a.tif", 12)


def test_a_folder_is_in_the_order_that_people_count_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, level in zip((2, 10, 1, 33), LEVELS, strict=True):
        shade(level).save(tmp_path / f"Shot{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    assert [path.name for path in list_pictures(tmp_path, "video")] == [f"Shot{n}.png" for n in (1, 2, 10, 33)]
    with caplog.at_level(logging.INFO, logger="rollforce"):
        assert levels(tmp_path, 7) == [160, 0, 80, 240]
    assert "4 pictures, one a frame at 7 fps" in caplog.text
    assert read_duration(tmp_path) is None  # it has no time of its own


def test_a_bad_picture_of_a_folder_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, level in enumerate(LEVELS):
        shade(level).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    assert levels(tmp_path, 12) == [0, 80, 80, 240]
    assert "left out: video=" in caplog.text and "2.png" in caplog.text
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="4 pictures, none of which can be read"):
        list(read_clip(tmp_path, 12))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder without pictures"):
        read_clip(tmp_path, 12)
    with pytest.raises(ConfigError, match="is a folder, not an image"):
        read_picture(tmp_path)


def test_only_what_is_shown_is_drawn() -> None:
    drawn = []

    def draw(number: int) -> np.ndarray:
        drawn.append(number)
        return np.full((1, 1, 3), number, np.uint8)

    def line() -> Iterator[Timed]:
        for number in range(100):
            yield Timed(number / 60, 1 / 60, partial(draw, number))

    assert [int(picture[0, 0, 0]) for picture in sample(line(), 12)] == list(range(0, 100, 5)) == drawn


@pytest.mark.parametrize("fps", [5, 12, 24, 25, 29.97, 30, 60])
@pytest.mark.parametrize("rate", [12, 15, 24, 23.976, 30, 50])
def test_a_clip_keeps_its_length(rate: float, fps: float) -> None:
    line = (Timed(n / rate, 1 / rate, partial(np.empty, (1, 1, 3))) for n in range(round(3 * rate)))
    assert abs(len(list(sample(line, fps))) - round(3 * rate) / rate * fps) < 1.1
