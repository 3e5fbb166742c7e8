"""What this process uses: memory, age and where its numbers come from. No torch is imported here."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_WHOLE = 1 << 30  # files beyond this are hashed by their ends: a 28 GB checkpoint would take a minute
_END = 16 << 20


def resident_mb() -> float:
    """Memory that this process holds now, in MB."""
    return float(psutil.Process().memory_info().rss) / 1e6


def peak_mb() -> float:
    """The most memory that this process ever held, in MB."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3 * 1.024


def command_age_s() -> float:
    """Seconds since this process was started."""
    return time.time() - float(psutil.Process().create_time())


def versions() -> dict[str, str]:
    """Of everything that can change a video's bytes."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("rollforce", "torch", "diffusers", "numpy", "av"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def file_sha256(path: Path) -> str:
    """Of the whole file, or of its size and both ends where it is huge (then it begins with 'ends-')."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode() + file.read(_END))
        file.seek(-_END, 2)
        digest.update(file.read(_END))
    return f"ends-{digest.hexdigest()}"


def weights_sha256(folder: Path) -> dict[str, str]:
    """The digest of every weight file in a model's folder, by its path inside it."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*.safetensors"))}


def device_peak_mb(device: Any) -> float | None:
    """The most accelerator memory that torch held, in MB; None on a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(device, "type", "cpu") != "cuda":
        return None
    return float(torch.cuda.max_memory_allocated(device)) / 1e6
