"""One prompt becomes one video file, and beside it a JSON that says all one needs to make the same bytes again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollforce import machine
from rollforce.config import build, to_dict
from rollforce.drift import Drift, DriftMeter
from rollforce.errors import ConfigError
from rollforce.given import Following, Given
from rollforce.pictures import Fit
from rollforce.running import Running
from rollforce.video import Codec, VideoWriter, default_scale

if TYPE_CHECKING:
    from rollforce.model import Model
    from rollforce.types import Chunk


@dataclass(frozen=True)
class Request:
    """What decides a video's bytes. `size` is (height, width) in pixels before `scale`; None: the model's own.

    `threads` belongs here because sums are split over threads: another number of them gives another last digit.
    `image`, `video`, `follow`: files; see Model.session. A followed video ends the stream, if `seconds` do not.
    """

    prompt: str
    seed: int = 0
    seconds: float = 20.0
    size: tuple[int, int] | None = None
    scale: int | None = None
    model: str = "tiny"
    stream: str | None = None
    overrides: tuple[str, ...] = ()
    window: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    codec: Codec = field(default_factory=Codec)
    image: str | None = None
    video: str | None = None
    follow: str | None = None
    strength: float = Following.strength
    fit: Fit = "crop"
    running: Running = field(default_factory=Running)

    def given(self) -> Given:
        """What the stream is given besides its prompt; files are looked for, not yet read. ConfigError."""
        given = Given(self.image, self.video, self.follow, Following.of(self.strength), self.fit)
        for name in ("image", "video", "follow"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"--{name} {path} does not exist." if not Path(path).is_dir()
                                  else f"--{name} {path} is a folder; name a file in it.")
        return given


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
        return self.frames / max(self.elapsed_s, 1e-9)


@dataclass(frozen=True)
class Result:
    """What came of a render. `first_frame_s` counts from the prompt, `command_s` from the start of the process."""

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
    frames_sha256: str  # of the uint8 frames as they came, before scaling and coding
    video_sha256: str


class _Tally:
    """Times and counts while the chunks come in."""

    def __init__(self, request: Request, fps: float) -> None:
        self.request, self.fps = request, fps
        self.start = time.perf_counter()
        self.frames, self.denoise_s, self.decode_s = 0, 0.0, 0.0
        self.first_frame_s: float | None = None
        self.first_frame_since_command_s: float | None = None
        self.meter = DriftMeter(fps)
        self.digest = hashlib.sha256()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.start

    def add(self, chunk: Chunk) -> None:
        if self.first_frame_s is None and len(chunk.frames):
            self.first_frame_s = self.elapsed_s
            self.first_frame_since_command_s = machine.command_age_s()
        self.frames += len(chunk.frames)
        self.denoise_s += chunk.timings.denoise_s
        self.decode_s += chunk.timings.decode_s
        self.meter.add(chunk.frames)
        self.digest.update(chunk.frames.tobytes())

    def progress(self) -> Progress:
        return Progress(self.frames, self.frames / self.fps, self.request.seconds, self.elapsed_s,
                        self.first_frame_s or 0.0, self.denoise_s, machine.resident_mb())

    def result(self, path: Path, interrupted: bool, model: Model) -> Result:
        elapsed = self.elapsed_s
        fps = self.frames / max(elapsed, 1e-9)
        return Result(
            frames=self.frames, seconds=self.frames / self.fps, interrupted=interrupted,
            first_frame_s=self.first_frame_s, first_frame_since_command_s=self.first_frame_since_command_s,
            elapsed_s=elapsed, denoise_s=self.denoise_s, decode_s=self.decode_s,
            denoise_fps=self.frames / max(self.denoise_s, 1e-9), end_to_end_fps=fps, times_real_time=fps / self.fps,
            peak_memory_mb=machine.peak_mb(), peak_device_memory_mb=machine.device_peak_mb(model.device),
            drift=self.meter.result(), frames_sha256=self.digest.hexdigest(), video_sha256=machine.file_sha256(path))


def render(model: Model, request: Request, path: Path, report: Callable[[Progress], None] | None = None) -> Result:
    """Write `request` to `path` (.mp4) and its record beside it (.json); Ctrl-C ends early with both files whole.

    `model` must have been loaded as the request says. `report` is called after each chunk has reached the file.
    """
    size = request.size or model.size
    request = dataclasses.replace(request, size=size, scale=request.scale or default_scale(size))
    tally, interrupted = _Tally(request, model.fps), False
    with (
        model.begin(request.prompt, request.seed, size, request.given(), ahead=True) as session,
        VideoWriter(path, model.fps, size, scale=request.scale or 1, codec=request.codec) as video,
    ):
        record = describe(model, dataclasses.replace(request, codec=video.codec, threads=model.threads), path)
        _save(path, record)
        try:
            video.write(session.given_frames)
            for chunk in session.stream(seconds=request.seconds):
                video.write(chunk.frames)
                tally.add(chunk)
                if report is not None:
                    report(tally.progress())
        except KeyboardInterrupt:
            interrupted = True
    tally.frames = video.frames  # Ctrl-C may come in the middle of a chunk
    result = tally.result(path, interrupted, model)
    _save(path, {**record, "result": _rounded(to_dict(result))})
    return result


def describe(model: Model, request: Request, path: Path) -> dict[str, Any]:
    """The record of a render before it has run: `result` is null until it has."""
    return {
        "video": path.name,
        "request": to_dict(request),
        "model": {"name": model.name, "licence": model.licence, "parameters": model.parameters, "fps": model.fps,
                  "weights_sha256": model.fingerprint, "device": str(model.device), "dtype": str(model.dtype)},
        "stream": to_dict(model.stream_settings),
        "versions": machine.versions(),
        "result": None,
    }


def record_path(video: Path) -> Path:
    """Where a video's record lies."""
    return video.with_suffix(".json")


