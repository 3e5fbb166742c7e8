"""Images and clips that people bring: upright, plain 8-bit RGB, brought to a frame rate, fitted to a size.

What is done to them on the way (turned, laid over black, HDR to SDR, what is damaged) is logged in one line each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rollforce.errors import ConfigError, ShapeError
from rollforce.video.clips import (
    animation_seconds,
    is_animation,
    list_pictures,
    read_animation,
    read_folder,
    sample,
    say,
)
from rollforce.video.stills import IMAGES, make_plain, read_still

log = logging.getLogger(__name__)

Fit = Literal["crop", "pad", "stretch"]
Picture = Any  # a path, an array uint8 [H, W, 3], or a PIL image
Clip = Any  # a path (a folder of images is a clip), an array uint8 [F, H, W, 3], or anything that yields pictures


def read_picture(picture: Picture, name: str = "image") -> np.ndarray:
    """Return one picture, uint8 [H, W, 3], turned as its EXIF data say, over black where it is transparent; of a moving
    one the first. `name` is what the user called it. ConfigError says what is wrong with a file, ShapeError with an
    array."""
    if isinstance(picture, (str, Path)):
        path = Path(picture)
        if path.is_dir():
            raise ConfigError(f"{name}={path} is a folder, not an image; for a clip use video=.")
        picture_HWC, done = read_still(path, name)
        say(path, *done)
        return picture_HWC
    if hasattr(picture, "convert"):
        return make_plain(picture)[0]
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        empty = " that is not empty" if 0 in array.shape else ""
        raise ShapeError(f"{name} must be uint8 [H, W, 3]{empty}, got {array.dtype} {list(array.shape)}.")
    return array


def read_clip(clip: Clip, fps: float, name: str = "video") -> Iterator[np.ndarray]:
    """Yield the pictures of a clip, uint8 [H, W, 3], one at a time; those of a file at `fps`, each standing until the
    next, and upright; those of a folder one a frame. An array or an iterator is taken as it comes. ConfigError for what
    cannot be read; what is damaged in part is used as far as it goes, with a logged warning."""
    if isinstance(clip, (str, Path)):
        return _read_path(Path(clip), fps, name)
    if not isinstance(clip, Iterable):
        raise ConfigError(f"{name} must be a file, an array [F, H, W, 3] or an iterator of pictures, got {clip!r:.60}.")
    return (read_picture(picture, name) for picture in clip)


def check_clip(path: Path, name: str = "video") -> None:
    """Raise ConfigError for a path that is none of a clip, an animation or a folder of images."""
    if path.is_dir():
        list_pictures(path, name)
    elif not path.is_file():
        raise ConfigError(f"{name}={path} does not exist.")
    elif path.suffix.lower() in IMAGES and not is_animation(path, name):
        raise ConfigError(f"{name}={path} is one image: use image= (--image).")


def _read_path(path: Path, fps: float, name: str) -> Iterator[np.ndarray]:
    check_clip(path, name)
    if path.is_dir():
        return sample(read_folder(path, fps, name), fps)
    if path.suffix.lower() not in IMAGES:
        from rollforce.video.containers import read_container

        return sample(read_container(path, name), fps)
    return sample(read_animation(path, name), fps)


def read_duration(path: Path) -> float | None:
    """Return how long a clip says it is; None if it does not say (as a folder of images), or is none."""
    try:
        if path.suffix.lower() in IMAGES:
            return animation_seconds(path)
    except ConfigError:
        return None
    from rollforce.video.containers import container_seconds

    return container_seconds(path) if path.is_file() else None


def fit_picture(picture_HWC: np.ndarray, size: tuple[int, int], fit: Fit = "crop") -> np.ndarray:
    """Return a picture at `size` (height, width): its middle cropped, padded with black, or stretched."""
    from PIL import Image, ImageOps

    if picture_HWC.shape[:2] == size:
        return picture_HWC
    changes: dict[str, Any] = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize}
    return np.asarray(changes[fit](Image.fromarray(picture_HWC), size[::-1], Image.Resampling.LANCZOS))


def fit_clip(pictures: Iterable[np.ndarray], size: tuple[int, int], fit: Fit, name: str) -> Iterator[np.ndarray]:
    """Yield pictures at `size` (height, width), and log of the first what was done to it."""
    for number, picture_HWC in enumerate(pictures):
        if not number:
            log_fit(picture_HWC.shape, size, fit, name)
        yield fit_picture(picture_HWC, size, fit)


def log_fit(shape: tuple[int, ...], size: tuple[int, int], fit: Fit, name: str) -> None:
    """Log what was done to a picture of another size, and what else could be."""
    if tuple(shape[:2]) != size:
        done = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[fit]
        log.info("%s %dx%d %s to %dx%d; --fit takes pad, crop or stretch.", name, *shape[1::-1], done, *size[::-1])
