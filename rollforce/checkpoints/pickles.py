"""What torch.save wrote, read as plain containers of tensors: no code of a pickle is run."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

from rollforce.checkpoints.names import printable
from rollforce.checkpoints.unread import PACKAGES, refusal
from rollforce.errors import CheckpointError, stand_in

SUFFIXES = {".pt", ".pth", ".bin", ".ckpt"}
DAMAGE = (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OSError,
          AssertionError, ArithmeticError, MemoryError, ImportError, NotImplementedError, struct.error,
          zipfile.BadZipFile)  # fmt: skip
"""What torch's unpickler raises for bytes that no torch.save wrote, tried with cut and flipped ones."""


def read_pickle(path: Path) -> Any:
    """Read a .pt or .pth as plain containers of tensors, memory-mapped where its format allows; no code is run.

    CheckpointError if it is damaged, or names an object that is not one of torch's plain ones."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of pickles older than it
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except DAMAGE as error:
        raise CheckpointError(_refusal(path, error)) from error


def _refusal(path: Path, error: BaseException) -> str:
    if found := re.search(r"GLOBAL ([\w.]+)|(?:class|global|call to) ([\w.]+\.[\w.]+)", str(error)):
        wanted = printable(found[1] or found[2])
        if kind := PACKAGES.get(wanted.partition(".")[0]):
            return refusal(kind, path.name)
        return (f"{path.name} is a pickle; loading with weights_only=True failed (object {wanted}). Refusing: it could "
                "run code. Ask for a safetensors file, or save its tensors alone with torch.save.")  # fmt: skip
    if isinstance(error, OSError) and error.errno:
        return f"{path.name} cannot be read: {error.strerror}."
    first = printable((str(error).splitlines() or [type(error).__name__])[0])
    return stand_in(path) or f"{path.name} is damaged, not complete, or not a file that torch.save wrote: {first}"
