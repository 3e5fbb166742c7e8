"""Streams of several configurations, made and judged: the work of infer/evaluate.py, by processes of one thread."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from rollforce.checkpoints.outputs import write_whole
from rollforce.config import to_dict
from rollforce.engine.rollout_group import RolloutGroup
from rollforce.errors import ConfigError
from rollforce.evaluation.judge import ENDS_S, Numbers, judge_stream, seams_to_real
from rollforce.evaluation.report import StreamedVideo
from rollforce.streaming.load import load
from rollforce.video.contact_sheet import pack_frames
from rollforce.world.caption import wish_of
from rollforce.world.eyes import Eyes
from rollforce.world.processes import worker_pool
from rollforce.world.render import render
from rollforce.world.scenes import FPS, Scene

MOMENTS, ROWS = 8, 8  # of the contact sheet
REFERENCE_S = 20  # truth is rendered no longer than this
REFERENCES: dict[tuple[Any, ...], dict[str, Numbers]] = {}  # of this process
BEFORE = 16  # latents that a decoder is shown before those that are judged
load_eyes = cache(Eyes.load)


@dataclass(frozen=True)
class Configuration:
    """One configuration: a model (bundled name or folder), a stream (preset or YAML file) and changes to it."""

    model: str | None = None
    stream: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationTask:
    """One stream: the scene it describes (and the truth is rendered from), its words, and the seed of its noise."""

    number: int
    repeat: int
    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True)
class EvaluationJob:
    """Streams of one run, of one prompt or (`ends`) of several, and the weights that this is about."""

    name: str
    run: Configuration
    weights: str
    tasks: list[EvaluationTask]
    seconds: float
    together: int
    ends: bool


def run_jobs(jobs: list[EvaluationJob], processes: int) -> Iterator[StreamedVideo]:
    """Run all jobs and yield every stream as soon as it is judged, by processes of one thread each."""
    if processes == 1:
        for job in jobs:
            yield from run_job(job)
        return
    pool = worker_pool(max(1, min(processes, len(jobs))))
    try:
        for future in as_completed([pool.submit(_run_whole, job) for job in jobs]):
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run_whole(job: EvaluationJob) -> list[StreamedVideo]:
    return list(run_job(job))


def run_job(job: EvaluationJob) -> Iterator[StreamedVideo]:
    """Stream and judge. ConfigError if the model's weights have changed since the evaluation began."""
    torch.set_num_threads(1)
    model, eyes, seconds = load_model(job.run), load_eyes(), job.seconds
    if describe_model(job.run)["weights"] != job.weights:
        raise ConfigError(f"the weights of {job.name} changed during the evaluation; begin anew with a copy")
    for task, video, taken in (stream_ends if job.ends else stream_whole)(model, job):
        real = measure_references(task.scene, job.run, min(len(video), REFERENCE_S * FPS), video.shape[1])
        found = judge_stream(video, wish_of(task.scene), eyes, model.frames_per_chunk, model.frames_per_latent)
        if job.ends:
            last = found.ends["last_10s"] | {"identity": found.whole["identity"]}  # are its things those of the first?
            found = replace(found, whole=last, curve=[])
        whole = found.whole | seams_to_real(found.whole, real["truth_autoencoder"]) | {"x_real_time": seconds / taken}
        tiles = pack_frames(video, MOMENTS) if task.number < ROWS and task.repeat == 0 else ""
        yield StreamedVideo(job.name, task.number, task.repeat, task.prompt, task.seed, seconds, taken, found.seen,
                            {"model": whole} | found.ends | real, found.curve, tiles)


def stream_whole(model: Any, job: EvaluationJob) -> Iterator[tuple[EvaluationTask, np.ndarray, float]]:
    """Yield every stream's video, and the seconds that it took: its share, of those that share their model calls."""
    for start in range(0, len(job.tasks), job.together):
        tasks, begun = job.tasks[start : start + job.together], time.perf_counter()
        batch = model.batch(limit=len(tasks)) if len(tasks) > 1 else None
        with ExitStack() as stack:
            sessions = [stack.enter_context(model.session(task.prompt, seed=task.seed, batch=batch)) for task in tasks]
            rounds = zip(*(session.stream(job.seconds) for session in sessions), strict=True)
            chunks = list(zip(*rounds, strict=True))
        taken = (time.perf_counter() - begun) / len(tasks)
        for task, mine in zip(tasks, chunks, strict=True):
            yield task, np.concatenate([chunk.frames for chunk in mine]), taken


