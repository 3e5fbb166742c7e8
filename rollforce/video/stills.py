"""Stills as people have them: any mode that Pillow reads, upright, 8 bits a colour, over black where transparent."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rollforce.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

IMAGES = (".png", ".apng", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, RuntimeError,
          struct.error, zlib.error)  # fmt: skip
"""What Pillow raises for files that are cut or damaged."""
_ORIENTATION = 0x0112  # of EXIF
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_DEEP = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")


def open_still(path: Path, name: str) -> Image:
    """Return an image file as Pillow opens it, its pixels not yet read. `name` is what the user called it. ConfigError
    if it is missing, of no kind that is read here, or too large."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except FileNotFoundError as error:
        advice = "" if path.suffix.lower() in IMAGES else _advice(path)
        raise ConfigError(f"{name}={path} does not exist.{advice}") from error
    except Image.DecompressionBombError as error:
        raise ConfigError(f"{name}={path} has more pixels than are read ({Image.MAX_IMAGE_PIXELS} twice over): make it "
                          "smaller.") from error  # fmt: skip
    except UnidentifiedImageError as error:
        raise ConfigError(f"{name}={path} cannot be read as an image.{_advice(path)}") from error
    except DAMAGE as error:
        raise ConfigError(f"{name}={path} cannot be read as an image: it is cut off or damaged.") from error


def read_still(path: Path, name: str) -> tuple[np.ndarray, list[str]]:
    """Return the (first) picture of an image file, uint8 [H, W, 3], and what was done to it, in words. ConfigError."""
    with open_still(path, name) as image:
        try:
            return make_plain(image)
        except ConfigError as error:
            raise ConfigError(f"{name}={path} {error}") from None
        except DAMAGE as error:
            raise ConfigError(f"{name}={path} cannot be read as an image: it is cut off or damaged.") from error


def make_plain(image: Image) -> tuple[np.ndarray, list[str]]:
    """Return a picture uint8 [H, W, 3] and what was done to it, in words: turned as its EXIF data say, its profile's
    colours brought to sRGB, laid over black, its levels brought to 8 bits. ConfigError for levels that say no range."""
    image.load()
    if 0 in image.size:
        raise ConfigError(f"is empty: {image.width}x{image.height} pixels.")
    done = []
    if (turn := _turn(image)) is not None:
        image, done = image.transpose(turn), ["turned upright"]
    if image.mode in _DEEP:
        return _from_levels(np.asarray(image)), [*done, f"{_depth(image.mode)} brought to 8"]
    image, changes = _to_srgb(image)
    done += changes
    image = image.convert("LA") if image.mode == "La" else image  # the only way that Pillow knows from there
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        picture_HWC, seen = over_black(np.asarray(image.convert("RGBA")))
        return picture_HWC, [*done, *(["transparent parts over black"] if seen else [])]
    return np.asarray(image.convert("RGB")), done


def over_black(rgba_HWC: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return a picture uint8 [H, W, 4] laid over black, uint8 [H, W, 3], and whether any of it is transparent."""
    alpha = rgba_HWC[..., 3:]
    if alpha.min(initial=255) == 255:
        return rgba_HWC[..., :3], False
    return ((rgba_HWC[..., :3].astype(np.uint16) * alpha + 127) // 255).astype(np.uint8), True


def _turn(image: Image) -> Transpose | None:
    """Return how to transpose a picture so that it stands upright; None if it does, or its EXIF data are damaged."""
    from PIL.Image import Transpose as Turn

    turns = {2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE,
             6: Turn.ROTATE_270, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_90}  # fmt: skip
    try:
        return turns.get(image.getexif().get(_ORIENTATION, 1))
    except DAMAGE:
        return None


def _from_levels(levels_HW: np.ndarray) -> np.ndarray:
    """Return greys of 16 bits, or float ones (of 0..1, or of 0..255 or 0..65535 where one is above 1), as RGB."""
    levels = levels_HW.astype(np.float64)
    low, high = float(levels.min()), float(levels.max())
    if not (low >= 0 and high <= 65535):
        raise ConfigError(f"has levels from {low:g} to {high:g}, and says not which is white: save it with 8 or 16 "
                          "bits.")  # fmt: skip
    real = levels_HW.dtype.kind == "f"
    white = 1 if real and high <= 1 else 255 if real and high <= 255 else 65535
    grey = np.rint(levels * (255 / white)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _depth(mode: str) -> str:
    return "float levels" if mode == "F" else "16 bits"


def _to_srgb(image: Image) -> tuple[Image, list[str]]:
    """Return a picture in sRGB where its profile is another, as phones' Display P3; a bad one is no profile."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image, []
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        title = ImageCms.getProfileDescription(source).strip()
        if "srgb" in title.lower():
            return image, []
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, *DAMAGE):
        return image, []
    return (converted or image), [f"colours of {title or 'its profile'} brought to sRGB"]


def _advice(path: Path) -> str:
    """What to do about a file that Pillow does not know."""
    if path.suffix.lower() in (".heic", ".heif"):
        return " HEIC is not read here: save it as JPEG, or `pip install pillow-heif` and open it from Python."
    return f" Known are {', '.join(IMAGES)}; for a clip use video=."
