"""Images and clips that people bring: read, brought to a frame rate, fitted to a size."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rollforce.errors import ConfigError, ShapeError

log = logging.getLogger(__name__)

Fit = Literal["crop", "pad", "stretch"]
Picture = Any  # a path, an array uint8 [H, W, 3], or a PIL image
Clip = Any  # a path, an array uint8 [F, H, W, 3], or anything that yields pictures
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_picture(picture: Picture, name: str = "image") -> np.ndarray:
    """One picture, uint8 [H, W, 3]. ConfigError says what is wrong with it; `name` is what the user called it."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, (str, Path)):
        path = Path(picture)
        if path.is_dir() or path.suffix.lower() not in IMAGES:
            raise ConfigError(f"{name}={path} is not an image file ({', '.join(IMAGES)}); for a clip use video=.")
        try:
            with Image.open(path) as file:
                return np.asarray(file.convert("RGB"))
        except FileNotFoundError as error:
            raise ConfigError(f"{name}={path} does not exist.") from error
        except UnidentifiedImageError as error:
            raise ConfigError(f"{name}={path} cannot be read as an image.") from error
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise ShapeError(f"{name} must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}.")
    return array


def read_clip(clip: Clip, fps: float, name: str = "video") -> Iterator[np.ndarray]:
    """The pictures of a clip, uint8 [H, W, 3], one at a time; those of a file at `fps`, each
    standing until the next.

    An array or an iterator is taken as it comes. ConfigError for what cannot be read."""
    if isinstance(clip, (str, Path)):
        path = Path(clip)
        if not path.is_file():
            raise ConfigError(f"{name}={path} does not exist." if not path.is_dir() else f"{name}={path} is a folder.")
        if path.suffix.lower() in IMAGES:
            raise ConfigError(f"{name}={path} is one image: use image=.")
        return _of_file(path, fps, name)
    if not isinstance(clip, Iterable):
        raise ConfigError(f"{name} must be a file, an array [F, H, W, 3] or an iterator of pictures, got {clip!r:.60}.")
    return (read_picture(picture, name) for picture in clip)


def _of_file(path: Path, fps: float, name: str) -> Iterator[np.ndarray]:
    import av

    due, origin = 0.0, None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ConfigError(f"{name}={path} holds no picture.")
            rate = float(container.streams.video[0].average_rate or fps)
            for frame in container.decode(video=0):
                origin = frame.time if origin is None else origin
                while due < frame.time - origin + 1 / rate - 1e-6:  # this picture stands until the next
                    yield frame.to_ndarray(format="rgb24")
                    due += 1 / fps
    except av.error.InvalidDataError as error:
        raise ConfigError(f"{name}={path} cannot be read as a video.") from error


def seconds_of(path: Path) -> float | None:
    """How long a video file says it is; None if it does not say or is none."""
    import av

    try:
        with av.open(str(path)) as container:
            return container.duration / av.time_base if container.duration else None
    except (av.error.FFmpegError, OSError):
        return None


def fitted(picture_HWC: np.ndarray, size: tuple[int, int], fit: Fit = "crop") -> np.ndarray:
    """A picture at `size` (height, width): its middle cropped, padded with black, or stretched."""
    from PIL import Image, ImageOps

    height, width = size
    if picture_HWC.shape[:2] == size:
        return picture_HWC
    image = Image.fromarray(picture_HWC)
    if fit == "stretch":
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    if fit == "pad":
        return np.asarray(ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS))
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))


def say_fit(shape: tuple[int, ...], size: tuple[int, int], fit: Fit, name: str) -> None:
    """Log what was done to a picture of another size, and what else could be."""
    if tuple(shape[:2]) != size:
        done = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[fit]
        log.info("%s %dx%d %s to %dx%d; --fit takes pad, crop or stretch.",
                 name, shape[1], shape[0], done, size[1], size[0])  # fmt: skip
