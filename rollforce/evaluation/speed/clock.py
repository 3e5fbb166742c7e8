"""Time that a device takes, and the memory it used."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Until everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one call, from an idle device to an idle device."""
    wait(device)
    begun = perf_counter()
    work()
    wait(device)
    return perf_counter() - begun


def laps(work: Callable[[], Any], count: int, device: torch.device) -> list[float]:
    """Seconds of each of `count` calls in a row. On a GPU by events on its stream, so that nothing waits between."""
    if device.type != "cuda":
        return [seconds(work, device) for _ in range(count)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    wait(device)
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def median(work: Callable[[], Any], device: torch.device, warmup: int = 2, count: int = 5) -> float:
    """Median seconds of a call, after some that do not count."""
    for _ in range(warmup):
        work()
    return statistics.median(laps(work, count, device))


def forget_peak(device: torch.device) -> None:
    """Begin a new peak of memory where the device can tell one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory since `forget_peak` on a GPU; of the whole process, since its start, on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
