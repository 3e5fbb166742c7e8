"""Clips as pictures in time: sampled at a frame rate; moving images (GIF, WebP, APNG, AVIF) and folders of images.

Every kind of clip is first a line of `Timed` pictures, in their own times; `sample` takes from it what is shown at each
tick of a clock. So variable frame rates, gaps and pictures that stand long are one thing."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rollforce.errors import ConfigError
from rollforce.video.stills import DAMAGE, IMAGES, make_plain, open_still, read_still

log = logging.getLogger(__name__)

_SLACK_S = 0.006  # GIF counts hundredths of a second, some containers thousandths: half a unit does not count
_SHORTEST_S, _BROWSERS_S = 0.011, 0.1  # browsers show for the second what says that it is shorter than the first


@dataclass(frozen=True)
class Timed:
    """A picture that is shown from `time` on, in seconds, for `seconds` if none comes before; `draw` returns it, uint8
    [H, W, 3]."""

    time: float
    seconds: float
    draw: Callable[[], np.ndarray]


def sample(pictures: Iterator[Timed], fps: float) -> Iterator[np.ndarray]:
    """Yield what is shown at 0, 1 / fps, 2 / fps, ... seconds, uint8 [H, W, 3]. Only what is shown is drawn."""
    ticks, shown = 0, None
    for coming in pictures:
        if shown is not None and (count := _ticks(coming.time, fps) - ticks) > 0:
            yield from _repeat(shown, count)
            ticks += count
        shown = coming
    if shown is not None:
        yield from _repeat(shown, max(_ticks(shown.time + shown.seconds, fps) - ticks, 0 if ticks else 1))


def read_animation(path: Path, name: str, tell: bool = True) -> Iterator[Timed]:
    """Yield the pictures of a moving image file, laid over black. ConfigError if none can be read; a file that is cut
    gives what is whole. `tell`: log that, and what was done to them."""
    with open_still(path, name) as image:
        time, number = 0.0, int(bool(image.info.get("default_image")))  # what shows where APNG is not known
        while True:
            try:
                image.seek(number)
                picture_HWC, done = make_plain(image)  # also reads the times of WebP
            except EOFError:  # the end
                return
            except DAMAGE as error:
                if not time:
                    raise ConfigError(f"{name}={path} cannot be read as an image: it is cut off or damaged.") from error
                if tell:
                    log.warning("%s is cut off or damaged: its first %d pictures are used", path, number)
                return
            seconds = float(image.info.get("duration") or 0) / 1000
            seconds = _BROWSERS_S if seconds < _SHORTEST_S else seconds
            if tell and not time:
                say(path, *done)
            yield Timed(time, seconds, partial(_same, picture_HWC))
            time, number = time + seconds, number + 1


def is_animation(path: Path, name: str) -> bool:
    """Return whether an image file moves. ConfigError if it cannot be read."""
    with open_still(path, name) as image:
        try:
            return bool(getattr(image, "is_animated", False)) and image.format != "TIFF"  # its pages have no time
        except DAMAGE as error:
            raise ConfigError(f"{name}={path} cannot be read as an image: it is cut off or damaged.") from error


def animation_seconds(path: Path) -> float:
    """Return how long a moving image file takes."""
    return sum(picture.seconds for picture in read_animation(path, "clip", tell=False))


def list_pictures(folder: Path, name: str) -> list[Path]:
    """Return the image files of a folder, numbers in their names counted as numbers. ConfigError if there are none."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    if not found:
        raise ConfigError(f"{name}={folder} is a folder without pictures ({', '.join(IMAGES)}).")
    return sorted(found, key=lambda path: [(int(part), "") if part.isdecimal() else (-1, part.lower())
                                           for part in re.split(r"(\d+)", path.name)])  # fmt: skip


def read_folder(folder: Path, fps: float, name: str) -> Iterator[Timed]:
    """Yield the pictures of a folder, one a frame. One that cannot be read is left out with a warning: that before it
    stands longer. ConfigError if none can be read."""
    paths, read = list_pictures(folder, name), 0
    say(folder, f"{len(paths)} pictures, one a frame at {fps:g} fps")
    for number, path in enumerate(paths):
        try:
            picture_HWC, done = read_still(path, name)
        except ConfigError as error:
            log.warning("left out: %s", error)
            continue
        if not read:
            say(path, *done)
        read += 1
        yield Timed(number / fps, 1 / fps, partial(_same, picture_HWC))
    if not read:
        raise ConfigError(f"{name}={folder} is a folder of {len(paths)} pictures, none of which can be read.")


def say(path: Path, *done: str) -> None:
    """Log in one line what was done to a clip or a picture, if anything was."""
    if done:
        log.info("%s: %s", path.name, ", ".join(done))


def _ticks(time: float, fps: float) -> int:
    """Return how many ticks of the clock are before a time."""
    return int(np.ceil((time - _SLACK_S) * fps - 1e-6))


def _repeat(picture: Timed, count: int) -> Iterator[np.ndarray]:
    """Yield one picture several times, drawn once."""
    if count > 0:
        drawn_HWC = picture.draw()
        for _ in range(count):
            yield drawn_HWC


def _same(picture_HWC: np.ndarray) -> np.ndarray:
    return picture_HWC

