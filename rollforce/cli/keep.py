"""What `--keep` may keep or go on with: the video that this very command would make, and no other file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rollforce.checkpoints.safetensors_folder import read_json
from rollforce.cli.record import Record, Request, is_complete, read_record, record_path
from rollforce.cli.resume import snapshot_path
from rollforce.config import to_dict
from rollforce.errors import CheckpointError, ConfigError
from rollforce.streaming.load import StreamOrigin
from rollforce.training.checkpoint import differences
from rollforce.video.outputs import digest_output, is_folder
from rollforce.video.writer import available, default_scale

_ALIKE = ("prompt", "seed", "seconds", "image", "video", "follow", "strength", "fit", "loop", "fps", "dtype", "enhance",
          "enhance_model")  # fmt: skip
_TYPED = ("threads", "device")  # of the machine, unless they were asked for
_LISTED = 4


def find_kept(path: Path, request: Request, find_origin: Callable[[], StreamOrigin]) -> tuple[bool, bool]:
    """Return whether `path` holds this request's whole video, and whether it holds the beginning of one.

    `find_origin` is asked what the request would stream from. ConfigError if the file is anything else."""
    if not path.exists() or (is_folder(path) and path.is_dir() and not any(path.iterdir())):
        return False, False
    record = _read_own(path)
    if other := list(_differences(record, request, find_origin(), path)):
        more = f"; and {len(other) - _LISTED} more" if len(other) > _LISTED else ""
        raise ConfigError(f"{path} was made with other settings ({'; '.join(other[:_LISTED])}{more}): use --overwrite "
                          "in place of --keep to make it anew, or choose another name.")  # fmt: skip
    return is_complete(path), not is_complete(path) and snapshot_path(path).exists()


def _read_own(path: Path) -> Record:
    """Return the record of a video that `render` wrote. ConfigError if the file is another one."""
    foreign = f"{path} is not a video that render made"
    remedy = "use --overwrite in place of --keep to replace it, or choose another name."
    beside = record_path(path)
    if not beside.exists():
        raise ConfigError(f"{foreign} ({beside.name} is not there): {remedy}")
    record = read_record(beside)
    try:
        told = (read_json(beside).get("result") or {}).get("video_sha256")
    except CheckpointError:
        told = None
    if told != digest_output(path) if told else not _may_be_video(path):
        raise ConfigError(f"{foreign} ({beside.name} describes another): {remedy}")
    return record


def _may_be_video(path: Path) -> bool:
    """Return whether a file that a killed render may have left behind begins as one does."""
    if is_folder(path):
        return True  # of what else is in it, others ask
    with path.open("rb") as file:
        head = file.read(8)
    return path.suffix.lower() != ".mp4" or not head or head[4:] == b"ftyp"


def _differences(record: Record, request: Request, origin: StreamOrigin, path: Path) -> Iterator[str]:
    """Yield in words what is not the same in a record and in what would be made now."""
    then, now = record.request, request
    size = now.size or origin.card.size
    typed = [name for name in _TYPED if getattr(now, name) not in (None, "auto")]
    pairs: list[tuple[str, Any, Any]] = [
        (name, getattr(then, name), getattr(now, name)) for name in (*_ALIKE, *typed)
    ]
    pairs += [("size", then.size or origin.card.size, size), ("scale", then.scale, now.scale or default_scale(size))]
    pairs += [("codec", then.codec, available(now.codec, path)), ("changes", then.cues, now.cues)]
    pairs += [("running", then.running, now.running)]
    pairs += list(differences(record.stream, to_dict(origin.settings), "stream"))
    if record.weights_sha256 != origin.fingerprint:
        same = "with other weights" if then.model == now.model else now.model
        yield f"model {then.model}, now {same}"
    for name, before, after in pairs:
        if before != after:
            yield f"{name} {_show(name, before)}, now {_show(name, after)}"


def _show(name: str, value: Any) -> str:
    if name == "size":
        return f"{value[1]}x{value[0]}"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