def is_complete(video: Path) -> bool:
    """Whether `video` was rendered to its end: a batch that is resumed skips it."""
    record = record_path(video)
    if not (video.exists() and record.exists()):
        return False
    try:
        result = json.loads(record.read_text(encoding="utf-8")).get("result")
    except json.JSONDecodeError:
        return False
    return bool(result) and not result["interrupted"]


@dataclass(frozen=True)
class Record:
    """A record that was read back: the request, the resolved stream settings, and what to compare with afterwards."""

    request: Request
    stream: dict[str, Any]
    weights_sha256: str
    versions: dict[str, str]
    video_sha256: str | None

    def settings(self) -> tuple[str, ...]:
        """The stream's settings, resolved, as overrides: they hold even if the preset has changed since."""
        return tuple(f"{name}={json.dumps(value)}" for name, value in self.stream.items())

    def differences(self, model: Model) -> list[str]:
        """Why the bytes may differ from the recorded video's."""
        found = [] if model.fingerprint == self.weights_sha256 else ["the model's weights"]
        now = machine.versions()
        found += [f"{name} ({version}, now {now.get(name)})" for name, version in self.versions.items()
                  if now.get(name) != version]
        return found


def read_record(path: Path) -> Record:
    """The record in a JSON file that `render` wrote. Raises ConfigError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON ({error}). --from takes the file that lies beside a video.") from error
    if not (isinstance(data, dict) and {"request", "stream", "model", "versions"} <= set(data)):
        raise ConfigError(f"{path} is no record of a render. --from takes the .json that lies beside a video.")
    request = build(Request, data["request"])
    result = data.get("result") or {}
    whole = None if result.get("interrupted") else result.get("video_sha256")
    return Record(request, data["stream"], data["model"].get("weights_sha256", ""), data["versions"], whole)


def _save(video: Path, record: dict[str, Any]) -> None:
    target = record_path(video)
    fresh = target.with_suffix(".json.part")
    fresh.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(target)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value
