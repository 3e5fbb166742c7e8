"""One prompt becomes one video file, and beside it a JSON that says all one needs to make the same bytes again."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rollforce.cli.record import Request, describe, read_request, request_data, save_record, upgrade
from rollforce.cli.resume import SAVE_EVERY_S, Keeper, read_unfinished
from rollforce.cli.segments import SegmentedWriter
from rollforce.cli.wording import word
from rollforce.config import build, to_dict
from rollforce.errors import SnapshotError
from rollforce.evaluation import process
from rollforce.streaming.events import Event
from rollforce.streaming.inputs import SessionOptions
from rollforce.video.drift import Drift, DriftMeter
from rollforce.video.gif import check_rate
from rollforce.video.outputs import Output, can_resume, digest_output, open_output
from rollforce.video.sound import SoundTrack, find_sound
from rollforce.video.writer import available, default_scale

if TYPE_CHECKING:
    from rollforce.streaming.events import Chunk
    from rollforce.streaming.model import Model
    from rollforce.streaming.session import Session
    from rollforce.streaming.snapshot import Snapshot


@dataclass(frozen=True)
class Progress:
    """How far a render is. Seconds are wall seconds since it began, except `video_s` and `total_s`."""

    frames: int
    video_s: float
    total_s: float
    elapsed_s: float
    first_frame_s: float
    denoise_s: float
    memory_mb: float

    @property
    def fps(self) -> float:
        """Frames per second of wall time."""
        return self.frames / max(self.elapsed_s, 1e-9)


@dataclass(frozen=True)
class Result:
    """The outcome of a render. `first_frame_s` counts from the prompt, `command_s` from the start of the process.

    `frames_sha256` is of the uint8 frames as they came, before scaling and coding: a chain, the SHA-256 of the digest
    before and the next frame's bytes, so that it can go on in another process. (Records of videos before 2026-11-21
    have one SHA-256 over all bytes; nothing compares the two.) `continued_at`: numbers of frames behind which another
    process went on; times are the sum of all, without what a killed one did after its last snapshot, and
    `video_sha256` is then that of one file that was put together, not of every render of these frames; of a video in
    several files, whose number is `segments`, and of stdout it is None. `given`: how many of the `frames` the stream
    went on from; no rate counts them."""

    frames: int
    seconds: float
    interrupted: bool
    first_frame_s: float | None
    first_frame_since_command_s: float | None
    elapsed_s: float
    denoise_s: float
    decode_s: float
    denoise_fps: float
    end_to_end_fps: float
    times_real_time: float
    peak_memory_mb: float
    peak_device_memory_mb: float | None
    drift: Drift | None
    frames_sha256: str
    video_sha256: str | None
    events: tuple[Event, ...] = ()  # what became of the cues
    continued_at: tuple[int, ...] = ()
    segments: int = 0
    given: int = 0


class Tally:
    """Collects times, counts and events while chunks come in. `streamed`: frames but those the stream began with, which
    are `given`; `skipped` frames of a clip are before those."""

    def __init__(self, request: Request, fps: float) -> None:
        self.request, self.fps = request, fps
        self.start = time.perf_counter()
        self.frames, self.streamed, self.denoise_s, self.decode_s = 0, 0, 0.0, 0.0
        self.given, self.skipped = 0, 0
        self.first_frame_s: float | None = None
        self.first_frame_since_command_s: float | None = None
        self.meter = DriftMeter(fps)
        self.digest = b""
        self.events: list[Event] = []
        self.continued_at: list[int] = []

    @property
    def elapsed_s(self) -> float:
        """Seconds of wall time that the render has taken, in all its processes."""
        return time.perf_counter() - self.start

    @property
    def left_s(self) -> float:
        """Seconds of video that are still to come: 0 at the end."""
        if math.isinf(self.request.seconds):
            return math.inf
        return (max(1, round(self.request.seconds * self.fps)) - self.streamed) / self.fps

    def add(self, chunk: Chunk) -> None:
        """Count a chunk that has come in."""
        if self.first_frame_s is None and len(chunk.frames):
            self.first_frame_s = self.elapsed_s
            self.first_frame_since_command_s = process.command_age_s()
        self.streamed += len(chunk.frames)
        self.denoise_s += chunk.timings.denoise_s
        self.decode_s += chunk.timings.decode_s
        self.meter.add(chunk.frames)
        self.events += chunk.events
        for frame_HWC in chunk.frames:
            self.digest = hashlib.sha256(self.digest + frame_HWC.tobytes()).digest()

    def progress(self) -> Progress:
        """Return how far the render is."""
        return Progress(self.streamed, self.streamed / self.fps, self.request.seconds, self.elapsed_s,
                        self.first_frame_s or 0.0, self.denoise_s, process.resident_mb())

    def result(self, path: Path, interrupted: bool, model: Model, segments: int = 0) -> Result:
        """Return the outcome, once the video at `path`, or its `segments`, are closed."""
        elapsed, made = self.elapsed_s, self.frames - self.given
        fps = made / max(elapsed, 1e-9)
        return Result(
            frames=self.frames, seconds=self.frames / self.fps, interrupted=interrupted,
            first_frame_s=self.first_frame_s, first_frame_since_command_s=self.first_frame_since_command_s,
            elapsed_s=elapsed, denoise_s=self.denoise_s, decode_s=self.decode_s,
            denoise_fps=made / max(self.denoise_s, 1e-9), end_to_end_fps=fps, times_real_time=fps / self.fps,
            peak_memory_mb=process.peak_mb(), peak_device_memory_mb=process.device_peak_mb(model.device),
            drift=self.meter.result(), frames_sha256=self.digest.hex(), events=tuple(self.events),
            video_sha256=None if segments else digest_output(path), continued_at=tuple(self.continued_at),
            segments=segments, given=self.given)

    def state_dict(self) -> dict[str, Any]:
        """Return what a snapshot keeps: counts, times, events, and the state of the drift meter."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        meter = {name: torch.from_numpy(value) for name, value in self.meter.state_dict().items()}
        return {**plain, "elapsed_s": self.elapsed_s, "meter": meter, "digest": self.digest.hex(),
                "events": [to_dict(event) for event in self.events], "request": request_data(self.request)}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from a `state_dict` of the same request."""
        for name in _PLAIN:
            setattr(self, name, state.get(name, 0))  # those of older snapshots have no `given`
        self.start = time.perf_counter() - state["elapsed_s"]
        self.meter.load_state_dict({name: value.numpy() for name, value in state["meter"].items()})
        self.digest = bytes.fromhex(state["digest"])
        self.events = [build(Event, upgrade(event)) for event in state["events"]]
        self.continued_at = [*state["continued_at"], state["frames"]]


_PLAIN = ("frames", "streamed", "denoise_s", "decode_s", "first_frame_s", "first_frame_since_command_s", "continued_at",
          "given", "skipped")  # fmt: skip


def render(model: Model, request: Request, path: Path, report: Callable[[Progress], None] | None = None, *,
           go_on: Snapshot | None = None, save_every: float = SAVE_EVERY_S,
           stopping: Callable[[], bool] = lambda: False) -> Result:  # fmt: skip
    """Write `request` to `path` (see video/outputs.py) and its record beside it; Ctrl-C ends early with both whole.

    `model` must have been loaded as the request says. `report` is called after each chunk has reached the file.
    `go_on`: what `find_unfinished` found, to continue that video. `save_every`: seconds between two snapshots beside
    the video, 0 for none. `stopping` is asked after each chunk: to end there, so that the video goes on from there."""
    request = resolve(model, request, path)
    tally, ended = Tally(request, model.fps), False
    if go_on is not None:
        tally.load_state_dict(go_on.state["render"])
    with (
        Keeper(path, save_every if request.follow is None and can_resume(path) else 0.0) as keeper,
        _session(model, request, go_on) as session,
        _open(session, request, path, tally, model.fps) as video,
    ):  # fmt: skip
        if go_on is None:
            keeper.forget()
        record = describe(model, request, path)
        save_record(path, record)
        try:
            video.write(session.given_frames)
            ended = _write(session, video, tally, keeper, report or (lambda progress: None), stopping)
        except KeyboardInterrupt:
            pass
        tally.frames = video.frames  # Ctrl-C may come in the middle of a chunk
    segments = video.count if isinstance(video, SegmentedWriter) else 0
    result = tally.result(path, not ended, model, segments)
    save_record(path, {**record, "result": _round(to_dict(result))})
    if ended:
        keeper.forget()
    return result


def _write(session: Session, video: Output | SegmentedWriter, tally: Tally, keeper: Keeper,
           report: Callable[[Progress], None], stopping: Callable[[], bool]) -> bool:  # fmt: skip
    """Write chunk after chunk; return whether the end was reached."""

    def snapshot() -> Snapshot:
        taken = session.snapshot()
        return dataclasses.replace(taken, state={**taken.state, "render": tally.state_dict()})

    left = None if math.isinf(tally.left_s) else tally.left_s
    for chunk in session.stream(seconds=left) if tally.left_s > 0 else ():
        video.write(chunk.frames)
        tally.add(chunk)
        tally.frames = video.frames
        report(tally.progress())
        if tally.left_s > 0 and stopping():
            keeper.save(video.frames, snapshot)
            return False
        if tally.left_s > 0:
            keeper.update(video.frames, video.safe, snapshot)
    return True


def _session(model: Model, request: Request, go_on: Snapshot | None) -> Session:
    if go_on is not None:
        return model.resume(go_on, ahead=True)
    how = SessionOptions(request.inputs(), ahead=True, cues=request.shown_cues)
    return model.begin(request.shown, request.seed, request.size, how)


def _open(session: Session, request: Request, path: Path, tally: Tally, fps: float) -> Output | SegmentedWriter:
    """Begin the video, of one file or of several, or go on with it, with the sound of the clip that it shows or shows
    first."""
    if not tally.frames:
        tally.given, tally.skipped = len(session.given_frames), session.skipped_frames
    sound = _find_sound(request, path, tally, fps)

    def open_file(path: Path, first: int, after: int) -> Output:
        if not after and path.suffix:  # neither a folder nor stdout
            path.unlink(missing_ok=True)  # what plays or links the old file keeps it
        return open_output(path, request.fps or fps, _size(request), scale=request.scale or 1, codec=request.codec,
                           after=after, sound=sound and sound.behind(first / fps))  # fmt: skip

    if request.segment is None:
        return open_file(path, 0, tally.frames)
    return SegmentedWriter(open_file, path, max(1, round(request.segment * fps)), tally.frames)


def _find_sound(request: Request, path: Path, tally: Tally, fps: float) -> SoundTrack | None:
    """Return the sound that belongs to the frames from the first on, at the model's `fps`."""
    seconds = math.inf if request.video is None else tally.given / fps
    unfit = "does not repeat with --loop" if request.loop else ""
    if request.fps not in (None, fps):
        unfit = f"does not fit pictures at --fps {request.fps:g}"
    return find_sound(request.video or request.follow, path, tally.skipped / fps, seconds, unfit)


def resolve(model: Model, request: Request, path: Path) -> Request:
    """Return the request with all that it left open, as this model and machine make it in a file of this kind."""
    size, request = request.size or model.size, word(model, request)
    check_rate(path, request.fps or model.fps)
    return dataclasses.replace(request, size=size, scale=request.scale or default_scale(size), threads=model.threads,
                               codec=available(request.codec, path))  # fmt: skip


def find_unfinished(model: Model, request: Request, path: Path) -> Snapshot:
    """Return where a render of this request to `path` was when it was stopped. SnapshotError if there is nothing, or it
    is of another request, model or settings."""
    snapshot = read_unfinished(path)
    begun = snapshot.state.get("render", {}).get("request")
    if begun is None or read_request(begun) != resolve(model, request, path):
        raise SnapshotError(f"What lies beside {path} was saved by a render of something else. "
                            "Use --overwrite, or another name with -o.")  # fmt: skip
    model.check_snapshot(snapshot)
    return snapshot


def _size(request: Request) -> tuple[int, int]:
    assert request.size is not None, "resolved"
    return request.size


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value
