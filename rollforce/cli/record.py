"""The record of a render: the JSON beside a video, which says all one needs to make the same bytes again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollforce.checkpoints.outputs import write_whole
from rollforce.checkpoints.safetensors_folder import read_json
from rollforce.config import build, to_dict
from rollforce.errors import CheckpointError, ConfigError
from rollforce.evaluation import process
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.text.enhance import Enhancer
from rollforce.streaming.events import Cue
from rollforce.streaming.inputs import FollowSettings, StreamInputs
from rollforce.video.images import Fit
from rollforce.video.outputs import STDOUT, beside
from rollforce.video.values import (
    SIDE,
    check_count,
    check_number,
    check_picture_size,
    check_seconds,
    check_seed,
    check_threads,
)
from rollforce.video.writer import VideoCodec

if TYPE_CHECKING:
    from rollforce.streaming.model import Model


FASTEST = 240  # frames per second
OLD_NAMES = {"rung": "quality"}  # of settings, in records and snapshots that were written before


@dataclass(frozen=True)
class Request:
    """What decides a video's bytes. `size` is (height, width) in pixels before `scale`; None: the model's own.

    `threads` belongs here because sums are split over threads: another number of them gives another last digit.
    `image`, `video`, `follow`: files; see Model.session. A followed video ends the stream, if `seconds` do not.
    `cues`: what changes on the way, by seconds of what is streamed. `seconds` may be infinite; `segment`: seconds of
    each file, where there are several. `fps`: at which the file plays; None: the model's. `loop`: `follow` repeats.
    `enhance`, `enhance_model`: the endpoint that prompts were handed to, see models/text/enhance.py. `wording`: of each
    prompt that is shown otherwise than it was typed, what it is shown as."""

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
    loop: bool = False
    fps: float | None = None
    segment: float | None = None
    enhance: str | None = None
    enhance_model: str | None = None
    wording: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_seconds(self.seconds, endless=True)
        self._check_picture()
        if self.threads is not None:
            check_threads(self.threads)
        if self.window is not None:
            check_count(self.window, "window")
        if self.segment is not None:
            check_seconds(self.segment, "segment")
        if self.enhance is not None:
            Enhancer(self.enhance, self.enhance_model)  # refuses what is no address
        elif self.enhance_model is not None:
            raise ConfigError(f"--enhance-model {self.enhance_model} needs --enhance URL, whose model it names.")

    def _check_picture(self) -> None:
        if self.size is not None:
            check_picture_size(self.size)
        if self.scale is not None:
            side = max(self.size or (1, 1))
            check_count(self.scale, "scale", most=SIDE // side, remedy=f"A video's sides have at most {SIDE} pixels.")
        if self.fps is not None:
            check_number(self.fps, "fps", 1, FASTEST)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt that was typed, the first and those of changes, each once."""
        return tuple(dict.fromkeys([self.prompt, *(cue.prompt for cue in self.cues if cue.prompt is not None)]))

    @property
    def shown(self) -> str:
        """What is shown at first."""
        return self.wording.get(self.prompt, self.prompt)

    @property
    def shown_cues(self) -> tuple[Cue, ...]:
        """The changes, with prompts as they are shown."""
        return tuple(cue if cue.prompt is None else replace(cue, prompt=self.wording.get(cue.prompt, cue.prompt))
                     for cue in self.cues)

    def inputs(self) -> StreamInputs:
        """Return what the stream takes besides its prompt; files are looked for, not yet read. ConfigError."""
        inputs = StreamInputs(self.image, self.video, self.follow, FollowSettings.of_strength(self.strength), self.fit,
                              self.loop)  # fmt: skip
        for name in ("image", "video", "follow"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file() and (name == "image" or not Path(path).is_dir()):
                raise ConfigError(f"--{name} {path} does not exist." if not Path(path).is_dir()
                                  else f"--{name} {path} is a folder; name a file in it.")
        return inputs


def as_setting(value: Any) -> Any:
    """Return a typed value as a request holds it: paths are text, lists are tuples."""
    return str(value) if isinstance(value, Path) else tuple(value) if isinstance(value, list) else value


def describe(model: Model, request: Request, path: Path) -> dict[str, Any]:
    """Return the record of a render before it has run: `result` is null until it has."""
    return {
        "video": path.name if request.segment is None else segment_path(path).name,
        "request": request_data(request),
        "model": {"name": model.name, "licence": model.licence, "parameters": model.parameters, "fps": model.fps,
                  "weights_sha256": model.fingerprint, "device": str(model.device), "dtype": str(model.dtype)},
        "stream": to_dict(model.stream_settings),
        "versions": process.versions(),
        "result": None,
    }


def record_path(video: Path) -> Path:
    """Return where a video's record lies."""
    return beside(video, ".json")


def segment_path(video: Path, number: int | None = None) -> Path:
    """Return the name of one file of a video that is written in several, or (None) the pattern of all names."""
    return video.with_stem(f"{video.stem}-{'%04d' if number is None else f'{number:04d}'}")


def segments_of(video: Path) -> list[Path]:
    """Return the files of a video that was written in several: all from the first on, to the first that is missing."""
    return list(takewhile(Path.exists, (segment_path(video, number) for number in count())))


def is_complete(video: Path) -> bool:
    """Return whether `video` was rendered to its end, and all its files are there."""
    try:
        result = read_json(record_path(video), {}).get("result") or {"interrupted": True}
    except CheckpointError:
        return False
    files = result.get("segments", 0)
    return not result["interrupted"] and (len(segments_of(video)) >= files if files else video.exists())


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
        """Return the stream's settings, resolved, as overrides: they hold even if the preset has changed since."""
        return tuple(f"{name}={json.dumps(value)}" for name, value in self.stream.items())

    def differences(self, model: Model) -> list[str]:
        """Return why the bytes may differ from the recorded video's."""
        found = [] if model.fingerprint == self.weights_sha256 else ["the model's weights"]
        now = process.versions()
        found += [f"{name} ({version}, now {now.get(name)})" for name, version in self.versions.items()
                  if now.get(name) != version]
        return found


def read_record(path: Path) -> Record:
    """Return the record in a JSON file that `render` wrote. ConfigError if it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON ({error}). --from takes the file that lies beside a video.") from error
    parts = ("request", "stream", "model", "versions")
    if not (isinstance(data, dict) and all(isinstance(data.get(part), dict) for part in parts)):
        raise ConfigError(f"{path} is no record of a render. --from takes the .json that lies beside a video.")
    try:
        request = read_request(data["request"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    result = data["result"] if isinstance(data.get("result"), dict) else {}
    whole = {} if result.get("interrupted") else result
    video = None if whole.get("continued_at") else whole.get("video_sha256")
    return Record(request, data["stream"], data["model"].get("weights_sha256", ""), data["versions"], video,
                  whole.get("frames_sha256"))  # fmt: skip


def request_data(request: Request) -> dict[str, Any]:
    """Return a request as plain data: JSON has no infinity, so that is a word."""
    return {**to_dict(request), **({"seconds": "inf"} if math.isinf(request.seconds) else {})}


def read_request(data: Any) -> Request:
    """Return the request that `request_data` wrote, now or under older names. ConfigError."""
    data = upgrade(data)
    endless = isinstance(data, dict) and data.get("seconds") == "inf"
    return build(Request, {**data, "seconds": math.inf} if endless else data)


def upgrade(value: Any) -> Any:
    """Return plain data of a record or a snapshot with the names of today where it was written under older ones."""
    if isinstance(value, dict):
        return {OLD_NAMES.get(key, key): upgrade(item) for key, item in value.items()}
    return [upgrade(item) for item in value] if isinstance(value, list) else value


def save_record(video: Path, record: dict[str, Any]) -> None:
    """Write what `describe` returned beside a video; beside stdout there is no place."""
    if video != STDOUT:
        write_whole(record_path(video), json.dumps(record, indent=2, ensure_ascii=False) + "\n")