def stream_ends(model: Any, job: EvaluationJob) -> Iterator[tuple[EvaluationTask, np.ndarray, float]]:
    """Yield every stream's first and last seconds, one after the other, and its share of the seconds it took. All
    streams are one batch of one rollout, and of what lies between nothing is drawn: a third of the time."""
    begun, grid = time.perf_counter(), model.grid()
    end, count = (int(seconds * FPS) // model.frames_per_latent for seconds in (ENDS_S, job.seconds))
    latents: list[torch.Tensor] = []
    with torch.no_grad():
        text = model.text.encode([task.prompt for task in job.tasks]).to(model.device, model.dtype)
        streams = RolloutGroup(model.transformer, model.stream_settings, text, tuple(task.seed for task in job.tasks),
                               (grid.channels, grid.height, grid.width))
        for commit in streams.rollout.commits():
            latents.append(commit.latents_BTCHW)
            if commit.stop >= count:
                break
    x = torch.cat(latents, dim=1)[:, :count]
    taken = (time.perf_counter() - begun) / len(job.tasks)
    for task, mine in zip(job.tasks, x.split(1), strict=True):
        first, last = (model.autoencoder.decoder().decode(part) for part in (mine[:, :end], mine[:, -end - BEFORE :]))
        yield task, np.concatenate([first, last[-len(first) :]]), taken


@cache
def load_model(run: Configuration) -> Any:
    return load(run.model or "tiny", stream=run.stream, overrides=run.overrides)


def describe_model(run: Configuration) -> dict[str, Any]:
    """Return what a stream's result depends on besides its prompt and seed."""
    return {"weights": load_model(run).fingerprint[:16], "settings": to_dict(load_model(run).identity)}


@cache
def checksum_autoencoder(run: Configuration) -> int:
    """Return a checksum of the autoencoder's weights."""
    weights = load_model(run).autoencoder.state_dict()
    return crc32(b"".join(weights[name].cpu().float().numpy().tobytes() for name in sorted(weights)))


def measure_references(scene: Scene, run: Configuration, frames: int, size: int) -> dict[str, Numbers]:
    """Return the numbers of the rendered truth, and of it through the autoencoder; once for all runs that share one."""
    model, eyes = load_model(run), load_eyes()
    key = (scene, checksum_autoencoder(run), frames, size, model.frames_per_chunk)
    if key not in REFERENCES:
        truth = render(scene, 0, frames, size)
        videos = {"truth": truth, "truth_autoencoder": reconstruct(model.autoencoder, truth)}
        lengths = model.frames_per_chunk, model.frames_per_latent
        REFERENCES[key] = {name: judge_stream(video, wish_of(scene), eyes, *lengths).whole
                           for name, video in videos.items()}
    return REFERENCES[key]


def reconstruct(autoencoder: Any, video: np.ndarray) -> np.ndarray:
    """Return uint8 [F, H, W, 3] encoded and decoded; F is cut to whole latents."""
    count = len(video) // autoencoder.config.frames * autoencoder.config.frames
    with torch.no_grad():
        x = torch.from_numpy(video[None, :count]).to(autoencoder.basis.device)
        frames, _ = autoencoder.decode(autoencoder.encode(x))
    return np.asarray(frames[0].mul(255).round().to("cpu", torch.uint8).numpy())


# -- finished streams, kept as they come in a file of JSON lines: a long evaluation goes on where it stopped -----------

class EvaluationJournal:
    """The streams of one evaluation, on disk if there is a `path`, behind a line of the `settings` that results depend
    on. `resume` goes on with an older file and keeps other runs' lines: ConfigError if its settings were others."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any], resume: bool = False) -> None:
        self._path = path
        self.streams: list[StreamedVideo] = []
        known = dict(json.loads(json.dumps(settings)))
        if path is None:
            return
        if resume and path.is_file():
            before, self.streams = _read(path)
            _check(path, before, known)
            known = before | known
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [known, *(asdict(stream) for stream in self.streams)]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, stream: StreamedVideo) -> None:
        """Keep one more stream."""
        self.streams.append(stream)
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(stream)) + "\n")

    def has(self, run: str, number: int, repeat: int) -> bool:
        """Return whether this stream of this run is finished."""
        return any((s.run, s.number, s.repeat) == (run, number, repeat) for s in self.streams)


def _read(path: Path) -> tuple[dict[str, Any], list[StreamedVideo]]:
    """Return the settings and streams of a file; a last line that was cut off in writing is left out."""
    lines = []
    with suppress(ValueError):
        for line in path.read_text().splitlines():
            lines.append(json.loads(line))
    return (lines[0], [StreamedVideo(**line) for line in lines[1:]]) if lines else ({}, [])


def _check(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if other := [name for name in now if name in before and before[name] != now[name]]:
        told = ", ".join(f"{name}: {before[name]} there, {now[name]} now" for name in other)
        raise ConfigError(f"{path} was begun with other settings ({told}). Give the same ones, or leave out --resume "
                          "to begin anew.")
