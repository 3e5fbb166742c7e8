"""Names that options may have: devices, number formats, what is quantised, offloaded and compiled."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rollforce.errors import ConfigError

if TYPE_CHECKING:
    import torch


DTYPES = ("float32", "bfloat16", "float16")


CHOICES = {"quantize": ("int8", "fp8"), "offload": ("text", "blocks"), "compile": ("blocks", "graphs")}


def check_choice(name: str, value: str | tuple[str, ...] | None) -> None:
    """ConfigError unless every value of the option `name` is one of its CHOICES; None is no value."""
    for choice in value if isinstance(value, tuple) and name == "offload" else (value,):
        if choice is not None and (not isinstance(choice, str) or choice not in CHOICES[name]):
            raise ConfigError(f"{name} {choice!r} is not known. Use {' or '.join(CHOICES[name])}.")


def pick_device(name: str) -> torch.device:
    """Return the device of that name, here or not; "auto" is the first GPU, else the CPU. ConfigError."""
    import torch

    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"device {name!r} is not known. Use auto, cpu, cuda, cuda:1 or mps.")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; "auto" is bfloat16 on CUDA, unless the GPU here has none, else float32."""
    import torch

    if name not in ("auto", *DTYPES):
        raise ConfigError(f"dtype {name!r} is not known. Use auto, {', '.join(DTYPES)}.")
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    lacks = torch.cuda.is_available() and not torch.cuda.is_bf16_supported()
    return torch.bfloat16 if device.type == "cuda" and not lacks else torch.float32
