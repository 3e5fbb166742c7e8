"""Several streams at once: frames a second of all, beside those of one alone, and what bounds them.

All are measured in turn, a lap of each at a time, so that what disturbs one disturbs all. Seconds of processor time are
told beside those that passed: on a busy machine they still say what sharing a call saves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from time import perf_counter, process_time
from typing import Any

from rollforce.streaming.events import Chunk

ChunkStream = Iterator[Chunk]
COLUMNS = {"streams": "streams", "calls": "calls", "pulled by": "pulled_by", "threads an operation": "threads",
           "fps": "fps", "times one": "times_one", "CPU ms a frame": "cpu_ms", "CPU of one": "cpu_of_one",
           "denoise ms a frame": "denoise_ms", "decode ms a frame": "decode_ms"}  # fmt: skip


@dataclass(frozen=True)
class StreamLoad:
    """`streams` pulled by so many threads, their calls made together or not, with so many threads an operation."""

    streams: int
    together: bool = False
    pulled_by: int = 1
    threads: int = 1


@dataclass(frozen=True)
class LoadTiming:
    """What some chunks of each stream took: frames a second of all, and of a frame the milliseconds of processor time
    and those that the streams say themselves."""

    fps: float
    cpu_ms: float
    denoise_ms: float
    decode_ms: float


def list_loads(counts: Sequence[int], cores: int) -> list[StreamLoad]:
    """Return one stream alone, then of each number, apart and together, on one core and on all."""
    found = [StreamLoad(1)]
    for count in counts:
        found += [StreamLoad(count), StreamLoad(count, True), StreamLoad(count, True, threads=cores)]
        if count >= cores > 1:
            found += [StreamLoad(count, False, cores), StreamLoad(count, True, cores)]
    return list(dict.fromkeys(found))


def time_load(lanes: Sequence[Sequence[ChunkStream]], chunks: int) -> LoadTiming:
    """Pull `chunks` chunks of every stream, each lane by a thread of its own, its streams in turn."""
    begun, cpu = perf_counter(), process_time()
    if len(lanes) == 1:
        pulled = _pull(lanes[0], chunks)
    else:
        with ThreadPoolExecutor(len(lanes)) as pool:
            pulled = [chunk for lane in pool.map(_pull, lanes, [chunks] * len(lanes)) for chunk in lane]
    seconds, cpu = perf_counter() - begun, process_time() - cpu
    frames, times = sum(len(chunk.frames) for chunk in pulled), [chunk.timings for chunk in pulled]
    denoise, decode = sum(each.denoise_s for each in times), sum(each.decode_s for each in times)
    return LoadTiming(frames / seconds, *(1e3 * took / frames for took in (cpu, denoise, decode)))


def _pull(streams: Sequence[ChunkStream], chunks: int) -> list[Chunk]:
    return [next(stream) for _ in range(chunks) for stream in streams]


def measure(found: Sequence[StreamLoad], begin: Callable[[StreamLoad], Sequence[Sequence[ChunkStream]]], warm: int,
            chunks: int, laps: int = 3) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row for each load, the first being that of one alone. `begin` starts its streams, a lane for each
    thread; `warm`: chunks of each that do not count. Medians of `laps` laps."""
    lanes = [begin(load) for load in found]
    for each in lanes:
        time_load(each, warm)
    taken = zip(*([time_load(each, chunks) for each in lanes] for _ in range(laps)), strict=True)
    middle = [{field.name: statistics.median(getattr(lap, field.name) for lap in mine) for field in fields(LoadTiming)}
              for mine in taken]  # fmt: skip
    return [{"streams": load.streams, "calls": "together" if load.together else "apart", "pulled_by": load.pulled_by,
             "threads": load.threads, **mine, "times_one": mine["fps"] / middle[0]["fps"],
             "cpu_of_one": mine["cpu_ms"] / middle[0]["cpu_ms"]} for load, mine in zip(found, middle, strict=True)]
