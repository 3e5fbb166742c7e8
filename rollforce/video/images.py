"""Images and clips that people bring: read by imageio, upright, brought to a frame rate, fitted to a size."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
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
    """Return one picture, uint8 [H, W, 3], turned as its EXIF data say; of a moving one the first. `name` is what the
    user called it. ConfigError says what is wrong with a file, ShapeError with an array."""
    if isinstance(picture, (str, Path)):
        path = Path(picture)
        if path.is_dir() or path.suffix.lower() not in IMAGES:
            raise ConfigError(f"{name}={path} is not an image file ({', '.join(IMAGES)}); for a clip use video=.")
        import imageio.v3 as iio

        try:
            return np.asarray(iio.imread(path, plugin="pillow", mode="RGB", index=0, rotate=True))
        except FileNotFoundError as error:
            raise ConfigError(f"{name}={path} does not exist.") from error
        except OSError as error:
            raise ConfigError(f"{name}={path} cannot be read as an image.") from error
    array = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise ShapeError(f"{name} must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}.")
    return array


def read_clip(clip: Clip, fps: float, name: str = "video") -> Iterator[np.ndarray]:
    """Yield the pictures of a clip, uint8 [H, W, 3], one at a time; those of a file at `fps`, each standing until the
    next, and upright. An array or an iterator is taken as it comes. ConfigError for what cannot be read."""
    if isinstance(clip, (str, Path)):
        path = Path(clip)
        if not path.is_file():
            raise ConfigError(f"{name}={path} does not exist." if not path.is_dir() else f"{name}={path} is a folder.")
        if path.suffix.lower() in IMAGES and path.suffix.lower() != ".gif":
            raise ConfigError(f"{name}={path} is one image: use image=.")
        return _read_file(path, fps, name)
    if not isinstance(clip, Iterable):
        raise ConfigError(f"{name} must be a file, an array [F, H, W, 3] or an iterator of pictures, got {clip!r:.60}.")
    return (read_picture(picture, name) for picture in clip)


def _read_file(path: Path, fps: float, name: str) -> Iterator[np.ndarray]:
    import imageio.v3 as iio
    from av.error import FFmpegError

    rate = Fraction(fps).limit_denominator(1001)
    # "up" shows a picture from the first moment at or after its own, which some containers give in whole milliseconds,
    # so two of them do not count
    resampled = [("settb", "1/90000"), ("setpts", "PTS-STARTPTS-180"), ("fps", {"fps": f"{rate}", "round": "up"})]
    try:
        turns = _quarter_turns(iio.immeta(path, plugin="pyav", index=0, exclude_applied=False).get("DISPLAYMATRIX"))
        for picture_HWC in iio.imiter(path, plugin="pyav", format="rgb24", filter_sequence=resampled):
            yield np.rot90(picture_HWC, turns)
    except (FFmpegError, OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{name}={path} cannot be read as a video.") from error


def _quarter_turns(display_matrix: bytes | None) -> int:
    """Return the counter-clockwise quarter turns that bring a video's pictures upright."""
    if display_matrix is None:
        return 0
    cos, sin = np.frombuffer(display_matrix, "<i4")[:2]
    return -round(float(np.arctan2(sin, cos)) / (np.pi / 2))


def read_duration(path: Path) -> float | None:
    """Return how long a video file says it is; None if it does not say or is none."""
    import av

    with suppress(av.error.FFmpegError, OSError), av.open(str(path)) as container:
        return container.duration / av.time_base if container.duration else None
    return None


def fit_picture(picture_HWC: np.ndarray, size: tuple[int, int], fit: Fit = "crop") -> np.ndarray:
    """Return a picture at `size` (height, width): its middle cropped, padded with black, or stretched."""
    from PIL import Image, ImageOps

    if picture_HWC.shape[:2] == size:
        return picture_HWC
    changes: dict[str, Any] = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize}
    return np.asarray(changes[fit](Image.fromarray(picture_HWC), size[::-1], Image.Resampling.LANCZOS))


def log_fit(shape: tuple[int, ...], size: tuple[int, int], fit: Fit, name: str) -> None:
    """Log what was done to a picture of another size, and what else could be."""
    if tuple(shape[:2]) != size:
        done = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[fit]
        log.info("%s %dx%d %s to %dx%d; --fit takes pad, crop or stretch.", name, *shape[1::-1], done, *size[::-1])
