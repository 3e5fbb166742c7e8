"""What this process is and uses: its memory, age and versions. It imports torch only where it must."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
import warnings
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any


def resident_mb() -> float:
    """Return the memory that this process holds now, in MB."""
    import psutil  # not at the top: benchmarks do without

    return float(psutil.Process().memory_info().rss) / 1e6


def peak_mb() -> float:
    """Return the most memory that this process ever held, in MB."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage begins with the peak of who started this
    return int(status.partition("VmHWM:")[2].split()[0]) * 1.024e-3


def command_age_s() -> float:
    """Return the seconds since this process was started."""
    if sys.platform != "linux":
        import psutil

        return time.time() - float(psutil.Process().create_time())
    started = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]  # in ticks since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a video's bytes."""
    packages = {name: metadata.version(name) for name in ("rollforce", "torch", "numpy", "av")}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def device_peak_mb(device: Any) -> float | None:
    """Return the most accelerator memory that torch held, in MB; None on a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(device, "type", "cpu") != "cuda":
        return None
    return float(torch.cuda.max_memory_allocated(device)) / 1e6


def no_warnings() -> AbstractContextManager[object]:
    """Silence warnings within it: trying what may not work should not print why."""
    return warnings.catch_warnings(action="ignore")
