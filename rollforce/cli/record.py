"""The record of a render: the JSON beside a video, which says all one needs to make the same bytes again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollforce.config import build, to_dict
from rollforce.errors import ConfigError
from rollforce.evaluation import process
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.streaming.events import Cue
from rollforce.streaming.inputs import FollowSettings, StreamInputs
from rollforce.video.images import Fit
from rollforce.video.writer import VideoCodec

if TYPE_CHECKING:
    from rollforce.streaming.model import Model


@dataclass(frozen=True)
class Request:
    """What decides a video's bytes. `size` is (height, width) in pixels before `scale`; None: the model's own.

    `threads` belongs here because sums are split over threads: another number of them gives another last digit.
    `image`, `video`, `follow`: files; see Model.session. A followed video ends the stream, if `seconds` do not.
    `cues`: what changes on the way, by seconds of what is streamed.
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
    codec: VideoCodec = field(default_factory=VideoCodec)
    image: str | None = None
    video: str | None = None
    follow: str | None = None
    strength: float = FollowSettings.strength
    fit: Fit = "crop"
    running: RuntimeOptions = field(default_factory=RuntimeOptions)
    cues: tuple[Cue, ...] = ()

    def given(self) -> StreamInputs:
        """What the stream is given besides its prompt; files are looked for, not yet read. ConfigError."""
        given = StreamInputs(self.image, self.video, self.follow, FollowSettings.of_strength(self.strength), self.fit)
        for name in ("image", "video", "follow"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"--{name} {path} does not exist." if not Path(path).is_dir()
                                  else f"--{name} {path} is a folder; name a file in it.")
        return given


def describe(model: Model, request: Request, path: Path) -> dict[str, Any]:
    """The record of a render before it has run: `result` is null until it has."""
    return {
        "video": path.name,
        "request": to_dict(request),
        "model": {"name": model.name, "licence": model.licence, "parameters": model.parameters, "fps": model.fps,
                  "weights_sha256": model.fingerprint, "device": str(model.device), "dtype": str(model.dtype)},
        "stream": to_dict(model.stream_settings),
        "versions": process.versions(),
        "result": None,
    }


def record_path(video: Path) -> Path:
    """Where a video's record lies."""
    return video.with_suffix(".json")


def is_complete(video: Path) -> bool:
    """Whether `video` was rendered to its end: a batch that keeps what is there skips it."""
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
    video_sha256: str | None  # None, too, if it was put together from parts
    frames_sha256: str | None

    def settings(self) -> tuple[str, ...]:
        """The stream's settings, resolved, as overrides: they hold even if the preset has changed since."""
        return tuple(f"{name}={json.dumps(value)}" for name, value in self.stream.items())

    def differences(self, model: Model) -> list[str]:
        """Why the bytes may differ from the recorded video's."""
        found = [] if model.fingerprint == self.weights_sha256 else ["the model's weights"]
        now = process.versions()
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
    whole = {} if result.get("interrupted") else result
    video = None if whole.get("continued_at") else whole.get("video_sha256")
    return Record(request, data["stream"], data["model"].get("weights_sha256", ""), data["versions"], video,
                  whole.get("frames_sha256"))  # fmt: skip


def save_record(video: Path, record: dict[str, Any]) -> None:
    """Write what `describe` gave beside a video."""
    target = record_path(video)
    fresh = target.with_suffix(".json.part")
    fresh.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(target)
