"""A LoRA as it is written in commands: FILE, or FILE=SCALE. This loads nothing heavy."""

from __future__ import annotations

import math
from pathlib import Path

from rollforce.errors import ConfigError


def split_lora(lora: str) -> tuple[Path, float]:
    """Return the file and the scale of FILE or FILE=SCALE. ConfigError for a scale that is no finite number."""
    whole = Path(lora).expanduser()
    file, equals, scale = lora.rpartition("=")
    if not equals or (lora and whole.exists()):
        return whole, 1.0
    try:
        factor = float(scale)
    except ValueError as error:
        raise ConfigError(f"--lora {lora}: {scale!r} is not a scale; write FILE or FILE=0.8.") from error
    if not math.isfinite(factor):
        raise ConfigError(f"--lora {lora}: the scale is {scale}; give a finite number, usually between 0 and 1.")
    return Path(file).expanduser(), factor


def find_lora(lora: str) -> tuple[Path, float]:
    """Return the file and the scale of FILE or FILE=SCALE. ConfigError also where there is no such file."""
    path, scale = split_lora(lora)
    if not lora.strip() or path == Path():
        raise ConfigError(f"--lora {lora!r} names no file; write FILE or FILE=0.8.")
    if not path.exists():
        raise ConfigError(f"--lora {path} does not exist. Give a file of a LoRA, or a folder that peft wrote.")
    return path, scale
