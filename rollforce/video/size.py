"""Sizes of pictures: as they are typed, and whether a model can have them."""

from __future__ import annotations

import re

from rollforce.errors import ConfigError, ShapeError
from rollforce.video.values import check_picture_size


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of a typed size: (480, 832) of "832x480". ConfigError."""
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text.strip(), re.ASCII)
    if not match:
        raise ConfigError(f"--size {text!r} must be WIDTHxHEIGHT in pixels, such as 64x64.")
    return check_picture_size((int(match[2]), int(match[1])), f"--size {text!r}")


def check_size(size: tuple[int, int], step: int, why: str = "", what: str = "", near: int = 0) -> None:
    """ShapeError, with the nearest sizes, unless height and width are multiples of `step`. `why` says what the step is
    made of, such as " (autoencoder stride 8 x patch 2)"; `what` whose size it is, if not a picture's, such as "latent
    "; `near` what those it names are multiples of, if not of `step` alone."""
    near = near or step
    for name, value in zip(("height", "width"), size, strict=True):
        if value < step or value % step:
            low = max(near, value // near * near)
            raise ShapeError(f"{what}{name} {value} is not a multiple of {step}{why}. Nearest: {low} or {low + near}.")
