"""Time that a device takes, and the memory it used."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch

from rollforce.evaluation.process import peak_mb


def synchronize(device: torch.device) -> None:
    """Wait until everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one call, from an idle device to an idle device."""
    synchronize(device)
    begun = perf_counter()
    work()
    synchronize(device)
    return perf_counter() - begun


def time_calls(work: Callable[[], Any], count: int, device: torch.device) -> list[float]:
    """Return the seconds of each of `count` calls in a row; on a GPU by events, so that nothing waits between."""
    if device.type != "cuda":
        return [time_call(work, device) for _ in range(count)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    synchronize(device)
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def median_seconds(work: Callable[[], Any], device: torch.device, warmup: int = 2, count: int = 5) -> float:
    """Return the median seconds of a call, after some that do not count."""
    for _ in range(warmup):
        work()
    return statistics.median(time_calls(work, count, device))


def reset_peak(device: torch.device) -> None:
    """Begin a new peak of memory where the device can tell one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory since `reset_peak` on a GPU; of the whole process, since its start, on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return round(1e6 * peak_mb())
